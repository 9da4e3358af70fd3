"""How well scores rank positives above negatives: areas under the ROC curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from toolkit.stats.proportions import Interval, proportion_interval

_NORMAL = NormalDist()
_FEW = 10
"""A change that fewer samples than this make up says little of those that were not drawn."""


def delong_interval(score: np.ndarray, positive: np.ndarray, level: float = 0.95) -> Interval:
    """Returns the area under the ROC curve with its interval.

    The variance is that of DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
    characteristic curves: a nonparametric approach", Biometrics 44:837 (1988), found by sorting as in Sun and Xu, "Fast
    implementation of DeLong's algorithm", IEEE Signal Processing Letters 21:1389 (2014). The interval is taken on the logit scale,
    so that it stays inside 0..1: Qin and Hotilovac, "Comparison of non-parametric confidence intervals for the area under the ROC
    curve of a continuous-scale diagnostic test", Statistical Methods in Medical Research 17:207 (2008).

    Near 1, and with few samples of a class, that variance is itself a matter of luck: for an area of 0.99 and 30 positives the
    nominal 95 % covered 85 %. So the interval reaches at least as far as the score interval of Newcombe, "Confidence intervals for
    an effect size measure based on the Mann-Whitney statistic. Part 2", Statistics in Medicine 25:559 (2006), method 5, whose
    variance follows from the area alone. In simulations the two together covered 94 to 98 % up to an area of 0.95 with at least 50
    samples of each class, and 97 to 99 % with fewer or nearer to 1. Where no pair is ranked wrong (or none right) the
    free end is that of the Wilson interval of as many successes as the smaller class has samples.

    Args:
        score: Higher is more positive, ``[n]``.
        positive: Which samples are, ``[n] bool``.
        level: Nominal coverage.

    Returns:
        Area, low end, high end.

    Raises:
        ValueError: A class has no samples, or a score is not a number.
    """
    return _area_interval([_Ranking(score, positive)], np.asarray(positive, bool).astype(int), level)


def delong_change(candidate: np.ndarray, reference: np.ndarray, positive: np.ndarray, level: float = 0.95) -> tuple[float, float, float, float]:
    """Returns candidate minus reference of two areas under the ROC curve on the same samples, with interval and p value.

    DeLong, DeLong and Clarke-Pearson, Biometrics 44:837 (1988): variance with the covariance of both areas. The p value is theirs;
    for the ends of the interval see :func:`skewed_interval`.

    In simulations of 300 to 2,000 samples with 50 to 1,000 positives and areas of 0.8 to 0.95 the nominal 95 % covered 94 to 96 %,
    whether all scores changed a little or 5 and more positives lost theirs altogether; where 2 or 3 of 50 did, 88 %, as no sample may
    show them. Where both rank every sample alike the ends are those of the Wilson interval of no change in as many trials as the
    smaller class has samples.

    Args:
        candidate: Higher is more positive, ``[n]``.
        reference: Likewise.
        positive: Which samples are, ``[n] bool``.
        level: Nominal coverage.

    Returns:
        Difference, low end, high end, two-sided p value of no difference.

    Raises:
        ValueError: A class has no samples, or a score is not a number.
    """
    label = np.asarray(positive, bool).astype(int)
    value, low, high, error = _area_change([_Ranking(candidate, positive)], [_Ranking(reference, positive)], label, level)
    return value, low, high, math.erfc(abs(value) / error / math.sqrt(2)) if error else 1.0


def delong_macro_interval(scores: np.ndarray, label: np.ndarray, level: float = 0.95) -> Interval:
    """Returns the mean of every class's area under the ROC curve against all others, with its interval.

    As :func:`delong_interval`; the structural components of all classes are added sample by sample, so that their covariances
    count. Classes without samples are left out.

    Args:
        scores: Score of each class, ``[n x c]``.
        label: Class index of each sample, ``[n] int``.
        level: Nominal coverage.

    Returns:
        Mean area, low end, high end.

    Raises:
        ValueError: There are fewer than two classes, or a score is not a number.
    """
    return _area_interval(_one_versus_rest(scores, label), label, level)


def delong_macro_change(candidate: np.ndarray, reference: np.ndarray, label: np.ndarray, level: float = 0.95) -> Interval:
    """Returns candidate minus reference of two mean areas on the same samples, with its interval.

    As :func:`delong_change` and :func:`delong_macro_interval`. For 3 to 10 classes
    of 30 to 320 samples the nominal 95 % covered 94 to 96 %.

    Args:
        candidate: Score of each class, ``[n x c]``.
        reference: Likewise.
        label: Class index of each sample, ``[n] int``.
        level: Nominal coverage.

    Returns:
        Difference, low end, high end.

    Raises:
        ValueError: There are fewer than two classes, or a score is not a number.
    """
    return _area_change(_one_versus_rest(candidate, label), _one_versus_rest(reference, label), label, level)[:3]


class _Ranking:
    """One area under the ROC curve and how far each sample moves it.

    Attributes:
        area: Share of pairs of a positive and a negative that are ranked right, a tie as half.
        influence: Deviation of each sample's structural component over the size of its class, ``[n]``.
        sizes: Number of positives and of negatives.
    """

    def __init__(self, score: np.ndarray, positive: np.ndarray) -> None:
        score, positive = checked(score, positive)
        ours, others = np.sort(score[positive]), np.sort(score[~positive])
        self.sizes = len(ours), len(others)
        component = np.empty(len(score))
        component[positive] = _rank_within(others, score[positive])
        component[~positive] = 1 - _rank_within(ours, score[~positive])
        self.area = float(component[positive].mean())
        self.influence = (component - self.area) / np.where(positive, *self.sizes)

    @property
    def smaller(self) -> int:
        """Number of samples of the smaller class."""
        return min(self.sizes)

    def model_error(self, area: float) -> float:
        """Returns the standard error that scores with exponential distributions would have at an area (Newcombe 2006)."""
        positives, negatives = self.sizes
        excess = (sum(self.sizes) / 2 - 1) * ((1 - area) / (2 - area) + area / (1 + area))
        return math.sqrt(area * (1 - area) * (1 + excess) / (positives * negatives))


def _rank_within(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns the share of ``ordered`` below each value, ties as half."""
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2 * len(ordered))


def checked(score: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores ``[n] float64`` and which samples are positive ``[n] bool``.

    Raises:
        ValueError: A class has no samples, or a score is not a number.
    """
    score, positive = np.asarray(score, dtype=np.float64), np.asarray(positive, dtype=bool)
    if score.shape != positive.shape or score.ndim != 1:
        raise ValueError(f"expected one score for each sample, found {score.shape} scores for {positive.shape} samples")
    if np.isnan(score).any():
        raise ValueError("a score is not a number")
    if positive.all() or not positive.any():
        raise ValueError(f"cannot rank {int(positive.sum())} positives among {len(positive)} samples")
    return score, positive


def _one_versus_rest(scores: np.ndarray, label: np.ndarray) -> list[_Ranking]:
    label = np.asarray(label)
    return [_Ranking(scores[:, one], label == one) for one in np.unique(label)]


def _area_interval(rankings: Sequence[_Ranking], label: np.ndarray, level: float) -> Interval:
    area = float(np.mean([ranking.area for ranking in rankings]))
    error = _error(np.mean([ranking.influence for ranking in rankings], axis=0), label)
    if area in (0.0, 1.0) or not error:
        reach = _together([proportion_interval(0, ranking.smaller, level)[1] for ranking in rankings])
        return area, area if area == 0 else max(0.0, area - reach), area if area == 1 else min(1.0, area + reach)
    z = _NORMAL.inv_cdf(0.5 + level / 2)
    half, middle = z * error / (area * (1 - area)), math.log(area / (1 - area))
    low, high = (_score_end(rankings, area, border, z) for border in (0.0, 1.0))
    return area, min(low, 1 / (1 + math.exp(half - middle))), max(high, 1 / (1 + math.exp(-half - middle)))


def _score_end(rankings: Sequence[_Ranking], area: float, border: float, z: float) -> float:
    """Returns the area towards a border from which the measured one is ``z`` standard errors away."""
    near, far = area, border
    for _ in range(60):
        middle = (near + far) / 2
        if abs(area - middle) <= z * _together([ranking.model_error(middle) for ranking in rankings]):
            near = middle
        else:
            far = middle
    return near


def _area_change(candidate: Sequence[_Ranking], reference: Sequence[_Ranking], label: np.ndarray, level: float) -> tuple[float, float, float, float]:
    """Returns difference, low end, high end and standard error."""
    value = float(np.mean([one.area - other.area for one, other in zip(candidate, reference, strict=True)]))
    moved = np.mean([one.influence - other.influence for one, other in zip(candidate, reference, strict=True)], axis=0)
    error = _error(moved, label)
    if not error:
        reach = _together([proportion_interval(0, one.smaller, level)[1] for one in candidate])
        return value, max(-1.0, value - reach), min(1.0, value + reach), error
    return *skewed_interval(value, moved, error, _together([0.5 / one.smaller for one in candidate]), level), error


def skewed_interval(value: float, moved: np.ndarray, error: float, pseudo: float, level: float) -> Interval:
    """Returns a change between -1 and 1 with its interval, whose longer side is that of the rare, large influences.

    A model that loses few positives altogether shows, by chance, fewer of them and a smaller error at once. So the ends are those of
    DiCiccio and Efron, "More accurate confidence intervals in exponential families", Biometrika 79:231 (1992), "quadratic ABC", for
    a sum of independent influences: of 1 to 20 lost samples they say nearly what the exact Poisson interval does. Where fewer than 10
    samples make up the change (as many equal ones would have its fourth moment), half a pseudo-sample that the two models rank
    differently is added, in the manner of Agresti and Min, "Simple improved confidence intervals for comparing matched proportions",
    Statistics in Medicine 24:729 (2005): a class of 50 then shows a loss of one of its samples in 50, and not less.

    Args:
        value: The change.
        moved: How far each sample moves it, ``[n]``.
        error: Its standard error.
        pseudo: How far half a pseudo-sample moves it.
        level: Nominal coverage.

    Returns:
        Value, low end, high end.
    """
    skewness = float(np.sum(moved**3)) / (6 * error**3)
    few = error**4 < _FEW * float(np.sum(moved**4))
    spread, z = math.hypot(error, pseudo) if few else error, _NORMAL.inv_cdf(0.5 + level / 2)
    down, up = (spread * shifted / (1 - skewness * shifted) ** 2 for shifted in (skewness - z, skewness + z))
    return value, max(-1.0, value + min(down, 0.0)), min(1.0, value + max(up, 0.0))


def _together(errors: Sequence[float]) -> float:
    """Returns the error of a mean of areas: independent ones are squared and added, but two classes mirror each other."""
    return math.hypot(*errors) / len(errors) if len(errors) != 2 else sum(errors) / 2


def _error(influence: np.ndarray, label: np.ndarray) -> float:
    """Returns the standard error of a sum of independent samples' influences, whose classes are drawn with them."""
    variance = 0.0
    for one in np.unique(label):
        of_class = influence[label == one]
        count = len(of_class)
        within = float(of_class.var(ddof=1)) if count > 1 else float(np.mean(influence**2))
        variance += count * (within + float(of_class.mean()) ** 2)
    return math.sqrt(variance)
