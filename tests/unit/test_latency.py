"""Latency: who is timed when, and what is made of the times. The clock is replaced, so that nothing here depends on the machine."""

import gc
import os
from collections import Counter
from itertools import groupby

import numpy as np
import pytest

from tests import models
from toolkit.artifact import Signature, TensorSpec
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected
from toolkit.figures import Latency
from toolkit.job import Job
from toolkit.measure import latency, turns
from toolkit.measure.affinity import pinned

MS = 1_000_000


class Clock:
    """A clock that only the fake models move on."""

    now = 0

    def __call__(self):
        return self.now


class Runtime:
    """Opens models that take as many nanoseconds as their file says, a first few inferences ten times as many."""

    name, modules = "fake", ()

    def __init__(self, clock, batch=1):
        self.clock, self.batch, self.log, self.opened = clock, batch, [], []

    def open(self, model, *, threads):
        self.opened.append(Session(self, model.name, int(model.read_text()), len(self.opened)))
        return self.opened[-1]


class Session:
    def __init__(self, runtime, name, cost, serial):
        self.runtime, self.name, self.cost, self.serial, self.runs = runtime, name, cost, serial, 0
        self.signature = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=(runtime.batch, 4)),), outputs=())

    def run(self, inputs):
        self.runs += 1
        self.runtime.log.append((self, inputs["x"].copy(), gc.isenabled()))
        self.runtime.clock.now += int(self.cost * self.factor())
        return {}

    def factor(self):
        return 10 if self.runs <= 8 else 1


@pytest.fixture
def runtime(monkeypatch):
    clock = Clock()
    fake = Runtime(clock)
    monkeypatch.setattr("toolkit.plugins.get", lambda group, name: fake)
    monkeypatch.setattr(turns.time, "perf_counter_ns", clock)
    return fake


@pytest.fixture
def measure(tmp_path, runtime):
    """Runs the stage on fake models given by their costs in nanoseconds; returns the facts and who ran when."""

    def run(costs, **options):
        for name, cost in costs.items():
            (tmp_path / name).write_text(str(cost))
        Dataset({"x": models.samples(5)}).write(tmp_path / "samples")
        inputs = {**{name: tmp_path / name for name in costs}, "data": tmp_path / "samples"}
        defaults = {"runtime": "fake", "threads": 1, "baseline": None, "rounds": 12, "warmup_seconds": 1.0, "stand_in": "a test"}
        return latency.run(Job(inputs, {**defaults, **options}, tmp_path)), runtime.log

    return run


def slower_loads(monkeypatch, factors):
    """Makes each load of a file slower than the file says, by serial number."""
    plain = Session.factor
    monkeypatch.setattr(Session, "factor", lambda self: plain(self) * factors[self.serial])


def test_the_figures_are_the_steady_times(measure):
    facts, _ = measure({"float": 2 * MS, "int8": MS // 2}, baseline="float", max_noise=0.07)
    found = {name: Latency.model_validate(one) for name, one in facts.items()}
    assert list(found) == ["float", "int8"]  # the second load of the baseline is nobody's result
    assert (found["float"].p50, found["float"].p90, found["float"].p99, found["int8"].p50) == (2.0, 2.0, 2.0, 0.5)
    for one, ratio in ((found["int8"], 0.25), (found["float"], 1.0)):
        assert (one.ratio_to_float, one.ratio_low, one.ratio_high) == pytest.approx((ratio,) * 3, rel=1e-12)
        assert one.noise == pytest.approx(0.0, abs=1e-12)
        assert (one.max_noise, one.stand_in, one.rounds, one.steady) == (0.07, "a test", 12, True)


def test_without_a_baseline_there_is_noise_and_no_ratio(measure, monkeypatch):
    slower_loads(monkeypatch, np.linspace(1, 1.05, 12))
    facts, _ = measure({"only": MS})
    assert [facts["only"][name] for name in ("ratio_to_float", "ratio_low", "ratio_high")] == [None] * 3
    assert facts["only"]["noise"] > 0.005


def test_a_single_round_has_neither_ratio_interval_nor_noise(measure):
    facts, _ = measure({"float": MS, "int8": MS}, baseline="float", rounds=1)
    assert facts["int8"]["ratio_to_float"] == pytest.approx(1.0)
    assert [facts["int8"][name] for name in ("ratio_low", "ratio_high", "noise")] == [None] * 3


def test_loads_of_one_file_that_differ_widen_the_ratio_and_set_the_noise(measure, runtime, monkeypatch):
    """Against a linear model of the logarithms, fitted by least squares: three contenders, six loads each."""
    stats = pytest.importorskip("scipy.stats")
    slower_loads(monkeypatch, np.random.default_rng(3).normal(1, 0.02, 18))
    facts, _ = measure({"float": 2 * MS, "int8": MS}, baseline="float", rounds=24)
    found = Latency.model_validate(facts["int8"])

    # Loaded forwards and backwards: float int8 twin, twin int8 float, and on, rotating every two.
    files = ["float", "int8", "twin"]
    order = [name for number in range(6) for name in turns.turn_order(files, number)]
    assert Counter(session.name for session in runtime.opened) == {"float": 12, "int8": 6}
    times = {name: [s.cost * np.float64(s.factor()) for s, other in zip(runtime.opened, order, strict=True) if other == name] for name in files}
    logs = np.log(np.floor([times[name] for name in files])).ravel()
    design = np.array([[row == 1, row == 2, *(column == one for one in range(6))] for row in range(3) for column in range(6)], dtype=float)
    found_logs, squares, *_ = np.linalg.lstsq(design, logs, rcond=None)
    half = stats.t.ppf(0.975, 18 - 8) * np.sqrt(squares[0] / (18 - 8) * np.diag(np.linalg.inv(design.T @ design))[:2])
    ratio, noise = np.exp(found_logs[0] + half[0] * np.array([0, -1, 1])), np.exp(found_logs[1] + half[1] * np.array([-1, 1]))
    assert (found.ratio_to_float, found.ratio_low, found.ratio_high) == pytest.approx(tuple(ratio), rel=1e-6)
    assert found.noise == pytest.approx(max(1 - noise[0], noise[1] - 1), rel=1e-4)
    assert found.ratio_high / found.ratio_low > 1.01


def test_large_models_are_loaded_once(measure, runtime, monkeypatch):
    monkeypatch.setattr(latency, "LOADED_BYTES", 2 * 3 * 7)  # twice the three files of seven digits each
    facts, _ = measure({"float": MS, "int8": MS}, baseline="float")
    assert len(runtime.opened) == 3
    assert facts["int8"]["ratio_low"] is not None
    monkeypatch.setattr(latency, "LOADED_BYTES", 3 * 3 * 7)
    measure({"float": MS, "int8": MS}, baseline="float")
    assert len(runtime.opened) == 3 + 9


def test_fast_models_give_many_samples_and_slow_ones_keep_to_the_budget(measure):
    facts, log = measure({"fast": 15_000, "slow": 150 * MS}, seconds=1.0, rounds=6)
    timed = Counter(session.name for session, _, collecting in log if not collecting)
    assert timed["fast"] > 100_000 / 1.7  # one second of 15 microseconds each, for the model and its second load
    assert 1000 <= facts["fast"]["n"] <= turns.MAX_KEPT  # a part of them is enough
    assert 6 <= facts["slow"]["n"] <= 12


def test_what_is_kept_of_a_fast_model_comes_from_all_batches(measure, runtime, monkeypatch):
    """Every sample takes its own time; keeping each n-th inference must not always meet the same sample."""
    data = {row.tobytes(): number for number, row in enumerate(models.samples(5))}
    plain = Session.run

    def by_sample(self, inputs):
        self.runtime.clock.now += 1000 * data[inputs["x"].tobytes()]
        return plain(self, inputs)

    monkeypatch.setattr(Session, "run", by_sample)
    facts, _ = measure({"fast": 15_000}, seconds=1.0, rounds=36)
    assert (facts["fast"]["p50"], facts["fast"]["p99"]) == pytest.approx((0.017, 0.019))


def test_a_model_slower_than_the_budget_is_still_timed_each_round(measure):
    facts, _ = measure({"huge": 5000 * MS}, seconds=1.0, rounds=3)
    assert facts["huge"]["n"] == 3


def test_a_drift_between_rounds_moves_both_models_and_little_of_their_ratio(measure, monkeypatch):
    """Every inference of a later round is slower; pairing by round keeps the interval around the true ratio narrow."""
    plain = Session.factor
    monkeypatch.setattr(Session, "factor", lambda self: plain(self) * (1 + self.runtime.clock.now / 6e9))
    facts, _ = measure({"float": 2 * MS, "int8": MS}, baseline="float", rounds=36, seconds=5.0)
    found = Latency.model_validate(facts["int8"])
    assert found.p90 > 1.5  # a millisecond without drift
    assert 0.49 < found.ratio_low <= 0.5 <= found.ratio_high < 0.51
    assert found.noise < 0.02


def test_by_default_even_the_slowest_model_is_timed_often_enough_to_bound_its_p90(measure):
    """A binomial count: the largest of n times bounds the 90th percentile from above with 1 - 0.9^n, which must be 97.5 %."""
    facts, _ = measure({"huge": 5000 * MS}, seconds=0.1, rounds=latency.ROUNDS)
    assert 0.9 ** facts["huge"]["n"] <= 0.025


def test_a_model_that_becomes_slow_is_stopped_by_the_budget(measure, monkeypatch):
    plain = Session.factor
    monkeypatch.setattr(Session, "factor", lambda self: plain(self) * (1000 if self.runs > 60 else 1))
    facts, _ = measure({"hot": MS}, seconds=1.0, rounds=2)
    assert facts["hot"]["n"] < 60


def test_blocks_alternate_loads_take_turns_and_no_garbage_is_collected_while_timing(measure):
    assert gc.isenabled()
    _, log = measure({"a": 100 * MS, "b": 100 * MS}, baseline="a", seconds=1.0, rounds=8)
    timed = [session for session, _, collecting in log if not collecting]
    assert gc.isenabled()
    rounds = [timed[start : start + 3] for start in range(0, len(timed), 3)]  # one inference each
    assert [[session.name for session in one] for one in rounds] == [["a", "b", "a"]] * 8
    serials = [[session.serial for session in one] for one in rounds]
    assert all(even == odd[::-1] for even, odd in zip(serials[::2], serials[1::2], strict=True))
    assert Counter(serial for one in serials for serial in one) == dict.fromkeys(range(12), 2)  # four loads of each of three


def test_the_first_inferences_after_a_change_of_model_are_not_timed(measure, monkeypatch):
    """Whoever comes back finds caches full of another model's weights; the fake takes five times as long then, twice."""
    state = {"last": None, "since": 0}

    def cold_cache(self):
        state["since"] = state["since"] + 1 if state["last"] is self else 0
        state["last"] = self
        return 5 if state["since"] < 2 else 1

    monkeypatch.setattr(Session, "factor", cold_cache)
    facts, _ = measure({"a": MS}, seconds=1.0, rounds=12)
    assert facts["a"]["p99"] == 1.0
    facts, _ = measure({"a": 20 * MS}, seconds=1.0, rounds=12)  # too slow for a lead-in
    assert facts["a"]["p99"] == 100.0


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_model_stands_equally_often_at_every_place(count):
    names = [f"m{index}" for index in range(count)]
    orders = [turns.turn_order(names, number) for number in range(2 * count)]
    assert all(sorted(order) == names for order in orders)
    for place in range(count):
        assert set(Counter(order[place] for order in orders).values()) == {2}


def test_different_samples_are_taken_in_turn_at_the_models_batch_size(measure, runtime):
    _, log = measure({"a": MS})
    assert {batch.shape for _, batch, _ in log} == {(1, 4)}
    assert {batch.tobytes() for _, batch, _ in log} == {row.tobytes() for row in models.samples(5)}
    runtime.log, runtime.batch = [], 3
    _, log = measure({"a": MS})
    rows = models.samples(5)
    assert {batch.tobytes() for _, batch, _ in runtime.log} == {rows[[(3 * k + i) % 5 for i in range(3)]].tobytes() for k in range(5)}


def warm(cost_of_run, limit_seconds, runtime):
    """Warms up a fake whose n-th inference takes ``cost_of_run(n)`` nanoseconds."""
    session = Session(runtime, "warm", 1, 0)
    session.factor = lambda: cost_of_run(session.runs)
    loaded = turns.prepare(Dataset({"x": models.samples(2)}), session, 1)
    turns.warm_up(loaded, limit_seconds)
    return loaded, session


def test_warming_up_goes_on_until_three_blocks_are_equally_fast(runtime):
    loaded, session = warm(lambda run: (10 * 0.94**run if run <= 40 else 0.8) * MS, 5.0, runtime)
    assert loaded.steady and loaded.expected_ns == 0.8 * MS
    assert 40 + 2 * 13 < session.runs <= 40 + 4 * 13  # thirteen inferences of 0.8 ms make a block


def test_neighbours_that_slow_most_inferences_down_do_not_keep_it_from_steadiness(runtime):
    loaded, session = warm(lambda run: (1 if run % 4 == 0 else 3 + run % 5) * MS, 1.0, runtime)
    assert loaded.steady and session.runs < 40


def test_a_model_that_gets_faster_and_faster_is_not_steady_when_the_time_is_up(runtime):
    loaded, _ = warm(lambda run: int(1000 * MS * 0.97**run) + 1, 2.0, runtime)
    assert not loaded.steady
    assert runtime.clock.now >= 2000 * MS


def test_a_slow_model_needs_few_inferences_to_be_steady(runtime):
    loaded, session = warm(lambda run: (9000 if run == 1 else 5000) * MS, 1.0, runtime)
    assert loaded.steady and session.runs == 4


def test_what_is_not_steady_is_said_of_the_model_and_of_all_compared_with_it(measure, monkeypatch):
    plain = Session.factor
    monkeypatch.setattr(Session, "factor", lambda self: 1e4 * 0.9**self.runs + 1 if self.name == "restless" else plain(self))
    facts, _ = measure({"restless": 50 * MS, "calm": MS}, baseline="calm", warmup_seconds=0.1)
    assert (facts["restless"]["steady"], facts["calm"]["steady"]) == (False, True)
    facts, _ = measure({"restless": 50 * MS, "calm": MS}, baseline="restless", warmup_seconds=0.1)
    assert (facts["restless"]["steady"], facts["calm"]["steady"]) == (False, False)


def test_a_model_that_is_timed_once_a_round_still_meets_all_samples(measure):
    _, log = measure({"a": 5000 * MS}, rounds=36)
    timed = [batch.tobytes() for session, batch, collecting in log if not collecting]
    assert len(timed) == 2 * 36
    assert set(Counter(timed)) == {row.tobytes() for row in models.samples(5)}


def test_a_missing_baseline_and_unfit_data_are_refused(measure, tmp_path):
    with pytest.raises(ConfigError, match="'other' is not among the models: a"):
        measure({"a": 1000}, baseline="other")
    Dataset({"wrong": np.zeros((3, 4), np.float32)}).write(tmp_path / "unfit")
    options = {"runtime": "fake", "threads": 1, "rounds": 1, "warmup_seconds": 0.0, "stand_in": ""}
    with pytest.raises(InputRejected, match="wrong"):
        latency.run(Job({"a": tmp_path / "a", "data": tmp_path / "unfit"}, options, tmp_path))


@pytest.fixture
def cpus(monkeypatch):
    """A machine on which this process may use the CPUs 2 and 5."""
    allowed = [{2, 5}]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: allowed[-1], raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: allowed.append(set(cpus)), raising=False)
    return allowed


def test_models_are_loaded_and_run_on_the_chosen_cpus(measure, runtime, cpus, monkeypatch):
    seen = []
    plain, load = Session.run, Runtime.open
    monkeypatch.setattr(Session, "run", lambda self, inputs: seen.append(cpus[-1]) or plain(self, inputs))
    monkeypatch.setattr(Runtime, "open", lambda self, model, *, threads: seen.append(cpus[-1]) or load(self, model, threads=threads))
    facts, _ = measure({"a": MS}, cpus=[5])
    assert [one for one, _ in groupby(seen)] == [{5}]
    assert cpus[-1] == {2, 5}
    assert facts["a"]["stand_in"] == "a test"


def test_a_cpu_that_may_not_be_used_is_refused(measure, cpus):
    with pytest.raises(ConfigError, match="cannot pin to CPU 3; this process may use 2, 5"):
        measure({"a": MS}, cpus=[2, 3])
    with pytest.raises(ConfigError, match="cannot pin to CPUs 0, 1; this process may use 2, 5"):
        measure({"a": MS}, cpus=[1, 0])
    assert cpus == [{2, 5}]


def test_where_pinning_is_not_possible_the_record_says_so(measure, monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    facts, _ = measure({"a": MS}, cpus=[0])
    assert facts["a"]["stand_in"] == "a test, not pinned"
    facts, _ = measure({"a": MS})
    assert facts["a"]["stand_in"] == "a test"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin")
def test_the_operating_system_agrees_about_the_cpus():
    before = os.sched_getaffinity(0)
    with pinned([min(before)]) as note:
        assert os.sched_getaffinity(0) == {min(before)} and note == ""
    assert os.sched_getaffinity(0) == before


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
        assert 0 < found.p50_low <= found.p50 <= found.p50_high < 50 and found.p50 <= found.p90 <= found.p99 and found.n >= 4
        assert found.noise > 0
