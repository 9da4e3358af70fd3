"""Intervals against scipy, published examples and exact coverage by enumeration."""

import math
from itertools import product

import numpy as np
import pytest

from toolkit.measure.statistics import (
    finite_db,
    median_ratio_interval,
    paired_difference_interval,
    proportion_interval,
    quantile_interval,
    sqnr_db,
)


@pytest.mark.parametrize(
    ("k", "n", "level"), [(0, 1, 0.95), (1, 1, 0.95), (0, 50, 0.95), (50, 50, 0.9), (7, 10, 0.95), (54, 81, 0.99), (9876, 10000, 0.95)]
)
def test_proportion_interval_is_scipys_wilson_interval(k, n, level):
    from scipy.stats import binomtest

    reference = binomtest(k, n).proportion_ci(confidence_level=level, method="wilson")
    assert proportion_interval(k, n, level) == pytest.approx((reference.low, reference.high), abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(1, 0), (3, 2), (-1, 4)])
def test_proportion_interval_refuses_impossible_counts(k, n):
    with pytest.raises(ValueError, match="cannot judge"):
        proportion_interval(k, n)


def test_paired_interval_gives_the_published_thallium_example():
    """Altman et al., "Statistics with Confidence" (2000), table 6.2: 14, 5, 0, 22 gives a difference of 0.122, 95 % 0.011 to 0.226."""
    value, low, high = paired_difference_interval(both=14, lost=0, gained=5, neither=22)
    assert (round(value, 3), round(low, 3), round(high, 3)) == (0.122, 0.011, 0.226)


def test_paired_interval_mirrors_when_the_models_change_places():
    value, low, high = paired_difference_interval(80, 9, 4, 7)
    assert paired_difference_interval(80, 4, 9, 7) == pytest.approx((-value, -high, -low))


def test_paired_interval_of_identical_models_encloses_zero_and_shrinks_with_samples():
    widths = []
    for n in (100, 10000):
        value, low, high = paired_difference_interval(9 * n // 10, 0, 0, n // 10)
        assert value == 0 and low < 0 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 8


def test_paired_interval_with_an_undefined_correlation_is_that_of_independent_samples():
    """With an empty margin phi is 0, which leaves the sum of squares of the two Wilson intervals (statsmodels' "newcomb")."""
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    reference = proportion.confint_proportions_2indep(20, 20, 15, 20, method="newcomb", compare="diff")
    assert paired_difference_interval(both=15, lost=0, gained=5, neither=0)[1:] == pytest.approx(reference, abs=1e-9)


@pytest.mark.parametrize("shares", [(0.85, 0.05, 0.02, 0.08), (0.6, 0.1, 0.1, 0.2), (0.3, 0.3, 0.1, 0.3), (0.9, 0.04, 0.04, 0.02)])
def test_paired_interval_covers_the_true_difference_in_exact_enumeration(shares):
    n = 40
    logs = [math.log(share) for share in shares]
    truth, covered = shares[2] - shares[1], 0.0
    for both, lost, gained in product(range(n + 1), repeat=3):
        neither = n - both - lost - gained
        if neither < 0:
            continue
        counts = (both, lost, gained, neither)
        chance = math.lgamma(n + 1) + sum(count * log - math.lgamma(count + 1) for count, log in zip(counts, logs, strict=True))
        if chance < -25:  # together less than 1e-6
            continue
        _, low, high = paired_difference_interval(*counts)
        covered += math.exp(chance) * (low <= truth <= high)
    assert 0.93 <= covered <= 0.995  # the paper finds the method a little conservative


@pytest.mark.parametrize(("q", "n"), [(0.5, 200), (0.9, 200), (0.5, 31)])
def test_quantile_interval_covers_the_true_quantile(q, n):
    from scipy.stats import expon

    samples = np.random.default_rng(5).exponential(size=(2000, n))
    intervals = [quantile_interval(row, q)[1:] for row in samples]
    covered = np.mean([low <= expon.ppf(q) <= high for low, high in intervals])
    assert 0.935 <= covered <= 0.985


def test_quantile_interval_of_the_median_takes_the_ranks_that_enumeration_gives():
    """Between the 40th and the 61st of 100 samples the median lies with 96.5 %; one rank less on either side and it is below 95 %."""

    def chance(low, high):
        return sum(math.comb(100, below) for below in range(low, high)) / 2**100

    assert chance(40, 61) >= 0.95 > chance(41, 60)
    assert quantile_interval(np.arange(1, 101), 0.5) == (50.5, 40.0, 61.0)


def test_quantile_interval_of_few_samples_ends_at_the_extremes():
    assert quantile_interval([3.0, 1.0, 2.0], 0.5)[1:] == (1.0, 3.0)
    assert quantile_interval([4.0], 0.5) == (4.0, 4.0, 4.0)
    with pytest.raises(ValueError, match="no samples"):
        quantile_interval([], 0.5)


def timed_rounds(generator, ratio, drift):
    """Times of two models in turns, on a machine whose pace differs from round to round: ``[36 x 12]`` each."""
    pace = np.exp(generator.normal(0, drift, (36, 1)))
    noise = np.exp(generator.normal(0, 0.1, (2, 36, 12)))
    return ratio * pace * noise[0], pace * noise[1]


@pytest.mark.parametrize(("drift", "least", "most"), [(0.0, 0.91, 0.99), (0.05, 0.91, 0.99), (0.2, 0.93, 1.0)])
def test_ratio_interval_covers_the_true_ratio_and_is_as_wide_as_its_spread(drift, least, most):
    generator = np.random.default_rng(11)
    found = np.array([median_ratio_interval(*timed_rounds(generator, 0.4, drift)) for _ in range(150)])
    value, low, high = found.T
    assert least <= np.mean((low <= 0.4) & (high >= 0.4)) <= most
    assert 0.8 < np.median(high - low) / (2 * 1.96 * value.std()) < 1.3


def test_ratio_interval_is_narrow_because_rounds_are_paired():
    """The same times with one side's rounds in another order: the pace no longer cancels."""
    ours, reference = timed_rounds(np.random.default_rng(3), 0.4, 0.2)
    widths = [high - low for _, low, high in (median_ratio_interval(ours, other) for other in (reference, reference[::-1]))]
    assert widths[0] < widths[1] / 2


def test_ratio_interval_is_that_of_a_plain_loop_over_resamples():
    """The same draws, each resample put together and its medians taken one by one; rounds of unequal length."""
    generator = np.random.default_rng(2)
    ours, reference = ([generator.exponential(size=size) for size in generator.integers(1, 6, 7)] for _ in range(2))
    drawn = np.random.default_rng(0).multinomial(7, np.full(7, 1 / 7), size=1000)
    ratios = []
    for counts in drawn:
        rows = np.repeat(np.arange(7), counts)
        ratios.append(np.median(np.concatenate([ours[row] for row in rows])) / np.median(np.concatenate([reference[row] for row in rows])))
    expected = np.median(np.concatenate(ours)) / np.median(np.concatenate(reference)), *np.quantile(ratios, [0.025, 0.975])
    assert median_ratio_interval(ours, reference) == pytest.approx(expected, rel=1e-12)


def test_ratio_interval_repeats_itself_and_needs_rounds_to_compare():
    ours, reference = timed_rounds(np.random.default_rng(1), 2.0, 0.1)
    assert median_ratio_interval(ours, reference) == median_ratio_interval(ours, reference)
    assert median_ratio_interval(ours, ours) == (1.0, 1.0, 1.0)
    assert median_ratio_interval([[1, 2, 6]], [[4]]) == (0.5, None, None)
    for one, other in (([[1.0]], [[1.0], [2.0]]), ([[1.0], []], [[1.0], [2.0]])):
        with pytest.raises(ValueError, match="cannot pair"):
            median_ratio_interval(one, other)


def test_sqnr_of_a_known_noise():
    """Noise of a tenth of the signal's amplitude is 20 dB below it."""
    signal = np.array([1.0, -2.0, 3.0])
    assert sqnr_db(signal, signal * 1.1) == pytest.approx(20.0)
    assert sqnr_db(signal, signal) == math.inf
    assert sqnr_db(np.zeros(3), signal) == -math.inf


def test_sqnr_of_small_integers_does_not_overflow():
    assert sqnr_db(np.array([-128, 127], np.int8), np.array([127, -128], np.int8)) == pytest.approx(10 * math.log10((128**2 + 127**2) / (2 * 255**2)))


def test_finite_db_fits_into_json():
    assert (finite_db(math.inf), finite_db(-math.inf), finite_db(31.5)) == (200.0, -200.0, 31.5)
