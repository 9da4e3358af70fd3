"""ONNX models whose weights are in files beside the graph: found, digested, copied, delivered and run as one thing."""

import hashlib
import os
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from toolkit import intake, modelfile, onnx_external, onnx_wire, plugins  # noqa: E402
from toolkit.artifact import Signature, TensorSpec  # noqa: E402
from toolkit.convert import stage as convert_stage  # noqa: E402
from toolkit.errors import InputRejected  # noqa: E402
from toolkit.evidence import StageRecord  # noqa: E402
from toolkit.job import Job  # noqa: E402
from toolkit.pipeline import deliver  # noqa: E402
from toolkit.pipeline.execute import Result, _Run  # noqa: E402
from toolkit.pipeline.fingerprint import fingerprint, fingerprint_project  # noqa: E402
from toolkit.pipeline.single import open_model, read_manifest  # noqa: E402
from toolkit.pipeline.steps import Need  # noqa: E402
from toolkit.quantization import stage as quantize_stage  # noqa: E402
from toolkit.store import Entry, Store  # noqa: E402

WIDTH = 8
DATA_BYTES = 4 * WIDTH * WIDTH * 4  # the branch is there twice
X = np.random.default_rng(1).normal(size=(1, WIDTH)).astype(np.float32)
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(1, WIDTH)),), outputs=(TensorSpec(name="y", dtype="float32", shape=(1, WIDTH)),)
)


def product():
    """Three products with a weight each: one in the graph, one in a branch, one as an attribute."""
    random = np.random.default_rng(0)
    first, second, third = (numpy_helper.from_array(random.normal(size=(WIDTH, WIDTH)).astype(np.float32), name) for name in ("w0", "w1", "w2"))
    result = helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, WIDTH])
    branch = helper.make_graph([helper.make_node("MatMul", ["a", "w1"], ["b"])], "branch", [], [result], [second])
    nodes = [
        helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True])),
        helper.make_node("Constant", [], ["w2"], value=third),
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("If", ["yes"], ["c"], then_branch=branch, else_branch=branch),
        helper.make_node("MatMul", ["c", "w2"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, WIDTH]) for name in "xy")
    graph = helper.make_graph(nodes, "location", [x], [y], [first])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def save(folder, spread):
    folder.mkdir()
    path = folder / "m.onnx"
    if spread == "one":
        onnx.save(product(), path, save_as_external_data=True, location="weights.bin", size_threshold=100, convert_attribute=True)
    else:
        onnx.save(product(), path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=100, convert_attribute=True)
    return path


@pytest.fixture(params=["one", "many"])
def apart(request, tmp_path):
    """A model with all its weights in other files: one of another name than ours, or one for each tensor."""
    return save(tmp_path / "wild", request.param)


@pytest.fixture
def whole(tmp_path):
    onnx.save(product(), tmp_path / "whole.onnx")
    return tmp_path / "whole.onnx"


def run(path):
    return plugins.get("runtimes", "onnxruntime").open(path, threads=1).run({"x": X})["y"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_all_weights_are_found_wherever_they_are_in_the_graph(apart, whole):
    found = dict(onnx_wire.external_tensors(apart))
    reference = {tensor.name: tensor for tensor in onnx.external_data_helper._get_all_tensors(onnx.load(apart, load_external_data=False))}
    assert set(found) == {name for name, tensor in reference.items() if tensor.external_data}
    assert {"w0", "w2"} <= set(found)
    assert all(found[name] == {entry.key: entry.value for entry in reference[name].external_data} for name in found)
    assert list(onnx_wire.external_tensors(whole)) == [], "a graph that is called 'location' has its weights in itself"
    assert modelfile.files(whole) == [whole]


def test_a_graph_that_refers_to_the_same_places_keeps_its_bytes(apart, whole):
    for path in (apart, whole):
        assert onnx_wire.rewritten(path, lambda tensor, entries: entries) == path.read_bytes()


def test_a_copy_is_a_pair_that_computes_the_same(apart, whole, tmp_path):
    out = tmp_path / "out" / "net.float32.onnx"
    out.parent.mkdir()
    modelfile.copy(apart, out)
    assert names(out.parent) == ["net.float32.onnx", "net.float32.onnx.data"]
    np.testing.assert_array_equal(run(out), run(whole))
    loaded, reference = onnx.load(out), onnx.load(whole)
    for found, wanted in zip(onnx.external_data_helper._get_all_tensors(loaded), onnx.external_data_helper._get_all_tensors(reference), strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(found), numpy_helper.to_array(wanted))
    moved = out.parent.rename(tmp_path / "elsewhere") / out.name
    np.testing.assert_array_equal(run(moved), run(whole))


def test_the_digest_follows_the_weights_and_neither_name_nor_files(apart, tmp_path):
    before = modelfile.sha256(apart)
    for name in ("model.onnx", "net.float32.onnx"):
        (tmp_path / name).mkdir()
        modelfile.copy(apart, tmp_path / name / name)
        assert modelfile.sha256(tmp_path / name / name) == before
    lines = subprocess.run(["sha256sum", "model.onnx", "model.onnx.data"], cwd=tmp_path / "model.onnx", capture_output=True, check=True).stdout
    assert before == hashlib.sha256(lines).hexdigest()
    assert modelfile.size_bytes(apart) == apart.stat().st_size + DATA_BYTES
    seen = fingerprint(apart)
    data = modelfile.files(apart)[-1]
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    assert modelfile.sha256(apart) != before
    assert fingerprint(apart) != seen


def test_the_reader_measures_weights_that_it_does_not_load(apart, whole):
    contents, reference = (plugins.reader("onnx").read(path) for path in (apart, whole))
    assert (contents.details["external_data"], reference.details["external_data"]) == ("yes", "no")
    assert contents.weight_bytes == reference.weight_bytes
    assert contents.layers == reference.layers
    assert contents.size_bytes == modelfile.size_bytes(apart)
    assert contents.sha256 == modelfile.sha256(apart)


def spoil(path, how):
    data = modelfile.files(path)[1]
    if how == "missing":
        data.unlink()
    elif how == "truncated":
        os.truncate(data, data.stat().st_size - 1)
    else:
        away = path.parent.parent / "away.bin"
        data.rename(away)
        data.symlink_to(away)
    return data.name


@pytest.mark.parametrize(("how", "says"), [("missing", "is missing; at least"), ("truncated", "bytes, expected at least"), ("link", "leads out of")])
def test_weights_that_are_not_there_are_told_by_name_and_size(apart, how, says):
    name = spoil(apart, how)
    asks = [intake.check_model, modelfile.sha256, modelfile.size_bytes, fingerprint, plugins.reader("onnx").read, run]
    for ask in asks:
        with pytest.raises(InputRejected, match=says) as caught:
            ask(apart)
        assert repr(name) in str(caught.value)
        assert caught.value.hint


def reference(tmp_path, **entries):
    model = product()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret", "..\\secret", "C:\\secret", "", "\0", "m.onnx"])
def test_no_place_outside_the_folder_is_looked_at(tmp_path, location):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(b"x" * 400)
    path = reference(tmp_path / "in", location=location, length="256")
    for ask in (intake.check_model, modelfile.sha256, modelfile.files, lambda path: modelfile.copy(path, tmp_path / "out.onnx")):
        with pytest.raises(InputRejected, match=r"outside the model's folder|not a usable path|is the model itself"):
            ask(path)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("entries", [{"offset": "-1"}, {"length": "x"}, {"length": "9" * 5000}, {"offset": "1e3"}, {"offset": "\u0661"}])
def test_sizes_that_are_none_are_refused(tmp_path, entries):
    (tmp_path / "w").write_bytes(b"x" * 256)
    with pytest.raises(InputRejected, match="which is no size"):
        intake.check_model(reference(tmp_path, location="w", **entries))


def test_a_damaged_graph_is_told_as_one(tmp_path):
    graph = b"\x2a\x05\x0a\x01\x09\x6a\x70"  # an initializer whose entry ends after it
    (tmp_path / "m.onnx").write_bytes(b"\x3a" + bytes([len(graph)]) + graph + b"\x42\x02\x10\x12")
    with pytest.raises(InputRejected, match="ends after the message that holds it"):
        intake.check_model(tmp_path / "m.onnx")
    assert modelfile.sha256(tmp_path / "m.onnx") == hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()


def nested(depth):
    graph = b""
    for _ in range(depth):
        attribute = b"\x32" + onnx_wire._as_varint(len(graph)) + graph
        node = b"\x2a" + onnx_wire._as_varint(len(attribute)) + attribute
        graph = b"\x0a" + onnx_wire._as_varint(len(node)) + node
    return b"\x3a" + onnx_wire._as_varint(len(graph)) + graph + b"\x42\x02\x10\x12"


def test_graphs_in_graphs_end_somewhere(tmp_path):
    (tmp_path / "m.onnx").write_bytes(nested(20))
    assert intake.check_model(tmp_path / "m.onnx") == "onnx"
    (tmp_path / "m.onnx").write_bytes(nested(5000))
    with pytest.raises(InputRejected, match="nested more than 100 deep"):
        intake.check_model(tmp_path / "m.onnx")


def test_the_size_limit_counts_the_weights(apart):
    size = modelfile.size_bytes(apart)
    assert intake.check_model(apart, max_bytes=size) == "onnx"
    with pytest.raises(InputRejected, match=f"has {size:,} bytes with its weights, the limit is {size - 1:,}"):
        intake.check_model(apart, max_bytes=size - 1)


@pytest.fixture
def delivered(apart, tmp_path):
    """A pair as a step leaves it in the store, delivered with its manifest."""
    (tmp_path / "step").mkdir()
    modelfile.copy(apart, tmp_path / "step" / "model.onnx")
    facts = {"signature": SIGNATURE.model_dump(mode="json"), "made_by": "test", "versions": {}}
    result = Result(StageRecord(step="convert:onnx", status="done"), facts, tmp_path / "step")
    out = tmp_path / "models" / "net.float32.onnx"
    return deliver.deliver_model(result, out, name="net", format="onnx", scheme="float32", parent_sha256=""), result


def test_a_delivered_pair_is_what_its_manifest_says(delivered, whole, tmp_path):
    artifact, result = delivered
    assert names(artifact.path.parent) == ["net.float32.onnx", "net.float32.onnx.data", "net.float32.onnx.manifest.json"]
    assert artifact.manifest.sha256 == modelfile.sha256(result.folder / "model.onnx"), "the parent of whatever is made of it there"
    assert artifact.manifest.size_bytes == sum((artifact.path.parent / name).stat().st_size for name in names(artifact.path.parent)[:2])
    np.testing.assert_array_equal(run(artifact.path), run(whole))
    opened, contents = open_model(artifact.path, Store(tmp_path / "cache"))
    assert opened.manifest == artifact.manifest
    assert contents.sha256 == artifact.manifest.sha256


def test_a_delivered_pair_is_no_part_of_the_project_around_it(delivered, tmp_path):
    artifact, _ = delivered
    project = artifact.path.parent
    assert fingerprint_project(project)["files"] == {}
    (project / "other.data").touch()
    assert set(fingerprint_project(project)["files"]) == {"other.data"}


def test_a_step_that_needs_a_graph_needs_its_weights(tmp_path):
    need = Need("source", "model.onnx")

    def key(**files):
        entry = Entry("k", tmp_path, {name.replace("_", "."): digest for name, digest in files.items()})
        return _Run._digest(SimpleNamespace(entries={"source": entry}), need)

    before = key(model_onnx="a", model_onnx_data="b", facts_json="c")
    assert key(model_onnx="a", model_onnx_data="b", facts_json="d") == before
    assert key(model_onnx="a", model_onnx_data="c", facts_json="c") != before


def test_a_changed_data_file_is_no_longer_the_delivered_model(delivered):
    artifact, _ = delivered
    data = onnx_external.data_path(artifact.path)
    content = bytearray(data.read_bytes())
    content[5] ^= 1
    data.write_bytes(content)
    with pytest.raises(InputRejected, match="SHA-256 differs"):
        read_manifest(artifact.path)
    with pytest.raises(InputRejected, match="SHA-256 differs"):
        open_model(artifact)


def test_delivered_models_replace_each_other_whole(delivered, whole, tmp_path):
    artifact, result = delivered
    out, data = artifact.path, onnx_external.data_path(artifact.path)
    data.write_bytes(b"another model's weights" * 100)
    deliver.copy(result.folder / "model.onnx", out)
    np.testing.assert_array_equal(run(out), run(whole))
    deliver.copy(whole, out)
    assert names(out.parent) == ["net.float32.onnx", "net.float32.onnx.manifest.json"], "the weights of the model before are gone"
    assert out.read_bytes() == whole.read_bytes()
    data.write_bytes(b"somebody's notes")
    deliver.copy(whole, out)
    deliver.remove(out)
    assert names(out.parent) == [data.name], "what belongs to no model stays"


def test_no_graph_is_seen_beside_half_of_its_weights(delivered, monkeypatch):
    artifact, result = delivered
    out, data = artifact.path, onnx_external.data_path(artifact.path)
    seen = []
    write = onnx_external.write_data

    def watched(files, partial):
        seen.append((out.exists(), partial.name.startswith(f".{data.name}.")))
        write(files, partial)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_external, "write_data", watched)
    with pytest.raises(deliver.SetupError, match="No space left"):
        deliver.copy(result.folder / "model.onnx", out)
    assert seen == [(False, True)]
    assert not out.exists()
    assert not list(out.parent.glob(".*partial")), "nothing half-written stays behind"


def test_a_removed_pair_leaves_nothing(delivered):
    artifact, _ = delivered
    deliver.remove(artifact.path)
    assert names(artifact.path.parent) == []


def test_what_one_buffer_cannot_hold_is_refused_before_the_work(apart, tmp_path, monkeypatch):
    monkeypatch.setattr(modelfile, "BUFFER_BYTES", 500)
    monkeypatch.setattr(plugins.get("routes", "onnx_ort"), "convert", lambda *args: pytest.fail("converted all the same"), raising=False)
    options = {"route": "onnx_ort", "signature": SIGNATURE.model_dump(mode="json")}
    with pytest.raises(InputRejected, match="onnx_ort writes a FlatBuffer, which holds"):
        convert_stage.run(Job({"program": apart}, options, tmp_path))
    with pytest.raises(InputRejected, match="this route reads at most"):
        plugins.get("routes", "onnx_torch").convert(apart, tmp_path / "m.pt2", SIGNATURE)
    with pytest.raises(InputRejected, match="quantizers take at most"):
        quantize_stage.run(Job({"model": apart}, {"quantizer": "onnxruntime", "scheme": "dynamic_wi8"}, tmp_path))


def test_smaller_ones_are_quantized_into_one_file(apart, whole, tmp_path):
    facts = quantize_stage.run(Job({"model": apart}, {"quantizer": "onnxruntime", "scheme": "dynamic_wi8"}, tmp_path))
    made = tmp_path / "model.onnx"
    assert modelfile.files(made) == [made]
    assert facts["ratio"] == made.stat().st_size / modelfile.size_bytes(apart)
    np.testing.assert_allclose(run(made), run(whole), atol=0.1 * np.abs(run(whole)).max())


def test_large_weights_are_left_out_and_found_again(tmp_path):
    random = np.random.default_rng(0)
    arrays = {
        "large": random.normal(size=(40, 30)).astype(np.float32),
        "small": random.normal(size=(3, 3)).astype(np.float32),
        "doubles": random.normal(size=(40, 30)),
        "other": random.normal(size=(7, 11, 13)).astype(np.float32),
    }
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    weights.append(helper.make_tensor("typed", TensorProto.FLOAT, [1, 2000], [0.5] * 2000))
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(arrays["large"], "inside"))
    model = helper.make_model(helper.make_graph([constant], "g", [], [], weights))
    onnx.save(model, tmp_path / "m.onnx")
    light, spans = onnx_wire.lightened(tmp_path / "m.onnx", 100)
    assert set(spans) == {"large", "other"}
    for name, (offset, length) in spans.items():
        assert (tmp_path / "m.onnx").read_bytes()[offset : offset + length] == arrays[name].tobytes()
    for tensor in model.graph.initializer:
        if tensor.name in spans:
            tensor.ClearField("raw_data")
    assert onnx.load_model_from_string(light) == model


def test_a_cut_file_is_not_lightened(tmp_path):
    onnx.save(product(), tmp_path / "m.onnx")
    whole = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(whole[:-30])
    with pytest.raises(ValueError, match="truncated or damaged"):
        onnx_wire.lightened(tmp_path / "m.onnx", 10)
