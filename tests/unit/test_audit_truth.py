"""What the audit says of files whose label is wrong in one way or another: each is made here, so that its content is known."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import toolkit
from tests.networks import IMAGE, Builder, write
from toolkit import plugins
from toolkit.audit import stage
from toolkit.cli import app
from toolkit.contents import Node
from toolkit.errors import AuditFailed, ConfigError, InputRejected
from toolkit.job import Job
from toolkit.pipeline.single import read_manifest
from toolkit.store import Store

DATA = Path(__file__).parents[3] / "shared" / "data"


# --- the files --------------------------------------------------------------------------------------------------------


def network(activation="Relu"):
    """image [1 x 4 x 8 x 8] -> convolution, activation, convolution, pooling, dense -> scores [1 x 32]."""
    net = Builder()
    hidden = net.node(activation, net.conv(IMAGE, 4, 32, 3))
    hidden = net.node("Relu", net.conv(hidden, 32, 32))
    return net.model(net.dense(net.node("Flatten", net.node("GlobalAveragePool", hidden)), 32, 32), (4, 8, 8), (32,))


class Images:
    def __init__(self):
        self.left = [{IMAGE: one} for one in np.random.default_rng(1).normal(size=(2, 1, 4, 8, 8)).astype(np.float32)]

    def get_next(self):
        return self.left.pop() if self.left else None


def small(nodes, tensors, opset=21):
    """A model ``image [1 x 4 x 8 x 8]`` -> ``out`` of given nodes."""
    from onnx import TensorProto, helper, numpy_helper

    image = helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, [1, 4, 8, 8])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "net", [image], [out], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)], ir_version=10)


def pair(name, out, scale="scale", zero="zero"):
    """``QuantizeLinear`` and ``DequantizeLinear``."""
    from onnx import helper

    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}_q"], name=f"quantize_{name}"),
        helper.make_node("DequantizeLinear", [f"{name}_q", scale, zero], [out], name=f"dequantize_{name}"),
    ]


SCALES = {"scale": np.float32(0.1), "zero": np.uint8(0), "weight": np.ones((8, 4, 3, 3), np.int8), "weight_scale": np.float32(0.01)}


def weight_only():
    from onnx import helper

    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "weight_scale"], ["w"], name="unpack"),
        helper.make_node("Conv", [IMAGE, "w"], ["out"], name="conv"),
    ]
    return small(nodes, {name: SCALES[name] for name in ("weight", "weight_scale")})


def convolution_with_float_result():
    """Integers go in and floats come out, for which ONNX Runtime has no convolution."""
    from onnx import helper

    nodes = [
        *pair(IMAGE, "x"),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale"], ["w"], name="unpack"),
        helper.make_node("Conv", ["x", "w"], ["out"], name="conv"),
    ]
    return small(nodes, SCALES)


@pytest.fixture(scope="module")
def onnx_files(tmp_path_factory):
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime.quantization")
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
    from onnxruntime.transformers.float16 import convert_float_to_float16

    folder = tmp_path_factory.mktemp("onnx")
    for name, model in (
        ("float", network()),
        ("hard", network("HardSwish")),
        ("weight_only", weight_only()),
        ("open", convolution_with_float_result()),
    ):
        onnx.save(model, folder / f"{name}.onnx")
    kinds, formats = ort.QuantType, ort.QuantFormat

    def static(name, source="float", **options):
        chosen = {"activation_type": kinds.QUInt8, "weight_type": kinds.QInt8, "quant_format": formats.QDQ, "per_channel": True, **options}
        ort.quantize_static(folder / f"{source}.onnx", folder / f"{name}.onnx", Images(), **chosen)

    static("qdq")
    static("per_tensor", per_channel=False)
    static("qoperator", quant_format=formats.QOperator)
    static("int16", activation_type=kinds.QInt16)
    static("half", op_types_to_quantize=["Gemm"])
    static("no_kernel", source="hard")
    ort.quantize_dynamic(folder / "float.onnx", folder / "dynamic.onnx", weight_type=kinds.QUInt8, op_types_to_quantize=["Conv", "MatMul", "Gemm"])
    onnx.save(convert_float_to_float16(network(), keep_io_types=True), folder / "float16.onnx")
    dense = Builder()
    dense = dense.model(dense.node("MatMul", dense.node("Flatten", IMAGE), dense.constant(np.ones((256, 32)))), (4, 8, 8), (32,))
    work = MatMulNBitsQuantizer(dense, algo_config=DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, bits=4))
    work.process()
    onnx.save(work.model.model, folder / "nbits.onnx")
    return {path.stem: path for path in folder.glob("*.onnx")}


@pytest.fixture(scope="module")
def tflite_files(tmp_path_factory):
    pytest.importorskip("ai_edge_quantizer")
    from ai_edge_quantizer import quantizer, recipe

    folder = tmp_path_factory.mktemp("tflite")
    files = {"float": write(network(), folder / "plain", "tflite"), "hard": write(network("HardSwish"), folder / "hard", "tflite")}
    names, no_quantize = recipe.TFLOperationName, recipe.AlgorithmName.NO_QUANTIZE

    def made(name, rules, source="float", leave=()):
        work = quantizer.Quantizer(str(files[source]), rules)
        for operation in leave:
            work.update_quantization_recipe(".*", operation, None, no_quantize)
        images = [{IMAGE: one[IMAGE]} for one in Images().left]
        statistics = work.calibrate({"serving_default": images}) if work.need_calibration else None
        files[name] = folder / f"{name}.tflite"
        work.quantize(statistics).export_model(str(files[name]))

    borders = (names.INPUT, names.OUTPUT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made("int8_io", recipe.static_wi8_ai8())
        made("float_io", recipe.static_wi8_ai8(), leave=borders)
        made("half", recipe.static_wi8_ai8(), leave=(names.FULLY_CONNECTED, *borders))
        made("int16", recipe.static_wi8_ai16())
        made("dynamic", recipe.dynamic_wi8_afp32())
        made("weight_only", recipe.weight_only_wi8_afp32())
        made("int4", recipe.weight_only_wi4_afp32())
        made("outside", recipe.static_wi8_ai8(), source="hard")
        made("island", recipe.static_wi8_ai8(), source="hard", leave=(names.HARD_SWISH,))
    return files


# --- file -> what the audit finds: scheme, share of work in int8, operators without a kernel, float islands, inputs -----

ONNX = {
    "float": ("float32", 0.0, {}, 0),
    "float16": ("float16", 0.0, {}, 0),
    "qdq": ("static_wi8_ai8", 1.0, {}, 0),
    "per_tensor": ("static_wi8_ai8", 1.0, {}, 0),
    "qoperator": ("static_wi8_ai8", 1.0, {}, 0),
    "int16": ("static_wi8_ai16", 0.0, {"Conv": 2, "GlobalAveragePool": 1, "Gemm": 1}, 4),
    "half": ("mixed", None, {}, 0),
    "no_kernel": ("static_wi8_ai8", 1.0, {"HardSwish": 1}, 1),
    "dynamic": ("dynamic_wi8", 1.0, {}, 0),
    "weight_only": ("weight_only_wi8", 0.0, {}, 0),
    "open": ("static_wi8_ai8", 0.0, {"Conv": 1}, 0),
    "nbits": ("weight_only_wi4", 0.0, {}, 0),
}
TFLITE = {
    "float": ("float32", 0.0, {}, 0, "float32"),
    "int8_io": ("static_wi8_ai8", 1.0, {}, 0, "int8"),
    "float_io": ("static_wi8_ai8", 1.0, {}, 0, "float32"),
    "half": ("mixed", None, {}, 0, "float32"),
    "int16": ("static_wi8_ai16", 0.0, {"CONV_2D": 2, "FULLY_CONNECTED": 1}, 0, "int16"),
    "dynamic": ("dynamic_wi8", 1.0, {}, 0, "float32"),
    "weight_only": ("weight_only_wi8", 0.0, {}, 0, "float32"),
    "int4": ("weight_only_wi4", 0.0, {}, 0, "float32"),
    "outside": ("static_wi8_ai8", 1.0, {"HARD_SWISH": 1}, 0, "int8"),
    "island": ("static_wi8_ai8", 1.0, {}, 1, "int8"),
}
SCHEMES = {"float32", "float16", "static_wi8_ai8", "static_wi8_ai16", "dynamic_wi8", "weight_only_wi8", "weight_only_wi4"}


def kinds(structure):
    found = {}
    for one in structure.no_kernel:
        found[one.operator] = found.get(one.operator, 0) + 1
    return found


def check(path, scheme, share, lacking, islands):
    contents = plugins.reader(path.suffix[1:]).read(path)
    assert stage.classify(contents) == scheme
    assert 0 < contents.structure.int8_share < 1 if share is None else contents.structure.int8_share == share
    assert kinds(contents.structure) == lacking
    assert len(contents.structure.float_islands) == islands
    for other in SCHEMES - {scheme}:
        with pytest.raises(AuditFailed, match=rf"labelled {other}, but .*\(found {scheme}\)"):
            stage.compare(contents, other)


@pytest.mark.parametrize("name", ONNX)
def test_onnx(onnx_files, name):
    check(onnx_files[name], *ONNX[name])


@pytest.mark.parametrize("name", TFLITE)
def test_tflite(tflite_files, name):
    *found, io = TFLITE[name]
    check(tflite_files[name], *found)
    assert plugins.reader("tflite").read(tflite_files[name]).signature.inputs[0].dtype == io


@pytest.mark.parametrize(
    ("which", "name", "scales"),
    [
        ("onnx", "qdq", [32, 32, 32]),
        ("onnx", "per_tensor", [1, 1, 1]),
        ("onnx", "qoperator", [32, 32, 32]),
        ("onnx", "weight_only", [1]),
        ("onnx", "float", [0, 0, 0]),
        ("tflite", "int8_io", [32, 32, 32]),
        ("tflite", "weight_only", [32, 32, 32]),
        ("tflite", "float", [0, 0, 0]),
    ],
)
def test_scales_of_weights_are_counted(onnx_files, tflite_files, which, name, scales):
    path = {"onnx": onnx_files, "tflite": tflite_files}[which][name]
    assert [layer.scales for layer in plugins.reader(which).read(path).layers] == scales


@pytest.mark.parametrize(
    ("file", "scheme", "reason"),
    [
        ("backbones/mobilenet_v1_0.25_224_quant.tflite", "static_wi8_ai8", ""),
        ("backbones/mobilenet_v1_0.25_224_float.tflite", "float32", ""),
        ("mlperf_tiny/kws/kws_ref_model_float32.tflite", "float32", "labelled float32, but 5 of 10 layers are not: CONV_2D"),
    ],
)
def test_public_files(file, scheme, reason):
    if not (DATA / file).is_file():
        pytest.skip(f"{file} is not on this machine")
    contents = plugins.reader("tflite").read(DATA / file)
    if not reason:
        stage.compare(contents, scheme)
        return
    with pytest.raises(AuditFailed, match=reason):
        stage.compare(contents, scheme)


# --- which pairs are fused: ONNX Runtime's own graph decides --------------------------------------------------------------

OPERATORS = {
    **{name: {} for name in ("Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Erf", "Softmax", "GlobalAveragePool")},
    **{name: {} for name in ("Sqrt", "Abs", "Exp", "Transpose", "Flatten", "Softplus", "GlobalMaxPool", "Neg", "Identity")},
    "MaxPool": {"kernel_shape": [2, 2]},
    "AveragePool": {"kernel_shape": [2, 2]},
    "DepthToSpace": {"blocksize": 2},
}


@pytest.mark.parametrize("zero", [np.uint8(0), np.int8(0), np.int16(0)])
@pytest.mark.parametrize("operator", OPERATORS)
def test_the_pairs_that_onnx_runtime_does_not_fuse_are_named(tmp_path, operator, zero):
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    middle = onnx.helper.make_node(operator, ["x"], ["y"], name="middle", **OPERATORS[operator])
    path, optimized = tmp_path / "m.onnx", tmp_path / "o.onnx"
    onnx.save(small([*pair(IMAGE, "x"), middle, *pair("y", "out")], {"scale": np.float32(0.1), "zero": zero}), path)
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.intra_op_num_threads, options.log_severity_level = str(optimized), 1, 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(optimized).graph.node
    converted = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    in_float = any(set(node.input) & converted for node in nodes if node.op_type not in ("QuantizeLinear", "DequantizeLinear"))
    structure = plugins.reader("onnx").read(path).structure
    assert [one.name for one in structure.no_kernel] == ["middle"] * in_float
    assert structure.float_islands == ((("middle",),) if in_float else ())


@pytest.mark.parametrize("name", ["int8_io", "float_io", "outside", "island", "half"])
def test_the_operators_outside_of_xnnpack_are_those_that_its_profiler_lacks(tflite_files, name):
    session = plugins.runtime_for("tflite").open_profiled(tflite_files[name], threads=1)
    session.run({spec.name: np.zeros(spec.shape, spec.dtype) for spec in session.signature.inputs})
    (events,) = session.events()
    outside = sorted(event.operator for event in events if event.kernel == "built-in")
    assert sorted(one.operator for one in plugins.reader("tflite").read(tflite_files[name]).structure.no_kernel) == outside


def node(name, operator, inputs, outputs, dtype="float32", macs=0):
    return Node(name=name, operator=operator, inputs=tuple(inputs), outputs=tuple(outputs), dtype=dtype, macs=macs)


def test_islands_are_what_hangs_together_between_integers():
    from toolkit.audit.structure import structure

    nodes = [
        node("head", "MUL", ["in"], ["a"]),
        node("q0", "QUANTIZE", ["a"], ["b"], "int8"),
        node("conv", "CONV_2D", ["b"], ["c"], "int8", macs=30),
        node("d1", "DEQUANTIZE", ["c"], ["d"]),
        node("left", "ADD", ["d"], ["e"], macs=10),
        node("right", "MUL", ["e", "d"], ["f"]),
        node("q1", "QUANTIZE", ["f"], ["g"], "int8"),
        node("turn", "TRANSPOSE", ["g"], ["h"], "int8"),
        node("d2", "DEQUANTIZE", ["h"], ["i"]),
        node("tail", "SOFTMAX", ["i"], ["out"]),
    ]
    found = structure("tflite", nodes)
    assert found.float_islands == (("left", "right"),)
    assert found.int8_share == 0.75
    assert found.transposes == 1
    assert found.no_kernel == ()


# --- labels that keep layers in float ---------------------------------------------------------------------------------


def float_layers(path):
    return [layer.name for layer in plugins.reader(path.suffix[1:]).read(path).layers if layer.weight_dtype == "float32"]


def labelled(path, **label):
    (path.parent / "label.json").write_text(json.dumps(label))
    return stage.run(Job({"model": path}, {"format": path.suffix[1:], "expect": None}, path.parent))


@pytest.mark.parametrize("which", ["onnx", "tflite"])
def test_a_label_must_name_exactly_the_float_layers(onnx_files, tflite_files, tmp_path, which):
    source = {"onnx": onnx_files, "tflite": tflite_files}[which]["half"]
    path = tmp_path / source.name
    path.write_bytes(source.read_bytes())
    every = [layer.name for layer in plugins.reader(which).read(path).layers]
    kept = float_layers(path)
    assert labelled(path, scheme="static_wi8_ai8", kept_float=kept, why="test")["scheme_found"] == "static_wi8_ai8"
    with pytest.raises(AuditFailed, match="has float32 weights"):
        labelled(path, scheme="static_wi8_ai8", kept_float=kept[:-1], why="test")
    with pytest.raises(AuditFailed, match=r"says that layer .* is float, but .* has int8 weights"):
        labelled(path, scheme="static_wi8_ai8", kept_float=every, why="test")
    with pytest.raises(AuditFailed, match="there is no such layer"):
        labelled(path, scheme="static_wi8_ai8", kept_float=[*kept, "nothing"], why="test")
    with pytest.raises(InputRejected, match="is no label"):
        labelled(path, scheme=7, kept_float=kept)


def test_a_label_that_keeps_every_layer_in_float_is_no_int8(onnx_files, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx_files["float"].read_bytes())
    with pytest.raises(AuditFailed, match="it has no layer that stores weights"):
        labelled(path, scheme="static_wi8_ai8", kept_float=float_layers(path), why="test")


# --- the verb ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    return Store(tmp_path / "cache")


def edgekit(*words):
    return CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "200"}, standalone_mode=False)


def test_the_verb_fails_where_a_label_does_not_fit_and_names_the_layers(onnx_files, tflite_files, cache):
    right = edgekit("audit", onnx_files["qdq"], tflite_files["int8_io"], "--expect", "static_wi8_ai8")
    assert right.return_value == 0
    assert right.output.count("as labelled") == 2
    wrong = edgekit("audit", onnx_files["half"], "--expect", "static_wi8_ai8")
    assert wrong.return_value == 1
    assert "2 of 3 layers are not: Conv" in wrong.output
    kept = [word for name in float_layers(onnx_files["half"]) for word in ("--kept-float", name)]
    assert edgekit("audit", onnx_files["half"], "--expect", "static_wi8_ai8", *kept).return_value == 0


def test_the_verb_shows_what_was_found(tflite_files, cache):
    out = edgekit("audit", tflite_files["island"], "--top", "1").output
    assert "no label to hold it against" in out
    assert "100.0% of the multiply-accumulates" in out
    assert "float islands" in out
    assert "2 more; --top 0 lists all" in out
    assert "HARD_SWISH" in edgekit("inspect", tflite_files["outside"]).output


def test_the_verb_in_json(onnx_files, cache):
    (found,) = json.loads(edgekit("audit", onnx_files["no_kernel"], "-e", "static_wi8_ai8", "--format", "json").output)
    assert (found["holds"], found["scheme"], found["structure"]["int8_share"]) == (True, "static_wi8_ai8", 1.0)
    assert [one["operator"] for one in found["structure"]["no_kernel"]] == ["HardSwish"]
    sizes = [layer["weight_bytes"] for layer in found["layers"]]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(("name", "holds"), [("int8_io", True), ("float_io", False)])
def test_float_io_is_told_from_int8_io(tflite_files, cache, name, holds):
    found = toolkit.audit_model(tflite_files[name], expect="static_wi8_ai8", io="int8", store=cache)
    assert found.holds is holds
    assert holds or "these are not: image float32, scores float32" in found.problems[0]
    with pytest.raises(ConfigError, match="unknown element type"):
        toolkit.audit_model(tflite_files[name], io="int9", store=cache)


def test_the_label_of_a_delivered_file_is_its_manifest(onnx_files, tmp_path, cache):
    path = tmp_path / "net.static_wi8_ai8.onnx"
    path.write_bytes(onnx_files["half"].read_bytes())
    digest = plugins.reader("onnx").read(path)
    manifest = toolkit.Manifest(
        name="net",
        format="onnx",
        scheme="static_wi8_ai8",
        sha256=digest.sha256,
        size_bytes=digest.size_bytes,
        signature=digest.signature,
        made_by="test",
        evidence={"label": {"scheme": "static_wi8_ai8", "kept_float": float_layers(path), "why": "test"}},
    )
    beside = path.with_name(f"{path.name}.manifest.json")
    beside.write_text(manifest.model_dump_json())
    assert read_manifest(path) is not None
    found = toolkit.audit_model(path, store=cache)
    assert (found.holds, found.label.given_by) == (True, "the manifest")
    beside.write_text(manifest.model_copy(update={"evidence": {}}).model_dump_json())
    assert not toolkit.audit_model(path, store=cache).holds
