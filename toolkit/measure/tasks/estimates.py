"""From what is known of each sample to a metric with its interval, and to its paired change against a reference.

A rate over independent samples has Wilson's interval and Newcombe's for its change, an area under the ROC curve DeLong's, a
calibration error one that knows its bias. Everything else is resampled: whole samples are drawn, the same ones for model and reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from toolkit.figures import Change, Metric
from toolkit.measure.tasks.interface import Measured
from toolkit.metrics import scale
from toolkit.stats.proportions import Interval, mcnemar_p, paired_difference_interval, proportion_interval
from toolkit.stats.resampling import Statistic, bca_interval

Side = TypeVar("Side")
_EXPONENT = 700.0  # beyond it, exp() leaves what a float64 can hold


def rate(name: str, right: np.ndarray, before: np.ndarray | None) -> Measured:
    """Measures the share of samples that are right.

    Args:
        name: The metric.
        right: Which samples the model got right, ``[n] bool``.
        before: Which ones the reference got right; ``None`` without one.
    """
    n, k = len(right), int(np.count_nonzero(right))
    low, high = proportion_interval(k, n)
    metric = Metric(name=name, value=k / n, low=low, high=high, n=n, method="Wilson")
    if before is None:
        return metric, None
    lost, gained = int(np.count_nonzero(before & ~right)), int(np.count_nonzero(right & ~before))
    value, low, high = paired_difference_interval(k - gained, lost, gained, n - k - lost)
    p_value = mcnemar_p(lost, gained)
    return metric, Change(metric=name, value=value, low=low, high=high, n=n, lost=lost, gained=gained, p_value=p_value, method="Newcombe")


def resampled(name: str, n: int, make: Callable[[Side], Statistic], now: Side, before: Side | None, point: float | None = None) -> Measured:
    """Measures a statistic of whole samples by the BCa bootstrap.

    Args:
        name: The metric.
        n: Number of samples.
        make: Makes the statistic, from weights ``[r x n]`` to values ``[r]``, of what is known of one model.
        now: What is known of the model.
        before: What is known of the reference; ``None`` without one.
        point: The value, where another library computes it.
    """
    kind, statistic = scale(name), make(now)
    value, low, high = _bootstrap(statistic, n, kind.low, kind.high)
    metric = Metric(name=name, value=value if point is None else point, low=low, high=high, n=n, method="BCa bootstrap")
    if before is None:
        return metric, None
    other, width = make(before), kind.high - kind.low
    level = max(abs(float(one(np.ones((1, n)))[0])) for one in (statistic, other))
    value, low, high = _bootstrap(lambda weights: statistic(weights) - other(weights), n, -width, width, level)
    return metric, Change(metric=name, value=value, low=low, high=high, n=n, method="BCa bootstrap")


def _bootstrap(statistic: Statistic, n: int, least: float, most: float, level: float = 0.0) -> Interval:
    """Returns value and ends, which never claim more than so many samples can show.

    Where every resample gives the same value, as when nothing is wrong or nothing changed, the bootstrap would be certain of it.
    The ends are then as far away as a share of samples that were never seen to differ can still move it: Wilson's bound of
    0 in n, on a metric that goes from 0 to 1. Where most resamples have no value, one sample is what is known. ``level`` is the size
    of what a difference is taken of: on a metric without an end, a single sample tells nothing of how far another one may be.
    """
    value = float(statistic(np.ones((1, n)))[0])
    try:
        _, low, high = bca_interval(statistic, n, unseen=True)
        seen = n
    except ValueError:
        low, high, seen = value, value, 1
    if low == high:
        size = max(1.0, abs(value), level if value else 0.0)
        reach = size * (2 if seen == 1 and math.isinf(most) else proportion_interval(0, seen)[1])
        low, high = value - reach, value + reach
    return value, min(value, max(least, low)), max(value, min(most, high))


def ratio(part: np.ndarray, whole: np.ndarray) -> Statistic:
    """Returns the ratio of two sums over samples, ``[n]`` each, as a statistic."""
    both = np.stack([part, whole], axis=1).astype(np.float64)

    def statistic(weights: np.ndarray) -> np.ndarray:
        sums = weights @ both
        return divide(sums[:, 0], sums[:, 1])

    return statistic


def exponential(logarithm: Statistic) -> Statistic:
    """Returns the exponential of a statistic, as far as a float64 can hold it."""
    return lambda weights: np.exp(np.minimum(logarithm(weights), _EXPONENT))


def mean_iou(counts: Any) -> Statistic:
    """Returns the mean intersection over union as a statistic.

    Everingham et al., "The PASCAL visual object classes challenge: a retrospective", Int. J. Computer Vision 111:98 (2015): counted
    over all samples together, then averaged over the classes that are labelled or picked at all.

    Args:
        counts: Positions of each sample that are right, labelled and picked as each class, ``[n x 3c]``; may be sparse.
    """

    def statistic(weights: np.ndarray) -> np.ndarray:
        right, both = _class_sums(counts, weights)
        return _class_mean(right, both - right)

    return statistic


def macro_f1(counts: Any) -> Statistic:
    """Returns the mean over classes of the harmonic mean of precision and recall as a statistic.

    As scikit-learn's ``f1_score(average="macro")``: over the classes that are labelled or picked at all.

    Args:
        counts: What of each sample is right, labelled and picked as each class, ``[n x 3c]``; may be sparse.
    """

    def statistic(weights: np.ndarray) -> np.ndarray:
        right, both = _class_sums(counts, weights)
        return _class_mean(2 * right, both)

    return statistic


def _class_sums(counts: Any, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what is right, and what is labelled plus what is picked, ``[r x c]`` both."""
    right, labelled, picked = np.split(np.asarray(weights @ counts), 3, axis=1)
    return right, labelled + picked


def _class_mean(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Returns the mean ratio of the classes that occur."""
    occurs = whole > 0
    ratios = np.divide(part, whole, out=np.zeros_like(whole), where=occurs)
    return divide(ratios.sum(axis=1), occurs.sum(axis=1))


def divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divides; not a number where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full(np.shape(whole), math.nan), where=whole > 0)
