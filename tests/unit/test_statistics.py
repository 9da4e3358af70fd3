"""Intervals and tests against scipy, statsmodels, published examples and exact enumeration; their coverage is in test_simulations."""

import math
from itertools import product

import numpy as np
import pytest

from toolkit.stats import resampling
from toolkit.stats.calibration import calibration_change, calibration_interval
from toolkit.stats.proportions import holm, independent_difference_interval, mcnemar_p, paired_difference_interval, proportion_interval
from toolkit.stats.resampling import bca_interval, block_quantile_interval
from toolkit.stats.signal import finite_db, sqnr_db


@pytest.mark.parametrize(
    ("k", "n", "level"), [(0, 1, 0.95), (1, 1, 0.95), (0, 50, 0.95), (50, 50, 0.9), (7, 10, 0.95), (54, 81, 0.99), (9876, 10000, 0.95)]
)
def test_proportion_interval_is_scipys_wilson_interval(k, n, level):
    from scipy.stats import binomtest

    reference = binomtest(k, n).proportion_ci(confidence_level=level, method="wilson")
    assert proportion_interval(k, n, level) == pytest.approx((reference.low, reference.high), abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(0, 20), (7, 10), (20, 20), (1234, 2000)])
def test_proportion_interval_is_statsmodels_wilson_interval(k, n):
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    assert proportion_interval(k, n) == pytest.approx(proportion.proportion_confint(k, n, method="wilson"), abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(1, 0), (3, 2), (-1, 4)])
def test_proportion_interval_refuses_impossible_counts(k, n):
    with pytest.raises(ValueError, match="cannot judge"):
        proportion_interval(k, n)


def test_paired_interval_gives_the_published_thallium_example():
    """Altman et al., "Statistics with Confidence" (2000), table 6.2: 14, 5, 0, 22 gives a difference of 0.122, 95 % 0.011 to 0.226."""
    value, low, high = paired_difference_interval(both=14, lost=0, gained=5, neither=22)
    assert (round(value, 3), round(low, 3), round(high, 3)) == (0.122, 0.011, 0.226)


def test_paired_interval_gives_the_published_airway_example():
    """Fagerland, Lydersen and Laake, Statistics in Medicine 33:2850 (2014), 21 children: 1, 1, 7, 12; Newcombe's interval -0.507 to -0.026."""
    value, low, high = paired_difference_interval(both=1, lost=7, gained=1, neither=12)
    assert (round(value, 3), round(low, 3), round(high, 3)) == (-0.286, -0.507, -0.026)


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


def rate(k, n):
    return (k / n, *proportion_interval(k, n))


def test_independent_difference_gives_the_published_example():
    """Newcombe, Statistics in Medicine 17:873 (1998), table II, example (a): 56/70 less 48/80, method 10: 0.0524 to 0.3339."""
    value, low, high = independent_difference_interval(rate(56, 70), rate(48, 80))
    assert (round(value, 4), round(low, 4), round(high, 4)) == (0.2, 0.0524, 0.3339)


@pytest.mark.parametrize(("k", "n", "j", "m"), [(9, 10, 3, 10), (0, 10, 0, 20), (10, 10, 0, 20), (400, 500, 1700, 2000)])
def test_independent_difference_is_statsmodels_newcombe_interval(k, n, j, m):
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    expected = proportion.confint_proportions_2indep(k, n, j, m, method="newcomb", compare="diff")
    assert independent_difference_interval(rate(k, n), rate(j, m))[1:] == pytest.approx(expected, abs=1e-9)


def test_independent_difference_of_symmetric_intervals_is_that_of_normal_errors():
    value, low, high = independent_difference_interval((5.0, 2.0, 8.0), (1.0, -3.0, 5.0))
    assert (value, low, high) == (4.0, -1.0, 9.0)
    with pytest.raises(ValueError, match="not inside"):
        independent_difference_interval((5.0, 6.0, 8.0), (1.0, 0.0, 2.0))


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (0, 5), (7, 1), (5, 5), (12, 30), (400, 301)])
def test_mcnemar_is_the_exact_test_of_statsmodels_and_scipy(lost, gained):
    from scipy.stats import binomtest

    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    found = mcnemar_p(lost, gained)
    if lost + gained:
        assert found == pytest.approx(tables.mcnemar([[50, lost], [gained, 9]], exact=True).pvalue)
        assert found == pytest.approx(binomtest(lost, lost + gained, 0.5).pvalue)
    else:
        assert found == 1.0
    assert mcnemar_p(gained, lost) == found


def test_mcnemar_gives_the_published_airway_example():
    """Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91 (2013): 1 against 7 discordant children, exact p = 0.0703."""
    assert round(mcnemar_p(7, 1), 4) == 0.0703
    with pytest.raises(ValueError, match="cannot judge"):
        mcnemar_p(-1, 2)


@pytest.mark.parametrize("p_values", [[], [0.04], [0.01, 0.04, 0.03, 0.005], [0.5, 0.5, 0.9, 1.0], [0.02, 0.02, 1e-9]])
def test_holm_is_that_of_statsmodels(p_values):
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    expected = multitest.multipletests(p_values, method="holm")[1] if p_values else []
    assert holm(p_values) == pytest.approx(list(expected))


def order_statistic_interval(samples, q, level=0.95):
    """Of independent measurements: the number of them below the true quantile is binomial (Conover, 3rd ed., section 3.2)."""
    from scipy.stats import binom

    ordered = np.sort(samples)
    chance = binom.cdf(np.arange(len(ordered) + 1), len(ordered), q)
    low, high = np.searchsorted(chance, (1 - level) / 2), np.searchsorted(chance, (1 + level) / 2) + 1
    return np.quantile(ordered, q), ordered[max(low, 1) - 1], ordered[min(high, len(ordered)) - 1]


def test_block_quantile_of_rounds_that_are_alike_is_that_of_single_measurements():
    """Each round is the same: they tell no less than independent measurements do, and never more."""
    rounds = [list(range(1, 101))] * 36
    assert block_quantile_interval(rounds, 0.9) == order_statistic_interval(np.concatenate(rounds), 0.9)


@pytest.mark.parametrize(("count", "waves"), [(36, 4), (20, 3), (6, 2)])
def test_block_quantile_counts_rounds_where_a_round_is_one_value(count, waves):
    """The long-run variance by scipy's cosine transform; from it the ranks of Korn and Graubard, which 200 copies make exact."""
    from scipy.fft import dct
    from scipy.stats import beta, norm
    from scipy.stats import t as student

    values = np.random.default_rng(8).permutation(count).astype(float)
    value, low, high = block_quantile_interval([[one] * 200 for one in values], 0.5)
    below = (values <= value).astype(float)
    variance = np.mean(dct(below - below.mean(), norm="ortho")[1 : waves + 1] ** 2) / count
    worth = 0.25 / variance * (norm.ppf(0.975) / student.ppf(0.975, waves)) ** 2
    assert value == (count - 1) / 2
    assert low == math.floor(beta.ppf(0.025, worth / 2, worth / 2 + 1) * count)
    assert high == math.floor(beta.ppf(0.975, worth / 2 + 1, worth / 2) * count)


def test_block_quantile_is_wider_where_neighbouring_rounds_are_alike():
    generator = np.random.default_rng(4)
    pace = np.sort(generator.normal(size=36))
    rounds = pace[:, None] + 0.1 * generator.normal(size=(36, 12))
    shuffled = rounds[generator.permutation(36)]
    widths = [high - low for _, low, high in (block_quantile_interval(list(one), 0.5) for one in (rounds, shuffled))]
    assert widths[0] > 1.3 * widths[1]


def test_block_quantile_of_few_measurements_ends_at_the_extremes():
    assert block_quantile_interval([[3.0, 1.0, 2.0]], 0.5) == (2.0, 1.0, 3.0)
    assert block_quantile_interval([[1.0], [2.0]], 0.9) == (pytest.approx(1.9), 1.0, 2.0)
    assert block_quantile_interval([[5.0]] * 4, 0.99) == (5.0, 5.0, 5.0)
    many = np.arange(36 * 12.0).reshape(36, 12)
    assert block_quantile_interval(list(many[:, :4]), 0.99)[2] == many[:, :4].max()
    for rounds in ([], [[1.0], []]):
        with pytest.raises(ValueError, match="no measurements"):
            block_quantile_interval(rounds, 0.5)


# Efron and Tibshirani 1993, table 14.1, spatial test data, column A.
SPATIAL = np.array([48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41], float)


def mean_of(values):
    return lambda weights: weights @ values / weights.sum(axis=1)


def variance_of(values):
    return lambda weights: mean_of(values**2)(weights) - mean_of(values)(weights) ** 2


def test_bca_gives_the_published_spatial_example():
    """Efron and Tibshirani, section 14.3: variance 171.5, acceleration 0.061; 90 % from 115.8 to 259.6 with their 2,000 resamples."""
    value, low, high = bca_interval(variance_of(SPATIAL), 26, level=0.9, resamples=20000)
    assert value == pytest.approx(171.5, abs=0.05)
    assert low == pytest.approx(115.8, abs=2) and high == pytest.approx(259.6, abs=5)
    left_out = np.concatenate([variance_of(SPATIAL)(rows) for rows in resampling._leaving_out(np.random.default_rng(0), 26)])
    influence = left_out.mean() - left_out
    assert np.sum(influence**3) / (6 * np.sum(influence**2) ** 1.5) == pytest.approx(0.061, abs=5e-4)


@pytest.mark.parametrize("statistic", [mean_of, variance_of])
def test_bca_agrees_with_scipys_within_monte_carlo_error(statistic):
    from scipy.stats import bootstrap

    values = np.random.default_rng(21).exponential(size=60)
    ends = np.array([bca_interval(statistic(values), 60, resamples=9999, seed=seed) for seed in range(3)])
    reference = [
        bootstrap((values,), np.mean if statistic is mean_of else np.var, n_resamples=9999, method="BCa", rng=np.random.default_rng(seed))
        for seed in range(3)
    ]
    expected = np.array([[one.confidence_interval.low, one.confidence_interval.high] for one in reference])
    width = np.ptp(expected.mean(axis=0))
    assert np.abs(ends[:, 1:].mean(axis=0) - expected.mean(axis=0)).max() < 0.025 * width


def test_bca_of_large_samples_leaves_out_groups_and_agrees_with_normal_errors():
    values = np.random.default_rng(22).exponential(size=30000)
    value, low, high = bca_interval(mean_of(values), 30000, resamples=1000)
    reach = 1.96 * values.std() / math.sqrt(30000)
    assert (low, high) == pytest.approx((value - reach, value + reach), abs=0.15 * reach)


def test_bca_groups_estimate_the_acceleration_of_single_samples(monkeypatch):
    values = np.random.default_rng(23).exponential(size=900)
    accelerations = []
    for groups in (900, 300):
        monkeypatch.setattr(resampling, "JACKKNIFE_GROUPS", groups)
        left_out = np.concatenate([mean_of(values)(rows) for rows in resampling._leaving_out(np.random.default_rng(0), 900)])
        influence = left_out.mean() - left_out
        accelerations.append(np.sum(influence**3) / (6 * np.sum(influence**2) ** 1.5))
    skewness = np.mean((values - values.mean()) ** 3) / values.std() ** 3
    assert accelerations[0] == pytest.approx(skewness / 6 / math.sqrt(900), rel=1e-6)
    assert accelerations[1] == pytest.approx(accelerations[0], abs=0.004)


def test_bca_draws_in_blocks_that_stay_small(monkeypatch):
    monkeypatch.setattr(resampling, "BLOCK_ENTRIES", 100)
    rows = list(resampling._draws(np.random.default_rng(0), 40, 7))
    assert [one.shape for one in rows] == [(2, 40), (2, 40), (2, 40), (1, 40)]
    assert all((one.sum(axis=1) == 40).all() and one.dtype == np.float64 for one in rows)
    left_out = np.concatenate(list(resampling._leaving_out(np.random.default_rng(0), 40)))
    assert (left_out.sum(axis=1) == 39).all() and (left_out.sum(axis=0) == 39).all()


def test_bca_repeats_itself_and_contains_its_value():
    values = np.random.default_rng(24).normal(size=30)
    statistic = mean_of(values)
    assert bca_interval(statistic, 30, seed=3) == bca_interval(statistic, 30, seed=3) != bca_interval(statistic, 30, seed=4)
    largest = bca_interval(lambda weights: np.max(np.where(weights > 0, values, -np.inf), axis=1), 30)
    assert largest[0] == largest[2] == values.max() > largest[1]


def test_bca_of_a_statistic_that_did_not_vary_is_the_value():
    assert bca_interval(mean_of(np.zeros(50)), 50) == (0.0, 0.0, 0.0)


def test_bca_leaves_out_undefined_resamples_unless_most_are():
    """A class of 3 in 30 samples is missing in 4 % of the resamples; a class of 1 in 37 %; a statistic of nothing is undefined."""
    values, member = np.random.default_rng(25).normal(size=30), np.arange(30) < 3

    def share(weights):
        total = weights @ member
        return np.divide(weights @ (values * member), total, out=np.full(len(weights), np.nan), where=total > 0)

    value, low, high = bca_interval(share, 30)
    assert low < value < high
    for statistic in (lambda weights: np.full(len(weights), np.nan), lambda weights: np.where((weights == 1).all(axis=1), 1.0, np.nan)):
        with pytest.raises(ValueError, match="defined for 0 of 2000"):
            bca_interval(statistic, 30)
    with pytest.raises(ValueError, match="no samples"):
        bca_interval(share, 0)


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


def test_a_bin_of_the_calibration_error_holds_its_upper_end():
    found = calibration_interval(np.array([0.2, 0.25, 0.6, 0.59]), np.array([True, True, False, True]))
    assert found[0] == pytest.approx((0.8 + 0.75 + abs(0 - 0.6 + 1 - 0.59)) / 4)  # 9/15 shares the bin of 0.59, 3/15 not that of 0.25


def test_the_interval_of_a_clear_calibration_error_is_that_of_a_mean():
    """All confidences are in one bin, far from the frequency: what is left is the mean of right minus confidence."""
    generator = np.random.default_rng(3)
    confidence, right = np.full(400, 0.9), generator.random(400) < 0.5
    gap = confidence.mean() - right.mean()
    half = 1.959964 * math.sqrt(right.var() / 400)
    assert calibration_interval(confidence, right) == pytest.approx((gap, gap - half, gap + half), abs=1e-6)
    lower = np.full(400, 0.8)  # what both share drops out, bar a constant
    value, low, high = calibration_change((confidence, right), (lower, right))
    assert value == pytest.approx(0.1) and high - low < 0.03


def test_a_calibration_error_without_any_wrong_sample_is_not_certain():
    reach = proportion_interval(0, 20)[1]
    assert calibration_interval(np.ones(20), np.ones(20, bool)) == pytest.approx((0, 0, reach))


def test_calibration_refuses_what_it_cannot_judge():
    with pytest.raises(ValueError, match="no samples"):
        calibration_interval(np.array([]), np.array([], bool))
    with pytest.raises(ValueError, match="cannot pair 2 samples with 3"):
        calibration_change((np.full(2, 0.5), np.ones(2, bool)), (np.full(3, 0.5), np.ones(3, bool)))
