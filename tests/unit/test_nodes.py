"""Operators of a file one by one: their layers, and their work held against PyTorch's own counter and against loops."""

import itertools

import numpy as np
import pytest

from toolkit.audit import layers
from toolkit.audit.onnx import READER as ONNX
from toolkit.audit.tflite import READER as TFLITE


def onnx_file(path, nodes, inputs, outputs, stored=(), value_info=(), opsets=(("", 21),)):
    """Writes a model of ``(operator, inputs, outputs, attributes)``; ``inputs`` and ``outputs`` are ``name: (dtype, shape)``."""
    from onnx import helper, numpy_helper, save

    def values(named):
        return [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape) for name, (kind, shape) in named.items()]

    made = [helper.make_node(kind, list(read), list(makes), **attributes) for kind, read, makes, attributes in nodes]
    graph = helper.make_graph(
        made, "g", values(inputs), values(outputs), [numpy_helper.from_array(array, name) for name, array in dict(stored).items()]
    )
    graph.value_info.extend(values(dict(value_info)))
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid(*one) for one in opsets], ir_version=10), str(path))
    return path


def one_operator(path, kind, shapes, output, **attributes):
    """Writes a model of one operator whose operands are all inputs."""
    pytest.importorskip("onnx")
    names = [f"i{place}" for place in range(len(shapes))]
    given = {name: ("float32", shape) for name, shape in zip(names, shapes, strict=True)}
    return ONNX.read(onnx_file(path / "m.onnx", [(kind, names, ["o"], attributes)], given, {"o": ("float32", output)}))


def counted(function, *shapes, device="cpu"):
    """Multiply-accumulates by PyTorch's counter, which counts each as two operations."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        function(*(torch.ones(shape, device=device) for shape in shapes))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolution(tmp_path, groups):
    torch = pytest.importorskip("torch")
    shapes = (2, 4, 9, 7), (8, 4 // groups, 3, 3)
    expected = counted(lambda x, w: torch.nn.functional.conv2d(x, w, stride=2, padding=1, groups=groups), *shapes)
    found = one_operator(tmp_path, "Conv", shapes, None, strides=[2, 2], pads=[1, 1, 1, 1], group=groups)
    assert [node.macs for node in found.nodes] == [expected]


def test_convolution_by_a_loop(tmp_path):
    found = one_operator(tmp_path, "Conv", ((1, 2, 5, 4), (3, 2, 2, 3)), None)
    positions = itertools.product(range(3), range(5 - 2 + 1), range(4 - 3 + 1), range(2), range(2), range(3))
    assert found.nodes[0].macs == sum(1 for _ in positions)


def test_transposed_convolution(tmp_path):
    torch = pytest.importorskip("torch")
    shapes = (1, 6, 5, 5), (6, 2, 3, 3)
    expected = counted(lambda x, w: torch.nn.functional.conv_transpose2d(x, w, stride=2, groups=3), *shapes)
    # PyTorch counts a grouped one as if it were not grouped.
    assert one_operator(tmp_path, "ConvTranspose", shapes, None, strides=[2, 2], group=3).nodes[0].macs in (expected, expected // 3)
    assert one_operator(tmp_path, "ConvTranspose", shapes, None, strides=[2, 2], group=3).nodes[0].macs == 6 * 5 * 5 * 2 * 3 * 3


@pytest.mark.parametrize(("left", "right"), [((3, 5), (5, 7)), ((2, 4, 3, 5), (2, 4, 5, 7)), ((2, 1, 3, 5), (4, 5, 7)), ((5,), (5, 7))])
def test_matrix_product(tmp_path, left, right):
    out = np.matmul(np.ones(left), np.ones(right)).shape
    expected = sum(1 for _ in itertools.product(*map(range, out), range(left[-1])))
    assert one_operator(tmp_path, "MatMul", (left, right), None).nodes[0].macs == expected


@pytest.mark.parametrize(("trans_a", "trans_b"), itertools.product((0, 1), repeat=2))
def test_gemm(tmp_path, trans_a, trans_b):
    left, right = ((5, 3) if trans_a else (3, 5)), ((7, 5) if trans_b else (5, 7))
    torch = pytest.importorskip("torch")
    expected = counted(lambda a, b, c: torch.addmm(c, a, b), (3, 5), (5, 7), (3, 7))
    assert one_operator(tmp_path, "Gemm", (left, right, (7,)), None, transA=trans_a, transB=trans_b).nodes[0].macs == expected


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent(tmp_path, kind, gates):
    torch = pytest.importorskip("torch")
    steps, batch, width, hidden = 6, 2, 5, 3
    cell = {"LSTM": torch.nn.LSTMCell, "GRU": torch.nn.GRUCell, "RNN": torch.nn.RNNCell}[kind](width, hidden)
    expected = 2 * steps * counted(cell, (batch, width))  # in two directions
    shapes = (steps, batch, width), (2, gates * hidden, width), (2, gates * hidden, hidden)
    found = one_operator(tmp_path, kind, shapes, None, hidden_size=hidden, direction="bidirectional")
    assert found.nodes[0].macs == expected


def test_einsum(tmp_path):
    expected = counted(pytest.importorskip("torch").bmm, (2, 3, 5), (2, 5, 7))
    assert one_operator(tmp_path, "Einsum", ((2, 3, 5), (2, 5, 7)), None, equation="bij,bjk->bik").nodes[0].macs == expected


def test_attention_of_onnx_runtime(tmp_path):
    """Projection, scores and sums are three matrix products."""
    batch, steps, width, heads = 2, 6, 8, 2
    torch = pytest.importorskip("torch")

    def attend(x, w):
        q, k, v = (x @ w).reshape(batch, steps, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        return (q @ k.mT) @ v

    nodes = [("Attention", ["x", "w", "b"], ["y"], {"num_heads": heads, "domain": "com.microsoft"})]
    kinds = {"x": ("float32", (batch, steps, width)), "w": ("float32", (width, 3 * width)), "b": ("float32", (3 * width,))}
    file = onnx_file(tmp_path / "m.onnx", nodes, kinds, {"y": ("float32", (batch, steps, width))}, opsets=(("", 21), ("com.microsoft", 1)))
    with torch.no_grad():
        assert ONNX.read(file).nodes[0].macs == counted(attend, (batch, steps, width), (width, 3 * width))


def test_what_cannot_be_counted_is_said(tmp_path):
    pytest.importorskip("onnx")
    nodes = [("Mystery", ["x"], ["h"], {"domain": "com.microsoft"}), ("MatMul", ["h", "w"], ["y"], {})]
    stored = {"w": np.ones((4, 3), np.float32)}
    file = onnx_file(
        tmp_path / "m.onnx", nodes, {"x": ("float32", (1, 4))}, {"y": ("float32", (1, 3))}, stored, opsets=(("", 21), ("com.microsoft", 1))
    )
    found = ONNX.read(file)
    assert found.nodes[1].macs == 0
    assert found.details["macs"] == "incomplete: not counted: 1 MatMul"
    assert found.arena_bytes is None


def test_free_sizes_count_as_one_and_leave_the_arena_unknown(tmp_path):
    found = one_operator(tmp_path, "MatMul", (("batch", 5), (5, 7)), None)
    assert (found.nodes[0].macs, found.arena_bytes, "macs" in found.details) == (35, None, False)


def quantized_file(path):
    """x -> Q -> DQ -> Conv(DQ weights) -> Relu -> Q -> DQ -> y, as quantizers write it."""
    scales = {"s": np.float32(0.1), "z": np.uint8(128), "zw": np.int8(0), "conv.weight_quantized": np.ones((8, 4, 1, 1), np.int8)}
    nodes = [
        ("QuantizeLinear", ["x", "s", "z"], ["xq"], {}),
        ("DequantizeLinear", ["xq", "s", "z"], ["xd"], {}),
        ("DequantizeLinear", ["conv.weight_quantized", "s", "zw"], ["wd"], {}),
        ("Conv", ["xd", "wd"], ["c"], {}),
        ("QuantizeLinear", ["c", "s", "z"], ["cq"], {}),
        ("DequantizeLinear", ["cq", "s", "z"], ["cd"], {}),
        ("Relu", ["cd"], ["y"], {}),
    ]
    return onnx_file(path / "q.onnx", nodes, {"x": ("float32", (1, 4, 5, 5))}, {"y": ("float32", (1, 8, 5, 5))}, scales)


def test_a_quantized_operator_computes_and_moves_integers(tmp_path):
    pytest.importorskip("onnx")
    found = {node.operator: node for node in ONNX.read(quantized_file(tmp_path)).nodes}
    conv = found["Conv"]
    assert (conv.dtype, conv.macs) == ("int8", 8 * 4 * 25)
    assert conv.moved_bytes == 4 * 25 + 8 * 4 + 8 * 25
    assert (conv.layer, found["Relu"].layer) == ("conv", "conv")
    assert found["DequantizeLinear"].moved_bytes == 0
    assert found["Relu"].moved_bytes == 8 * 25 + 4 * 8 * 25


def test_the_float_side_of_quantized_tensors_takes_no_memory(tmp_path):
    pytest.importorskip("onnx")
    # The float input beside its integers; then these beside the convolution's; then those beside the float output.
    at_once = [4 * 100 + 100, 100 + 200, 200 + 800]
    assert max(at_once) <= ONNX.read(quantized_file(tmp_path)).arena_bytes <= max(at_once) + 2 * 64


def test_a_view_moves_nothing_and_a_lookup_reads_only_its_rows(tmp_path):
    pytest.importorskip("onnx")
    stored = {"table.weight": np.ones((1000, 16), np.float32), "shape": np.array([1, 32])}
    nodes = [("Gather", ["table.weight", "ids"], ["rows"], {}), ("Reshape", ["rows", "shape"], ["y"], {})]
    file = onnx_file(tmp_path / "m.onnx", nodes, {"ids": ("int64", (2,))}, {"y": ("float32", (1, 32))}, stored)
    gather, reshape = ONNX.read(file).nodes
    assert (gather.moved_bytes, reshape.moved_bytes) == (2 * 2 * 16 * 4 + 2 * 8, 0)
    assert (gather.layer, reshape.layer) == ("table", "table")


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory):
    """torchvision's MobileNetV2 by the exporter that needs no other library; its nodes are named after their scopes."""
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    pytest.importorskip("onnx")
    file = tmp_path_factory.mktemp("mobilenet") / "m.onnx"
    model = torchvision.models.mobilenet_v2().eval()
    torch.onnx.export(model, torch.zeros(1, 3, 224, 224), str(file), dynamo=False, opset_version=17)
    return ONNX.read(file), model.to("meta")


def test_mobilenet_has_the_work_that_torchvision_publishes(mobilenet):
    from torchvision.models import MobileNet_V2_Weights

    total = sum(node.macs for node in mobilenet[0].nodes)
    assert total == counted(mobilenet[1], (1, 3, 224, 224), device="meta") == 300_774_272
    assert round(total / 1e9, 3) == MobileNet_V2_Weights.IMAGENET1K_V1.meta["_ops"]


def test_mobilenet_operators_belong_to_its_own_modules(mobilenet):
    torch = pytest.importorskip("torch")
    modules = {name for name, part in mobilenet[1].named_modules() if isinstance(part, torch.nn.Conv2d | torch.nn.Linear)}
    found = [node.layer for node in mobilenet[0].nodes if node.macs]
    assert sorted(found) == sorted(modules)
    assert all(node.layer in dict(mobilenet[1].named_modules()) for node in mobilenet[0].nodes)


# --- TFLite -----------------------------------------------------------------------------------------------------------


def tflite_operator(path, kind, shapes, output, stored=(1,)):
    """Writes a model of one operator; the operands at ``stored`` are weights."""
    pytest.importorskip("ai_edge_litert")
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    from tests.models import _write_tflite

    tensors = [(f"i{place}", list(shape), np.ones(shape, np.float32) if place in stored else None) for place, shape in enumerate(shapes)]
    tensors.append(("o", list(output), None))
    data = next(place for place in range(len(shapes)) if place not in stored)
    operators = [(getattr(BuiltinOperator, kind), list(range(len(shapes))), [len(shapes)], None)]
    return TFLITE.read(_write_tflite(path / "m.tflite", tensors, operators, ("x", data), ("y", len(shapes))))


def by_torch(name, *shapes, **options):
    torch = pytest.importorskip("torch")
    return counted(lambda *tensors: getattr(torch.nn.functional, name)(*tensors, **options), *shapes)


def test_tflite_convolutions(tmp_path):
    expected = by_torch("conv2d", (1, 4, 9, 9), (8, 4, 3, 3))
    assert tflite_operator(tmp_path, "CONV_2D", ((1, 9, 9, 4), (8, 3, 3, 4)), (1, 7, 7, 8)).nodes[0].macs == expected
    expected = by_torch("conv2d", (1, 4, 9, 9), (8, 1, 3, 3), groups=4)
    assert tflite_operator(tmp_path, "DEPTHWISE_CONV_2D", ((1, 9, 9, 4), (1, 3, 3, 8)), (1, 7, 7, 8)).nodes[0].macs == expected
    expected = by_torch("conv_transpose2d", (1, 4, 5, 5), (4, 8, 3, 3))
    found = tflite_operator(tmp_path, "TRANSPOSE_CONV", ((4,), (8, 3, 3, 4), (1, 5, 5, 4)), (1, 7, 7, 8), stored=(0, 1))
    assert found.nodes[0].macs == expected
    expected = by_torch("conv3d", (1, 4, 5, 5, 5), (8, 4, 3, 3, 3))
    assert tflite_operator(tmp_path, "CONV_3D", ((1, 5, 5, 5, 4), (3, 3, 3, 4, 8)), (1, 3, 3, 3, 8)).nodes[0].macs == expected


def test_tflite_products(tmp_path):
    assert tflite_operator(tmp_path, "FULLY_CONNECTED", ((3, 5), (7, 5)), (3, 7)).nodes[0].macs == by_torch("linear", (3, 5), (7, 5))
    expected = counted(pytest.importorskip("torch").bmm, (2, 3, 5), (2, 5, 7))
    for left, right in (((2, 3, 5), (2, 5, 7)), ((2, 5, 3), (2, 7, 5))):  # as they are, and both transposed
        assert tflite_operator(tmp_path, "BATCH_MATMUL", (left, right), (2, 3, 7), stored=()).nodes[0].macs == expected


def test_tflite_recurrent(tmp_path):
    torch = pytest.importorskip("torch")
    steps, batch, width, hidden = 6, 2, 5, 3
    shapes = [(steps, batch, width), *[(hidden, width)] * 4, *[(hidden, hidden)] * 4]
    found = tflite_operator(tmp_path, "UNIDIRECTIONAL_SEQUENCE_LSTM", shapes, (steps, batch, hidden), stored=tuple(range(1, 9)))
    assert found.nodes[0].macs == steps * counted(torch.nn.LSTMCell(width, hidden), (batch, width))


def test_tflite_arena_and_moved_bytes(tmp_path):
    found = tflite_operator(tmp_path, "FULLY_CONNECTED", ((4, 16), (32, 16)), (4, 32))
    assert found.nodes[0].moved_bytes == 4 * (4 * 16 + 32 * 16 + 4 * 32)
    assert found.arena_bytes == 4 * (4 * 16 + 4 * 32)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("features.0.0.weight", "features.0.0"),
        ("features.0.0.weight_quantized", "features.0.0"),
        ("encoder.layer.3.attention.self.query.bias", "encoder.layer.3.attention.self.query"),
        ("conv.weight_transposed_quantized", "conv"),
        ("onnx::MatMul_312", ""),
        ("val_54", ""),
        ("weights", ""),
    ],
)
def test_layer_of_a_weight(name, layer):
    assert layers.from_weight(name) == layer


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("features.0.0/Conv", "features.0.0"),
        ("features.0.0/Conv_2_quant", "features.0.0"),
        ("/features/features.0/features.0.0/Conv", "features.0.0"),
        ("/layer/layer.1/attention/query/MatMul", "layer.1.attention.query"),
        ("/features/features.1/conv/conv.0/conv.0.0/Conv", "features.1.conv.0.0"),
        ("/Add", ""),
        ("node_Conv_810", ""),
    ],
)
def test_layer_of_a_node(name, layer):
    assert layers.from_node_name(name) == layer


@pytest.mark.parametrize("note", ["", "[", "['']", "{}", "[" * 300, "__import__('os')", "'a'"])
def test_a_note_that_is_no_list_of_scopes_says_nothing(note):
    assert layers.from_scopes(note) == ""


def test_layer_from_a_note():
    assert layers.from_scopes("['', 'features', 'features.0', 'hardtanh']") == "features.0"


def test_tflite_names():
    chain = "a.b.Net/torch.nn.modules.container.Sequential_features/t.Conv2dNormActivation_0/torch.nn.modules.conv.Conv2d_0;"
    assert layers.fused(chain) == ["features.0.0"]
    assert layers.fused("layer:features.0.2;;layer:features.0.1;;layer:features.0.0;17") == ["features.0.2", "features.0.1", "features.0.0"]
    assert layers.fused("a.b.Net;3") == layers.fused("serving_default_x:0") == layers.fused("model/dense/MatMul;model/dense/Relu") == []


def test_layers_that_share_a_constant_are_told_apart():
    """The three projections of one attention share a transposition, which the converter names after the first of them."""
    query = ["attention", "attention.q", "attention"]
    key, value = ["attention", "attention.q", "attention.k"], ["attention", "attention.q", "attention.v"]
    assert layers.from_tensor_names([value, query, key, []], [True, True, True, False]) == ["attention.v", "attention.q", "attention.k", ""]


def test_the_wrapper_is_dropped_only_where_everything_lies_in_it():
    assert layers.without_wrapper(["model.a.0", "", "model"]) == ["a.0", "", ""]
    assert layers.without_wrapper(["model.a.0", "head"]) == ["model.a.0", "head"]
