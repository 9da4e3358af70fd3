"""Ratios from replicates, against a linear model of statsmodels and against known truth."""

import math

import numpy as np
import pytest

from toolkit.stats.paired_rounds import replicated_ratio_interval
from toolkit.stats.proportions import proportion_interval


@pytest.mark.parametrize(("contenders", "replicates"), [(2, 2), (2, 6), (3, 4), (5, 6)])
def test_the_interval_is_that_of_a_linear_model_with_contenders_and_replicates(contenders, replicates):
    """Ordinary least squares on the logarithms, dummy coded, baseline and first replicate left out."""
    api = pytest.importorskip("statsmodels.api")
    times = np.random.default_rng(contenders).lognormal(1.0, 0.1, size=(contenders, replicates))
    candidate, baseline, *others = times
    dummies = []
    for row in range(contenders):
        for column in range(replicates):
            dummies.append([1.0, *(row == one for one in range(contenders) if one != 1), *(column == one for one in range(1, replicates))])
    fitted = api.OLS(np.log(times).ravel(), np.array(dummies, dtype=float)).fit()
    expected = np.exp([fitted.params[1], *fitted.conf_int(0.1)[1]])
    np.testing.assert_allclose(replicated_ratio_interval(candidate, baseline, others, level=0.9), expected, rtol=1e-9)


def test_a_slower_replicate_moves_everybody_and_not_the_ratio():
    assert replicated_ratio_interval([2.0, 4.0, 20.0], [1.0, 2.0, 10.0]) == pytest.approx((2.0, 2.0, 2.0))


def test_the_value_is_the_ratio_of_geometric_means():
    value, low, high = replicated_ratio_interval([1.1, 1.2, 0.9], [1.0, 1.1, 0.95])
    assert value == pytest.approx((1.1 * 1.2 * 0.9 / (1.0 * 1.1 * 0.95)) ** (1 / 3))
    assert low * high == pytest.approx(value * value)


def test_a_single_replicate_has_no_interval():
    assert replicated_ratio_interval([3.0], [2.0]) == (pytest.approx(1.5), None, None)


@pytest.mark.parametrize(
    ("candidate", "baseline", "others"), [([], [], ()), ([1.0], [1.0, 2.0], ()), ([1.0], [1.0], ([1.0, 1.0],)), ([0.0], [1.0], ())]
)
def test_what_cannot_be_paired_is_refused(candidate, baseline, others):
    with pytest.raises(ValueError, match="pair"):
        replicated_ratio_interval(candidate, baseline, others)


@pytest.mark.parametrize("heavy", [False, True])
def test_the_interval_covers_the_truth_and_equal_files_are_rarely_called_slower(heavy):
    """1,000 simulated measurements: loads differ by 1 %, or now and then by 5 %; replicates as a whole by 30 %."""
    generator = np.random.default_rng(11)
    trials, covered, false_alarms = 1000, 0, 0
    for _ in range(trials):
        loads = generator.normal(0, 0.01, size=(3, 6)) if not heavy else 0.05 * (generator.random((3, 6)) < 0.15) + generator.normal(0, 0.001, (3, 6))
        logs = loads + generator.normal(0, 0.3, size=(1, 6))
        candidate, baseline, twin = np.exp(logs)
        _, low, high = replicated_ratio_interval(candidate * 1.1, baseline, [twin])
        covered += low <= 1.1 <= high
        false_alarms += replicated_ratio_interval(candidate, baseline, [twin])[1] > 1.0
    coverage = proportion_interval(covered, trials)
    assert coverage[0] <= 0.97 and coverage[1] >= 0.93, f"covers {covered} of {trials}"
    assert proportion_interval(false_alarms, trials)[1] < 0.05, f"{false_alarms} false alarms in {trials}"


def test_a_tenth_more_work_is_found_where_loads_differ_by_one_percent():
    generator = np.random.default_rng(12)
    trials, found = 400, 0
    for _ in range(trials):
        candidate, baseline, twin = np.exp(generator.normal([[math.log(1.1)], [0], [0]], 0.01, size=(3, 6)))
        _, low, _ = replicated_ratio_interval(candidate, baseline, [twin])
        _, least, most = replicated_ratio_interval(twin, baseline, [candidate])
        found += low / (1 + max(1 - least, most - 1)) > 1.03
    assert proportion_interval(found, trials)[0] > 0.9, f"found {found} of {trials}"
