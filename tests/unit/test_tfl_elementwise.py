"""Arithmetic, comparisons, activations and reductions in TFLite: what ONNX Runtime or NumPy computes, in both layouts, or a reason why not."""

from pathlib import Path

import numpy as np
import pytest
from scipy import special

from toolkit.artifact import Signature, TensorSpec
from toolkit.convert import onnx_litert
from toolkit.errors import StageFailed

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
interpreter = pytest.importorskip("ai_edge_litert.interpreter")

helper, numpy_helper = onnx.helper, onnx.numpy_helper
RANDOM = np.random.default_rng(7)
IMAGE = RANDOM.normal(size=(2, 3, 4, 5)).astype(np.float32)
MIXED = RANDOM.normal(size=(4, 3, 1, 1)).astype(np.float32)  # the weights of a convolution, which wants its channels last
BACK = RANDOM.normal(size=(2, 4, 1, 1)).astype(np.float32)
CHANNELS = np.array([0.1, -0.2, 0.3, 2.0], np.float32).reshape(4, 1, 1)


def model(nodes, given, constants, *, dtype=None, opset=18):
    """A model of nodes that end in ``y``."""
    inputs = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(one.dtype), one.shape) for name, one in given.items()]
    kept = [numpy_helper.from_array(np.asarray(one), name) for name, one in constants.items()]
    wanted = helper.np_dtype_to_tensor_dtype(np.dtype(dtype or next(iter(given.values())).dtype))
    graph = helper.make_graph(nodes, "one", inputs, [helper.make_tensor_value_info("y", wanted, None)], kept)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def converted(tmp_path: Path, made, given):
    """Runs a model on LiteRT; returns its output and the kinds of its operators."""
    source, out = tmp_path / "model.onnx", tmp_path / "model.tflite"
    onnx.save(made, str(source))
    inputs = tuple(TensorSpec(name=name, dtype=one.dtype.name, shape=one.shape) for name, one in given.items())
    onnx_litert.ROUTE.convert(source, out, Signature(inputs=inputs, outputs=(TensorSpec(name="y", dtype="float32", shape=()),)))
    runner = interpreter.Interpreter(str(out), num_threads=1)
    kinds = [one["op_name"] for one in runner._get_ops_details()]
    return runner.get_signature_runner()(**given)["y"], kinds


def agree(tmp_path: Path, made, given, *, rtol=1e-5, atol=1e-6):
    """Holds LiteRT's output against ONNX Runtime's; returns the kinds of operators."""
    (wanted,) = onnxruntime.InferenceSession(made.SerializeToString()).run(None, given)
    got, kinds = converted(tmp_path, made, given)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=atol)
    return kinds


def one(tmp_path: Path, kind, given, constants=None, *, dtype=None, opset=18, rtol=1e-5, atol=1e-6, **attributes):
    """Checks a model of one operator."""
    constants = constants or {}
    node = helper.make_node(kind, [*given, *constants], ["y"], **attributes)
    return agree(tmp_path, model([node], given, constants, dtype=dtype, opset=opset), given, rtol=rtol, atol=atol)


LAST = {
    "add": ("Add", {"c": CHANNELS}, {}),
    "div": ("Div", {"c": CHANNELS}, {}),
    "prelu": ("PRelu", {"c": CHANNELS}, {}),
    "prelu_row": ("PRelu", {"c": np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32)}, {}),
    "max": ("Max", {"c": CHANNELS, "d": np.array([0.1, 0.2, -0.3, 0.4, 0.5], np.float32)}, {}),
    "mean": ("Mean", {"c": CHANNELS, "d": np.float32(3)}, {}),
    "softmax_channels": ("Softmax", {}, {"axis": 1}),
    "softmax_rows": ("Softmax", {}, {"axis": 2}),
    "softmax_last": ("Softmax", {}, {"axis": -1}),
    "log_softmax": ("LogSoftmax", {}, {"axis": 1}),
    "hardmax": ("Hardmax", {}, {"axis": 2}),
    "cumsum": ("CumSum", {"axis": np.int64(1)}, {"exclusive": 1, "reverse": 1}),
    "mean_channels": ("ReduceMean", {"axes": np.array([1])}, {}),
    "max_rows": ("ReduceMax", {"axes": np.array([-2])}, {}),
    "elu": ("Elu", {}, {"alpha": 0.7}),
}


@pytest.mark.parametrize("name", LAST)
def test_operators_between_convolutions(name, tmp_path):
    kind, constants, attributes = LAST[name]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node(kind, ["a", *constants], ["b"], **attributes),
        helper.make_node("Conv", ["b", "v"], ["y"]),
    ]
    back = BACK if name != "mean_channels" else BACK[:, :1]
    agree(tmp_path, model(nodes, {"x": IMAGE}, {"w": MIXED, "v": back, **constants}), {"x": IMAGE})


def test_an_operator_between_convolutions_costs_no_transpose(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"], axis=1),
        helper.make_node("Conv", ["b", "v"], ["y"]),
    ]
    kinds = agree(tmp_path, model(nodes, {"x": IMAGE}, {"w": MIXED, "v": BACK}), {"x": IMAGE})
    assert kinds.count("TRANSPOSE") == 2  # of the model's own input and output


@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceL2", "ReduceLogSumExp", "ArgMax"])
@pytest.mark.parametrize("axes", [[1], [2], [3], [2, 3], [1, 3], [0, 2]])
def test_axes_that_are_gone_leave_the_others_in_order(kind, axes, tmp_path):
    if kind == "ArgMax":
        node, constants = helper.make_node(kind, ["a"], ["y"], axis=axes[0], keepdims=0), {}
    else:
        node, constants = helper.make_node(kind, ["a", "axes"], ["y"], keepdims=0), {"axes": np.array(axes)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), node]
    agree(tmp_path, model(nodes, {"x": IMAGE}, {"w": MIXED, **constants}, dtype=np.int64 if kind == "ArgMax" else None), {"x": IMAGE})


def test_a_mean_over_an_image_is_one_kernel(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("ReduceMean", ["a", "axes"], ["y"], keepdims=0)]
    kinds = agree(tmp_path, model(nodes, {"x": IMAGE}, {"w": MIXED, "axes": np.array([2, 3])}), {"x": IMAGE})
    assert kinds.count("MEAN") == 1 and kinds.count("RESHAPE") == 0 and kinds.count("TRANSPOSE") == 1


def exactly(tmp_path, kind, values, function, *, rtol, opset=18, atol=0.0, **attributes):
    """Holds one operator of one input against a function of double precision."""
    given = {"x": np.asarray(values, np.float32)}
    got, _ = converted(tmp_path, model([helper.make_node(kind, ["x"], ["y"], **attributes)], given, {}, opset=opset), given)
    np.testing.assert_allclose(got, function(given["x"].astype(np.float64)), rtol=rtol, atol=atol)


SIZES = np.concatenate([np.geomspace(1e-6, 60, 200), -np.geomspace(1e-6, 60, 200), [0.0]])
PRECISE = {
    "Erf": (SIZES, special.erf), "Asinh": (np.append(SIZES, [1e15, 1e25]), np.arcsinh), "Sinh": (SIZES, np.sinh), "Cosh": (SIZES, np.cosh),
    "Atanh": (np.clip(SIZES, -0.999, 0.999), np.arctanh), "Acosh": (1 + np.abs(SIZES), np.arccosh), "Asin": (SIZES / 60, np.arcsin),
    "Acos": (SIZES / 60, np.arccos), "Atan": (SIZES, np.arctan), "Tan": (np.clip(SIZES, -1.5, 1.5), np.tan),
    "Softplus": (SIZES, lambda x: np.logaddexp(0, x)), "Mish": (SIZES, lambda x: x * np.tanh(np.logaddexp(0, x))),
    "Softsign": (SIZES, lambda x: x / (1 + abs(x))),
}  # fmt: skip


@pytest.mark.parametrize("kind", PRECISE)
def test_what_has_no_kernel_keeps_its_digits(kind, tmp_path):
    values, function = PRECISE[kind]
    exactly(tmp_path, kind, values, function, rtol=5e-6, opset=20)


SMALL = np.array([[100, -128, 127], [-1, 3, -100]], np.int8)


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul"])
def test_small_integers_wrap_around_before_they_are_used(kind, tmp_path):
    given = {"a": SMALL, "b": np.array([100, -1, 127], np.int8)}
    nodes = [helper.make_node(kind, ["a", "b"], ["c"]), helper.make_node("Cast", ["c"], ["y"], to=onnx.TensorProto.FLOAT)]
    got, _ = converted(tmp_path, model(nodes, given, {}, dtype=np.float32), given)
    function = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}[kind]
    np.testing.assert_array_equal(got, function(*given.values()).astype(np.float32))


@pytest.mark.parametrize("kind", ["BitwiseAnd", "BitwiseOr", "BitwiseXor"])
@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.uint8, np.int16])
def test_bits(kind, dtype, tmp_path):
    limits = np.iinfo(dtype)
    numbers = RANDOM.integers(limits.min, limits.max, (2, 40), dtype, endpoint=True)
    numbers[:, :4] = [[limits.max, limits.min, limits.max, 0], [limits.max, limits.min, limits.min, limits.max]]
    given = {"a": numbers[:1], "b": numbers[1].reshape(40, 1)}
    got, _ = converted(tmp_path, model([helper.make_node(kind, [*given], ["y"])], given, {}), given)
    function = {"BitwiseAnd": np.bitwise_and, "BitwiseOr": np.bitwise_or, "BitwiseXor": np.bitwise_xor}[kind]
    np.testing.assert_array_equal(got.astype(dtype), function(*given.values()))


@pytest.mark.parametrize(
    ("source", "wanted"), [("float32", "bool"), ("int32", "uint8"), ("float32", "int32"), ("uint8", "float32"), ("int32", "int8")]
)
def test_casts(source, wanted, tmp_path):
    given = {"x": np.array([0.0, 0.4, 200.7, 255.0, 300.5, 70000.0]).astype(source)}
    if source == "int32":
        given["x"][:2] = [-1, -200]
    node = helper.make_node("Cast", ["x"], ["a"], to=helper.np_dtype_to_tensor_dtype(np.dtype(wanted)))
    nodes = [node, helper.make_node("Cast", ["a"], ["y"], to=onnx.TensorProto.FLOAT)]
    got, _ = converted(tmp_path, model(nodes, given, {}, dtype=np.float32), given)
    np.testing.assert_array_equal(got, given["x"].astype(wanted).astype(np.float32))


def test_a_choice_is_broadcast_three_ways_over_five_axes(tmp_path):
    given = {
        "c": RANDOM.integers(0, 2, (3, 1, 4, 1)) > 0,
        "a": RANDOM.normal(size=(2, 1, 2, 1, 2)).astype(np.float32),
        "b": np.float32([[1], [2], [3], [4]]),
    }
    one(tmp_path, "Where", given, dtype=np.float32)


@pytest.mark.parametrize("fmod", [0, 1])
def test_remainders_have_the_sign_that_they_should(fmod, tmp_path):
    given = {"a": np.array([7, -7, 7, -7, 0], np.int32), "b": np.array([3, 3, -3, -3, 5], np.int32)}
    one(tmp_path, "Mod", given, fmod=fmod)


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 1.7, -0.5])
def test_powers(exponent, tmp_path):
    one(tmp_path, "Pow", {"x": np.abs(IMAGE) + 0.1}, {"e": np.float32(exponent)}, rtol=1e-5)


def test_log_sum_exp_of_infinities(tmp_path):
    inf = np.inf
    given = {"x": np.array([[-inf, -inf], [inf, 0], [1000, 1000], [-inf, 3]], np.float32)}
    got, _ = converted(
        tmp_path, model([helper.make_node("ReduceLogSumExp", ["x", "axes"], ["y"], keepdims=0)], given, {"axes": np.array([1])}), given
    )
    np.testing.assert_allclose(got, np.logaddexp(*given["x"].T), rtol=1e-6)


def test_integers_have_the_mean_that_is_cut(tmp_path):
    one(tmp_path, "ReduceMean", {"x": np.array([[-3, -4], [3, 4], [5, 5]], np.int32)}, {"axes": np.array([1])})


def test_bounds_may_depend_on_the_data(tmp_path):
    one(tmp_path, "Clip", {"x": IMAGE, "low": np.array(-0.5, np.float32), "high": np.array(0.5, np.float32)})


def test_the_least_of_an_axis_in_the_middle(tmp_path):
    given = {"x": RANDOM.integers(-4, 4, (2, 5, 3)).astype(np.int32)}
    node = helper.make_node("TopK", ["x", "k"], ["y", "places"], axis=1, largest=0)
    agree(tmp_path, model([node], given, {"k": np.array([3])}), given)


def test_division_by_numbers_that_have_no_inverse_in_float32(tmp_path):
    one(tmp_path, "Div", {"x": np.float32([1e38, 3e38, 1.0])}, {"c": np.float32([2e38, 3e38, 4.0])}, atol=0)


@pytest.mark.parametrize(("kind", "dtype"), [("Div", np.uint32), ("Div", np.uint64), ("Mod", np.uint64)])
def test_unsigned_integers_without_a_kernel_are_refused(kind, dtype, tmp_path):
    given = {"a": np.ones(3, dtype), "b": np.ones(3, dtype)}
    with pytest.raises(StageFailed, match="no kernel"):
        converted(tmp_path, model([helper.make_node(kind, ["a", "b"], ["y"])], given, {}), given)
