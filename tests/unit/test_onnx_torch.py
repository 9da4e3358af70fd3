"""ONNX graphs in PyTorch's words, against ONNX's own cases and against ONNX Runtime."""

from collections import Counter

import numpy as np
import pytest

from toolkit import pt2
from toolkit.artifact import Signature, TensorSpec
from toolkit.convert import onnx_torch
from toolkit.convert.onnx_operators import OPERATORS, Unsupported
from toolkit.errors import StageFailed

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

# Their first input is data and the others are settings, which exporters write as constants.
SETTINGS = {"Clip", "Pad", "Resize", "Dropout", "TopK", "CumSum", "Trilu"}
INDICES = {"Gather", "GatherElements", "GatherND", "Where", "Equal"}
ALL_CONSTANT = {"ConstantOfShape", "Range"}
# Of equal values ONNX asks for the places of the first ones. Negative places are legal and hardly ever data.
DIFFERENT = {"test_top_k_same_values", "test_top_k_same_values_largest", "test_top_k_same_values_2d"}
REFUSED_BY_PYTORCH = {"test_gather_negative_indices", "test_gather_elements_negative_indices"}


def spec(name, array):
    return TensorSpec(name=name, dtype=array.dtype.name, shape=array.shape)


def constant(kind, place, array):
    if kind in ALL_CONSTANT:
        return True
    return place > 0 and (kind in SETTINGS or (array.dtype == np.int64 and array.ndim <= 1 and kind not in INDICES))


def plain(arrays):
    known = all(isinstance(array, np.ndarray | np.generic) for array in arrays)
    return known and all(
        np.asarray(array).dtype.name in ("float32", "float64", "int32", "int64", "bool") and np.asarray(array).size for array in arrays
    )


def cases():
    """ONNX's own cases of single operators that are known here, with plain numbers."""
    from onnx.backend.test.case.node import collect_testcases

    for case in collect_testcases(None):
        if case.model is not None and case.data_sets and all(node.op_type in OPERATORS for node in case.model.graph.node):
            given, expected = case.data_sets[0]
            if plain(given) and plain(expected) and len(given) == len(case.model.graph.input):
                yield case.name, case.model, [np.asarray(one) for one in given], [np.asarray(one) for one in expected]


def run(model, given, expected):
    kind = model.graph.node[0].op_type
    values = dict(zip([value.name for value in model.graph.input], given, strict=True))
    fixed = {name: array for place, (name, array) in enumerate(values.items()) if constant(kind, place, array)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in fixed.items())
    free = {name: array for name, array in values.items() if name not in fixed}
    outputs = [value.name for value in model.graph.output]
    signature = Signature(
        inputs=tuple(spec(name, array) for name, array in free.items()), outputs=tuple(spec(*pair) for pair in zip(outputs, expected, strict=True))
    )
    module = onnx_torch._Module.make(onnx_torch._reduced(model, signature), signature)
    found = module(**{name: torch.from_numpy(np.array(array)) for name, array in free.items()})
    for name, array in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(found[name].numpy(), array, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.filterwarnings("ignore")
def test_every_operator_computes_what_onnx_says_or_refuses():
    """A wrong value is a fault, a refusal is not; but most cases must pass."""
    outcomes, wrong = Counter(), []
    for name, model, given, expected in cases():
        try:
            run(model, given, expected)
            outcomes["right"] += 1
        except Unsupported:
            outcomes["refused"] += 1
        except AssertionError as error:
            wrong.append((name, str(error)[:200]))
        except (RuntimeError, IndexError, TypeError) as error:
            outcomes["refused"] += 1
            assert name in REFUSED_BY_PYTORCH, (name, error)
    assert {name for name, _ in wrong} <= DIFFERENT, wrong
    assert outcomes["right"] >= 480 and outcomes["refused"] < outcomes["right"] / 4, outcomes


def network(path):
    """Writes a file whose shape computation depends on the input's size: ``x [1 x 3 x 8 x 8]`` to ``scores [1 x 10]``."""
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    weights = {
        "kernel": generator.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "dense": generator.normal(size=(128, 10)).astype(np.float32) / 8,
        "zero": np.array(0),
        "rest": np.array([-1]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["seen"], name="features.0/Conv", auto_pad="SAME_UPPER", strides=[2, 2]),
        helper.make_node("Relu", ["seen"], ["positive"]),
        helper.make_node("Shape", ["positive"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "first"], ["batches"]),
        helper.make_node("Concat", ["batches", "rest"], ["flat"], axis=0),
        helper.make_node("Reshape", ["positive", "flat"], ["features"]),
        helper.make_node("MatMul", ["features", "dense"], ["scores"]),
    ]
    weights["first"] = np.array([0])
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])]
    result = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 10])]
    graph = helper.make_graph(nodes, "net", given, result, [numpy_helper.from_array(value, name) for name, value in weights.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 3, 8, 8)),), outputs=(TensorSpec(name="scores", dtype="float32", shape=(1, 10)),)
    )


def test_a_graph_becomes_a_program_that_computes_what_onnxruntime_computes(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    signature = network(tmp_path / "net.onnx")
    onnx_torch.ROUTE.convert(tmp_path / "net.onnx", tmp_path / "net.pt2", signature)
    program = pt2.load(tmp_path / "net.pt2")
    x = np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)
    expected = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    found = program.module()(x=torch.from_numpy(x))
    assert list(found) == ["scores"]
    np.testing.assert_allclose(found["scores"].numpy(), expected, atol=1e-5)
    kinds = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert not any("sym_size" in str(kind) for kind in kinds), "sizes must have become constants"


def test_an_operator_that_is_not_known_is_named_with_its_layer_before_anything_is_converted(tmp_path):
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Hardmax", ["x"], ["y"], name="head.2/Hardmax")], "net", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(tmp_path / "net.onnx"))
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 4)),), outputs=(TensorSpec(name="y", dtype="float32", shape=(1, 4)),)
    )
    (found,) = onnx_torch.ROUTE.preflight(tmp_path / "net.onnx", signature)
    assert (found.operator, found.layer) == ("Hardmax", "head.2")
    with pytest.raises(StageFailed, match=r"Hardmax \(head\.2\) has no counterpart"):
        onnx_torch.ROUTE.convert(tmp_path / "net.onnx", tmp_path / "net.pt2", signature)
    assert not (tmp_path / "net.pt2").exists()
