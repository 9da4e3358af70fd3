"""What the taps of ONNX models tell, against NumPy on the tensors themselves, and on those of a plain run without optimizations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.dataset import Dataset
from toolkit.errors import InputRejected, StageFailed
from toolkit.quantization import observe_onnx
from toolkit.quantization.observe import fetch, observe
from toolkit.quantization.statistics import Statistics

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SAMPLES = 40


class Builder:
    """Writes down a graph with random weights."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[Any] = []
        self.stored: list[Any] = []

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.stored)}"
        scale = np.sqrt(2 / max(1, int(np.prod(shape[1:]))))
        self.stored.append(onnx.numpy_helper.from_array((self.rng.standard_normal(shape) * scale).astype(np.float32), name))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.stored)}"
        self.stored.append(onnx.numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def add(self, operator: str, *inputs: str, name: str, **attributes: Any) -> str:
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), [name], name=f"node_{name}", **attributes))
        return name

    def write(self, path: Path, inputs: dict[str, list[Any]], output: str, opset: int = 17) -> Path:
        given = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in inputs.items()]
        graph = onnx.helper.make_graph(
            self.nodes, "g", given, [onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)], self.stored
        )
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8), path)
        return path


def pictures(path: Path, opset: int = 17, batch: Any = 1) -> Path:
    """A mobile network in small: fused activations, linear layers, a sum, channels that are no multiple of 16, a hard-swish, weights of a size."""
    make = Builder()
    clip = make.constant(0), make.constant(6)
    x = make.add("Clip", make.add("Conv", "x", make.weight(32, 3, 3, 3), name="stem", pads=[1] * 4), *clip, name="stem6")
    wide = make.add("Clip", make.add("Conv", x, make.weight(32, 1, 3, 3), name="depth", group=32, pads=[1] * 4), *clip, name="depth6")
    linear = make.add("Conv", wide, make.weight(16, 32, 1, 1), name="linear")
    again = make.add(
        "Conv",
        make.add("Relu", make.add("Conv", linear, make.weight(48, 16, 1, 1), name="up"), name="up_relu"),
        make.weight(16, 48, 1, 1),
        name="down",
    )
    added = make.add("Add", linear, again, name="added")
    odd = make.add("Conv", make.add("MaxPool", added, name="pooled", kernel_shape=[2, 2], strides=[2, 2]), make.weight(12, 16, 1, 1), name="odd")
    swish = make.add("Mul", odd, make.add("HardSigmoid", odd, name="gate", alpha=1 / 6, beta=0.5), name="swish")
    mean = make.add("GlobalAveragePool", make.add("Conv", swish, make.weight(64, 12, 1, 1), name="last"), name="mean")
    make.add("Gemm", make.add("Flatten", mean, name="flat"), make.weight(64, 10), name="scores")
    return make.write(path, {"x": [batch, 3, 24, 24]}, "scores", opset)


def texts(path: Path, length: Any = 24) -> Path:
    """Attention and two dense layers, of any length where that is asked for."""
    make = Builder()
    normal = make.add("LayerNormalization", "x", make.weight(64), make.weight(64), name="normal")
    query = make.add("Add", make.add("MatMul", normal, make.weight(64, 64), name="q"), make.weight(64), name="q_bias")
    key = make.add("Transpose", make.add("MatMul", normal, make.weight(64, 64), name="k"), name="k_turned", perm=[0, 2, 1])
    looks = make.add("Softmax", make.add("MatMul", query, key, name="logits"), name="looks", axis=-1)
    mixed = make.add("Add", make.add("MatMul", looks, normal, name="mixed"), "x", name="added")
    hidden = make.add("Add", make.add("MatMul", mixed, make.weight(64, 256), name="wide"), make.weight(256), name="wide_bias")
    active = make.add("Mul", hidden, make.add("Sigmoid", hidden, name="gate"), name="active")
    make.add("MatMul", active, make.weight(256, 64), name="out")
    return make.write(path, {"x": [1, length, 64]}, "out")


def images(samples: int = SAMPLES, seed: int = 1) -> Dataset:
    return Dataset({"x": np.random.default_rng(seed).standard_normal((samples, 3, 24, 24), dtype=np.float32)})


def words(samples: int = SAMPLES, length: int = 24) -> Dataset:
    return Dataset({"x": np.random.default_rng(2).standard_normal((samples, length, 64), dtype=np.float32)})


def unoptimized(model: Path, data: Dataset, tensors: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Every tensor of every sample, as an output of a plain run ``[n x ...]``."""
    import onnxruntime

    graph = onnx.load(str(model))
    made = {name for node in graph.graph.node for name in node.output}
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(made - {"scores", "out"}))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [name for name in tensors if name in made]
    rows = [session.run(names, {"x": data.columns["x"][row : row + 1]}) for row in range(len(data))]
    return {"x": data.columns["x"], **{name: np.concatenate([row[place] for row in rows]) for place, name in enumerate(names)}}


CASES = pytest.mark.parametrize(("write", "data"), [(pictures, images()), (texts, words())], ids=["pictures", "texts"])


@CASES
def test_observes_what_will_carry_a_scale(write: Any, data: Dataset, tmp_path: Path) -> None:
    """The quantizer itself says which those are."""
    from toolkit.quantization import onnx_prepared, onnx_static, scheme

    model = write(tmp_path / "m.onnx")
    plain = onnx_prepared.load(model)
    carried = onnx_static.carried(plain, scheme.decode("static_wi8_ai8"), onnx_static.left_in_float(plain, ()))
    observed = set(observe_onnx.Taps(model, None, False, ()).tensors)
    assert set(carried) <= observed
    assert observed - set(carried) <= {"x", "gate"}  # hard-swish, which the quantizer writes as operators with kernels before it asks


@CASES
def test_ends_are_exact(write: Any, data: Dataset, tmp_path: Path) -> None:
    """Equal to those of the same tensors as outputs, and as close to a run without optimizations as kernels are to one another."""
    model = write(tmp_path / "m.onnx")
    found = observe(model, data)
    names = tuple(found.tensors)
    exact, plain = fetch(model, data, names, rows=len(data)), unoptimized(model, data, names)
    for name, seen in found.tensors.items():
        assert found.range(name, "min_max") == (min(0, exact[name].min()), max(0, exact[name].max())), name
        assert seen.high == exact[name].max(), name
        assert seen.low == exact[name].min() or (seen.low == 0 <= exact[name].min()), name
        assert found.range(name, "min_max") == pytest.approx((min(0, plain[name].min()), max(0, plain[name].max())), abs=1e-4), name
        highs = exact[name].reshape(len(data), -1).max(axis=1)
        assert np.array_equal(np.asarray(seen.group_high)[: len(highs)], highs), name


@CASES
@pytest.mark.parametrize("values", [1 << 20, 500])
def test_histograms_are_of_the_tensors_values(write: Any, data: Dataset, values: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them where so many are asked for, else some of each sample: never more in a bin than there are."""
    monkeypatch.setattr(observe_onnx, "VALUES", values)
    model = write(tmp_path / "m.onnx")
    found = observe(model, data, histograms=True)
    whole = fetch(model, data, tuple(found.tensors), rows=len(data))
    for name, seen in found.tensors.items():
        assert seen.counts is not None
        places = np.floor(whole[name].astype(np.float64).reshape(-1) / 2.0**seen.exponent).astype(int) - seen.first
        inside = places[(places >= 0) & (places < len(seen.counts))]
        every = np.bincount(inside, minlength=len(seen.counts))
        assert (seen.counts <= every).all(), name
        assert seen.values == seen.counts.sum()
        of_each = whole[name].size / len(data)
        assert seen.values == whole[name].size if of_each <= values else values / 4 <= seen.values / len(data) <= 4 * values, name


@CASES
def test_values_for_histograms_come_from_all_channels(write: Any, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel that stands out must be in the histogram with its share, or percentiles would be wrong."""
    monkeypatch.setattr(observe_onnx, "VALUES", 500)
    name, axis = ("stem6", 1) if write is pictures else ("active", 2)
    model = write(tmp_path / "m.onnx")
    taps = observe_onnx.Taps(model, [name], True, ())
    told = taps.run({"x": data.columns["x"][:1]})[name].values
    whole = fetch(model, data, [name], rows=1)[name]
    assert told is not None
    table = np.moveaxis(whole, axis, 0).reshape(whole.shape[axis], -1)
    told_by = {channel: np.isin(table[channel][table[channel] != 0], told).sum() for channel in range(len(table))}
    assert sum(count > 0 for count in told_by.values()) > 0.9 * sum((row != 0).any() for row in table)


@CASES
def test_channels_are_exact(write: Any, data: Dataset, tmp_path: Path) -> None:
    model = write(tmp_path / "m.onnx")
    names = ("stem6", "linear", "added", "odd", "x", "mean") if write is pictures else ("normal", "active", "added")
    found = observe(model, data, channels=names)
    whole = fetch(model, data, names, rows=len(data))
    for name in names:
        seen = found.tensors[name]
        axis = 1 if whole[name].ndim == 4 else whole[name].ndim - 1
        table = np.moveaxis(whole[name], axis, 0).reshape(whole[name].shape[axis], -1)
        assert seen.channel_high == pytest.approx(table.max(axis=1), rel=0, abs=0), name
        low = table.min(axis=1)
        assert np.array_equal(np.asarray(seen.channel_low), np.zeros_like(low) if name == "stem6" else low), name
        assert seen.channel_mean == pytest.approx(table.mean(axis=1), abs=1e-5), name


@pytest.mark.parametrize("opset", [13, 17, 18])
def test_channels_in_every_opset(opset: int, tmp_path: Path) -> None:
    found = observe(pictures(tmp_path / "m.onnx", opset), images(4), channels=("flat",))
    whole = fetch(tmp_path / "m.onnx", images(4), ["flat"], rows=4)["flat"]
    assert np.array_equal(np.asarray(found.tensors["flat"].channel_high), whole.max(axis=0))


def test_free_axes(tmp_path: Path) -> None:
    """Nothing is known of sizes beforehand; what is told is the same."""
    fixed = observe(texts(tmp_path / "fixed.onnx"), words(), histograms=True)
    free = observe(texts(tmp_path / "free.onnx", "length"), words(), histograms=True)
    assert set(fixed.tensors) == set(free.tensors)
    for name, seen in fixed.tensors.items():
        assert (free.tensors[name].low, free.tensors[name].high) == (seen.low, seen.high), name
        assert free.tensors[name].values > 0
    longer = observe(tmp_path / "free.onnx", words(4, length=90), histograms=True)
    assert longer.tensors["active"].values < 90 * 256 * 4


def test_free_batch_axis(tmp_path: Path) -> None:
    """It is looked at in the same way as a fixed one, not in a slower one."""
    fixed, free = pictures(tmp_path / "fixed.onnx"), pictures(tmp_path / "free.onnx", batch="batch")
    assert observe_onnx.Taps(free, None, True, ())._names == observe_onnx.Taps(fixed, None, True, ())._names
    ours, theirs = observe(free, images(), histograms=True), observe(fixed, images(), histograms=True)
    for name, seen in ours.tensors.items():
        assert np.array_equal(np.asarray(seen.counts), np.asarray(theirs.tensors[name].counts))


def test_merged_shards_equal_one_pass(tmp_path: Path) -> None:
    model, data = pictures(tmp_path / "m.onnx"), images()
    whole = observe(model, data, histograms=True)
    merged = observe(model, data.take(slice(0, 13)), histograms=True).merged(observe(model, data.take(slice(13, SAMPLES)), histograms=True))
    for name, seen in whole.tensors.items():
        other = merged.tensors[name]
        assert (seen.low, seen.high, seen.first, seen.exponent) == (other.low, other.high, other.first, other.exponent)
        assert np.array_equal(np.asarray(seen.counts), np.asarray(other.counts))
        for method in ("min_max", "percentile", "entropy", "mse"):
            assert whole.range(name, method) == merged.range(name, method)


class _Killed(BaseException):
    pass


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small batches, each written down."""
    monkeypatch.setattr("toolkit.quantization.observe._BATCH", 8)
    monkeypatch.setattr("toolkit.quantization.observe._SECONDS_BETWEEN_SAVES", -1)
    yield


def killed_after(model: Path, data: Dataset, done: int, resume: Path, **options: Any) -> None:
    def progress(now: int, total: int, note: str) -> None:
        if now >= done + 8:  # the batch before was written
            raise _Killed

    with pytest.raises(_Killed):
        observe(model, data, progress=progress, resume=resume, **options)


@pytest.mark.usefixtures("eager")
class TestResume:
    def test_goes_on_to_the_same_file(self, tmp_path: Path) -> None:
        model, data = pictures(tmp_path / "m.onnx"), images()
        observe(model, data, histograms=True, channels=("linear",)).write(tmp_path / "whole.npz")
        killed_after(model, data, 16, tmp_path / "left.npz", histograms=True, channels=("linear",))
        steps: list[int] = []
        found = observe(
            model, data, histograms=True, channels=("linear",), resume=tmp_path / "left.npz", progress=lambda now, total, note: steps.append(now)
        )
        assert steps == [24, 32, 40]
        found.write(tmp_path / "resumed.npz")
        assert (tmp_path / "resumed.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()

    @pytest.mark.parametrize("change", ["samples", "histograms", "model", "tensors", "damaged"])
    def test_begins_anew_for_another_pass(self, change: str, tmp_path: Path) -> None:
        model, data, left = pictures(tmp_path / "m.onnx"), images(), tmp_path / "left.npz"
        killed_after(model, data, 16, left)
        options: dict[str, Any] = {"histograms": change == "histograms", "tensors": ["linear"] if change == "tensors" else None}
        data = images(seed=5) if change == "samples" else data
        model = pictures(tmp_path / "other.onnx", 13) if change == "model" else model
        if change == "damaged":
            left.write_bytes(left.read_bytes()[:-20])
        observe(model, data, **options).write(tmp_path / "whole.npz")
        observe(model, data, **options, resume=left).write(tmp_path / "resumed.npz")
        assert (tmp_path / "resumed.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_deterministic(tmp_path: Path) -> None:
    for copy in ("a", "b"):
        observe(pictures(tmp_path / "m.onnx"), images(), histograms=True).write(tmp_path / f"{copy}.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_statistics_know_their_model(tmp_path: Path) -> None:
    from toolkit import modelfile

    model = texts(tmp_path / "m.onnx")
    found = observe(model, words(3), resume=tmp_path / "left.npz")
    assert isinstance(found, Statistics)
    assert (found.model_sha256, found.samples) == (modelfile.sha256(model), 3)


class TestRefused:
    def test_damaged(self, tmp_path: Path) -> None:
        whole = pictures(tmp_path / "m.onnx").read_bytes()
        (tmp_path / "m.onnx").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputRejected, match="not a readable ONNX model"):
            observe(tmp_path / "m.onnx", images(2))

    @pytest.mark.parametrize("name", ["absent", "w0", ""])
    def test_no_activation(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(InputRejected, match="no float32 activation"):
            observe(pictures(tmp_path / "m.onnx"), images(2), tensors=[name])

    def test_other_columns(self, tmp_path: Path) -> None:
        with pytest.raises(InputRejected, match="no column 'x'"):
            observe(pictures(tmp_path / "m.onnx"), Dataset({"y": np.zeros((2, 3, 24, 24), np.float32)}))

    def test_other_shape(self, tmp_path: Path) -> None:
        with pytest.raises(StageFailed, match="cannot be run"):
            observe(pictures(tmp_path / "m.onnx"), Dataset({"x": np.zeros((2, 24, 24, 3), np.float32)}))

    def test_nan(self, tmp_path: Path) -> None:
        data = images(3)
        data.columns["x"][1, 0, 0, 0] = np.nan
        with pytest.raises(StageFailed, match="computes NaN"):
            observe(pictures(tmp_path / "m.onnx"), data)
