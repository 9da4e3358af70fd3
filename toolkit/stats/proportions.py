"""Proportions and their differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

Interval = tuple[float, float, float]
"""Value, low end, high end."""


def proportion_interval(k: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Returns the score interval of a proportion.

    Wilson, "Probable inference, the law of succession, and statistical inference", J. Am. Stat. Assoc. 22:209 (1927).
    Unlike the textbook interval it stays inside 0..1 and has a width at ``k = 0`` and ``k = n``.

    Args:
        k: Successes.
        n: Trials.
        level: Nominal coverage.

    Raises:
        ValueError: There are no trials, or more successes than trials.
    """
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"cannot judge {k} successes of {n} trials")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    center = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    # At the borders the formula gives exactly 0 and 1; rounding must not say otherwise.
    return (0.0 if k == 0 else center - half), (1.0 if k == n else center + half)


def paired_difference_interval(both: float, lost: float, gained: float, neither: float, level: float = 0.95) -> tuple[float, float, float]:
    """Returns candidate minus reference of two success rates on the same samples, with its interval.

    Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data",
    Statistics in Medicine 17:2635 (1998), method 10: the Wilson intervals of both rates, squared and added, with their
    correlation phi taken into account. Counts need not be whole, for forecasts.

    Args:
        both: Samples that both got right.
        lost: Samples that only the reference got right.
        gained: Samples that only the candidate got right.
        neither: Samples that both got wrong.
        level: Nominal coverage.

    Returns:
        Value, low end, high end.

    Raises:
        ValueError: There are no samples, or a count is negative.
    """
    n = both + lost + gained + neither
    if n == 0 or min(both, lost, gained, neither) < 0:
        raise ValueError(f"cannot judge the counts {both}, {lost}, {gained}, {neither}")
    candidate, reference = (both + gained) / n, (both + lost) / n
    candidate_low, candidate_high = proportion_interval(both + gained, n, level)
    reference_low, reference_high = proportion_interval(both + lost, n, level)
    phi = _phi(both, lost, gained, neither)
    value = (gained - lost) / n
    down = _square_and_add(candidate - candidate_low, reference_high - reference, phi)
    up = _square_and_add(candidate_high - candidate, reference - reference_low, phi)
    return value, value - down, value + up


def independent_difference_interval(one: Interval, other: Interval) -> Interval:
    """Returns one minus other of two figures that were measured on different samples, with its interval.

    The distances of both values to the ends of their own intervals, squared and added: Newcombe, "Interval estimation for the
    difference between independent proportions: comparison of eleven methods", Statistics in Medicine 17:873 (1998), method 10, for
    Wilson intervals of rates; Zou and Donner, "Construction of confidence limits about effect measures: a general approach",
    Statistics in Medicine 27:1693 (2008), for any others. The result has the level that both intervals have.

    Args:
        one: Value, low end, high end.
        other: Value, low end, high end of what is subtracted.

    Returns:
        Value, low end, high end of the difference.

    Raises:
        ValueError: A value is not inside its interval.
    """
    for value, low, high in (one, other):
        if not low <= value <= high:
            raise ValueError(f"{value} is not inside its interval, {low} to {high}")
    difference = one[0] - other[0]
    down = _square_and_add(one[0] - one[1], other[2] - other[0], 0.0)
    up = _square_and_add(one[2] - one[0], other[0] - other[1], 0.0)
    return difference, difference - down, difference + up


def mcnemar_p(lost: int, gained: int) -> float:
    """Returns the two-sided p value of no change between two models on the same samples.

    The exact test of McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12:153 (1947): if nothing changed, a discordant sample is lost or gained with even chance.

    Args:
        lost: Samples that only the reference got right.
        gained: Samples that only the candidate got right.

    Returns:
        The p value; 1 without discordant samples.

    Raises:
        ValueError: A count is negative.
    """
    from scipy.special import bdtr  # a tenth of the import time of scipy.stats

    if min(lost, gained) < 0:
        raise ValueError(f"cannot judge the counts {lost}, {gained}")
    return min(1.0, 2 * float(bdtr(min(lost, gained), lost + gained, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p values for their number, so that a limit on the adjusted ones bounds the chance of any false alarm among them.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6:65 (1979). Nothing is
    assumed about how the tests depend on each other.

    Args:
        p_values: One for each test.

    Returns:
        The adjusted p values in the same order.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _square_and_add(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))


def _phi(both: float, lost: float, gained: float, neither: float) -> float:
    """Correlation of the two outcomes; a positive one is corrected for continuity as the paper says, an undefined one is 0."""
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    if margins == 0:
        return 0.0
    cross = float(both * neither - lost * gained)
    if cross > 0:
        cross = max(cross - (both + lost + gained + neither) / 2, 0.0)
    return cross / math.sqrt(margins)
