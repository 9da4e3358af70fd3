"""Latency: who is timed when, and what is made of the times. The clock is replaced, so that nothing here depends on the machine."""

import gc
from collections import Counter

import numpy as np
import pytest

from tests import models
from toolkit.artifact import Signature, TensorSpec
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected
from toolkit.evidence import Latency
from toolkit.job import Job
from toolkit.measure import latency


class Clock:
    """A clock that only the fake models move on."""

    now = 0

    def __call__(self):
        return self.now


class Runtime:
    """Opens models that take as many nanoseconds as their file says, a first few inferences ten times as many."""

    name, modules = "fake", ()

    def __init__(self, clock, batch=1):
        self.clock, self.batch, self.log = clock, batch, []

    def open(self, model, *, threads):
        return Session(self, model.name, int(model.read_text()))


class Session:
    def __init__(self, runtime, name, cost):
        self.runtime, self.name, self.cost, self.runs = runtime, name, cost, 0
        self.signature = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=(runtime.batch, 4)),), outputs=())

    def run(self, inputs):
        self.runs += 1
        self.runtime.log.append((self.name, inputs["x"].copy(), gc.isenabled()))
        self.runtime.clock.now += self.cost * (10 if self.runs <= 8 else 1)
        return {}


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Runs the stage on fake models given by their costs in nanoseconds."""
    clock = Clock()
    runtime = Runtime(clock)
    monkeypatch.setattr("toolkit.plugins.get", lambda group, name: runtime)
    monkeypatch.setattr(latency.time, "perf_counter_ns", clock)

    def run(costs, **options):
        for name, cost in costs.items():
            (tmp_path / name).write_text(str(cost))
        Dataset({"x": models.samples(5)}).write(tmp_path / "samples")
        inputs = {**{name: tmp_path / name for name in costs}, "data": tmp_path / "samples"}
        defaults = {"runtime": "fake", "threads": 1, "baseline": None, "rounds": 10, "warmup_seconds": 1.0, "stand_in": "a test"}
        return latency.run(Job(inputs, {**defaults, **options}, tmp_path)), runtime.log

    return run


def test_the_figures_are_the_steady_times(measure):
    facts, _ = measure({"float": 2_000_000, "int8": 500_000}, baseline="float")
    found = {name: Latency.model_validate(one) for name, one in facts.items()}
    assert (found["float"].p50, found["float"].p90, found["int8"].p50) == (2.0, 2.0, 0.5)
    assert (found["int8"].ratio_to_float, found["float"].ratio_to_float) == (0.25, 1.0)
    assert (found["int8"].ratio_low, found["int8"].ratio_high, found["float"].ratio_low, found["float"].ratio_high) == (0.25, 0.25, 1.0, 1.0)
    assert found["int8"].stand_in == "a test"


def test_without_a_baseline_there_is_no_ratio(measure):
    facts, _ = measure({"only": 1000})
    assert [facts["only"][name] for name in ("ratio_to_float", "ratio_low", "ratio_high")] == [None] * 3


def test_fast_models_give_many_samples_and_slow_ones_keep_to_the_budget(measure):
    facts, _ = measure({"fast": 15_000, "slow": 150_000_000}, seconds=1.0, rounds=5)
    assert facts["fast"]["n"] >= 200
    assert 5 <= facts["slow"]["n"] <= 10


def test_a_model_slower_than_the_budget_is_still_timed_each_round(measure):
    facts, _ = measure({"huge": 5_000_000_000}, seconds=1.0, rounds=3)
    assert facts["huge"]["n"] == 3


def test_a_drift_between_rounds_moves_both_models_and_little_of_their_ratio(measure, monkeypatch):
    """Every inference of a later round is slower; pairing by round keeps the interval around the true ratio narrow."""
    plain = Session.run

    def drifting(self, inputs):
        before = self.runtime.clock.now
        drift = 1 + before / 2e9
        result = plain(self, inputs)
        self.runtime.clock.now = before + int((self.runtime.clock.now - before) * drift)
        return result

    monkeypatch.setattr(Session, "run", drifting)
    facts, _ = measure({"float": 2_000_000, "int8": 1_000_000}, baseline="float", rounds=20, seconds=5.0)
    found = Latency.model_validate(facts["int8"])
    assert found.p90 > 1.5  # a millisecond without drift
    assert 0.48 < found.ratio_low <= 0.5 <= found.ratio_high < 0.52


def test_by_default_even_the_slowest_model_is_timed_often_enough_to_bound_its_p90(measure):
    """A binomial count: the largest of n times bounds the 90th percentile from above with 1 - 0.9^n, which must be 97.5 %."""
    facts, _ = measure({"huge": 5_000_000_000}, seconds=0.1, rounds=latency.ROUNDS)
    assert 0.9 ** facts["huge"]["n"] <= 0.025


def test_a_model_that_becomes_slow_is_stopped_by_the_budget(measure, monkeypatch):
    plain = Session.run

    def throttled(self, inputs):
        if self.runs > 30:
            self.cost = 1_000_000_000
        return plain(self, inputs)

    monkeypatch.setattr(Session, "run", throttled)
    facts, _ = measure({"hot": 1_000_000}, seconds=1.0, rounds=2)
    assert facts["hot"]["n"] < 30


def test_blocks_alternate_and_no_garbage_is_collected_while_timing(measure):
    assert gc.isenabled()
    _, log = measure({"a": 100_000_000, "b": 100_000_000}, seconds=1.0, rounds=4, warmup_seconds=0.0)
    timed = [(name, collecting) for name, _, collecting in log[20:]]
    names = [name for index, (name, _) in enumerate(timed) if index == 0 or timed[index - 1][0] != name]
    assert names == ["a", "b", "a", "b", "a", "b"]  # A B, B A, B A, A B: equal neighbours join
    assert not any(collecting for _, collecting in timed)
    assert gc.isenabled()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_model_stands_equally_often_at_every_place(count):
    names = [f"m{index}" for index in range(count)]
    orders = [latency.turn_order(names, number) for number in range(2 * count)]
    assert all(sorted(order) == names for order in orders)
    for place in range(count):
        assert set(Counter(order[place] for order in orders).values()) == {2}


def test_different_samples_are_taken_in_turn_at_the_models_batch_size(measure, monkeypatch):
    monkeypatch.setattr(Runtime, "__init__", lambda self, clock, batch=1: None)
    _, log = measure({"a": 1_000_000})
    assert {batch.shape for _, batch, _ in log} == {(1, 4)}
    assert {batch.tobytes() for _, batch, _ in log} == {row.tobytes() for row in models.samples(5)}


def test_a_missing_baseline_and_unfit_data_are_refused(measure, tmp_path):
    with pytest.raises(ConfigError, match="'other' is not among the models: a"):
        measure({"a": 1000}, baseline="other")
    Dataset({"wrong": np.zeros((3, 4), np.float32)}).write(tmp_path / "unfit")
    options = {"runtime": "fake", "threads": 1, "rounds": 1, "warmup_seconds": 0.0, "stand_in": ""}
    with pytest.raises(InputRejected, match="wrong"):
        latency.run(Job({"a": tmp_path / "a", "data": tmp_path / "unfit"}, options, tmp_path))


def test_real_models_are_timed_in_milliseconds(tmp_path):
    pytest.importorskip("onnxruntime")
    Dataset({"x": models.samples(3)}).write(tmp_path / "samples")
    inputs = {"float": models.tiny_onnx(tmp_path / "a.onnx"), "free": models.tiny_onnx(tmp_path / "b.onnx", "n"), "data": tmp_path / "samples"}
    options = {
        "runtime": "onnxruntime",
        "threads": 1,
        "baseline": "float",
        "rounds": 4,
        "warmup_seconds": 0.1,
        "stand_in": "host cpu",
        "seconds": 0.05,
    }
    facts = latency.run(Job(inputs, options, tmp_path))
    for one in facts.values():
        found = Latency.model_validate(one)
        assert 0 < found.p50_low <= found.p50 <= found.p50_high < 50 and found.p90 >= found.p50 and found.n >= 200
