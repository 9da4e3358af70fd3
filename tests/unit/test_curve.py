"""Throughput by batch size and threads. The clock is replaced, so that nothing here depends on the machine."""

import numpy as np
import pytest

from tests import models
from toolkit.artifact import Signature, TensorSpec
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected
from toolkit.figures import CurvePoint
from toolkit.job import Job
from toolkit.measure import curve, turns

MS = 1_000_000


class Clock:
    now = 0

    def __call__(self):
        return self.now


class Runtime:
    """Opens models that take a millisecond and 100 microseconds per sample, on two threads half of it, plus scripted noise."""

    name, modules = "fake", ()

    def __init__(self, clock):
        self.clock, self.batch, self.largest, self.opened, self.log = clock, "n", 64, [], []
        self.noise = lambda: 0

    def open(self, model, *, threads):
        self.opened.append(threads)
        return Session(self, threads)


class Session:
    def __init__(self, runtime, threads):
        self.runtime, self.threads = runtime, threads
        self.signature = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=(runtime.batch, 4)),), outputs=())

    def run(self, inputs):
        size = len(inputs["x"])
        if size > self.runtime.largest:
            raise InputRejected(f"does not take {size} samples")
        self.runtime.log.append((self.threads, inputs["x"]))
        self.runtime.clock.now += (MS + size * MS // 10) // self.threads + self.runtime.noise()
        return {}


@pytest.fixture
def runtime(monkeypatch):
    clock = Clock()
    fake = Runtime(clock)
    monkeypatch.setattr("toolkit.plugins.get", lambda group, name: fake)
    monkeypatch.setattr(turns.time, "perf_counter_ns", clock)
    return fake


@pytest.fixture
def measure(tmp_path, runtime):
    def run(batches, threads, **options):
        (tmp_path / "model").write_bytes(b"x" * 1000)
        Dataset({"x": models.samples(5)}).write(tmp_path / "samples")
        inputs = {"model": tmp_path / "model", "data": tmp_path / "samples"}
        facts = curve.run(Job(inputs, {"runtime": "fake", "batches": batches, "threads": threads, "seconds": 0.5, **options}, tmp_path))
        return [CurvePoint.model_validate(one) for one in facts["points"]], facts["notes"]

    return run


def test_each_point_is_the_batch_over_its_time(measure):
    points, notes = measure([8, 1, 8], [2, 1])
    assert [(one.threads, one.batch) for one in points] == [(1, 1), (1, 8), (2, 1), (2, 8)]
    assert [one.p50_ms for one in points] == pytest.approx([1.1, 1.8, 0.55, 0.9])
    assert [one.samples_per_second for one in points] == pytest.approx([1 / 0.0011, 8 / 0.0018, 1 / 0.00055, 8 / 0.0009])
    assert all(one.low == pytest.approx(one.samples_per_second) == pytest.approx(one.high) and one.n >= 20 for one in points)
    assert notes == []


def test_the_interval_holds_the_true_throughput_and_has_a_width(measure, runtime):
    generator = np.random.default_rng(5)
    runtime.noise = lambda: int(generator.exponential(0.4 * MS))
    (point,), _ = measure([4], [1])
    truth = 4 / (1.4 + 0.4 * np.log(2)) * 1000  # median of a shifted exponential
    assert point.low < truth < point.high and point.low < point.samples_per_second < point.high
    assert (point.high - point.low) / truth < 0.2
    assert point.samples_per_second == pytest.approx(4000 / point.p50_ms)


def test_data_shorter_than_a_batch_start_again(measure, runtime):
    measure([8], [1])
    rows = models.samples(5)
    assert {one.tobytes() for _, one in runtime.log} == {rows[[(8 * k + i) % 5 for i in range(8)]].tobytes() for k in range(5)}


def test_points_take_turns(measure, runtime):
    measure([1, 2], [1], seconds=0.01)
    sizes = [len(batch) for _, batch in runtime.log][-40:]
    assert sizes == [1, 2, 2, 1, 2, 1, 1, 2] * 5


def test_a_fixed_batch_size_is_the_only_one(measure, runtime):
    runtime.batch = 2
    points, notes = measure([1, 2, 4], [1])
    assert [one.batch for one in points] == [2]
    assert notes == ["batch 1, 4: the model's batch size is fixed to 2"]
    points, notes = measure([1], [1, 2])
    assert [(one.threads, one.batch) for one in points] == [(1, 2), (2, 2)]


def test_a_size_that_the_model_refuses_is_noted(measure, runtime):
    runtime.largest = 4
    points, notes = measure([1, 8], [1])
    assert [one.batch for one in points] == [1]
    assert notes == ["batch 8, threads 1: does not take 8 samples"]
    assert measure([8], [1]) == ([], ["batch 8, threads 1: does not take 8 samples"])


def test_points_share_memory_as_far_as_it_goes(measure, runtime, monkeypatch):
    monkeypatch.setattr(curve, "TOGETHER_BYTES", 2000)
    points, _ = measure([1, 2, 4], [1], seconds=0.01)
    assert [one.batch for one in points] == [1, 2, 4]
    sizes = [len(batch) for _, batch in runtime.log]
    assert 4 not in sizes[: len(sizes) - sizes[::-1].index(2)]  # the third is loaded when the first two are done


def test_a_cpu_that_does_not_exist_is_refused(measure, monkeypatch):
    monkeypatch.setattr(curve.plugins, "require", lambda plugin: None)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0}, raising=False)
    monkeypatch.setattr("os.sched_setaffinity", lambda pid, cpus: None, raising=False)
    with pytest.raises(ConfigError, match="CPU 7; this process may use 0"):
        measure([1], [1], cpus=[7])


def test_a_real_model_takes_its_free_batch_size(tmp_path):
    pytest.importorskip("onnxruntime")
    Dataset({"x": models.samples(3)}).write(tmp_path / "samples")
    inputs = {"model": models.tiny_onnx(tmp_path / "a.onnx", "n"), "data": tmp_path / "samples"}
    facts = curve.run(Job(inputs, {"runtime": "onnxruntime", "batches": [1, 4], "threads": [1], "seconds": 0.02}, tmp_path))
    points = [CurvePoint.model_validate(one) for one in facts["points"]]
    assert [(one.batch, one.threads) for one in points] == [(1, 1), (4, 1)]
    assert all(0 < one.low <= one.samples_per_second <= one.high for one in points)
