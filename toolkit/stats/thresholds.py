"""What scores are worth over all thresholds, and at the one that a specificity allows: average precision and sensitivity."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from toolkit.stats.proportions import Interval, paired_difference_interval, proportion_interval
from toolkit.stats.ranking import checked, skewed_interval

_NORMAL = NormalDist()
_WINDOW = 2.5
"""Standard errors of the number of false alarms within which the slope of the ROC curve is taken."""


def average_precision_interval(score: np.ndarray, positive: np.ndarray, level: float = 0.95) -> Interval:
    """Returns the average precision with its interval.

    The sum of precisions at all thresholds, weighted by the steps in recall: Zhu, "Recall, precision and average precision",
    University of Waterloo (2004), as scikit-learn computes it. The interval is taken on the logit scale, where that of Boyd, Eng and
    Page, "Area under the precision-recall curve: point estimates and confidence intervals", ECML (2013), covered well. The standard
    error comes from how far each sample moves the value (Jaeckel, "The infinitesimal jackknife", Bell Labs, 1972), with Student's t
    for the number of positives.

    In simulations of 200 to 2,000 samples with 30 to 1,000 positives and values of 0.2 to 0.99 the nominal 95 % covered 94 to 96 %,
    where a bootstrap (BCa) covered 92 to 93 %. Where no sample moves the value, as in a perfect ranking, the free end is that of the
    Wilson interval of as many successes as there are positives.

    Args:
        score: Higher is more positive, ``[n]``.
        positive: Which samples are, ``[n] bool``.
        level: Nominal coverage.

    Returns:
        Average precision, low end, high end.

    Raises:
        ValueError: A class has no samples, or a score is not a number.
    """
    value, moves = _average_precision(score, positive)
    count = int(np.count_nonzero(positive))
    error = _moved_error(moves, count)
    if not error or not 0 < value < 1:
        reach = proportion_interval(0, count, level)[1]
        return value, max(0.0, value - reach), min(1.0, value + (reach if value < 1 else 0.0))
    from scipy.special import stdtrit

    half = float(stdtrit(count - 1, 0.5 + level / 2)) * error / (value * (1 - value))
    middle = math.log(value / (1 - value))
    return value, _logistic(middle - half), _logistic(middle + half)


def average_precision_change(candidate: np.ndarray, reference: np.ndarray, positive: np.ndarray, level: float = 0.95) -> Interval:
    """Returns candidate minus reference of two average precisions on the same samples, with its interval.

    The ends are those of :func:`~toolkit.stats.ranking.skewed_interval` for what each sample moves the one and the other. In
    simulations of 200 to 2,000 samples with 40 to 1,000 positives the nominal 95 % covered 94 to 97 %, near a value of 1, where
    hardly a sample moves, up to 100 %; where 2 or 3 of 50 positives lost their score altogether it covered 88 %.

    Args:
        candidate: Higher is more positive, ``[n]``.
        reference: Likewise.
        positive: Which samples are, ``[n] bool``.
        level: Nominal coverage.

    Returns:
        Difference, low end, high end. Where no sample moves it the ends are those of the Wilson interval of no change in as many
        trials as there are positives.

    Raises:
        ValueError: A class has no samples, or a score is not a number.
    """
    (ours, our_moves), (theirs, their_moves) = _average_precision(candidate, positive), _average_precision(reference, positive)
    count, moves = int(np.count_nonzero(positive)), our_moves - their_moves
    error, value = _moved_error(moves, count), ours - theirs
    if error:
        return skewed_interval(value, moves, error, 0.5 / count, level)
    reach = proportion_interval(0, count, level)[1]
    return value, max(-1.0, value - reach), min(1.0, value + reach)


def sensitivity_at_specificity(score: np.ndarray, positive: np.ndarray, specificity: float) -> tuple[float, float]:
    """Returns the highest sensitivity among the thresholds whose specificity is at least the given one.

    Args:
        score: Higher is more positive, ``[n]``.
        positive: Which samples are, ``[n] bool``.
        specificity: Smallest share of negatives below the threshold.

    Returns:
        Sensitivity and threshold; a score at the threshold counts as positive. Where no threshold that is specific enough finds a
        positive, it is the next number above all scores.

    Raises:
        ValueError: A class has no samples, or a score is not a number.
    """
    point = _OperatingPoint(score, positive, specificity)
    return point.hits / point.positives, point.threshold


def sensitivity_interval(score: np.ndarray, positive: np.ndarray, specificity: float, level: float = 0.95) -> Interval:
    """Returns :func:`sensitivity_at_specificity` with an interval that knows that the threshold was picked on the same samples.

    Two sources of uncertainty that are independent of each other, squared and added at each end: the positives at a given
    threshold, by Wilson's interval, and the negatives that the threshold is picked by, by the slope of the ROC curve there times
    the standard error of their share (Linnet, "Comparison of quantitative diagnostic tests: type I error, power, and sample size",
    Statistics in Medicine 6:147, 1987). In simulations of 200 to 5,000 samples with 40 to 2,500 positives the nominal 95 % covered
    94 to 96 %, up to a sensitivity of 0.99, where a bootstrap (BCa) covered 92 to 93 %.

    Args:
        score: Higher is more positive, ``[n]``.
        positive: Which samples are, ``[n] bool``.
        specificity: Smallest share of negatives below the threshold.
        level: Nominal coverage.

    Returns:
        Sensitivity, low end, high end.

    Raises:
        ValueError: A class has no samples, or a score is not a number.
    """
    point = _OperatingPoint(score, positive, specificity)
    value, ends = point.hits / point.positives, proportion_interval(point.hits, point.positives, level)
    return _widened((value, *ends), point.moves, 0.0, level)


def sensitivity_change(candidate: np.ndarray, reference: np.ndarray, positive: np.ndarray, specificity: float, level: float = 0.95) -> Interval:
    """Returns candidate minus reference of two sensitivities at the same specificity on the same samples, with its interval.

    As :func:`sensitivity_interval`, with Newcombe's interval of the positives that only one of both finds. In simulations the
    nominal 95 % covered 95 to 97 % where at least 10 positives were found by only one of both, and 98 to 100 % where fewer were.

    Args:
        candidate: Higher is more positive, ``[n]``.
        reference: Likewise.
        positive: Which samples are, ``[n] bool``.
        specificity: Smallest share of negatives below the threshold.
        level: Nominal coverage.

    Returns:
        Difference, low end, high end.

    Raises:
        ValueError: A class has no samples, or a score is not a number.
    """
    ours, theirs = (_OperatingPoint(score, positive, specificity) for score in (candidate, reference))
    both = int(np.count_nonzero(ours.found & theirs.found))
    lost, gained = theirs.hits - both, ours.hits - both
    change = paired_difference_interval(both, lost, gained, ours.positives - both - lost - gained, level)
    return _widened(change, ours.moves - theirs.moves, -1.0, level)


class _OperatingPoint:
    """The threshold that a specificity allows, and how far each negative moves the sensitivity there by moving the threshold.

    Attributes:
        threshold: The highest one of those that find the most positives.
        found: Which of the positives are at or above it, ``[positives] bool``.
        moves: How far each negative moves the sensitivity, ``[negatives]``.
    """

    def __init__(self, score: np.ndarray, positive: np.ndarray, specificity: float) -> None:
        score, positive = checked(score, positive)
        ours, others = score[positive], np.sort(score[~positive])[::-1]
        # Rounding of 1 - specificity must not cost a false alarm.
        allowed = min(math.floor((1 - specificity) * len(others) * (1 + 1e-12) + 1e-9), len(others))
        self.found = ours > others[allowed] if allowed < len(others) else np.ones(len(ours), bool)
        self.positives, self.hits = len(ours), int(np.count_nonzero(self.found))
        self.threshold = float(ours[self.found].min() if self.hits else np.nextafter(score.max(), math.inf))
        # Where not one false alarm is allowed, the highest negative sets the threshold.
        counted = others[max(allowed, 1) - 1]
        alarms = (score[~positive] >= counted).astype(np.float64)
        self.moves = -self._slope(ours, others, allowed) * (alarms - alarms.mean()) / len(others)

    def _slope(self, ours: np.ndarray, others: np.ndarray, allowed: int) -> float:
        """Returns by how much the sensitivity rises with the share of false alarms, around as many as are allowed."""
        share = allowed / len(others)
        window = max(1, round(_WINDOW * math.sqrt(allowed * (1 - share))))
        strict, loose = others[max(0, allowed - window)], others[min(len(others) - 1, allowed + window)]
        rise = np.count_nonzero(ours >= loose) - np.count_nonzero(ours > strict)
        return float(rise / len(ours) / (np.count_nonzero(others >= loose) - np.count_nonzero(others > strict)) * len(others))


def _widened(interval: Interval, moves: np.ndarray, least: float, level: float) -> Interval:
    """Returns an interval with what the choice of the threshold adds to both ends."""
    value, low, high = interval
    reach = _NORMAL.inv_cdf(0.5 + level / 2) * math.sqrt(float(moves @ moves))
    return value, max(least, value - math.hypot(value - low, reach)), min(1.0, value + math.hypot(high - value, reach))


def _average_precision(score: np.ndarray, positive: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the average precision and its derivative by the weight of each sample, ``[n]``."""
    score, positive = checked(score, positive)
    order = np.argsort(-score, kind="stable")
    ordered, ours = score[order], positive[order].astype(np.float64)
    # Samples of equal score share one threshold: its hits, and all that are at or above it.
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    group = np.repeat(np.arange(len(last)), np.diff(last, prepend=-1))
    hits, alerts, total = np.cumsum(ours)[last], last + 1.0, ours.sum()
    steps, precision = np.diff(hits, prepend=0.0), hits / alerts
    value = float(steps @ precision / total)
    # A sample counts in the precision of its own threshold and of all laxer ones: as an alert, and a positive also as a hit.
    as_hit, as_alert = (np.cumsum(part[::-1])[::-1] for part in (steps / alerts, steps * precision / alerts))
    moves = np.empty(len(order))
    moves[order] = (ours * (precision - value + as_hit)[group] - as_alert[group]) / total
    return value, moves


def _moved_error(moves: np.ndarray, count: int) -> float:
    """Returns the standard error of a sum of influences, most of whose freedom is that of ``count`` positives."""
    return math.sqrt(float(moves @ moves) * count / (count - 1)) if count > 1 else 0.0


def _logistic(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0
