"""The page's table of operators against the compiler, and the compiler against the table: types, versions, refusals."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.artifact import Signature, TensorSpec
from toolkit.convert import onnx_litert
from toolkit.convert.tfl import coverage, lower
from toolkit.convert.tfl.facts import COMMON, EVERY, FLOATS, NUMBERS, WIDE
from toolkit.convert.tfl.program import EXPANSIONS
from toolkit.errors import StageFailed

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
interpreter = pytest.importorskip("ai_edge_litert.interpreter")

from onnx import defs, helper, numpy_helper  # noqa: E402  after what may skip the module
from onnx.reference import ReferenceEvaluator  # noqa: E402

ROWS = {row.kind: row for row in coverage.rows()}
IMAGE, SQUARE = (2, 4, 5, 6), (1, 4, 6, 6)
# Families of which every operator has a sample.
SAMPLED = {"activation", "comparison", "elementwise", "indexing", "matmul", "normalization", "pooling", "recurrent", "reduction", "shaping"}


@dataclass(frozen=True)
class Sample:
    """A use of an operator: its inputs, its attributes and how many outputs are asked for."""

    inputs: list[Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1


def free(*shape):
    """An input of the model, of the type that is tested."""
    return "free", shape


def known(*shape):
    """A constant of that type."""
    return "known", shape


def places(below, *shape):
    """An input of the model: indices."""
    return "places", shape, below


def exactly(*numbers):
    """A constant of that type with given content; a scalar, if it is one number."""
    return "exactly", numbers


def integers(*numbers):
    """A constant, whatever is tested."""
    return np.array(numbers, np.int64)


def words(text):
    return text.split()


UNARY = words(
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Cos Cosh Elu Erf Exp Flatten Floor Gelu GlobalAveragePool GlobalLpPool GlobalMaxPool "
    "HardSigmoid HardSwish Hardmax IsInf IsNaN LeakyRelu Log LogSoftmax LpNormalization MeanVarianceNormalization Mish Neg Not Reciprocal Relu Round "
    "Selu Shape Shrink Sigmoid Sign Sin Sinh Size Softmax Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)
BINARY = words("Add And BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Mod Mul Or Pow Sub Xor")
REDUCED = [f"Reduce{name}" for name in words("L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare")]
WINDOWS = {"kernel_shape": [2, 2], "strides": [2, 2]}
SAMPLES = {
    **dict.fromkeys(UNARY, Sample([free(*IMAGE)])),
    **dict.fromkeys(BINARY, Sample([free(*IMAGE), free(4, 1, 1)])),
    **dict.fromkeys(words("BitwiseAnd BitwiseOr Max Mean Min Sum"), Sample([free(*IMAGE), free(*IMAGE)])),
    **dict.fromkeys(REDUCED, Sample([free(*IMAGE), integers(1, 3)])),
    **dict.fromkeys(("ArgMax", "ArgMin"), Sample([free(*IMAGE)], {"axis": 1})),
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), Sample([free(*SQUARE)], WINDOWS)),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), Sample([free(*SQUARE)], {"blocksize": 2})),
    **dict.fromkeys(("ScatterElements", "Scatter"), Sample([free(2, 3), integers([1, 0, 1]), free(1, 3)])),
    "BatchNormalization": Sample([free(*IMAGE), known(4), known(4), known(4), exactly(1, 2, 3, 4)]),
    "BitShift": Sample([free(*IMAGE), free(4, 1, 1)], {"direction": "LEFT"}),
    "Cast": Sample([free(*IMAGE)], {"to": 1}),
    "CastLike": Sample([free(*IMAGE), np.zeros(1, np.float32)]),
    "Clip": Sample([free(*IMAGE), exactly(1), exactly(3)]),
    "Compress": Sample([free(2, 4), np.array([True, True, False, True])], {"axis": 1}),
    "Concat": Sample([free(*IMAGE), free(*IMAGE)], {"axis": 1}),
    "Conv": Sample([free(*SQUARE), known(3, 4, 3, 3)], {"pads": [1] * 4}),
    "ConvTranspose": Sample([free(*SQUARE), known(4, 3, 3, 3)], {"strides": [2, 2]}),
    "CumProd": Sample([free(2, 3, 2), np.int64(1)]),
    "CumSum": Sample([free(*IMAGE), np.int64(1)]),
    "DequantizeLinear": Sample([free(*IMAGE), np.float32(0.05), exactly(0)]),
    "Det": Sample([free(2, 3, 3)]),
    "Dropout": Sample([free(*IMAGE)]),
    "DynamicQuantizeLinear": Sample([free(*IMAGE)], outputs=3),
    "Einsum": Sample([free(2, 3), free(3, 4)], {"equation": "ij,jk->ik"}),
    "Expand": Sample([free(4, 1, 1), integers(2, 4, 3, 2)]),
    "EyeLike": Sample([free(2, 3)]),
    "GRU": Sample([free(3, 2, 4), known(1, 15, 4), known(1, 15, 5)], {"hidden_size": 5}, 2),
    "Gather": Sample([free(*IMAGE), integers(3, 0, 1)], {"axis": 1}),
    "GatherElements": Sample([free(2, 3), places(2, 1, 3)]),
    "GatherND": Sample([free(*IMAGE), places(2, 3, 2)]),
    "Gemm": Sample([free(2, 3), known(3, 4), known(4)]),
    "GridSample": Sample([free(*SQUARE), np.linspace(-0.9, 0.9, 18, dtype=np.float32).reshape(1, 3, 3, 2)]),
    "GroupNormalization": Sample([free(*IMAGE), known(4), known(4)], {"num_groups": 2}),
    "InstanceNormalization": Sample([free(*IMAGE), known(4), known(4)]),
    "LRN": Sample([free(*IMAGE)], {"size": 3}),
    "LSTM": Sample([free(3, 2, 4), known(1, 20, 4), known(1, 20, 5)], {"hidden_size": 5}, 3),
    "LayerNormalization": Sample([free(*IMAGE), known(6), known(6)]),
    "MatMul": Sample([free(2, 4, 3), free(2, 3, 5)]),
    "MaxUnpool": Sample([free(1, 1, 2, 2), integers(5, 7, 13, 15).reshape(1, 1, 2, 2)], WINDOWS),
    "OneHot": Sample([places(5, 3, 2), np.int64(5), exactly(0, 1)]),
    "PRelu": Sample([free(*IMAGE), known(4, 1, 1)]),
    "Pad": Sample([free(*IMAGE), integers(0, 1, 0, 2, 0, 0, 1, 0)]),
    "QuantizeLinear": Sample([free(*IMAGE), exactly(0.05), np.uint8(100)]),
    "RMSNormalization": Sample([free(*IMAGE), known(6)]),
    "RNN": Sample([free(3, 2, 4), known(1, 5, 4), known(1, 5, 5)], {"hidden_size": 5}, 2),
    "Reshape": Sample([free(*IMAGE), integers(8, 30)]),
    "Resize": Sample([free(*SQUARE), np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)], {"mode": "nearest"}),
    "ReverseSequence": Sample([free(4, 3, 2), integers(4, 2, 3)]),
    "RoiAlign": Sample(
        [free(*SQUARE), exactly((0, 0, 4, 4), (1, 1, 5, 3)), integers(0, 0)],
        {"output_height": 2, "output_width": 2, "sampling_ratio": 2, "coordinate_transformation_mode": "half_pixel"},
    ),
    "ScatterND": Sample([free(5, 3), integers(4, 1).reshape(2, 1), free(2, 3)]),
    "Slice": Sample([free(*IMAGE), integers(1, 0), integers(4, 6), integers(1, 3)]),
    "Split": Sample([free(*IMAGE), integers(1, 3)], {"axis": 1}, 2),
    "Squeeze": Sample([free(2, 1, 3), integers(1)]),
    "Tile": Sample([free(2, 3), integers(2, 3)]),
    "TopK": Sample([free(*IMAGE), integers(2)], {"axis": 3}, 2),
    "Transpose": Sample([free(*IMAGE)], {"perm": [3, 1, 0, 2]}),
    "Trilu": Sample([free(3, 5, 5)]),
    "Unsqueeze": Sample([free(2, 3), integers(0, 2)]),
    "Upsample": Sample([free(*SQUARE), np.array([1, 1, 2, 2], np.float32)], {"mode": "nearest"}),
    "Where": Sample([np.array([True, False, True, True, False, True]), free(*IMAGE), free(4, 1, 1)]),
}
SAMPLES = {kind: sample for kind, sample in SAMPLES.items() if kind in ROWS}
# What ONNX's reference does not know, or computes otherwise than ONNX says, is held against ONNX Runtime in float32.
RUNTIME = {"Det", "GlobalLpPool", "LRN", "MeanVarianceNormalization", "OneHot", "Resize", "Scatter"}
# The newest operator sets that these are part of, or that ONNX Runtime knows.
LAST_OPSETS = {"Det": 21, "Scatter": 10, "Upsample": 9, "GlobalLpPool": 21, "LRN": 21, "MeanVarianceNormalization": 21, "OneHot": 21, "Resize": 21}
# These need numbers from one on, or below it.
ABOVE = {"Acosh", "Log", "Sqrt", "Pow", "BatchNormalization", "ReduceLogSum", "Mod"}
WITHIN = {"Asin", "Acos", "Atanh"}


def numbers(kind, dtype, shape, source):
    """Draws what an operator is defined for."""
    if dtype == np.bool_:
        return source.random(shape) < 0.5
    if dtype.kind == "f":
        low, high = (1.1, 3) if kind in ABOVE else (-0.9, 0.9) if kind in WITHIN else (-2, 2)
        return source.uniform(low, high, shape).astype(dtype)
    low = 1 if kind in ("Div", "Mod", "ReduceProd") else -4 if dtype.kind == "i" and kind != "Pow" else 0
    return source.integers(low, 3 if kind == "ReduceProd" else 5, shape).astype(dtype)


def content(kind, dtype, spec, source):
    how, what, *rest = spec
    if how == "places":
        return source.integers(0, rest[0], what)
    if how == "exactly":
        return np.array(what if len(what) > 1 else what[0], dtype)
    return numbers(kind, dtype, what, source)


def built(kind, dtype, version, carried=None):
    """Returns a model of one operator of a version, and its inputs: what newer versions take as an input may be an attribute."""
    sample, schema = SAMPLES[kind], schema_of(kind, version)
    newest = schema_of(kind, ROWS[kind].versions[-1])
    source, given, constants, names = np.random.default_rng(3), {}, {}, []
    attributes = {name: value for name, value in sample.attributes.items() if name in schema.attributes}
    for place, spec in enumerate(sample.inputs):
        formal = newest.inputs[min(place, len(newest.inputs) - 1)].name
        formal = "k" if formal == "K" else formal
        value = np.asarray(spec) if not isinstance(spec, tuple) else content(kind, np.dtype(dtype), spec, source)
        if carried and isinstance(spec, tuple) and spec[0] != "places":
            value = value.astype(carried)
        if formal in schema.attributes:
            attributes[formal] = value.item() if formal in ("k", "min", "max") else value.tolist()
        elif kind == "Resize" and version == 10 and place == 1:
            continue  # there was no region yet
        else:
            names.append(f"x{place}")
            (given if isinstance(spec, tuple) and spec[0] in ("free", "places") else constants)[f"x{place}"] = value
    if kind == "Mod" and np.dtype(dtype).kind == "f":
        attributes["fmod"] = 1
    if kind == "GroupNormalization" and version == 18:  # which had a number for each group
        constants = {name: value[:2] for name, value in constants.items()}
    outputs = [f"y{place}" for place in range(sample.outputs)]
    node = helper.make_node(kind, names, outputs, **attributes)
    values = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(one.dtype), one.shape) for name, one in given.items()]
    kept = [numpy_helper.from_array(one, name) for name, one in constants.items()]
    graph = helper.make_graph([node], kind, values, [helper.make_empty_tensor_value_info(name) for name in outputs], kept)
    return graph, given


def schema_of(kind, version):
    return next(schema for schema in coverage.history()[kind] if schema.since_version == version)


def model_of(graph, opset):
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def ran(model, given, folder: Path):
    """Converts a model and runs it on LiteRT."""
    source, out = folder / "model.onnx", folder / "model.tflite"
    onnx.save(model, str(source))
    inputs = tuple(TensorSpec(name=name, dtype=one.dtype.name, shape=one.shape) for name, one in given.items())
    outputs = tuple(TensorSpec(name=value.name, dtype="float32", shape=()) for value in model.graph.output)
    onnx_litert.ROUTE.convert(source, out, Signature(inputs=inputs, outputs=outputs))
    runner = interpreter.Interpreter(str(out), num_threads=1).get_signature_runner()
    details = runner.get_input_details()
    found = runner(**{name: one.astype(details[name]["dtype"]) for name, one in given.items() if name in details})
    return [found[value.name] for value in model.graph.output]


def close(found, wanted, dtype):
    tolerance = 2e-2 if dtype == "float16" else 1e-4
    for got, expected in zip(found, map(np.asarray, wanted), strict=True):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got.astype(np.float64), expected.astype(np.float64), rtol=tolerance, atol=tolerance)


def in_float32(kind, dtype, opset, version):
    """What ONNX Runtime makes of the same numbers in float32."""
    graph, given = built(kind, dtype, version, "float32")
    return ort.InferenceSession(model_of(graph, opset).SerializeToString(), providers=["CPUExecutionProvider"]).run(None, given)


CLAIMED = [(kind, dtype) for kind in SAMPLES for dtype in ROWS[kind].dtypes]
REFUSED = [(kind, dtype) for kind in SAMPLES for dtype in sorted(coverage.allowed(kind, lower.REGISTRY[kind].facts) & EVERY - set(ROWS[kind].dtypes))]
VERSIONS = [(kind, version) for kind in SAMPLES for version in ROWS[kind].versions]


@pytest.mark.parametrize(("kind", "dtype"), CLAIMED)
def test_types_of_the_table_compute_what_onnx_says(kind, dtype, tmp_path):
    version = max(one for one in ROWS[kind].versions if one <= LAST_OPSETS.get(kind, 99))
    graph, given = built(kind, dtype, version)
    opset = LAST_OPSETS.get(kind, defs.onnx_opset_version())
    model = model_of(graph, opset)
    wanted = in_float32(kind, dtype, opset, version) if kind in RUNTIME else ReferenceEvaluator(model).run(None, given)
    close(ran(model, given, tmp_path), wanted, dtype)


@pytest.mark.parametrize(("kind", "dtype"), REFUSED)
def test_other_types_are_refused_in_words(kind, dtype, tmp_path):
    graph, given = built(kind, dtype, ROWS[kind].versions[-1])
    with pytest.raises(StageFailed, match=rf"{kind} \(.*\) has no kernel for {dtype}"):
        ran(model_of(graph, LAST_OPSETS.get(kind, defs.onnx_opset_version())), given, tmp_path)


@pytest.mark.parametrize(("kind", "version"), VERSIONS)
def test_every_version_of_the_table_computes_what_onnx_runtime_does(kind, version, tmp_path):
    known_then = coverage.allowed_by(schema_of(kind, version), lower.REGISTRY[kind].facts.typed)
    dtype = next(one for one in ("float32", *ROWS[kind].dtypes) if one in ROWS[kind].dtypes and one in known_then)
    graph, given = built(kind, dtype, version)
    model = model_of(graph, max(coverage.OLDEST, version))
    close(ran(model, given, tmp_path), expected(model, given, kind), dtype)


def expected(model, given, kind):
    """What ONNX Runtime gives, or, where that is behind ONNX, its reference."""
    try:
        return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, given)
    except (ort.capi.onnxruntime_pybind11_state.Fail, ort.capi.onnxruntime_pybind11_state.NotImplemented):
        if kind in RUNTIME:
            pytest.skip("neither runtime knows it")
        return ReferenceEvaluator(model).run(None, given)


@pytest.mark.parametrize("kind", [row.kind for row in ROWS.values() if row.layout == "definition"])
def test_definitions_compute_what_onnx_says(kind, tmp_path):
    model = coverage.example_model(kind, coverage.DEFINED[kind])
    source = np.random.default_rng(4)
    given = {
        one.name: source.normal(size=[axis.dim_value for axis in one.type.tensor_type.shape.dim]).astype(np.float32) for one in model.graph.input
    }
    close(ran(model, given, tmp_path), ReferenceEvaluator(model).run(None, given), "float32")


def test_table_lists_every_operator_once():
    listed = [row.kind for row in coverage.rows()]
    assert len(listed) == len(set(listed))
    assert set(listed) >= set(lower.REGISTRY) | set(EXPANSIONS)


def test_every_operator_of_the_plain_families_has_a_sample():
    missing = [row.kind for row in ROWS.values() if row.family in SAMPLED and row.versions and row.kind in lower.REGISTRY and row.kind not in SAMPLES]
    assert not missing, f"add to SAMPLES: {missing}"


def test_groups_of_types_are_what_values_are_carried_in():
    assert {lower.carried(name).name for name in FLOATS} == {"float32"}
    assert {lower.carried(name).name for name in NUMBERS - FLOATS} == {"int32"}
    assert all(lower.carried(name).name == name for name in EVERY - NUMBERS)
    assert FLOATS < NUMBERS < COMMON < WIDE < EVERY


def test_page_has_the_table():
    """Of another version of the onnx package, all but its versions and types."""
    page = coverage.PAGE.read_text(encoding="utf-8")
    assert page.count(coverage.BEGIN) == page.count(coverage.END) == 1
    if f"those of onnx {onnx.__version__}." in page:
        assert coverage.filled(page) == page, "run python -m toolkit.convert.tfl.coverage"
    for row in coverage.rows():
        assert f"| {row.layout} | {row.limits} |" in page, f"{row.kind}: run python -m toolkit.convert.tfl.coverage"
        assert f"| `{row.kind}` |" in page, f"{row.kind}: run python -m toolkit.convert.tfl.coverage"


def test_table_changes_with_the_registry(monkeypatch):
    before = coverage.table()
    entry = lower.REGISTRY["Einsum"]
    monkeypatch.setitem(lower.REGISTRY, "Novel", lower.Entry(entry.function, lower.channels_last, lower.Facts(FLOATS, limits="few")))
    added = set(coverage.table().splitlines()) - set(before.splitlines())
    assert added == {"| `Novel` | - | floats | last | few |"}


def test_importing_the_compiler_loads_no_framework():
    script = (
        "import sys; from toolkit.convert.tfl import coverage; print([name for name in ('onnx', 'ai_edge_litert', 'torch') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_page_says_what_the_file_takes_and_gives(tmp_path):
    page = coverage.PAGE.read_text(encoding="utf-8")
    section = page.partition("## Element types")[2].partition("\n## ")[0]
    said = {}
    for line in section.splitlines():
        names, _, taken, given = ([cell.replace("`", "") for cell in line.strip("|").split(" | ")] + [""] * 4)[:4]
        for name in names.strip().split(", "):
            said[name] = [name if cell.strip() == "the same" else cell.strip() for cell in (taken, given)]
    for dtype in EVERY:
        graph, given = built("Reshape", dtype, ROWS["Reshape"].versions[-1])
        ran(model_of(graph, defs.onnx_opset_version()), given, tmp_path)
        made = interpreter.Interpreter(str(tmp_path / "model.tflite"))
        details = made.get_input_details()[0], made.get_output_details()[0]
        assert said[dtype] == [np.dtype(one["dtype"]).name for one in details], dtype


def test_bits_of_five_axes_are_broadcast(tmp_path):
    source = np.random.default_rng(5)
    given = {"a": source.integers(1, 9, (2, 3, 2, 3, 2)).astype(np.int32), "b": source.integers(1, 9, (3, 1, 1, 2)).astype(np.int32)}
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.INT32, one.shape) for name, one in given.items()]
    node = helper.make_node("BitwiseAnd", list(given), ["y"])
    graph = helper.make_graph([node], "bits", values, [helper.make_empty_tensor_value_info("y")])
    (found,) = ran(model_of(graph, 18), given, tmp_path)
    np.testing.assert_array_equal(found, given["a"] & given["b"])
