"""What the readers find in files whose content is known because the test, or the framework's own quantizer, put it there."""

import hashlib
import json
import warnings

import numpy as np
import pytest

from toolkit import plugins
from toolkit.artifact import Signature, TensorSpec
from toolkit.audit import stage
from toolkit.contents import Contents, Layer
from toolkit.errors import AuditFailed
from toolkit.job import Job

CONV_WEIGHTS, DENSE_WEIGHTS = 8 * 3 * 3 * 3, 512 * 64


def found(model, **options):
    return stage.run(Job({"model": model}, options, model.parent))


# --- the pure decision ------------------------------------------------------------------------------------------------


def contents(*layers, weight_bytes=None):
    made = [Layer(name=f"layer{i}", operator="Conv", weight_dtype=w, activation_dtype=a, weight_bytes=4) for i, (w, a) in enumerate(layers)]
    none = Signature(inputs=(), outputs=())
    return Contents(format="onnx", size_bytes=1, sha256="", signature=none, operators={}, weight_bytes=weight_bytes or {}, layers=tuple(made))


@pytest.mark.parametrize(
    ("layers", "scheme"),
    [
        ([("float32", "float32")], "float32"),
        ([("float16", "float32")], "float16"),
        ([("int8", "int8"), ("int8", "uint8"), ("uint8", "uint8")], "static_wi8_ai8"),
        ([("int8", "int16")], "static_wi8_ai16"),
        ([("int4", "int8")], "static_wi4_ai8"),
        ([("int8", "dynamic int8")], "dynamic_wi8"),
        ([("int8", "float32")], "weight_only_wi8"),
        ([("uint4", "float32")], "weight_only_wi4"),
        ([("int8", "int8"), ("float32", "float32")], "mixed"),
        ([("int8", "int8"), ("int8", "float32")], "mixed"),
        ([("int8", "int8"), ("-", "int8")], "static_wi8_ai8"),
        ([("int8", "int8"), ("-", "float32")], "mixed"),
        ([("int8", "dynamic int8"), ("-", "float32")], "dynamic_wi8"),
        ([("float32", "float32"), ("-", "float32")], "float32"),
        ([("float32", "float32"), ("-", "int8")], "mixed"),
        ([], "float32"),
    ],
)
def test_classify(layers, scheme):
    assert stage.classify(contents(*layers)) == scheme


def test_classify_without_layers_goes_by_the_stored_floats():
    assert stage.classify(contents(weight_bytes={"float16": 8, "int64": 8})) == "float16"


def test_the_message_names_the_layer_that_does_not_fit():
    with pytest.raises(AuditFailed) as caught:
        stage.compare(contents(("int8", "int8"), ("float32", "float32"), ("int8", "int8")), "static_wi8_ai8", where="m.onnx")
    assert caught.value.message == "labelled static_wi8_ai8, but 1 of 3 layers is not: Conv 'layer1' has float32 weights (found mixed)"


def test_the_message_names_three_layers_at_most():
    with pytest.raises(
        AuditFailed, match=r"5 of 5 layers are not: .*'layer2' has int8 weights and float32 activations; and 2 more \(found weight_only_wi8\)"
    ):
        stage.compare(contents(*[("int8", "float32")] * 5), "static_wi8_ai8")


def test_a_model_without_weights_is_not_int8():
    with pytest.raises(AuditFailed, match="it has no layer that stores weights"):
        stage.compare(contents(), "static_wi8_ai8")


# --- ONNX -------------------------------------------------------------------------------------------------------------


def onnx_model():
    """image [n x 3 x 8 x 8] -> Conv -> Relu -> Reshape -> MatMul -> logits [n x 64]."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    tensors = {
        "conv.weight": random.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "shape": np.array([-1, 512]),
        "dense.weight": random.normal(size=(512, 64)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "conv.weight"], ["a"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Reshape", ["b", "shape"], ["c"], name="flatten"),
        helper.make_node("MatMul", ["c", "dense.weight"], ["logits"], name="dense"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 64])
    graph = helper.make_graph(nodes, "net", [image], [logits], [numpy_helper.from_array(value, name) for name, value in tensors.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10, producer_name="test", producer_version="1")


class Samples:
    def __init__(self):
        random = np.random.default_rng(1)
        self.left = [{"image": random.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(2)]

    def get_next(self):
        return self.left.pop() if self.left else None


@pytest.fixture(scope="session")
def onnx_files(tmp_path_factory):
    """One file per scheme, made by ONNX Runtime's own quantizers."""
    onnx = pytest.importorskip("onnx")
    quantization = pytest.importorskip("onnxruntime.quantization")
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
    from onnxruntime.transformers.float16 import convert_float_to_float16

    folder = tmp_path_factory.mktemp("onnx")
    files = {name: folder / f"{name}.onnx" for name in ("float32", "qdq", "qoperator", "int16", "dynamic", "half", "nbits", "int4", "float16")}
    onnx.save(onnx_model(), files["float32"])
    kinds, formats = quantization.QuantType, quantization.QuantFormat

    def static(name, **options):
        chosen = {"activation_type": kinds.QUInt8, "weight_type": kinds.QInt8, "quant_format": formats.QDQ, **options}
        quantization.quantize_static(files["float32"], files[name], Samples(), **chosen)

    static("qdq", per_channel=True)
    static("qoperator", quant_format=formats.QOperator)
    static("int16", activation_type=kinds.QInt16)
    static("half", op_types_to_quantize=["MatMul"])
    quantization.quantize_dynamic(files["float32"], files["dynamic"], weight_type=kinds.QInt8)
    onnx.save(convert_float_to_float16(onnx_model(), keep_io_types=True), files["float16"])
    for name, form in (("nbits", formats.QOperator), ("int4", formats.QDQ)):
        config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, bits=4, quant_format=form)
        quantizer = MatMulNBitsQuantizer(onnx.load(files["float32"]), algo_config=config)
        quantizer.process()
        onnx.save(quantizer.model.model, files[name])
    return files


ONNX_SCHEMES = {
    "float32": "float32",
    "float16": "float16",
    "qdq": "static_wi8_ai8",
    "qoperator": "static_wi8_ai8",
    "int16": "static_wi8_ai16",
    "dynamic": "dynamic_wi8",
    "half": "mixed",
    "nbits": "mixed",
    "int4": "mixed",
}


@pytest.mark.parametrize(("name", "scheme"), ONNX_SCHEMES.items())
def test_onnx_schemes(onnx_files, name, scheme):
    assert found(onnx_files[name])["scheme_found"] == scheme


@pytest.mark.parametrize("name", ONNX_SCHEMES)
def test_a_mislabelled_onnx_file_fails(onnx_files, name):
    right = ONNX_SCHEMES[name]
    if right != "mixed":
        assert found(onnx_files[name], expect=right)["scheme_found"] == right
    for wrong in {"float32", "float16", "static_wi8_ai8", "static_wi8_ai16", "dynamic_wi8", "weight_only_wi8", "weight_only_wi4"} - {right}:
        with pytest.raises(AuditFailed, match=rf"labelled {wrong}, but .*\(found {right}\)"):
            found(onnx_files[name], expect=wrong)


def test_a_half_quantized_onnx_file_names_the_float_layer(onnx_files):
    with pytest.raises(AuditFailed, match=r"1 of 2 layers is not: Conv 'conv' has float32 weights"):
        found(onnx_files["half"], expect="static_wi8_ai8")


def test_onnx_facts(onnx_files):
    facts = found(onnx_files["qdq"], expect="static_wi8_ai8")
    assert (facts["int8_layers"], facts["layers"]) == (2, 2)
    assert facts["size_bytes"] == len(onnx_files["qdq"].read_bytes())


def test_describe_carries_the_whole_contents(onnx_files):
    path = onnx_files["qdq"]
    facts = json.loads(json.dumps(stage.describe(Job({"model": path}, {"format": "onnx"}, path.parent))))
    assert facts["scheme"] == "static_wi8_ai8"
    assert Contents.model_validate(facts["contents"]) == plugins.reader("onnx").read(path)
    audited = json.loads(json.dumps(found(path)))["signature"]
    assert Signature.model_validate(audited) == plugins.reader("onnx").read(path).signature


def test_onnx_layers_in_int8(onnx_files):
    layers = plugins.reader("onnx").read(onnx_files["qdq"]).layers
    seen = [(layer.operator, layer.weight_dtype, layer.activation_dtype, layer.weight_bytes) for layer in layers]
    assert seen == [("Conv", "int8", "uint8", CONV_WEIGHTS), ("MatMul", "int8", "uint8", DENSE_WEIGHTS)]


@pytest.mark.parametrize(("name", "operator"), [("nbits", "com.microsoft.MatMulNBits"), ("int4", "MatMul")])
def test_onnx_four_bit_weights_are_half_a_byte_each(onnx_files, name, operator):
    contents = plugins.reader("onnx").read(onnx_files[name])
    (layer,) = [layer for layer in contents.layers if layer.weight_dtype == "int4"]
    assert (layer.operator, layer.activation_dtype, layer.weight_bytes) == (operator, "float32", DENSE_WEIGHTS // 2)
    assert contents.weight_bytes["int4"] == DENSE_WEIGHTS // 2


def test_onnx_contents(onnx_files):
    path = onnx_files["float32"]
    contents = plugins.reader("onnx").read(path)
    image = TensorSpec(name="image", dtype="float32", shape=("batch", 3, 8, 8))
    assert contents.signature == Signature(inputs=(image,), outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 64)),))
    assert contents.operators == {"Conv": 1, "Relu": 1, "Reshape": 1, "MatMul": 1}
    assert contents.weight_bytes == {"float32": 4 * (CONV_WEIGHTS + DENSE_WEIGHTS), "int64": 16}
    assert contents.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert contents.details == {"opset": "21", "ir_version": "10", "producer": "test 1", "external_data": "no"}


def test_onnx_external_data_is_measured(onnx_files, tmp_path):
    onnx = pytest.importorskip("onnx")
    onnx.save(onnx.load(onnx_files["float32"]), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    contents = plugins.reader("onnx").read(tmp_path / "m.onnx")
    assert contents.details["external_data"] == "yes"
    assert contents.weight_bytes["float32"] == 4 * (CONV_WEIGHTS + DENSE_WEIGHTS)


def test_onnx_layers_inside_subgraphs_and_functions_count(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.INT8, [2, 2], [1, 2, 3, 4])
    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [0.5])
    branch = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["w", "s"], ["dw"]), helper.make_node("MatMul", ["x", "dw"], ["y"], name="inner")],
        "branch",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])],
    )
    function = helper.make_function(
        "own", "Dense", ["a", "b"], ["c"], [helper.make_node("MatMul", ["a", "b"], ["c"], name="called")], [helper.make_opsetid("", 21)]
    )
    nodes = [
        helper.make_node("If", ["flag"], ["z"], then_branch=branch, else_branch=branch),
        helper.make_node("DequantizeLinear", ["w", "s"], ["dw2"]),
        helper.make_node("Dense", ["z", "dw2"], ["out"], domain="own"),
    ]
    inputs = [helper.make_tensor_value_info("flag", TensorProto.BOOL, []), helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("out", TensorProto.FLOAT, [2, 2])], [weight, scale])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("own", 1)], functions=[function])
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "m.onnx")
    layers = plugins.reader("onnx").read(tmp_path / "m.onnx").layers
    assert sorted((layer.name, layer.weight_dtype, layer.weight_bytes) for layer in layers) == [
        ("called", "int8", 4),
        ("inner", "int8", 4),
        ("inner", "int8", 4),
    ]


# --- TFLite and PT2 ---------------------------------------------------------------------------------------------------


def torch_net():
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
            self.dense = torch.nn.Linear(512, 64)

        def forward(self, image):
            return {"logits": self.dense(torch.relu(self.conv(image)).flatten(1))}

    torch.manual_seed(0)
    return Net().eval(), {"image": torch.randn(1, 3, 8, 8)}


@pytest.fixture(scope="session")
def tflite_files(tmp_path_factory):
    """One file per scheme, made by ai-edge-quantizer's own recipes."""
    pytest.importorskip("torch")
    litert_torch = pytest.importorskip("litert_torch")
    from ai_edge_quantizer import quantizer, recipe

    folder = tmp_path_factory.mktemp("tflite")
    recipes = {
        "static_wi8_ai8": recipe.static_wi8_ai8(),
        "static_wi8_ai16": recipe.static_wi8_ai16(),
        "dynamic_wi8": recipe.dynamic_wi8_afp32(),
        "weight_only_wi8": recipe.weight_only_wi8_afp32(),
        "weight_only_wi4": recipe.weight_only_wi4_afp32(),
        "mixed": recipe.dynamic_wi8_afp32(),
    }
    recipes["mixed"][0]["operation"] = "FULLY_CONNECTED"
    files = {name: folder / f"{name}.tflite" for name in ("float32", *recipes)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net, example = torch_net()
        litert_torch.convert(net, sample_kwargs=example).export(str(files["float32"]))
        for name, rules in recipes.items():
            work = quantizer.Quantizer(str(files["float32"]), rules)
            samples = [{"image": value} for value in np.random.default_rng(2).normal(size=(2, 1, 3, 8, 8)).astype(np.float32)]
            statistics = work.calibrate({"serving_default": samples}) if work.need_calibration else None
            work.quantize(statistics).export_model(str(files[name]))
    return files


TFLITE_SCHEMES = ("float32", "static_wi8_ai8", "static_wi8_ai16", "dynamic_wi8", "weight_only_wi8", "weight_only_wi4", "mixed")


@pytest.mark.parametrize("scheme", TFLITE_SCHEMES)
def test_tflite_schemes(tflite_files, scheme):
    assert found(tflite_files[scheme])["scheme_found"] == scheme


@pytest.mark.parametrize("right", TFLITE_SCHEMES)
def test_a_mislabelled_tflite_file_fails(tflite_files, right):
    for wrong in {*TFLITE_SCHEMES, "float16"} - {right, "mixed"}:
        with pytest.raises(AuditFailed, match=rf"labelled {wrong}, but .*\(found {right}\)"):
            found(tflite_files[right], expect=wrong)


def test_a_half_quantized_tflite_file_names_the_float_layer(tflite_files):
    with pytest.raises(AuditFailed, match=r"1 of 2 layers is not: CONV_2D '[^']*conv[^']*' has float32 weights \(found mixed\)"):
        found(tflite_files["mixed"], expect="dynamic_wi8")


def test_tflite_signature_is_what_the_interpreter_says(tflite_files):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    for path in tflite_files.values():
        runner = interpreter.Interpreter(str(path)).get_signature_runner()
        signature = plugins.reader("tflite").read(path).signature
        for specs, details in ((signature.inputs, runner.get_input_details()), (signature.outputs, runner.get_output_details())):
            reference = {name: (np.dtype(detail["dtype"]).name, tuple(detail["shape"])) for name, detail in details.items()}
            assert {spec.name: (spec.dtype, spec.shape) for spec in specs} == reference


def test_tflite_operators_and_weights(tflite_files):
    contents = plugins.reader("tflite").read(tflite_files["static_wi8_ai8"])
    assert contents.operators == {"TRANSPOSE": 2, "CONV_2D": 1, "RESHAPE": 1, "FULLY_CONNECTED": 1}
    assert {layer.operator: layer.weight_bytes for layer in contents.layers} == {"CONV_2D": CONV_WEIGHTS, "FULLY_CONNECTED": DENSE_WEIGHTS}
    assert contents.weight_bytes["int8"] == CONV_WEIGHTS + DENSE_WEIGHTS
    assert contents.details["version"] == "3"
    assert contents.details["signatures"] == "serving_default"
    four = plugins.reader("tflite").read(tflite_files["weight_only_wi4"])
    assert four.weight_bytes["int4"] == (CONV_WEIGHTS + DENSE_WEIGHTS) // 2


@pytest.fixture(scope="session")
def pt2_file(tmp_path_factory):
    torch = pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    net, example = torch_net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net, (), kwargs=example), path)
    return path


def test_pt2_contents(pt2_file):
    contents = plugins.reader("pt2").read(pt2_file)
    image, logits = TensorSpec(name="image", dtype="float32", shape=(1, 3, 8, 8)), TensorSpec(name="logits", dtype="float32", shape=(1, 64))
    assert contents.signature == Signature(inputs=(image,), outputs=(logits,))
    assert contents.weight_bytes == {"float32": 4 * (CONV_WEIGHTS + DENSE_WEIGHTS + 8 + 64)}
    assert contents.operators == {"aten.conv2d.default": 1, "aten.relu.default": 1, "aten.flatten.using_ints": 1, "aten.linear.default": 1}
    assert [(layer.name, layer.weight_bytes) for layer in contents.layers] == [("conv", 4 * CONV_WEIGHTS), ("dense", 4 * DENSE_WEIGHTS)]
    assert found(pt2_file, expect="float32")["scheme_found"] == "float32"
    with pytest.raises(AuditFailed):
        found(pt2_file, expect="float16")


def test_pt2_without_names_falls_back(tmp_path):
    torch = pytest.importorskip("torch")

    class Pair(torch.nn.Module):
        def forward(self, x, y):
            return x @ y, x + 1

    path = tmp_path / "pair.pt2"
    size = torch.export.Dim("rows", min=2, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(Pair(), (torch.ones(4, 3), torch.ones(3, 2).int().float()), dynamic_shapes=({0: size}, None))
        torch.export.save(program, path)
    signature = plugins.reader("pt2").read(path).signature
    assert [spec.name for spec in signature.inputs] == ["x", "y"]
    assert [spec.name for spec in signature.outputs] == ["output_0", "output_1"]
    assert isinstance(signature.inputs[0].shape[0], str)
    assert signature.inputs[0].shape[1] == 3
    assert found(path)["layers"] == 0
