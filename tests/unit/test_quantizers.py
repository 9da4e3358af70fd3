"""What the quantizers make of networks that others ruin or slow down, held against the float file and the bytes."""

import numpy as np
import pytest

from toolkit import plugins
from toolkit.audit import stage as audit
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, NoRoute, StageFailed
from toolkit.pipeline import quantizing
from toolkit.pipeline.steps import Need
from toolkit.quantization import calibrated, scheme
from toolkit.quantization.islands import Operator, join
from toolkit.quantization.litert import QUANTIZER as LITERT
from toolkit.quantization.onnx_prepared import SKIPPED
from toolkit.quantization.onnx_weights import block_size
from toolkit.quantization.onnxruntime import QUANTIZER as ONNX
from toolkit.resources import load_recipe

RNG = np.random.default_rng(11)
PICTURES = RNG.uniform(-1, 1, size=(24, 3, 16, 16)).astype(np.float32)
TOKENS = RNG.integers(0, 64, size=(24, 12)).astype(np.int64)
MASK = np.where(np.arange(12) < RNG.integers(6, 13, size=(24, 1)), 0, np.finfo(np.float32).min).astype(np.float32)


def weight(*shape):
    return (RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def save(path, nodes, stored, inputs, outputs, names=(), opset=20):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    kinds = {np.dtype(np.float32): 1, np.dtype(np.int64): 7}
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node(kind, reads, [output], name=dict(names).get(output, f"{output}.op"), **attributes)
            for kind, reads, output, attributes in nodes
        ],
        "g",
        [value(name, kinds[array.dtype], [1, *array.shape[1:]]) for name, array in inputs.items()],
        [value(name, 1, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10), str(path))
    return path


def mobile(path, names=()):
    """A stem, a hard-swish, a depthwise layer, squeeze-and-excitation with a hard sigmoid, a mean and a head, as MobileNetV3 has them."""
    gate = {"alpha": 1 / 6, "beta": 0.5}
    nodes = [
        ("Conv", ["image", "stem"], "a", {"pads": [1, 1, 1, 1]}),
        ("HardSigmoid", ["a"], "a_gate", gate),
        ("Mul", ["a", "a_gate"], "b", {}),
        ("Conv", ["b", "depth"], "c", {"pads": [1, 1, 1, 1], "group": 16}),
        ("HardSigmoid", ["c"], "c_gate", gate),
        ("Mul", ["c", "c_gate"], "d", {}),
        ("ReduceMean", ["d", "axes"], "e", {"keepdims": 1}),
        ("Conv", ["e", "squeeze"], "f", {}),
        ("HardSigmoid", ["f"], "g", gate),
        ("Mul", ["d", "g"], "h", {}),
        ("Conv", ["h", "point"], "i", {}),
        ("Relu", ["i"], "j", {}),
        ("ReduceMean", ["j", "axes"], "k", {"keepdims": 0}),
        ("Gemm", ["k", "head", "bias"], "logits", {"transB": 1}),
    ]
    stored = {
        "stem": weight(16, 3, 3, 3) * 4, "depth": weight(16, 1, 3, 3) * 2, "squeeze": weight(16, 16, 1, 1) * 3, "point": weight(32, 16, 1, 1),
        "head": weight(10, 32), "bias": weight(10), "axes": np.array([2, 3], np.int64),
    }  # fmt: skip
    return save(path, nodes, stored, {"image": PICTURES}, {"logits": [1, 10]}, names)


def attention(path):
    """Embedding, masked attention with the mask that exporters write, norms, and a second layer, as encoders have them."""
    stored = {name: weight(32, 32) * 2 for name in ("q", "k", "v", "o")} | {
        "table": weight(64, 32) * 5, "up": weight(32, 64) * 2, "up_bias": weight(64), "down": weight(64, 32) * 2,
        "scale": np.ones(32, np.float32), "shift": np.zeros(32, np.float32), "wide": np.array([0, 1, 12], np.int64), "fifth": np.float32(0.18),
    }  # fmt: skip
    nodes = [
        ("Gather", ["table", "tokens"], "x", {}),
        ("LayerNormalization", ["x", "scale", "shift"], "n", {}),
        ("MatMul", ["n", "q"], "nq", {}),
        ("MatMul", ["n", "k"], "nk", {}),
        ("MatMul", ["n", "v"], "nv", {}),
        ("Transpose", ["nk"], "kt", {"perm": [0, 2, 1]}),
        ("MatMul", ["nq", "kt"], "scores", {}),
        ("Mul", ["scores", "fifth"], "scaled", {}),
        ("Reshape", ["mask", "shape"], "wide_mask", {}),
        ("Add", ["scaled", "wide_mask"], "masked", {}),
        ("Softmax", ["masked"], "shares", {"axis": -1}),
        ("MatMul", ["shares", "nv"], "mixed", {}),
        ("MatMul", ["mixed", "o"], "out", {}),
        ("Add", ["x", "out"], "y", {}),
        ("LayerNormalization", ["y", "scale", "shift"], "m", {}),
        ("MatMul", ["m", "up"], "u", {}),
        ("Add", ["u", "up_bias"], "ub", {}),
        ("Relu", ["ub"], "r", {}),
        ("MatMul", ["r", "down"], "dn", {}),
        ("Add", ["y", "dn"], "hidden", {}),
    ]
    del stored["wide"]
    stored["shape"] = np.array([1, 1, 12], np.int64)
    return save(path, nodes, stored, {"tokens": TOKENS, "mask": MASK}, {"hidden": [1, 12, 32]})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    made = {
        "mobile": (mobile(folder / "mobile.onnx"), {"image": PICTURES}),
        "attention": (attention(folder / "a.onnx"), {"tokens": TOKENS, "mask": MASK}),
    }

    def get(name, format):
        path, columns = made[name]
        if format == "tflite":
            pytest.importorskip("ai_edge_quantizer")
            out = path.with_suffix(".tflite")
            if not out.exists():
                plugins.get("routes", "onnx_litert").convert(path, out, plugins.reader("onnx").read(path).signature)
            return out, columns
        return path, columns

    return get


def run(path, columns):
    session = plugins.runtime_for(path.suffix[1:]).open(path, threads=1)
    name = session.signature.outputs[0].name
    types = {spec.name: spec.dtype for spec in session.signature.inputs}
    rows = range(len(next(iter(columns.values()))))
    return np.concatenate([session.run({key: values[row : row + 1].astype(types[key]) for key, values in columns.items()})[name] for row in rows])


def sqnr_db(expected, found):
    return 10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum())


def quantize(model, columns, out, name, **options):
    quantizer = ONNX if model.suffix == ".onnx" else LITERT
    told = quantizer.quantize(model, out, scheme=name, calibration=Dataset(columns), options=options)
    return told, plugins.reader(model.suffix[1:]).read(out)


def stored(path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(path))
    return model, {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize(
    ("name", "kind", "bits", "activations", "block"),
    [
        ("float16", "float", 16, 32, None),
        ("float32", "float", 32, 32, None),
        ("dynamic_wi8", "dynamic", 8, 8, None),
        ("weight_only_wi8", "weight_only", 8, 32, None),
        ("weight_only_wi4", "weight_only", 4, 32, scheme.BLOCK),
        ("static_wi8_ai8", "static", 8, 8, None),
        ("static_wi8_ai16", "static", 8, 16, None),
        ("static_wi4_ai8", "static", 4, 8, None),
    ],
)
def test_names_of_schemes_say_what_they_are(name, kind, bits, activations, block):
    assert scheme.decode(name) == scheme.Scheme(name, kind, bits, activations, block)


@pytest.mark.parametrize("name", ["int8", "static_wi8", "static_wi3_ai8", "dynamic_wi8_ai8", "", "STATIC_WI8_AI8", "static_wi8_ai8 "])
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match="unknown scheme"):
        scheme.decode(name)


def test_every_scheme_that_is_made_says_how_it_runs():
    made = {
        (one.format, name)
        for one in plugins.discover("quantizers").values()
        for name in one.schemes
        if one.format in ("onnx", "tflite", "pte", "openvino")
    }
    assert all(scheme.support(*key) for key in made)
    assert {name for _, name in made} == set(scheme.NAMES) - {"float32"}


def operator(reads, writes, able=True, **other):
    return Operator(frozenset(reads), (writes,), able, **other)


def layer(reads, writes, **other):
    return operator(reads, writes, core=True, **other)


@pytest.mark.parametrize(
    ("operators", "joined"),
    [
        # layer, sum with its own input, layer: all in integers
        ([layer("i", "a"), operator("ai", "b"), layer("b", "c")], [True, True, True]),
        # the sum of a layer and something float stays float
        ([layer("i", "a"), operator("x", "y", able=False), operator("ay", "b"), layer("b", "c")], [True, False, False, True]),
        # nobody reads the sum in integers
        ([layer("i", "a"), operator("ai", "b"), operator("b", "c", able=False)], [True, False, False]),
        # a chain is left from both ends
        ([operator("x", "y", able=False), operator("y", "a"), operator("a", "b"), operator("b", "c", able=False)], [False] * 4),
        # what a layer reads is there as integers for others too
        ([operator("x", "y", able=False), layer("y", "a"), operator("ya", "b"), layer("b", "c")], [False, True, True, True]),
        # a product that gives float is no source
        ([layer("i", "a", float_out=True), operator("a", "b"), layer("b", "c")], [True, False, True]),
        # a float activation among integers is an island of its own
        ([layer("i", "a"), operator("a", "b", able=False, activation=True), operator("b", "c"), layer("c", "d")], [True, False, True, True]),
    ],
)
def test_integers_are_for_layers_and_what_is_between_them(operators, joined):
    assert join(operators, constants=(), inputs="i") == joined


def test_onnx_mobile_net_runs_in_integers_from_end_to_end(models, tmp_path):
    model, columns = models("mobile", "onnx")
    told, contents = quantize(model, columns, tmp_path / "q.onnx", "static_wi8_ai8")
    assert told["kept_float"] == []
    audit.compare(contents, "static_wi8_ai8")
    graph, _ = stored(tmp_path / "q.onnx")
    kinds = {node.op_type for node in graph.graph.node}
    assert "HardSigmoid" not in kinds and "ReduceMean" not in kinds, "those have no integer kernel"
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "ran.onnx")
    ort.InferenceSession(str(tmp_path / "q.onnx"), options)
    ran = [node.op_type for node in stored(tmp_path / "ran.onnx")[0].graph.node]
    assert ran.count("QuantizeLinear") == 1 and ran.count("QLinearConv") == 4 and not {"Conv", "Gemm", "Mul", "Add", "Clip"} & set(ran)
    assert sqnr_db(run(model, columns), run(tmp_path / "q.onnx", columns)) > 25


def test_onnx_kept_layers_keep_their_activations(models, tmp_path):
    model, columns = models("mobile", "onnx")
    told, contents = quantize(model, columns, tmp_path / "q.onnx", "static_wi8_ai8", keep_float=("c.op",))
    assert told == {"kept_float": ["c.op"], "why": ""}
    audit.compare(contents, "static_wi8_ai8", kept_float=["c.op"])
    kinds = [node.op_type for node in stored(tmp_path / "q.onnx")[0].graph.node]
    assert kinds.count("HardSigmoid") == 1, "the gate of a float layer is float"
    assert sqnr_db(run(model, columns), run(tmp_path / "q.onnx", columns)) > 25


def test_onnx_large_stem_stays_float_unless_speed_is_no_matter(tmp_path):
    nodes = [("Conv", ["image", "w"], "a", {"strides": [2, 2]}), ("Relu", ["a"], "b", {}), ("Conv", ["b", "v"], "c", {})]
    pictures = RNG.uniform(size=(2, 3, 130, 130)).astype(np.float32)
    model = save(tmp_path / "m.onnx", nodes, {"w": weight(16, 3, 3, 3), "v": weight(8, 16, 1, 1)}, {"image": pictures}, {"c": [1, 8, 64, 64]})
    told, contents = quantize(model, {"image": pictures}, tmp_path / "q.onnx", "static_wi8_ai8")
    assert told["kept_float"] == ["a.op"] and "faster in float" in told["why"]
    audit.compare(contents, "static_wi8_ai8", kept_float=["a.op"])
    told, contents = quantize(model, {"image": pictures}, tmp_path / "q.onnx", "static_wi8_ai8", fast=False)
    assert told["kept_float"] == []
    audit.compare(contents, "static_wi8_ai8")


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_masks_and_norms_are_not_rounded(models, tmp_path, format):
    """The library's own choice rounds the mask's -3.4e38 and the scores by the same scale: nothing is left, and LiteRT even aborts."""
    model, columns = models("attention", format)
    told, contents = quantize(model, columns, tmp_path / f"q.{format}", "static_wi8_ai8")
    audit.compare(contents, "static_wi8_ai8", kept_float=told["kept_float"])
    assert sqnr_db(run(model, columns), run(tmp_path / f"q.{format}", columns)) > 25


@pytest.mark.parametrize("name", ["weight_only_wi8", "float16"])
def test_onnx_packed_weights_are_unpacked_once(models, tmp_path, name):
    model, columns = models("mobile", "onnx")
    _, contents = quantize(model, columns, tmp_path / "q.onnx", name)
    audit.compare(contents, name)
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "ran.onnx")
    ort.InferenceSession(str(tmp_path / "q.onnx"), options)
    ran = {node.op_type for node in stored(tmp_path / "ran.onnx")[0].graph.node}
    assert not ran & {"Cast", "DequantizeLinear"}


def test_onnx_bytes_are_symmetric_for_each_channel(models, tmp_path):
    model, columns = models("mobile", "onnx")
    before, after = stored(model)[1], None
    for per_channel in (True, False):
        quantize(model, columns, tmp_path / "q.onnx", "weight_only_wi8", per_channel=per_channel)
        after = stored(tmp_path / "q.onnx")[1]
        for name in ("stem", "depth", "point", "head"):
            scale, whole = after[f"{name}_scale"], after[f"{name}_int8"]
            assert whole.dtype == np.int8 and whole.shape == before[name].shape and name not in after
            axes = tuple(range(1, before[name].ndim)) if per_channel else None
            np.testing.assert_allclose(np.ravel(scale), np.ravel(np.abs(before[name]).max(axis=axes)) / 127, rtol=1e-6)
            assert (np.abs(whole * scale - before[name]) <= scale * 0.501).all()
    model, columns = models("attention", "onnx")
    quantize(model, columns, tmp_path / "q.onnx", "weight_only_wi8")
    after = stored(tmp_path / "q.onnx")[1]
    np.testing.assert_allclose(after["up_scale"], np.abs(stored(model)[1]["up"]).max(axis=0, keepdims=True) / 127, rtol=1e-6)


def test_onnx_nibbles_have_a_scale_for_each_block(models, tmp_path):
    import ml_dtypes

    model, columns = models("mobile", "onnx")
    _, contents = quantize(model, columns, tmp_path / "q.onnx", "weight_only_wi4")
    audit.compare(contents, "weight_only_wi4")
    graph, after = stored(tmp_path / "q.onnx")
    before = stored(model)[1]["stem"].reshape(16, -1)
    whole, scale = after["stem_int4"], after["stem_scale"]
    assert whole.dtype == ml_dtypes.int4 and whole.shape == (16, 1, 27) and scale.shape == (16, 1, 1)
    error = ((whole.astype(np.float32) * scale).reshape(16, -1) - before) ** 2
    widest = np.abs(before).max(axis=1, keepdims=True) / 7
    plain = (np.round(before / widest) * widest - before) ** 2
    assert (error.sum(axis=1) <= plain.sum(axis=1) * (1 + 1e-6)).all(), "not better than the scale of the largest weight"
    packed = next(node for node in graph.graph.node if node.op_type == "MatMulNBits")
    assert {one.name: one.i for one in packed.attribute if one.name in ("bits", "block_size", "K", "N")} == {
        "bits": 4,
        "block_size": 32,
        "K": 32,
        "N": 10,
    }
    assert sqnr_db(run(model, columns), run(tmp_path / "q.onnx", columns)) > 12


@pytest.mark.parametrize(("length", "block"), [(27, 27), (9, 9), (64, 64), (144, 48), (1152, 64), (72, 36), (960, 64), (37, 37), (131, 131)])
def test_blocks_divide_a_channel(length, block):
    assert block_size(length) == block


def test_onnx_embeddings_keep_a_scale_for_each_row(models, tmp_path):
    model, columns = models("attention", "onnx")
    table = stored(model)[1]["table"]
    for name in ("dynamic_wi8", "weight_only_wi8", "weight_only_wi4", "static_wi8_ai8"):
        quantize(model, columns, tmp_path / "q.onnx", name)
        graph, after = stored(tmp_path / "q.onnx")
        assert after["table_int8"].dtype == np.int8 and after["table_scale"].shape == (64, 1)
        assert np.abs(after["table_int8"] * after["table_scale"] - table).max() <= np.abs(table).max() / 127
        assert [node.input[0] for node in graph.graph.node if node.op_type == "Gather"] == ["table_int8", "table_scale"]
        assert sqnr_db(run(model, columns), run(tmp_path / "q.onnx", columns)) > 14, name


def test_onnx_float16_refuses_what_it_cannot_hold(tmp_path):
    large = weight(16, 64)
    large[3, 5] = 1e5
    model = save(
        tmp_path / "m.onnx",
        [("MatMul", ["x", "w"], "y", {})],
        {"w": large.T.copy()},
        {"x": RNG.normal(size=(1, 64)).astype(np.float32)},
        {"y": [1, 16]},
    )
    with pytest.raises(StageFailed, match=r"y\.op are beyond 65,504"):
        ONNX.quantize(model, tmp_path / "q.onnx", scheme="float16", calibration=None, options={})


def test_onnx_dynamic_is_refused_for_convolutions_before_it_is_made(models, tmp_path):
    model, columns = models("mobile", "onnx")
    with pytest.raises(ConfigError, match=r"4 convolutions\): ConvInteger.* times slower than float"):
        quantize(model, columns, tmp_path / "q.onnx", "dynamic_wi8")


def test_onnx_dynamic_keeps_the_convolution_before_a_transformer(tmp_path):
    nodes = [
        ("Conv", ["image", "patch"], "a", {"strides": [4, 4]}),
        ("Reshape", ["a", "flat"], "b", {}),
        ("MatMul", ["b", "w"], "c", {}),
        ("Relu", ["c"], "d", {}),
        ("MatMul", ["d", "v"], "e", {}),
    ]
    tensors = {"patch": weight(8, 3, 4, 4), "flat": np.array([1, 128], np.int64), "w": weight(128, 256), "v": weight(256, 64)}
    model = save(tmp_path / "m.onnx", nodes, tensors, {"image": PICTURES}, {"e": [1, 64]})
    told, contents = quantize(model, {"image": PICTURES}, tmp_path / "q.onnx", "dynamic_wi8")
    assert told == {"kept_float": ["a.op"], "why": "1 that are no matrix products"}
    audit.compare(contents, "dynamic_wi8", kept_float=["a.op"])


def test_onnx_kept_products_keep_their_names(models, tmp_path):
    for name, layer in (("mobile", "logits.op"), ("attention", "u.op")):
        model, columns = models(name, "onnx")
        for kind in ("static_wi8_ai8", "weight_only_wi8", "weight_only_wi4", "float16"):
            told, contents = quantize(model, columns, tmp_path / "q.onnx", kind, keep_float=(layer,))
            assert layer in told["kept_float"]
            audit.compare(contents, kind, kept_float=told["kept_float"])
            notes = {entry.key for entry in stored(tmp_path / "q.onnx")[0].metadata_props}
            assert SKIPPED not in notes, "a fusion took the layer"


@pytest.mark.parametrize("opset", [11, 12, 17, 21])
@pytest.mark.parametrize("name", ["static_wi8_ai8", "static_wi8_ai16", "weight_only_wi8", "weight_only_wi4", "float16"])
def test_onnx_of_any_age(tmp_path, opset, name):
    nodes = [("Conv", ["image", "w"], "a", {}), ("Relu", ["a"], "b", {}), ("Flatten", ["b"], "c", {}), ("Gemm", ["c", "v"], "d", {})]
    tensors = {"w": weight(8, 3, 3, 3), "v": weight(8 * 14 * 14, 10) * 8}
    model = save(tmp_path / "m.onnx", nodes, tensors, {"image": PICTURES}, {"d": [1, 10]}, opset=opset)
    told, contents = quantize(model, {"image": PICTURES}, tmp_path / "q.onnx", name)
    audit.compare(contents, name, kept_float=told["kept_float"])
    assert sqnr_db(run(model, {"image": PICTURES}), run(tmp_path / "q.onnx", {"image": PICTURES})) > (9 if "wi4" in name else 25)


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_unknown_layers_cannot_be_kept(models, tmp_path, format):
    model, columns = models("mobile", format)
    with pytest.raises(ConfigError, match="no layer 'nothing'"):
        quantize(model, columns, tmp_path / f"q.{format}", "static_wi8_ai8", keep_float=("nothing",))


def test_onnx_nothing_left_is_an_error(tmp_path):
    model = save(tmp_path / "m.onnx", [("Conv", ["image", "w"], "a", {})], {"w": weight(4, 3, 3, 3)}, {"image": PICTURES}, {"a": [1, 4, 14, 14]})
    with pytest.raises(StageFailed, match="no layer is left"):
        quantize(model, {"image": PICTURES}, tmp_path / "q.onnx", "static_wi8_ai8", keep_float=("a.op",))


def test_onnx_reduced_range_leaves_a_bit(models, tmp_path):
    model, columns = models("mobile", "onnx")
    largest = {}
    for reduced in (False, True):
        quantize(model, columns, tmp_path / "q.onnx", "static_wi8_ai8", reduce_range=reduced)
        largest[reduced] = max(
            np.abs(one.astype(int)).max() for one in stored(tmp_path / "q.onnx")[1].values() if one.dtype == np.int8 and one.ndim > 1
        )
    assert largest == {False: 127, True: 64}


@pytest.mark.parametrize("network", ["mobile", "attention"])
@pytest.mark.parametrize(("format", "bits"), [("onnx", 8), ("tflite", 8), ("onnx", 16)])
def test_given_statistics_are_used_and_nothing_is_observed(models, tmp_path, monkeypatch, network, format, bits):
    from toolkit.quantization.observe import observe

    model, columns = models(network, format)
    observe(model, Dataset(columns)).write(tmp_path / "s.npz")
    quantize(model, columns, tmp_path / f"one.{format}", f"static_wi8_ai{bits}")
    monkeypatch.setattr(calibrated, "observe", None)
    quantize(model, columns, tmp_path / f"two.{format}", f"static_wi8_ai{bits}", statistics=tmp_path / "s.npz")
    assert (tmp_path / f"one.{format}").read_bytes() == (tmp_path / f"two.{format}").read_bytes()


def test_tflite_hard_swish_stays_float_and_its_neighbours_do_not(models, tmp_path):
    model, columns = models("mobile", "tflite")
    assert plugins.reader("tflite").read(model).operators["HARD_SWISH"] == 2
    _, contents = quantize(model, columns, tmp_path / "q.tflite", "static_wi8_ai8")
    audit.compare(contents, "static_wi8_ai8")
    # one in, one out, and one pair around each
    assert contents.operators["QUANTIZE"] == 3 and contents.operators["DEQUANTIZE"] == 3
    assert sqnr_db(run(model, columns), run(tmp_path / "q.tflite", columns)) > 25


def test_tflite_keeps_layers_whose_names_mean_something_to_a_pattern(models, tmp_path):
    models("mobile", "tflite")
    names = {"g": "net.(block)[1]+.*", "j": "net.(block)[1]+.*|^"}
    source = mobile(tmp_path / "m.onnx", names)
    model = tmp_path / "m.tflite"
    plugins.get("routes", "onnx_litert").convert(source, model, plugins.reader("onnx").read(source).signature)
    layers = [layer.name for layer in plugins.reader("tflite").read(model).layers]
    kept = next(name for name in layers if names["j"] in name)
    assert any(names["g"] in name and name != kept for name in layers)
    told, contents = quantize(model, {"image": PICTURES}, tmp_path / "q.tflite", "static_wi8_ai8", keep_float=(kept,))
    assert told["kept_float"] == [kept]
    audit.compare(contents, "static_wi8_ai8", kept_float=[kept])


@pytest.mark.parametrize("name", ["static_wi8_ai16", "weight_only_wi8", "weight_only_wi4", "float16", "dynamic_wi8"])
def test_tflite_files_are_what_they_are_called(models, tmp_path, name):
    model, columns = models("mobile", "tflite")
    told, contents = quantize(model, columns, tmp_path / "q.tflite", name)
    audit.compare(contents, name, kept_float=told["kept_float"])
    assert sqnr_db(run(model, columns), run(tmp_path / "q.tflite", columns)) > (9 if "wi4" in name else 25)


def test_compiled_programs_are_quantized_from_what_they_were_made_of():
    recipe = load_recipe("image-classification")
    model, samples, program = Need("convert:pte", "model.pte"), Need("calibration", "calibration"), Need("source", "model.pt2")
    step = quantizing.quantize(model, "pte", "static_wi8_ai8", recipe, samples, program=("pt2", program))
    assert (step.needs["model"], step.needs["program"]) == (model, program)
    for other in (None, ("keras", program)):
        with pytest.raises(NoRoute, match=r"pte files are quantized from the \.pt2 program"):
            quantizing.quantize(model, "pte", "static_wi8_ai8", recipe, samples, program=other)
    assert "program" not in quantizing.quantize(model, "onnx", "static_wi8_ai8", recipe, samples, program=("pt2", program)).needs


def test_what_chooses_by_time_runs_alone():
    recipe, model, samples = load_recipe("image-classification"), Need("convert:onnx", "model.onnx"), Need("calibration", "calibration")
    runs = quantizing.Repair(Need("search", "search"), plugins.get("runtimes", "onnxruntime"), 1, "image-classification", "logits", None, ())
    assert quantizing.quantize(model, "onnx", "auto", recipe, samples, repair=runs).exclusive
    assert not quantizing.quantize(model, "onnx", "auto", recipe, samples).exclusive
    assert not quantizing.quantize(model, "onnx", "static_wi8_ai8", recipe, samples, repair=runs).exclusive
