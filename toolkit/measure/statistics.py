"""Intervals and distances, as pure functions. Every figure that Edgekit reports gets its uncertainty here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

SQNR_LIMIT_DB = 200.0
RESAMPLES = 1000


def proportion_interval(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
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


def paired_difference_interval(both: int, lost: int, gained: int, neither: int, level: float = 0.95) -> tuple[float, float, float]:
    """Returns candidate minus reference of two success rates on the same samples, with its interval.

    Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data",
    Statistics in Medicine 17:2635 (1998), method 10: the Wilson intervals of both rates, squared and added, with their
    correlation phi taken into account.

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


def _square_and_add(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))


def _phi(both: int, lost: int, gained: int, neither: int) -> float:
    """Correlation of the two outcomes; a positive one is corrected for continuity as the paper says, an undefined one is 0."""
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    if margins == 0:
        return 0.0
    cross = float(both * neither - lost * gained)
    if cross > 0:
        cross = max(cross - (both + lost + gained + neither) / 2, 0.0)
    return cross / math.sqrt(margins)


def quantile_interval(samples: Sequence[float] | np.ndarray, q: float, level: float = 0.95) -> tuple[float, float, float]:
    """Returns a quantile with an interval that assumes nothing about the distribution.

    The number of samples below the true quantile is binomial, so two order statistics enclose it: Conover, "Practical
    Nonparametric Statistics", 3rd ed., section 3.2. With too few samples for the level the interval ends at the
    smallest or largest sample and covers less.

    Args:
        samples: Independent measurements ``[n]``.
        q: Which quantile, 0..1.
        level: Nominal coverage.

    Returns:
        Value, low end, high end.

    Raises:
        ValueError: There are no samples.
    """
    from scipy.special import bdtr  # a tenth of the import time of scipy.stats

    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    n = len(ordered)
    if n == 0:
        raise ValueError("cannot take a quantile of no samples")
    chance = bdtr(np.arange(n + 1), n, q)  # that at most k samples lie below the true quantile
    low_rank = int(np.searchsorted(chance, (1 - level) / 2))
    high_rank = int(np.searchsorted(chance, (1 + level) / 2)) + 1
    low, high = ordered[max(low_rank, 1) - 1], ordered[min(high_rank, n) - 1]
    return float(np.quantile(ordered, q)), float(low), float(high)


def median_ratio_interval(
    rounds: Sequence[Sequence[float]], reference: Sequence[Sequence[float]], level: float = 0.95, seed: int = 0
) -> tuple[float, float | None, float | None]:
    """Returns the ratio of two medians, with its interval, of measurements that were taken in turns.

    A paired block bootstrap with percentile interval: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapters
    8 and 13. Whole rounds are drawn with replacement, the same ones for both sides, so that what moved both in a round (a slower
    clock, a neighbour) moves the ratio as little in the resamples as it did in the measurement.

    Args:
        rounds: Measurements of each round.
        reference: Those of the other side in the same rounds.
        level: Nominal coverage.
        seed: Seed of the draws: equal measurements have equal intervals.

    Returns:
        Value, low end, high end. A single round tells nothing about the spread of rounds; both ends are ``None``.

    Raises:
        ValueError: The sides have not the same rounds, or a round is empty.
    """
    count = len(rounds)
    if count != len(reference) or not all(map(len, (*rounds, *reference))):
        raise ValueError("cannot pair the rounds")
    value = float(np.median(np.concatenate(rounds)) / np.median(np.concatenate(reference)))
    if count < 2:
        return value, None, None
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    ratios = _resampled_medians(rounds, drawn) / _resampled_medians(reference, drawn)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return value, float(low), float(high)


def _resampled_medians(rounds: Sequence[Sequence[float]], drawn: np.ndarray) -> np.ndarray:
    """Returns the median of each resample; ``drawn`` ``[resamples x rounds]`` says how often each round is in it."""
    samples = np.concatenate(rounds)
    order = np.argsort(samples, kind="stable")
    owner = np.repeat(np.arange(len(rounds)), [len(one) for one in rounds])[order]
    # How many samples of a resample are not above each one: where that passes the middle, there is the median.
    ranks = np.cumsum(drawn[:, owner], axis=1)
    total = ranks[:, -1:]
    lower, upper = (samples[order[np.argmax(ranks > middle, axis=1)]] for middle in ((total - 1) // 2, total // 2))
    return (lower + upper) / 2


def sqnr_db(expected: np.ndarray, found: np.ndarray) -> float:
    """Returns the signal-to-quantization-noise ratio in dB: power of ``expected`` over power of the difference.

    Infinite when the two are equal, minus infinity when ``expected`` is all zeros and ``found`` is not.
    """
    signal = np.asarray(expected, dtype=np.float64)
    noise = np.asarray(found, dtype=np.float64) - signal
    return power_ratio_db(float(np.vdot(signal, signal)), float(np.vdot(noise, noise)))


def power_ratio_db(signal: float, noise: float) -> float:
    """Returns a ratio of two powers in dB, with the limits for zero on either side."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def finite_db(value_db: float) -> float:
    """Limits a ratio to what JSON can carry: 200 dB says bit-identical."""
    return max(-SQNR_LIMIT_DB, min(SQNR_LIMIT_DB, value_db))
