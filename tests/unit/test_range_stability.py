import itertools
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from toolkit.evidence import Verdict
from toolkit.quantization.stability import of_ends, of_groups
from toolkit.quantization.statistics import Seen, Statistics


@dataclass
class Values:
    """Statistics that keep every value: what merged histograms approximate."""

    kept: dict[str, np.ndarray]
    samples: int

    @property
    def tensors(self):
        return {name: SimpleNamespace(low=float(values.min()), high=float(values.max())) for name, values in self.kept.items()}

    def merged(self, other):
        return Values({name: np.concatenate([values, other.kept[name]]) for name, values in self.kept.items()}, self.samples + other.samples)

    def range(self, name, method, *, bits=8):
        if method == "min_max":
            return min(0.0, float(self.kept[name].min())), max(0.0, float(self.kept[name].max()))
        return tuple(float(end) for end in np.percentile(self.kept[name], (5, 95)))


def groups_of(draw, groups=16, samples=8):
    return [Values({name: make(group) for name, make in draw.items()}, samples) for group in range(groups)]


def test_ends_move_as_in_a_bootstrap_by_hand():
    generator = np.random.default_rng(0)
    low, high = -generator.exponential(size=24), generator.exponential(size=24) * 2
    found = of_ends({"t": low}, {"t": high}, 24).worst[0]
    width = high.max() - low.min()
    again = []
    for _ in range(4000):
        rows = [int(generator.integers(24)) for _ in range(24)]
        again.append((max(high[row] for row in rows) - min(low[row] for row in rows)) / width)
    assert found.width == pytest.approx(width)
    assert found.resampled == pytest.approx(np.std(again), rel=0.1)
    assert found.error >= found.resampled and (found.low, found.high) == pytest.approx((1 - 1.96 * found.error, 1 + 1.96 * found.error), rel=1e-3)


@pytest.mark.parametrize("both", [False, True])
def test_the_error_is_what_other_samples_show(both):
    """The truth is known by drawing afresh, which a bootstrap, that cannot draw larger values, finds half of."""
    generator = np.random.default_rng(1)

    def draw():
        """As activations are: the largest of many values in each sample, from tails that fall exponentially."""
        return 8 + generator.gumbel(size=64)

    def low():
        return -draw() if both else np.zeros(64)

    widths = [draw().max() - low().min() for _ in range(4000)]
    found = [of_ends({"t": low()}, {"t": draw()}, 64).worst[0] for _ in range(100)]
    truth = np.std(widths) / np.mean(widths)
    assert np.mean([one.error for one in found]) == pytest.approx(truth, rel=0.15)
    assert np.mean([one.resampled for one in found]) < 0.75 * truth
    doubled = [max(draw().max(), draw().max()) - min(low().min(), low().min()) for _ in range(4000)]
    assert np.mean([one.growth for one in found]) == pytest.approx(np.mean(doubled) / np.mean(widths) - 1, rel=0.2)


@pytest.mark.parametrize("count", [4, 5, 8, 11])
def test_growth_is_the_mean_over_every_half(count):
    generator = np.random.default_rng(count)
    low, high = -generator.random(count), generator.random(count)
    halves = [max(high[list(rows)]) for rows in itertools.combinations(range(count), count // 2)]
    depths = [min(low[list(rows)]) for rows in itertools.combinations(range(count), count // 2)]
    width = high.max() - low.min()
    assert of_ends({"t": low}, {"t": high}, count).worst[0].growth == pytest.approx(1 - (np.mean(halves) - np.mean(depths)) / width)


def test_a_range_includes_zero():
    found = of_ends({"t": np.full(8, 3.0)}, {"t": np.linspace(4, 5, 8)}, 8).worst[0]
    assert found.width == 5.0


def test_minimum_and_maximum_of_groups_are_those_of_their_ends():
    generator = np.random.default_rng(3)
    groups = groups_of({"t": lambda _: generator.normal(size=40)})
    low, high = (np.array([getattr(group.tensors["t"], end) for group in groups]) for end in ("low", "high"))
    assert of_groups(groups) == of_ends({"t": low}, {"t": high}, 16 * 8)


def test_the_jackknife_agrees_with_a_bootstrap_over_groups():
    generator = np.random.default_rng(4)
    groups = groups_of({"t": lambda _: generator.normal(size=60)}, groups=20)
    found = of_groups(groups, "percentile").worst[0]
    again = []
    for _ in range(2000):
        drawn = np.concatenate([groups[row].kept["t"] for row in generator.integers(0, 20, 20)])
        again.append(np.subtract(*np.percentile(drawn, (95, 5))))
    assert found.error == pytest.approx(np.std(again) / found.width, rel=0.3)
    # In theory, by the density of a normal distribution at its quantiles: the correlation of the two is 1/19.
    one = np.sqrt(0.05 * 0.95 / 1200) / (np.exp(-(1.6449**2) / 2) / np.sqrt(2 * np.pi))
    assert found.error == pytest.approx(np.sqrt(2 * one**2 * (1 - 1 / 19)) / found.width, rel=0.3)
    assert found.error == found.resampled


def test_ranges_that_are_the_same_in_every_group_are_enough():
    generator = np.random.default_rng(5)
    bounded = {f"t{index}": lambda _: generator.uniform(-1, 1, size=4000) for index in range(5)}
    for method in ("min_max", "percentile"):
        found = of_groups(groups_of(bounded), method)
        assert found.verdict is Verdict.PASS and found.unsteady == 0 and found.median < 0.01
        assert found.reason == "128 samples are enough: 5 of 5 ranges move by at most 10%"


def test_heavy_tails_need_more_samples_and_are_named():
    generator = np.random.default_rng(6)
    draw = {f"t{index}": lambda _: generator.uniform(-1, 1, size=4000) for index in range(5)} | {
        "heavy": lambda _: generator.standard_cauchy(size=4000)
    }
    found = of_groups(groups_of(draw))
    assert found.verdict is Verdict.INCONCLUSIVE and found.worst[0].tensor == "heavy" and found.unsteady == 1
    assert found.reason.startswith("more samples would help: 1 of 6 ranges move by more than 10% when samples are drawn again; most of all 'heavy'")
    assert found.facts()["verdict"] == "inconclusive" and found.facts()["worst"][0]["tensor"] == "heavy"


def test_one_of_many_may_move():
    ends = {f"t{index}": np.full(8, 1.0) for index in range(10)} | {"spike": np.array([1, 1, 1, 1, 1, 1, 1, 9.0])}
    found = of_ends({name: -values for name, values in ends.items()}, ends, 64)
    assert found.verdict is Verdict.PASS and found.unsteady == 1
    assert found.reason.startswith("64 samples are enough: 10 of 11 ranges move by at most 10%; most of all 'spike', by ")


def test_few_groups_tell_nothing():
    generator = np.random.default_rng(7)
    groups = groups_of({"t": lambda _: generator.normal(size=40)}, groups=3)
    for method in ("min_max", "percentile"):
        found = of_groups(groups, method)
        assert found.verdict is Verdict.INCONCLUSIVE and found.worst == ()
        assert found.reason == "24 samples are too few to tell how far ranges move; take more"


def test_tensors_that_are_always_zero_have_no_range_to_move():
    found = of_ends({"zero": np.zeros(8), "t": np.full(8, -1.0)}, {"zero": np.zeros(8), "t": np.ones(8)}, 8)
    assert found.tensors == 2 and [one.tensor for one in found.worst] == ["t"] and found.verdict is Verdict.PASS


@pytest.mark.parametrize("method", ["min_max", "percentile"])
def test_statistics_of_a_calibration_are_told_like_the_values_themselves(method):
    generator = np.random.default_rng(8)
    groups, values = [], []
    for _ in range(8):
        drawn = generator.normal(size=(6, 500)).astype(np.float32)
        groups.append(Statistics("model"))
        groups[-1].add({"t": Seen(drawn.min(axis=1), drawn.max(axis=1), drawn.ravel())}, 6)
        values.append(Exact({"t": drawn.ravel()}, 6))
    found, wanted = of_groups(groups, method), of_groups(values, method)
    assert (found.samples, found.verdict) == (48, wanted.verdict)
    for one, other in zip(found.worst, wanted.worst, strict=True):
        assert one.width == pytest.approx(other.width, rel=0.01)  # a histogram's bins are finer than a hundredth of the range
        assert (one.error, one.growth) == pytest.approx((other.error, other.growth), abs=0.01)


class Exact(Values):
    """With percentiles where calibration has them: a hundredth of a percent of the values lies beyond each end."""

    def range(self, name, method, *, bits=8):
        if method == "min_max":
            return super().range(name, method)
        return tuple(float(end) for end in np.percentile(self.kept[name], (0.01, 99.99)))

    def merged(self, other):
        return Exact(super().merged(other).kept, self.samples + other.samples)
