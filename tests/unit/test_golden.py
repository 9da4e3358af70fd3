"""Goldens: what lies within the envelope passes, anything beyond it fails and is named, and a file may come from anybody."""

import contextlib
import io
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer

from tests import models
from toolkit.artifact import Signature, TensorSpec
from toolkit.cli import golden as cli
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected, SetupError
from toolkit.evidence import Verdict
from toolkit.figures import Variant
from toolkit.measure import golden as goldens
from toolkit.measure.golden import Golden, Recorded
from toolkit.pipeline.envelope import step
from toolkit.pipeline.golden import check_golden, make_golden
from toolkit.pipeline.single import open_model
from toolkit.plugins import get
from toolkit.store import digest_file

N = 6


def recorded(outputs, max_abs=0.0, flipped=(), labelled=("y",), **changes):
    """A golden of made-up outputs; ``max_abs`` holds for all of them, or by name."""
    allowed = max_abs if isinstance(max_abs, dict) else dict.fromkeys(outputs, max_abs)
    specs = tuple(TensorSpec(name=name, dtype=array.dtype.name, shape=(1, *array.shape[1:])) for name, array in outputs.items())
    fields = {
        "schema": 1,
        "model": "m.onnx",
        "sha256": "0" * 64,
        "signature": Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 4)),), outputs=specs),
        "target": "desktop-ort",
        "runtime": "onnxruntime",
        "threads": 1,
        "versions": {"onnxruntime": "1.0"},
        "cpu": "a CPU",
        "n": N,
        "rows": tuple(range(N)),
        "labelled": labelled,
        "max_abs": allowed,
        "flipped": flipped,
        "variants": (Variant(name="threads=2", max_abs=allowed),),
    }
    return Recorded(Golden.model_validate(fields | changes), {"x": models.samples(N)}, outputs)


def scores():
    """Scores ``[n x 3]`` in steps of a power of two, so that sums are exact."""
    return np.round(np.random.default_rng(3).normal(size=(N, 3)) * 64).astype(np.float32) / 16


def test_a_zero_envelope_allows_equal_values_alone():
    y = scores()
    same = goldens.compare(recorded({"y": y}), {"y": y.copy()})
    assert [(one.within, one.difference) for one in same] == [(True, 0.0)]
    moved = y.copy()
    moved[4, 1] = np.nextafter(moved[4, 1], np.float32(100))
    (found,) = goldens.compare(recorded({"y": y}), {"y": moved})
    assert not found.within
    assert (found.sample, found.element, found.expected, found.found) == (4, (1,), float(y[4, 1]), float(moved[4, 1]))
    assert found.difference == float(moved[4, 1]) - float(y[4, 1]) > 0


@pytest.mark.parametrize(("moved_by", "within"), [(0.25, True), (-0.25, True), (0.3125, False), (-0.3125, False), (np.inf, False), (np.nan, False)])
def test_the_envelope_is_allowed_and_no_more(moved_by, within):
    y = scores() + np.array([0, 100, 200], np.float32)  # no label is near another
    moved = y.copy()
    moved[2, 0] += moved_by
    (found,) = goldens.compare(recorded({"y": y}, max_abs=0.25), {"y": moved})
    assert found.within == within
    assert found.sample == 2 and found.allowed == 0.25


def test_each_output_has_an_envelope_of_its_own():
    y = scores()
    golden = recorded({"y": y, "z": y}, labelled=(), max_abs={"y": 1.0, "z": 0.0})
    found = {one.output: one.within for one in goldens.compare(golden, {"z": y + 1, "y": y + 1})}
    assert found == {"y": True, "z": False}


def test_a_label_may_change_only_where_a_variant_changes_it():
    y = np.tile(np.array([[1.0, 1.125, 0.0]], np.float32), (N, 1))
    turned = y.copy()
    turned[[1, 3]] = [1.125, 1.0, 0.0]
    (free,) = goldens.compare(recorded({"y": y}, max_abs=0.125, flipped=(1, 3)), {"y": turned})
    assert free.within and free.flips == ()
    (bound,) = goldens.compare(recorded({"y": y}, max_abs=0.125, flipped=(3,)), {"y": turned})
    assert not bound.within and bound.difference == 0.125 and bound.flips == ((1, 1, 0),)


def test_integers_that_a_model_chose_are_labels():
    y = np.array([4, 4, 9, 9, 2, 0])
    (found,) = goldens.compare(recorded({"y": y}, max_abs=5.0, flipped=(0,)), {"y": np.array([9, 4, 9, 9, 2, 1])})
    assert found.flips == ((5, 0, 1),)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int64", "bool"])
def test_a_golden_is_read_back_as_it_was_written(tmp_path, dtype):
    y = (scores() * 4).astype(dtype)
    golden = recorded({"y": y, "../odd name/": y}, max_abs=0.5, flipped=(1,))
    (tmp_path / "g.npz").write_bytes(goldens.pack(golden))
    found = goldens.unpack(tmp_path / "g.npz")
    assert found.golden == golden.golden
    for before, after in ((golden.inputs, found.inputs), (golden.outputs, found.outputs)):
        assert list(before) == list(after)
        for name, array in before.items():
            assert after[name].dtype == array.dtype
            np.testing.assert_array_equal(after[name], array)
    assert list(tmp_path.iterdir()) == [tmp_path / "g.npz"]


def test_equal_goldens_are_equal_files():
    assert goldens.pack(recorded({"y": scores()})) == goldens.pack(recorded({"y": scores()}))


def test_a_golden_that_is_too_large_is_not_written():
    with pytest.raises(InputRejected, match=r"6 samples take 6,000,096 bytes with their outputs, at most 5,000,000") as caught:
        goldens.pack(recorded({"y": np.zeros((N, 250_000), np.float32)}))
    assert "fewer" in caught.value.hint


def npz(**arrays):
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def changed(**fields):
    """A golden's bytes with another document; ``None`` takes a field away."""
    with np.load(io.BytesIO(goldens.pack(recorded({"y": scores()})))) as archive:
        arrays = dict(archive)
    document = {**json.loads(str(arrays.pop("golden"))), **fields}
    return npz(golden=np.array(json.dumps({key: value for key, value in document.items() if value is not None})), **arrays)


HOSTILE = {
    "empty": b"",
    "text": b"not a zip file" * 10,
    "one array": b"\x93NUMPY\x01\x00",
    "cut": goldens.pack(recorded({"y": scores()}))[:400],
    "another archive": npz(x=np.zeros(3)),
    "an array instead of the document": npz(golden=np.zeros(3)),
    "a list instead of the document": npz(golden=np.array("[1]")),
    "no arrays": changed(arrays=[[], []]),
    "an array too many": changed(arrays=[["x"], ["y", "z"]]),
    "arrays by number": changed(arrays=3),
    "another length": changed(n=7),
    "no samples": changed(n=0),
    "an unknown field": changed(extra=1),
    "another layout": changed(schema=2),
    "no envelope": changed(max_abs=None),
    "an envelope of another output": changed(max_abs={"z": 1.0}),
    "a path for a target": changed(target="../../etc/passwd"),
    "no threads": changed(threads=0),
    "more threads than a machine has": changed(threads=10**9),
    "an envelope without end": changed(max_abs={"y": float("inf")}),
    "an envelope below nothing": changed(max_abs={"y": -1.0}),
    "an envelope that nobody measured": changed(max_abs={"y": 0.5}),
    "an envelope as wide as the values": changed(max_abs={"y": 1e6}, variants=[{"name": "threads=2", "max_abs": {"y": 1e6}}]),
    "flips of samples that are not there": changed(flipped=[99]),
    "labels of outputs that are not there": changed(labelled=["z"]),
    "rows of samples that are not there": changed(rows=[0]),
    "a document without end": npz(golden=np.array("[" * 100_000)),
}


def test_whatever_is_damaged_is_one_error(tmp_path):
    """No change of a few bytes, in the archive or in an array's header, comes out as anything but a golden or a refusal."""
    whole = goldens.pack(recorded({"y": scores()}))
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    random = np.random.default_rng(0)
    for number in range(400):
        if number % 2:
            content = _mutated(whole, random)
        else:
            stream, name = io.BytesIO(), list(parts)[number // 2 % len(parts)]
            with zipfile.ZipFile(stream, "w") as archive:
                for part, data in parts.items():
                    archive.writestr(part, _mutated(data, random, 128) if part == name else data)
            content = stream.getvalue()
        (tmp_path / "g.npz").write_bytes(content)
        with contextlib.suppress(InputRejected):
            goldens.unpack(tmp_path / "g.npz")


def _mutated(content, random, first=None):
    changed = bytearray(content)
    for _ in range(3):
        changed[random.integers(min(first or len(changed), len(changed)))] = random.integers(256)
    return bytes(changed)


@pytest.mark.parametrize(("allowed", "refused"), [(0.0, False), (0.25, False), (1e3, True)])
def test_an_envelope_as_wide_as_the_values_makes_no_golden(allowed, refused):
    golden = recorded({"y": scores()}, max_abs=allowed)
    if refused:
        with pytest.raises(InputRejected, match=r"as wide as its values, which reach .* could never fail"):
            goldens.pack(golden)
    else:
        assert goldens.pack(golden)


def test_the_distance_between_two_classes_is_no_envelope():
    assert goldens.pack(recorded({"y": np.array([0, 1, 2, 3, 4, 5])}, max_abs=5.0, flipped=(0,)))


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_golden_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "g.npz").write_bytes(content)
    with pytest.raises(InputRejected, match="is not a golden: ") as caught:
        goldens.unpack(tmp_path / "g.npz")
    assert caught.value.where == str(tmp_path / "g.npz") and "edgekit golden update" in caught.value.hint
    assert "\n" not in caught.value.message and "pickle" not in caught.value.message


def test_a_missing_golden_is_refused(tmp_path):
    with pytest.raises(InputRejected, match="cannot be read: No such file"):
        goldens.unpack(tmp_path / "g.npz")


class Trap:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self):
        return (open, ("trapped", "w"))


def test_a_golden_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "g.npz").write_bytes(npz(golden=np.array([Trap()], dtype=object)))
    with pytest.raises(InputRejected):
        goldens.unpack(tmp_path / "g.npz")
    assert not (tmp_path / "trapped").exists()


def test_a_golden_does_not_fill_the_memory(tmp_path):
    """Both ways to claim more than there is: zeros that were compressed well, and a header that promises terabytes."""
    (tmp_path / "bomb.npz").write_bytes(npz(golden=np.zeros(40_000_000, np.uint8)))
    with pytest.raises(InputRejected, match=r"it holds 40,000,128 bytes, at most 5,000,000"):
        goldens.unpack(tmp_path / "bomb.npz")
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (1 << 45,)})
    with zipfile.ZipFile(tmp_path / "header.npz", "w") as archive:
        archive.writestr("golden.npy", stream.getvalue())
    with pytest.raises(InputRejected, match="is not a golden"):
        goldens.unpack(tmp_path / "header.npz")


@dataclass(frozen=True)
class Made:
    """A tiny model with its golden."""

    model: Path
    file: Path
    golden: Golden


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a store, for all tests of this file; without an emulator, which would take half a minute a golden."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("ai_edge_litert")
    folder = tmp_path_factory.mktemp("goldens")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder))
        patch.setenv("EDGEKIT_CACHE", str(folder / "store"))
        yield folder


@pytest.fixture(scope="module")
def onnx(folder):
    return make(models.tiny_onnx(folder / "tiny.onnx"), "desktop-ort")


@pytest.fixture(scope="module")
def tflite(folder):
    return make(models.tiny_tflite(folder / "tiny.tflite"), "desktop-litert")


@pytest.fixture(params=["onnx", "tflite"])
def made(request):
    return request.getfixturevalue(request.param)


def make(model, target):
    file = model.with_name(f"{model.name}.golden.npz")
    return Made(model, file, make_golden(model, {"x": models.samples(40)}, file, target=target))


def test_a_golden_is_small_and_says_what_it_holds(made):
    assert made.golden == goldens.unpack(made.file).golden
    assert made.golden.n == 32 and made.golden.labelled == ("logits",) and made.file.stat().st_size < 5000
    assert made.golden.rows == tuple(np.arange(32) * 40 // 32) and made.golden.sha256 == digest_file(made.model)
    measured = [variant.name for variant in made.golden.variants if not variant.note]
    assert measured == ["repeat", "threads=2", "threads=4", *get("runtimes", made.golden.runtime).variants]


def test_the_model_of_the_golden_passes(made):
    report = check_golden(made.model, made.file)
    assert report.verdict is report.rows[0].verdict is Verdict.PASS
    assert [finding.budget for finding in report.rows[0].findings] == ["golden", "golden:logits"]
    assert "this is the file that the golden was made of" in report.rows[0].reason


def test_weights_that_moved_by_a_percent_fail_by_name(made, monkeypatch, tmp_path):
    x = models.samples(40)[list(made.golden.rows)]
    before = np.tanh(x @ models.WEIGHTS + models.BIAS)
    moved = models.WEIGHTS * np.float32(1.01)
    now = np.tanh(x @ moved + models.BIAS)
    monkeypatch.setattr(models, "WEIGHTS", moved)
    other = tmp_path / made.model.name
    models.tiny_tflite(other) if other.suffix == ".tflite" else models.tiny_onnx(other, weights=moved)
    report = check_golden(other, made.file)
    (row,) = report.rows
    assert report.verdict is row.verdict is Verdict.FAIL
    gap = np.abs(now - before)
    sample, element = np.unravel_index(gap.argmax(), gap.shape)
    words = rf"output 'logits' differs in sample {sample}, element \[{element}\]: expected (\S+), found (\S+), difference (\S+), allowed (\S+) "
    found = re.match(words, row.reason)
    assert found, row.reason
    figures = [before[sample, element], now[sample, element], gap.max(), made.golden.max_abs["logits"]]
    assert [float(number) for number in found.groups()] == pytest.approx(figures, abs=2e-6)
    origin = row.findings[0]
    assert origin.verdict is Verdict.PASS and digest_file(other)[:12] in origin.reason and made.golden.sha256[:12] in origin.reason


def test_every_way_of_the_envelope_lies_within_it_and_one_reaches_its_end(made):
    golden, runtime = goldens.unpack(made.file), get("runtimes", made.golden.runtime)
    sessions = [runtime.open_variant(made.model, threads=1, variant=variant) for variant in runtime.variants]
    sessions += [runtime.open(made.model, threads=threads) for threads in (1, 2, 4)]
    furthest = 0.0
    for session in sessions:
        rows = [session.run({"x": golden.inputs["x"][row : row + 1]})["logits"][0] for row in range(32)]
        (found,) = goldens.compare(golden, {"logits": np.stack(rows)})
        assert found.within
        furthest = max(furthest, found.difference)
    assert furthest == made.golden.max_abs["logits"] < 1e-5


def test_a_model_with_another_signature_is_refused(onnx, tmp_path):
    with pytest.raises(InputRejected, match=r"the model's inputs are x \[n x 1\] float32; the golden's are x \[n x 4\] float32") as caught:
        check_golden(models.wide_onnx(tmp_path / "wide.onnx", 8), onnx.file)
    assert caught.value.where == str(tmp_path / "wide.onnx")


def test_a_model_with_another_batch_is_held_against_the_same_golden(onnx, tmp_path):
    assert check_golden(models.tiny_onnx(tmp_path / "free.onnx", "batch"), onnx.file).verdict is Verdict.PASS


def test_a_target_with_other_threads_is_held_against_the_same_golden(onnx, tmp_path):
    (tmp_path / "two.toml").write_text('schema = 1\nruntime = "onnxruntime"\nthreads = 2\n')
    report = check_golden(onnx.model, onnx.file, target=str(tmp_path / "two.toml"))
    assert report.verdict is Verdict.PASS and report.rows[0].target == "two"


def test_a_target_with_another_runtime_is_refused(onnx):
    with pytest.raises(ConfigError, match="'desktop-litert' runs on litert, the golden was recorded on onnxruntime"):
        check_golden(onnx.model, onnx.file, target="desktop-litert")


def test_no_more_samples_are_kept_than_there_is_room_for(folder, tmp_path):
    """One sample of this model takes 2 MB with its output."""
    import onnx

    shape, kind = [1, 250_000], onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["x"], ["y"])],
        "large",
        [onnx.helper.make_tensor_value_info("x", kind, shape)],
        [onnx.helper.make_tensor_value_info("y", kind, shape)],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), tmp_path / "large.onnx")
    made = make_golden(tmp_path / "large.onnx", {"x": np.zeros((9, 250_000), np.float32)}, tmp_path / "g.npz")
    assert made.n == 2 and made.rows == (0, 4)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"file": "g.bin"}, ConfigError, "found the suffix '.bin'"),
        ({"samples": 33}, ConfigError, "expected 1 to 32, found 33"),
        ({"samples": 0}, ConfigError, "expected 1 to 32, found 0"),
        ({"file": "file/g.npz"}, SetupError, "cannot be written"),
        ({"output": "other"}, InputRejected, "no output 'other'"),
    ],
    ids=["suffix", "too many", "none", "no folder", "no such output"],
)
def test_what_cannot_become_a_golden_leaves_no_file(onnx, tmp_path, changes, kind, words):
    (tmp_path / "file").write_text("in the way")
    options = {"file": "g.npz", "samples": 2, **changes}
    with pytest.raises(kind, match=words):
        make_golden(onnx.model, {"x": models.samples(4)}, tmp_path / options.pop("file"), **options)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_failed_update_leaves_the_golden_as_it_was(onnx):
    before = onnx.file.read_bytes()
    with pytest.raises(InputRejected, match="columns are"):
        make_golden(onnx.model, {"wrong": models.samples(4)}, onnx.file)
    assert onnx.file.read_bytes() == before


def test_the_command_updates_and_checks(onnx, tmp_path, capsys):
    app = typer.Typer()
    app.add_typer(cli.app)
    Dataset({"x": models.samples(8)}).write(tmp_path / "data")

    def edgekit(*words):
        code = app(["golden", *map(str, words)], standalone_mode=False)
        return code, " ".join(capsys.readouterr().out.split())

    where = ("--data", tmp_path / "data", "--target", "desktop-ort", "--samples", 4)
    _, said = edgekit("update", onnx.model, *where, "--output", tmp_path / "g.npz")
    assert "4 samples of tiny.onnx on desktop-ort (onnxruntime, 1 threads)" in said and "samples whose label may change: none" in said
    code, said = edgekit("check", onnx.model, tmp_path / "g.npz")
    assert code == 0 and said.startswith("pass: tiny.onnx on desktop-ort")
    code, said = edgekit("check", models.tiny_onnx(tmp_path / "other.onnx", weights=-models.WEIGHTS), tmp_path / "g.npz")
    assert code == 1 and "fail golden:logits: output 'logits' differs in sample" in said
    assert "labels sample" in said and "samples that may change: none" in said


def test_a_result_from_another_cpu_is_not_taken_from_the_store(onnx, monkeypatch):
    """A store may be carried from one machine of a CI to the next."""
    opened, _ = open_model(onnx.model)
    here = step(opened, onnx.file, get("runtimes", "onnxruntime"), 1, {})
    monkeypatch.setattr("toolkit.measure.emulation.this_cpu", lambda: "another")
    assert step(opened, onnx.file, get("runtimes", "onnxruntime"), 1, {}).options != here.options
