"""The envelope: each way is compared element by element, and what cannot be measured says why."""

import math
import os
import re
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import toolkit.pipeline.envelope
from tests import models
from toolkit.artifact import Signature, TensorSpec
from toolkit.errors import ConfigError, InputRejected, StageCrashed, StageTimeout
from toolkit.job import Job
from toolkit.measure import emulation, envelope
from toolkit.measure.outputs import gaps, labels
from toolkit.stats.signal import sqnr_db
from toolkit.store import Store

N = 9
WITHOUT_EMULATION = ["repeat", "threads=2", "threads=4"]


def spec(name, shape=(1, 4), dtype="float32"):
    return TensorSpec(name=name, dtype=dtype, shape=shape)


class Session:
    def __init__(self, compute, inputs, outputs):
        self.signature = Signature(inputs=inputs, outputs=outputs)
        self.run = lambda given: compute(**given)


class Runtime:
    """A runtime plugin whose models compute with NumPy, each variant with its own function."""

    name, modules, version, distributions = "numpy", (), 1, ()

    def __init__(self, compute, variants, inputs=None, outputs=None):
        self.functions = {"": compute, **variants}
        self.variants = tuple(variants)
        self.inputs, self.outputs = tuple(inputs or [spec("x")]), tuple(outputs or [spec("y")])
        self.opened = []

    def open(self, model, *, threads):
        return self.open_variant(model, threads=threads, variant="")

    def open_variant(self, model, *, threads, variant):
        self.opened.append((variant, threads))
        return Session(self.functions[variant], self.inputs, self.outputs)


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Runs the stage with NumPy functions as the ways to execute a model."""
    monkeypatch.setenv("PATH", str(tmp_path))  # where nothing is emulated

    def run(runtime, columns, **options):
        np.savez(tmp_path / "data.npz", **columns)
        monkeypatch.setattr("toolkit.plugins.get", lambda group, name: runtime)
        job = Job({"model": tmp_path / "m", "data": tmp_path / "data.npz"}, {"runtime": "numpy", "threads": 1, **options}, tmp_path / "out")
        return envelope.run(job)

    return run


def by_name(facts):
    return {variant["name"]: variant for variant in facts["variants"]}


def test_the_figures_of_each_variant_are_those_of_numpy(measure, tmp_path):
    x = models.samples(N)
    noisy = x + np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    table = {row.tobytes(): other for row, other in zip(x, noisy, strict=True)}
    runtime = Runtime(lambda x: {"y": x}, {"noisy": lambda x: {"y": table[x.tobytes()][None]}, "exact": lambda x: {"y": x.copy()}})
    facts = measure(runtime, {"x": x})
    found = by_name(facts)
    assert list(found) == [*WITHOUT_EMULATION, "noisy", "exact", "cpu=Haswell", "cpu=SandyBridge", "cpu=Nehalem"]
    flipped = np.flatnonzero(x.argmax(1) != noisy.argmax(1))
    assert len(flipped) > 1
    assert found["noisy"]["flips"] == facts["flips"] == len(flipped) and facts["flipped"] == flipped.tolist()
    assert found["noisy"]["max_abs"] == facts["max_abs"] == {"y": float(np.abs(noisy.astype(np.float64) - x).max())}
    assert found["noisy"]["sqnr_db"] == pytest.approx(sqnr_db(x, noisy), abs=1e-9)
    for name in (*WITHOUT_EMULATION, "exact"):
        assert found[name] == {"name": name, "flips": 0, "max_abs": {"y": 0.0}, "sqnr_db": 200.0, "note": ""}
    assert facts["n"] == N and facts["labelled"] == facts["outputs"] == ["y"]
    np.testing.assert_array_equal(np.load(tmp_path / "out/outputs/0.npy"), x)
    assert runtime.opened == [("", 1), ("", 1), ("", 2), ("", 4), ("noisy", 1), ("exact", 1)]


def test_the_envelope_is_the_largest_of_all_variants_by_output(measure):
    outputs = [spec("y"), spec("z", (1, 2, 2))]

    def moved(y, z):
        return lambda x: {"y": x + np.float32(y), "z": x.reshape(1, 2, 2) - np.float32(z)}

    runtime = Runtime(moved(0, 0), {"a": moved(0.5, 2), "b": moved(1, 0.25)}, outputs=outputs)
    facts = measure(runtime, {"x": np.round(models.samples(N))})
    assert facts["max_abs"] == {"y": 1.0, "z": 2.0} and facts["labelled"] == ["y"]
    assert by_name(facts)["b"]["max_abs"] == {"y": 1.0, "z": 0.25}


def test_a_runtime_that_differs_from_itself_is_found_out(measure):
    """The first of the ways is the default once more: an unsteady runtime has an envelope of its own."""
    random = np.random.default_rng(0)
    facts = measure(Runtime(lambda x: {"y": x + random.normal(size=x.shape).astype(np.float32)}, {}), {"x": models.samples(N)})
    assert by_name(facts)["repeat"]["max_abs"]["y"] > 0


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda x: {"y": np.where(x > 0, np.nan, x)}, r"output 'y' is nan in sample \d, element \(\d,\); by default 0\.\d+$"),
        (lambda x: {"y": x[:, :3]}, r"output 'y' is \[1, 3\] float32, by default \[1, 4\] float32"),
        (lambda x: {"y": x.astype(np.float64)}, r"output 'y' is \[1, 4\] float64, by default \[1, 4\] float32"),
    ],
    ids=["NaN", "shape", "type"],
)
def test_a_variant_that_cannot_be_compared_gets_a_note_and_the_rest_are_measured(measure, broken, words):
    found = by_name(measure(Runtime(lambda x: {"y": x}, {"broken": broken, "moved": lambda x: {"y": x + 1}}), {"x": models.samples(N)}))
    assert re.search(words, found["broken"]["note"])
    assert found["broken"]["max_abs"] == {} and found["broken"]["flips"] == 0
    assert found["moved"]["max_abs"]["y"] == pytest.approx(1, abs=1e-6)


def test_a_variant_that_cannot_be_opened_gets_a_note(measure):
    class Refusing(Runtime):
        def open_variant(self, model, *, threads, variant):
            if variant:
                raise InputRejected("has an operator that these kernels lack")
            return super().open_variant(model, threads=threads, variant=variant)

    facts = measure(Refusing(lambda x: {"y": x}, {"odd": None}), {"x": models.samples(N)})
    assert by_name(facts)["odd"] == {"name": "odd", "flips": 0, "max_abs": {}, "sqnr_db": 200.0, "note": "has an operator that these kernels lack"}


def test_equal_infinities_are_equal(measure):
    masked = np.where(models.samples(N) > 1, -np.inf, models.samples(N)).astype(np.float32)
    table = {row.tobytes(): other for row, other in zip(models.samples(N), masked, strict=True)}
    facts = measure(Runtime(lambda x: {"y": table[x.tobytes()][None]}, {}), {"x": models.samples(N)})
    assert facts["max_abs"] == {"y": 0.0} and not any(by_name(facts)[name]["note"] for name in WITHOUT_EMULATION)


def test_samples_are_spread_over_data_that_are_sorted_by_class(measure, tmp_path):
    runtime = Runtime(lambda x: {"y": x}, {"high": lambda x: {"y": np.where(x > 300, -x, x)}})
    facts = measure(runtime, {"x": np.arange(400, dtype=np.float32).reshape(100, 4)}, samples=5, variants=["high"])
    assert facts["rows"] == [0, 20, 40, 60, 80] and facts["n"] == 5
    np.testing.assert_array_equal(np.load(tmp_path / "out/inputs/x.npy")[:, 0], [0, 80, 160, 240, 320])
    assert facts["flipped"] == [80], "flips are told by their row in the data"


def test_a_free_batch_is_fed_one_sample_at_a_time(measure):
    """A sample's outputs must not depend on its neighbours, or a golden's would not repeat."""
    sizes = []

    def scaled(x):
        sizes.append(len(x))
        return {"y": x / np.abs(x).max()}

    measure(Runtime(scaled, {}, [spec("x", ("batch", 4))], [spec("y", ("batch", 4))]), {"x": models.samples(N)}, variants=[])
    assert sizes == [1] * N


def test_a_fixed_batch_is_fed_whole_and_its_padding_is_not_compared(measure, tmp_path):
    def counted(x):
        assert len(x) == 4
        return {"y": x}

    last = {}

    def remembers(x):
        changed = x.copy()
        if last.get("x") is not None and (x[1:] == x[:1]).all():
            changed[1:] += 100  # what follows the last of nine samples
        last["x"] = x
        return {"y": changed}

    runtime = Runtime(counted, {"padding": remembers}, [spec("x", (4, 4))], [spec("y", (4, 4))])
    facts = measure(runtime, {"x": models.samples(N)})
    assert facts["max_abs"] == {"y": 0.0}
    assert np.load(tmp_path / "out/outputs/0.npy").shape == (N, 4)


def test_an_output_without_a_batch_belongs_to_its_sample(measure, tmp_path):
    facts = measure(Runtime(lambda x: {"y": x[0].sum(keepdims=False)}, {}, outputs=[spec("y", ())]), {"x": models.samples(N)})
    np.testing.assert_array_equal(np.load(tmp_path / "out/outputs/0.npy"), [row.sum() for row in models.samples(N)])
    assert facts["labelled"] == []


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        (Runtime(lambda x: {"y": x.sum(axis=0)}, {}, [spec("x", (3, 4))]), r"\[4\] for a batch of 3, expected 3 rows"),
        (Runtime(lambda x: {"y": np.array([["a"]])}, {}), "<U1, expected numbers"),
        (Runtime(lambda x: {"y": np.zeros((1, 1 + (x[0, 0] > 0)))}, {}), r"\[\d\] for sample \d and \[\d\] for earlier ones"),
    ],
    ids=["batch", "text", "shape"],
)
def test_outputs_that_do_not_belong_to_single_samples_are_refused(measure, runtime, words):
    with pytest.raises(InputRejected, match=words):
        measure(runtime, {"x": models.samples(N)})


def test_an_output_name_is_no_path(measure, tmp_path):
    name = "../../escaped"
    facts = measure(Runtime(lambda x: {name: x}, {}, outputs=[spec(name)]), {"x": models.samples(N)}, variants=["repeat"])
    assert facts["max_abs"] == {name: 0.0}
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.npy")) == ["0.npy", "x.npy"]


def test_labels_are_counted_where_the_scores_are(measure):
    outputs = [spec("boxes", (1, 4)), spec("scores", (1, 4))]
    runtime = Runtime(lambda x: {"boxes": x, "scores": x}, {"boxes turned": lambda x: {"boxes": -x, "scores": x}}, outputs=outputs)
    assert measure(runtime, {"x": models.samples(N)}, variants=["boxes turned"], output="scores")["flips"] == 0


def test_any_output_that_labels_samples_counts_without_a_name(measure):
    outputs = [spec("boxes", (1, 4)), spec("scores", (1, 4))]
    runtime = Runtime(lambda x: {"boxes": x, "scores": x}, {"boxes turned": lambda x: {"boxes": -x, "scores": x}}, outputs=outputs)
    assert measure(runtime, {"x": models.samples(N)}, variants=["boxes turned"])["flips"] == N


@pytest.mark.parametrize(("output", "words"), [("logits", "no output 'logits'"), ("y", r"\[9 x 2 x 2\], expected \[n x classes\]")])
def test_an_output_that_labels_nothing_is_refused_as_scores(measure, output, words):
    with pytest.raises(InputRejected, match=words):
        measure(Runtime(lambda x: {"y": x.reshape(1, 2, 2)}, {}, outputs=[spec("y", (1, 2, 2))]), {"x": models.samples(N)}, output=output)


def test_only_the_wanted_variants_are_tried_in_the_order_asked_for(measure):
    runtime = Runtime(lambda x: {"y": x}, {"odd": lambda x: {"y": x}})
    assert list(by_name(measure(runtime, {"x": models.samples(N)}, variants=["odd", "threads=4", "odd"]))) == ["odd", "threads=4"]


def test_an_unknown_variant_is_named_with_its_neighbour(measure):
    with pytest.raises(ConfigError, match="no variant 'thread=2'") as caught:
        measure(Runtime(lambda x: {"y": x}, {}), {"x": models.samples(N)}, variants=["thread=2"])
    assert "'threads=2'" in caught.value.hint


@pytest.mark.parametrize(("each", "taken"), [(1, 3), (100, None)])
def test_no_more_samples_are_taken_than_fit(measure, each, taken):
    """One sample and its output take ``32 * each`` bytes, of 100."""
    runtime = Runtime(lambda x: {"y": x}, {}, [spec("x", (1, 4, each))], [spec("y", (1, 4, each))])
    columns = {"x": np.zeros((N, 4, each), np.float32)}
    if taken:
        assert measure(runtime, columns, variants=[], max_bytes=100)["n"] == taken
    else:
        with pytest.raises(InputRejected, match="one sample takes 3,200 bytes with its outputs, expected at most 100"):
            measure(runtime, columns, max_bytes=100)


def test_without_an_emulator_its_variants_say_so(measure):
    found = by_name(measure(Runtime(lambda x: {"y": x}, {}), {"x": models.samples(N)}))
    assert {found[f"cpu={cpu}"]["note"] for cpu in emulation.CPUS} == {emulation.unavailable()}
    assert "qemu-x86_64" in emulation.unavailable()


@given(st.sampled_from([np.int8, np.uint8, np.int64, np.uint64]).flatmap(lambda kind: arrays.arrays(kind, (2, 5))))
def test_gaps_of_integers_are_exact(pair):
    exact = [float(abs(int(b) - int(a))) for a, b in zip(*pair, strict=True)]
    assert gaps(*pair).tolist() == exact


@given(arrays.arrays(np.float32, (2, 5), elements=st.floats(width=32)))
def test_gaps_of_floats_are_zero_for_equals_alone(pair):
    for a, b, gap in zip(*pair, gaps(*pair), strict=True):
        equal = a == b or (math.isnan(a) and math.isnan(b))
        assert (gap == 0) == equal
        if not equal:
            assert gap == (abs(float(b) - float(a)) if math.isfinite(a) and math.isfinite(b) else math.inf)


def test_gaps_see_the_last_bit_of_an_integer_and_take_equal_oddities_for_equal():
    assert gaps(np.array([2**62, -(2**63)]), np.array([2**62 + 1, 2**63 - 1])).tolist() == [1.0, float(2**64 - 1)]
    odd = np.array([np.nan, np.inf, -np.inf, -0.0])
    assert gaps(odd, np.array([np.nan, np.inf, -np.inf, 0.0])).tolist() == [0.0] * 4
    assert gaps(odd, np.array([np.inf, -np.inf, 1.0, np.nan])).tolist() == [np.inf] * 4


def test_labels_are_those_that_an_output_gives():
    assert labels(np.array([[1, 2], [3, 0]])).tolist() == [1, 0]
    assert labels(np.array([4, 2])).tolist() == [4, 2], "the model chose by itself"
    for other in (np.ones((2, 1)), np.ones(2), np.ones((2, 3, 3))):
        assert labels(other) is None


needs_emulator = pytest.mark.skipif(bool(emulation.unavailable()), reason=emulation.unavailable())


@needs_emulator
def test_the_emulated_cpu_is_the_one_that_the_kernels_see(tmp_path):
    """VPMADDUBSW, which AVX2 kernels multiply u8 by s8 with, saturates each sum of two products at 16 bits; VNNI does not.

    Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, PMADDUBSW.
    """
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    depth, width = 64, 16
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "products",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [1, depth])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [1, width])],
        [onnx.numpy_helper.from_array(np.full((depth, width), 127, np.int8), "w")],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=np.full((1, depth), 255, np.uint8))
    job = Job(
        {"model": tmp_path / "m.onnx", "data": tmp_path / "data.npz"},
        {"runtime": "onnxruntime", "threads": 1, "variants": ["cpu=Haswell"]},
        tmp_path / "out",
    )
    facts = envelope.run(job)
    exact, saturated = depth * 255 * 127, depth // 2 * (2**15 - 1)
    here = np.load(tmp_path / "out/outputs/0.npy")
    assert set(here.ravel().tolist()) in ({exact}, {saturated})
    assert facts["variants"][0]["note"] == ""
    assert facts["max_abs"] == {"y": abs(here[0, 0] - saturated)}


@needs_emulator
def test_what_a_stage_raises_under_emulation_is_raised_here(tmp_path):
    with pytest.raises(InputRejected, match="found 3, expected 4"):
        emulation.run_on("Haswell", "tests.stages:reject", Job({}, {}, tmp_path), timeout_seconds=60)


@needs_emulator
def test_a_process_that_dies_under_emulation_says_how(tmp_path):
    with pytest.raises(StageCrashed, match="ended with status 7 on an emulated Nehalem"):
        emulation.run_on("Nehalem", "tests.stages:leave", Job({}, {}, tmp_path), timeout_seconds=60)


def test_an_emulation_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    slow = tmp_path / "qemu-x86_64"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert shutil.which("qemu-x86_64") == str(slow)
    with pytest.raises(StageTimeout, match=r"more than 0\.2 s"):
        emulation.run_on("Haswell", "stage:run", Job({}, {}, tmp_path), timeout_seconds=0.2)


def test_the_function_returns_the_record(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    model, data = models.tiny_onnx(tmp_path / "m.onnx"), {"x": models.samples(N)}
    store = Store(tmp_path / "store")
    found = toolkit.pipeline.envelope.envelope(model, data, samples=4, variants=["repeat", "threads=2", "optimization=disabled"], store=store)
    assert (found.artifact, found.runtime, found.target, found.n, found.flips) == ("m.onnx", "onnxruntime", "desktop-ort", 4, 0)
    assert [variant.name for variant in found.variants] == ["repeat", "threads=2", "optimization=disabled"]
    assert 0 <= found.max_abs["logits"] < 1e-5
    assert "threads=2" in found._repr_html_()
    with pytest.raises(ConfigError, match="positive whole number, found 0"):
        toolkit.pipeline.envelope.envelope(model, data, samples=0, store=store)
