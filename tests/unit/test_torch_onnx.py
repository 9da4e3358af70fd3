"""PyTorch to ONNX: operator sets, the guarded clean-up, the limit of one file, and what preflight finds."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxslim")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from toolkit import modelfile, onnx_files, plugins  # noqa: E402
from toolkit.artifact import Signature, TensorSpec  # noqa: E402
from toolkit.convert import stage, torch_onnx  # noqa: E402
from toolkit.convert.torch_onnx import ROUTE  # noqa: E402
from toolkit.errors import InputRejected, StageFailed  # noqa: E402
from toolkit.job import Job  # noqa: E402
from toolkit.sources.torch import SOURCE  # noqa: E402

N = 3
IMAGES = np.random.default_rng(0).normal(size=(N, 3, 8, 8)).astype(np.float32)


class Net(torch.nn.Module):
    """Has what old operator sets lack: a hard swish (14), a mean over axes as an input (18), a GELU (20)."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Hardswish())
        self.head = torch.nn.Linear(4, 5)

    def forward(self, image):
        return {"scores": self.head(torch.nn.functional.gelu(self.stem(image).mean((2, 3))))}


class Normed(torch.nn.Module):
    def forward(self, image):
        return {"scores": torch.nn.functional.layer_norm(image, (8,))}


def specs(columns, free=()):
    return tuple(TensorSpec(name=n, dtype=str(c.dtype), shape=(*(free or (1,)), *c.shape[1:])) for n, c in columns.items())


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    """Program, signature and expected outputs of the little network."""
    torch.manual_seed(0)
    return make(tmp_path_factory.mktemp("net"), Net())


def make(folder, model, free=None):
    program = folder / "m.pt2"
    expected = SOURCE.capture(model.eval(), {"image": IMAGES}, program, dynamic={"image": {0: "batch"}} if free else None)
    return program, Signature(inputs=specs({"image": IMAGES}, free), outputs=specs(expected, free)), expected


def outputs(file, images=IMAGES):
    session = plugins.get("runtimes", "onnxruntime").open(file, threads=1)
    return np.concatenate([session.run({"image": images[row : row + 1]})["scores"] for row in range(len(images))])


def clean_up(file):
    return {entry.key: entry.value for entry in onnx.load(file).metadata_props}[onnx_files.CLEAN_UP]


@pytest.mark.parametrize("opset", [13, 15, 17, 18, 19, 20, 21])
def test_an_operator_set_is_what_was_asked_for(captured, tmp_path, opset):
    program, signature, expected = captured
    ROUTE.convert(program, tmp_path / "m.onnx", signature, opset=opset)
    model = onnx.load(tmp_path / "m.onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    since = {node.op_type: onnx.defs.get_schema(node.op_type, opset).since_version for node in model.graph.node}  # raises for unknown operators
    assert max(since.values()) <= opset
    np.testing.assert_allclose(outputs(tmp_path / "m.onnx"), expected["scores"], rtol=1e-4, atol=1e-6)
    assert "model.head/Gemm" in [node.name for node in model.graph.node]  # the layer's name, also after tracing


def test_the_same_bytes_twice_also_when_traced(captured, tmp_path):
    program, signature, _ = captured
    for name in ("a", "b"):
        ROUTE.convert(program, tmp_path / name, signature, opset=13)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_operator_set_that_cannot_be_had_is_refused_with_those_that_can(tmp_path):
    program, signature, _ = make(tmp_path, Net(), free=("batch",))
    with pytest.raises(StageFailed, match=r"cannot be had in ONNX opset 13: PyTorch's older exporter takes no free sizes; it can in .*20, 21"):
        ROUTE.convert(program, tmp_path / "m.onnx", signature, opset=13)


def test_a_relabelled_operator_set_is_not_taken(captured, monkeypatch):
    """A converter that changes the label alone: LayerNormalization does not exist in set 13."""
    import onnx.version_converter

    model = chain("LayerNormalization")

    def relabel(given, wanted):
        changed = onnx.ModelProto()
        changed.CopyFrom(given)
        changed.opset_import[0].version = wanted
        return changed

    monkeypatch.setattr(onnx.version_converter, "convert_version", relabel)
    assert onnx_files.with_opset(model, 13, {"x": np.ones((1, 4), np.float32)}) is None
    monkeypatch.setattr(onnx.version_converter, "convert_version", lambda given, wanted: given)
    assert onnx_files.with_opset(model, 18, {"x": np.ones((1, 4), np.float32)}) is None  # says 17 still


def chain(operator="Identity", value=2.0):
    scale = numpy_helper.from_array(np.full(4, value, np.float32), "scale")
    inputs = ["x", "scale"] if operator in ("LayerNormalization", "Mul") else ["x"]
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, ["y"], "first")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [scale],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_clean_up_that_changes_an_output_is_undone():
    x = {"x": np.arange(4, dtype=np.float32)[None]}
    model = chain("Mul", 2.0)
    kept, note = onnx_files.guarded(model, lambda copy: chain("Mul", 2.001), x, "sweeper")
    assert kept is model and "sweeper changed an output by 0.0005" in note

    taken, note = onnx_files.guarded(model, lambda copy: chain("Mul", 2.0 + 1e-6), x, "sweeper")
    assert taken is not model and note == "sweeper"

    def fails(copy):
        copy.graph.node.pop()
        raise ValueError("no idea")

    kept, note = onnx_files.guarded(model, fails, x, "sweeper")
    assert kept is model and len(model.graph.node) == 1 and note == "kept as it was: sweeper failed: ValueError: no idea"


def test_an_optimizer_that_changes_an_output_is_undone_in_the_route(captured, tmp_path, monkeypatch):
    program, signature, expected = captured
    export = torch_onnx._export

    def spoiled(program, signature, out, *, optimize, opset=None):
        model = export(program, signature, out, optimize=optimize, opset=opset)
        if optimize:
            bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("head.bias"))
            bias.raw_data = (np.frombuffer(bias.raw_data, np.float32) * 1.01).tobytes()
        return model

    monkeypatch.setattr(torch_onnx, "_export", spoiled)
    ROUTE.convert(program, tmp_path / "m.onnx", signature)
    assert clean_up(tmp_path / "m.onnx").startswith("kept as exported: onnxscript changed an output by 0.00")
    np.testing.assert_allclose(outputs(tmp_path / "m.onnx"), expected["scores"], rtol=1e-4, atol=1e-6)


def test_the_clean_up_can_be_left_out(captured, tmp_path):
    program, signature, expected = captured
    ROUTE.convert(program, tmp_path / "clean.onnx", signature)
    ROUTE.convert(program, tmp_path / "raw.onnx", signature, clean_up=False)
    clean, raw = onnx.load(tmp_path / "clean.onnx"), onnx.load(tmp_path / "raw.onnx")
    assert (clean_up(tmp_path / "clean.onnx"), clean_up(tmp_path / "raw.onnx")) == ("onnxscript", "not asked for")
    assert len(raw.graph.node) > len(clean.graph.node)
    np.testing.assert_allclose(outputs(tmp_path / "raw.onnx"), expected["scores"], rtol=1e-4, atol=1e-6)


class Wide(torch.nn.Module):
    """Has weights that are worth a file of their own, tied ones among them, and small ones that are not."""

    def __init__(self):
        super().__init__()
        self.wide, self.again, self.head = torch.nn.Linear(192, 192), torch.nn.Linear(192, 192), torch.nn.Linear(192, 5)
        self.again.weight = self.wide.weight

    def forward(self, image):
        return {"scores": self.head(torch.nn.functional.gelu(self.again(torch.nn.functional.gelu(self.wide(image.flatten(1))))))}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    torch.manual_seed(0)
    return make(tmp_path_factory.mktemp("wide"), Wide())


@pytest.mark.parametrize("clean", [True, False])
def test_weights_beyond_one_file_are_beside_it(wide, tmp_path, monkeypatch, clean):
    program, signature, expected = wide
    ROUTE.convert(program, tmp_path / "one.onnx", signature, clean_up=clean)
    monkeypatch.setattr(onnx_files, "MAX_BYTES", 100_000)
    ROUTE.convert(program, tmp_path / "m.onnx", signature, clean_up=clean)
    assert modelfile.files(tmp_path / "m.onnx") == [tmp_path / "m.onnx", tmp_path / "m.onnx.data"]
    assert (tmp_path / "m.onnx").stat().st_size < 10_000 < 192 * 192 * 4 <= (tmp_path / "m.onnx.data").stat().st_size
    one, apart = onnx.load(tmp_path / "one.onnx"), onnx.load(tmp_path / "m.onnx")
    assert one == apart or one.graph.node == apart.graph.node, "the same graph, but for the place of its weights"
    np.testing.assert_array_equal(outputs(tmp_path / "m.onnx"), outputs(tmp_path / "one.onnx"))
    np.testing.assert_allclose(outputs(tmp_path / "m.onnx"), expected["scores"], rtol=1e-4, atol=1e-6)
    before = [(tmp_path / name).read_bytes() for name in ("m.onnx", "m.onnx.data")]
    ROUTE.convert(program, tmp_path / "m.onnx", signature, clean_up=clean)
    assert [(tmp_path / name).read_bytes() for name in ("m.onnx", "m.onnx.data")] == before, "the same program gives the same bytes twice"


def test_the_stage_takes_what_one_buffer_cannot_hold(wide, tmp_path, monkeypatch):
    program, signature, _ = wide
    for place, limit in ((onnx_files, "MAX_BYTES"), (modelfile, "BUFFER_BYTES")):
        monkeypatch.setattr(place, limit, 100_000)
    facts = stage.run(Job({"program": program}, {"route": ROUTE.name, "signature": signature.model_dump(mode="json")}, tmp_path))
    assert facts["made_by"] == ROUTE.name
    assert [path.name for path in modelfile.files(tmp_path / "model.onnx")] == ["model.onnx", "model.onnx.data"]


def test_up_to_the_limit_there_is_one_file(wide, tmp_path, monkeypatch):
    program, signature, _ = wide
    ROUTE.convert(program, tmp_path / "one.onnx", signature)
    stored = sum(tensor.ByteSize() for tensor in onnx.load(tmp_path / "one.onnx").graph.initializer)
    monkeypatch.setattr(onnx_files, "MAX_BYTES", stored)
    ROUTE.convert(program, tmp_path / "m.onnx", signature)
    assert (tmp_path / "m.onnx").read_bytes() == (tmp_path / "one.onnx").read_bytes()
    assert modelfile.files(tmp_path / "m.onnx") == [tmp_path / "m.onnx"]


def test_a_large_graph_is_kept_as_exported_where_the_optimized_one_differs(wide, tmp_path, monkeypatch):
    program, signature, expected = wide
    monkeypatch.setattr(onnx_files, "MAX_BYTES", 100_000)
    monkeypatch.setattr(torch_onnx, "_agrees", lambda *args: False)
    ROUTE.convert(program, tmp_path / "m.onnx", signature)
    assert clean_up(tmp_path / "m.onnx").startswith("kept as exported")
    np.testing.assert_allclose(outputs(tmp_path / "m.onnx"), expected["scores"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("opset", "known"), [(18, True), (19, True), (20, True), (17, False), (21, False)])
def test_a_large_graph_has_the_operator_sets_of_the_exporter(wide, tmp_path, monkeypatch, opset, known):
    program, signature, expected = wide
    monkeypatch.setattr(onnx_files, "MAX_BYTES", 100_000)
    if not known:
        with pytest.raises(StageFailed, match=f"opsets 18, 19, 20, not in {opset}"):
            ROUTE.convert(program, tmp_path / "m.onnx", signature, opset=opset)
        return
    ROUTE.convert(program, tmp_path / "m.onnx", signature, opset=opset)
    assert onnx_files.opset(onnx.load(tmp_path / "m.onnx", load_external_data=False)) == opset
    np.testing.assert_allclose(outputs(tmp_path / "m.onnx"), expected["scores"], rtol=1e-4, atol=1e-6)


def test_weights_that_grew_on_the_way_are_refused_when_written(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "MAX_BYTES", 15)
    with pytest.raises(InputRejected, match="writes one ONNX file, which holds"):
        onnx_files.save(chain("Mul"), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_preflight_names_the_layer_of_an_operator_without_counterpart(tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.eigvalsh(x @ x.transpose(-1, -2))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.odd = torch.nn.Conv2d(3, 3, 1), Odd()

        def forward(self, image):
            return {"scores": self.odd(self.first(image))}

    program, signature, _ = make(tmp_path, Model())
    found = ROUTE.preflight(program, signature)
    assert [(one.layer, one.reason) for one in found] == [("odd", "has no ONNX counterpart")]
    assert "eigh" in found[0].operator
    with pytest.raises(StageFailed, match=r"eigh.* \(layer odd\) has no ONNX counterpart"):
        ROUTE.convert(program, tmp_path / "m.onnx", signature)


def test_preflight_is_silent_about_what_converts(captured):
    program, signature, _ = captured
    assert ROUTE.preflight(program, signature) == []


def test_a_free_batch_keeps_its_name(tmp_path):
    program, signature, _ = make(tmp_path, Net(), free=("batch",))
    ROUTE.convert(program, tmp_path / "m.onnx", signature)
    session = plugins.get("runtimes", "onnxruntime").open(tmp_path / "m.onnx", threads=1)
    assert session.signature == signature
    both = session.run({"image": IMAGES})["scores"]
    np.testing.assert_allclose(both, outputs(tmp_path / "m.onnx"), rtol=1e-4, atol=1e-6)


def test_the_check_sees_sizes_that_are_not_the_signatures():
    wrong = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),), outputs=(TensorSpec(name="y", dtype="float32", shape=(1, 4)),)
    )
    with pytest.raises(StageFailed, match=r"the sizes \[1, 4\], expected \['batch', 4\]"):
        onnx_files.check(chain(), wrong, "here")


def test_invalid_onnx_is_refused_though_its_weights_are_not_read():
    right = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 4)),), outputs=(TensorSpec(name="y", dtype="float32", shape=(1, 4)),))
    onnx_files.check(chain("Mul"), right, "here")
    model = chain("Mul")
    model.graph.node[0].input[1] = "missing"
    with pytest.raises(StageFailed, match="invalid ONNX"):
        onnx_files.check(model, right, "here")


@pytest.mark.parametrize(
    ("expected", "found", "distance"),
    [
        ([1.0, -2.0], [1.0, -2.0], 0),
        ([1.0, -2.0], [1.0, -2.2], 0.1),
        ([np.inf, np.nan], [np.inf, np.nan], 0),
        ([np.inf, 1.0], [1.0, 1.0], np.inf),
        ([0.0, 0.0], [0.0, 1.0], np.inf),
        ([1.0, 2.0], [1.0, 2.0, 3.0], np.inf),
    ],
)
def test_distances(expected, found, distance):
    one, other = ({"y": np.array(values, np.float32)} for values in (expected, found))
    assert onnx_files.distance(one, other) == pytest.approx(distance, rel=1e-5)


@pytest.mark.parametrize(("change", "kept"), [(1 + 3e-5, True), (1 + 1e-3, False)], ids=["rounding of a deep network", "another computation"])
def test_a_clean_up_may_round_and_nothing_else(change, kept):
    """A ResNet-50 whose batch norms were folded is 2.6e-5 off: it shall not be shipped with 53 batch norms for that."""
    from onnx import numpy_helper

    def scale(model):
        weight = model.graph.initializer[0]
        weight.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(weight) * change).astype(np.float32), weight.name))
        return model

    model = chain("Mul")
    _, said = onnx_files.guarded(model, scale, {"x": np.array([[1.0, -2.0, 3.0, 0.5]], np.float32)}, "scaling")
    assert (said == "scaling") is kept, said
