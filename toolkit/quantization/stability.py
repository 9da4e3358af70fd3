"""How sure activation ranges are: how much they move when the samples that they come from are drawn again.

Calibration sees a few hundred samples, and the smallest and largest value among them are those of the luckiest sample. Two questions are
answered for every tensor. How far does the range move with other samples of the same number: the standard error of its width, as a share of the
width. And would more samples help: by how much the range grew when the number of samples was last doubled.

Minimum and maximum: samples, or groups of samples, are drawn with replacement (bootstrap, Efron 1979). As that never sees beyond the largest value
there is, it finds half of the truth; what the range grew by tells the rest. Behind a tail that falls exponentially the largest of ``n`` values
follows Gumbel's distribution of scale ``b``: each doubling adds ``b ln 2``, and the standard deviation is ``b pi / sqrt 6``. The larger one counts.

Other methods: from whole statistics of groups, one group after the other is left out (delete-a-group jackknife, Kott 2001).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot, log, pi
from typing import Any, Protocol

import numpy as np

from toolkit.evidence import Verdict

TOLERANCE = 0.1
"""A range that is 10 % too wide costs 0.8 decibels."""

_ENDS_ONLY = "min_max"
_DRAWS = 1000
_NORMAL = 1.959964
_GUMBEL = pi / 6**0.5 / log(2)
_MOST_UNSTEADY = 0.1
_WORST = 5
_FEWEST_GROUPS = 4


class Group(Protocol):
    """Statistics of some of the samples, see :class:`toolkit.quantization.statistics.Statistics`."""

    samples: int
    tensors: Any

    def merged(self, other: Any) -> Any:
        """Both together."""

    def range(self, name: str, method: Any, *, bits: int = 8) -> tuple[float, float]:
        """The range of one tensor."""


@dataclass(frozen=True)
class Spread:
    """How sure the range of one tensor is.

    Attributes:
        tensor: Its name.
        width: Width of the range, from all samples.
        resampled: Standard error of the width that drawing again, or leaving out, finds, as a share of the width.
        error: The same with what lies beyond the largest value; of other methods than minimum and maximum no more than that.
        growth: By how much of the width the range grew with the second half of the samples, on average over all halves.
    """

    tensor: str
    width: float
    resampled: float
    error: float
    growth: float

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval of the width with other samples, as a share of the width."""
        return max(0.0, 1 - _NORMAL * self.error)

    @property
    def high(self) -> float:
        """Its upper end."""
        return 1 + _NORMAL * self.error

    @property
    def unsteady(self) -> float:
        """What counts against the tolerance: the larger one of error and growth."""
        return max(self.error, self.growth)


@dataclass(frozen=True)
class Stability:
    """How sure the ranges of a model are.

    Attributes:
        samples: Samples that they come from.
        tensors: Tensors with a range.
        unsteady: How many of them are beyond the tolerance.
        median: Median over tensors of the larger one of error and growth.
        tolerance: Largest share of the width that a range may move.
        worst: The tensors that move most, the worst first.
        verdict: ``pass`` where at most a tenth of the tensors are beyond the tolerance, else ``inconclusive``.
        reason: The same in a sentence.
    """

    samples: int
    tensors: int
    unsteady: int
    median: float
    tolerance: float
    worst: tuple[Spread, ...]
    verdict: Verdict
    reason: str

    def facts(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "samples": self.samples,
            "tensors": self.tensors,
            "unsteady": self.unsteady,
            "median": self.median,
            "tolerance": self.tolerance,
            "worst": [{**vars(one), "low": one.low, "high": one.high} for one in self.worst],
            "verdict": self.verdict.value,
            "reason": self.reason,
        }


def of_groups(groups: Sequence[Group], method: str = _ENDS_ONLY, *, bits: int = 8, tolerance: float = TOLERANCE) -> Stability:
    """Tells from statistics of groups of samples, which together are all of them.

    Args:
        groups: Statistics of groups of about the same size, of the same model; eight or more are good.
        method: How ranges are found.
        bits: Of the integers that they are for.
        tolerance: Largest share of the width that a range may move.
    """
    names = list(groups[0].tensors)
    count = sum(group.samples for group in groups)
    if method == _ENDS_ONLY:
        ends = {name: np.array([(group.tensors[name].low, group.tensors[name].high) for group in groups], np.float64) for name in names}
        return of_ends(
            {name: pair[:, 0] for name, pair in ends.items()}, {name: pair[:, 1] for name, pair in ends.items()}, count, tolerance=tolerance
        )
    if len(groups) < _FEWEST_GROUPS:
        return _judged([], len(names), count, tolerance)
    whole, without = _merged(groups), [_merged([*groups[:left], *groups[left + 1 :]]) for left in range(len(groups))]
    halves = [_merged(groups[start::2]) for start in (0, 1)]
    spreads = [_jackknifed(name, whole, without, halves, method, bits) for name in names]
    return _judged([one for one in spreads if one], len(names), count, tolerance)


def of_ends(low: Mapping[str, np.ndarray], high: Mapping[str, np.ndarray], samples: int, *, tolerance: float = TOLERANCE, seed: int = 0) -> Stability:
    """Tells how sure minimum and maximum are.

    Args:
        low: Smallest value of each sample, or of each group of samples, ``[k]`` by tensor.
        high: Largest value, ``[k]`` by tensor.
        samples: How many samples that were.
        tolerance: Largest share of the width that a range may move.
        seed: Seed of the draws; the same ones serve all tensors.
    """
    counts = {len(ends) for ends in low.values()}
    if not counts or min(counts) < _FEWEST_GROUPS:
        return _judged([], len(low), samples, tolerance)
    drawn = {count: np.random.default_rng(seed).integers(0, count, (_DRAWS, count)) for count in counts}
    spreads = [_bootstrapped(name, low[name], high[name], drawn[len(low[name])]) for name in low]
    return _judged([one for one in spreads if one], len(low), samples, tolerance)


def _bootstrapped(name: str, low: np.ndarray, high: np.ndarray, drawn: np.ndarray) -> Spread | None:
    bottom, top = np.minimum(low, 0), np.maximum(high, 0)  # a range includes zero
    width = float(top.max() - bottom.min())
    if width <= 0:
        return None
    again = (top[drawn].max(axis=1) - bottom[drawn].min(axis=1)) / width
    resampled = float(again.std(ddof=1))
    grown = [(float(side.max()) - _largest_of_half(side)) / width for side in (top, -bottom)]
    return Spread(name, width, resampled, max(resampled, _GUMBEL * hypot(*grown)), max(0.0, sum(grown)))


def _largest_of_half(values: np.ndarray) -> float:
    """The mean, over every choice of half of the values, of the largest one of them: exact, from order statistics."""
    count, half = len(values), len(values) // 2
    # Of all halves, the share half / count holds the largest value; of the others that hold none above the one of rank r, the next share.
    ranks = np.arange(count - 1, half - 1, -1)
    shares = half / count * np.cumprod(np.concatenate([[1.0], (ranks - half + 1) / ranks]))
    return float(np.sort(values.astype(np.float64))[: half - 2 : -1] @ shares)


def _jackknifed(name: str, whole: Group, without: Sequence[Group], halves: Sequence[Group], method: str, bits: int) -> Spread | None:
    width = _width(whole, name, method, bits)
    if width <= 0:
        return None
    left = np.array([_width(one, name, method, bits) for one in without]) / width
    error = float(np.sqrt((len(left) - 1) / len(left) * ((left - left.mean()) ** 2).sum()))
    half = float(np.mean([_width(one, name, method, bits) for one in halves])) / width
    return Spread(name, width, error, error, max(0.0, 1 - half))


def _width(group: Group, name: str, method: str, bits: int) -> float:
    low, high = group.range(name, method, bits=bits)
    return float(high) - float(low)


def _merged(groups: Sequence[Group]) -> Group:
    first, *others = groups
    for other in others:
        first = first.merged(other)
    return first


def _judged(spreads: Sequence[Spread], tensors: int, samples: int, tolerance: float) -> Stability:
    worst = tuple(sorted(spreads, key=lambda one: -one.unsteady)[:_WORST])
    beyond = sum(one.unsteady > tolerance for one in spreads)
    median = float(np.median([one.unsteady for one in spreads])) if spreads else 0.0
    if not spreads:
        verdict, reason = Verdict.INCONCLUSIVE, f"{samples} samples are too few to tell how far ranges move; take more"
    elif beyond > _MOST_UNSTEADY * len(spreads):
        verdict = Verdict.INCONCLUSIVE
        reason = f"more samples would help: {beyond} of {len(spreads)} ranges move by more than {tolerance:.0%} when samples are drawn again"
    else:
        verdict = Verdict.PASS
        reason = f"{samples} samples are enough: {len(spreads) - beyond} of {len(spreads)} ranges move by at most {tolerance:.0%}"
    if worst and worst[0].unsteady > tolerance:
        reason += f"; most of all {worst[0].tensor!r}, by {worst[0].unsteady:.0%}"
    return Stability(samples, tensors, beyond, median, tolerance, worst, verdict, reason)
