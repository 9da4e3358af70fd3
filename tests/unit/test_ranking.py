"""Areas under the ROC curve and points on it, against scikit-learn, brute force and published examples."""

import math

import numpy as np
import pytest

from toolkit.stats import ranking, thresholds
from toolkit.stats.proportions import paired_difference_interval, proportion_interval
from toolkit.stats.ranking import (
    delong_change,
    delong_interval,
    delong_macro_change,
    delong_macro_interval,
    skewed_interval,
)
from toolkit.stats.thresholds import (
    average_precision_change,
    average_precision_interval,
    sensitivity_at_specificity,
    sensitivity_change,
    sensitivity_interval,
)

# DeLong, DeLong and Clarke-Pearson 1988, ovarian cancer, the 43 patients with all three tests: albumin, total protein, K-G score (to be
# subtracted from 10) and whether surgery helped. As printed in SAS/STAT User's Guide, PROC LOGISTIC, "Comparing ROC Curves".
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1
3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0
4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1
3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""


def ovarian():
    albumin, protein, score, helped = np.array(OVARIAN.split(), float).reshape(-1, 4).T
    return albumin, protein, 10 - score, helped == 1


def standard_error(score, positive):
    return ranking._error(ranking._Ranking(score, positive).influence, positive.astype(int))


def rated(generator, n, tied=False, shift=1.0):
    positive = generator.permutation(np.arange(n) < max(2, n // 3))
    score = generator.normal(size=n) + shift * positive
    return (np.round(score) if tied else score), positive


def brute_covariance(scores, positive):
    """The 1988 paper's formulas, pair by pair: the areas and the covariance matrix of the scores' areas."""
    above = np.stack([np.sign(score[positive][:, None] - score[~positive][None, :]) / 2 + 0.5 for score in scores])
    areas, m, n = above.mean(axis=(1, 2)), positive.sum(), (~positive).sum()
    ours, others = above.mean(axis=2) - areas[:, None], above.mean(axis=1) - areas[:, None]
    return areas, ours @ ours.T / (m - 1) / m + others @ others.T / (n - 1) / n


def test_delong_gives_the_ovarian_cancer_example():
    """SAS prints areas 0.7366, 0.7258, 0.6478 with errors 0.0927, 0.1028, 0.1000, and p values of 0.9102 and 0.4561 against the K-G score."""
    albumin, protein, score, helped = ovarian()
    found = [(round(delong_interval(one, helped)[0], 4), round(standard_error(one, helped), 4)) for one in (albumin, score, protein)]
    assert found == [(0.7366, 0.0927), (0.7258, 0.1028), (0.6478, 0.1)]
    changes = [delong_change(one, score, helped) for one in (albumin, protein)]
    assert [(round(value, 4), round(p_value, 4)) for value, _, _, p_value in changes] == [(0.0108, 0.9102), (-0.078, 0.4561)]
    # SAS's own intervals are symmetric: ours lie towards the rarer and larger influences, and allow for there being few of them.
    for (_, low, high, _), (least, most) in zip(changes, [(-0.1761, 0.1976), (-0.283, 0.1271)], strict=True):
        assert low == pytest.approx(least, abs=0.05) and high == pytest.approx(most, abs=0.05) and most - least < high - low < 1.2 * (most - least)


def test_delong_gives_the_tomography_example():
    """Hanley and McNeil 1982, table I, 109 images in five ratings; Stata's roctab: area 0.8932, error 0.0307, 95 % 0.83295 to 0.95339."""
    rating = np.repeat(np.tile(np.arange(5), 2), [33, 6, 6, 11, 2, 3, 2, 2, 11, 33])
    abnormal = np.repeat([False, True], [58, 51])
    area, error = delong_interval(rating, abnormal)[0], standard_error(rating, abnormal)
    assert (round(area, 4), round(error, 4)) == (0.8932, 0.0307)
    assert (round(area - 1.959964 * error, 5), round(area + 1.959964 * error, 5)) == (0.83295, 0.95339)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("n", [5, 40, 200])
def test_delong_is_the_brute_force_of_the_paper(n, tied):
    generator = np.random.default_rng(n)
    one, positive = rated(generator, n, tied)
    other = one + (np.round(generator.normal(size=n)) if tied else generator.normal(size=n))
    areas, covariance = brute_covariance([one, other], positive)
    assert [ranking._Ranking(score, positive).area for score in (one, other)] == pytest.approx(areas)
    assert standard_error(one, positive) ** 2 == pytest.approx(covariance[0, 0])
    value, low, high, p_value = delong_change(one, other, positive)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert value == pytest.approx(areas[0] - areas[1])
    moved = ranking._Ranking(one, positive).influence - ranking._Ranking(other, positive).influence
    assert (low, high) == pytest.approx(skewed_interval(value, moved, math.sqrt(variance), 0.5 / positive.sum(), 0.95)[1:])
    assert p_value == pytest.approx(math.erfc(abs(value) / math.sqrt(2 * variance)))


def test_interval_is_the_wider_of_logit_and_newcombe():
    """Newcombe's ends solve |A - t| = z error(t). With many samples of a middling area all of them nearly agree."""
    from scipy.optimize import brentq

    generator = np.random.default_rng(0)
    score, positive = rated(generator, 90, shift=3.0)
    area, low, high = delong_interval(score, positive)
    error, middle = standard_error(score, positive), math.log(area / (1 - area))
    logit = [1 / (1 + math.exp(-middle - side * 1.959964 * error / (area * (1 - area)))) for side in (-1, 1)]
    m, n = positive.sum(), (~positive).sum()

    def distance(t):
        variance = t * (1 - t) * (1 + ((m + n) / 2 - 1) * ((1 - t) / (2 - t) + t / (1 + t))) / (m * n)
        return abs(area - t) / math.sqrt(variance) - 1.959964

    score_ends = [brentq(distance, area, border) for border in (1e-12, 1 - 1e-12)]
    assert (low, high) == pytest.approx((min(logit[0], score_ends[0]), max(logit[1], score_ends[1])), abs=1e-6)
    assert abs(logit[0] - score_ends[0]) > 1e-3 and abs(logit[1] - score_ends[1]) > 1e-5
    score, positive = rated(generator, 20000)
    area, low, high = delong_interval(score, positive)
    assert (high - low) / 2 == pytest.approx(1.96 * standard_error(score, positive), rel=0.03)


def test_perfect_ranking_ends_where_wilson_ends():
    score = np.arange(60.0)
    assert delong_interval(score, score >= 50) == (1.0, pytest.approx(proportion_interval(10, 10)[0]), 1.0)
    assert delong_interval(-score, score >= 50) == (0.0, 0.0, pytest.approx(1 - proportion_interval(10, 10)[0]))
    value, low, high, p_value = delong_change(score, score * 2, score >= 50)
    reach = proportion_interval(0, 10)[1]
    assert (value, low, high, p_value) == (0.0, pytest.approx(-reach), pytest.approx(reach), 1.0)


def test_order_preserving_transformations_change_nothing():
    score, positive = rated(np.random.default_rng(2), 100)
    assert delong_interval(np.exp(score), positive) == delong_interval(score, positive)
    value, low, high, _ = delong_change(score, score + positive, positive)
    mirrored = delong_change(score + positive, score, positive)
    assert mirrored[:3] == pytest.approx((-value, -high, -low))


@pytest.mark.parametrize(
    ("score", "positive", "message"),
    [([1.0, 2.0], [True, True], "cannot rank"), ([1.0, math.nan], [True, False], "not a number"), ([1.0], [True, False], "one score for each")],
)
def test_scores_that_cannot_be_ranked_are_refused(score, positive, message):
    for function in (delong_interval, average_precision_interval):
        with pytest.raises(ValueError, match=message):
            function(np.array(score), np.array(positive))


def many_classes(generator, n, classes, tied=False):
    label = generator.integers(0, classes, n)
    scores = generator.normal(size=(n, classes))
    scores[np.arange(n), label] += 1.5
    scores = np.exp(np.round(scores) if tied else scores)
    return scores / scores.sum(axis=1, keepdims=True), label


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_macro_area_is_scikit_learns(classes):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, label = many_classes(np.random.default_rng(classes), 150, classes, tied=classes == 3)
    expected = metrics.roc_auc_score(label, scores if classes > 2 else scores[:, 1], multi_class="ovr", average="macro")
    assert delong_macro_interval(scores, label)[0] == pytest.approx(expected)
    other = scores + np.random.default_rng(9).normal(0, 0.1, scores.shape)
    assert delong_macro_change(other, scores, label)[0] == pytest.approx(
        delong_macro_interval(other, label)[0] - delong_macro_interval(scores, label)[0]
    )


def test_macro_area_of_two_classes_is_that_of_one():
    scores, label = many_classes(np.random.default_rng(4), 120, 2)
    assert delong_macro_interval(scores, label) == pytest.approx(delong_interval(scores[:, 1], label == 1))
    other = scores[:, ::-1] + scores
    other[:, 1] = 1 - other[:, 0]
    noisy = np.clip(scores[:, 1] + np.random.default_rng(5).normal(0, 0.1, 120), 0, 1)
    two = np.stack([1 - noisy, noisy], axis=1)
    assert delong_macro_change(two, scores, label) == pytest.approx(delong_change(noisy, scores[:, 1], label == 1)[:3])


def test_macro_error_is_that_of_leaving_out_one_sample_at_a_time():
    """The jackknife of scikit-learn's mean area; the classes differ in how hard they are to tell from each other."""
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(12)
    label = np.repeat([0, 1, 2], [60, 50, 40])
    scores = generator.normal(size=(150, 3)) + np.array([[1.0, 0.9, -3.0], [0.9, 1.0, -3.0], [0.2, -3.0, 3.0]])[label]
    scores = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    rankings = ranking._one_versus_rest(scores, label)
    error = ranking._error(np.mean([one.influence for one in rankings], axis=0), label)
    kept = [np.delete(np.arange(150), one) for one in range(150)]
    areas = np.array([metrics.roc_auc_score(label[some], scores[some], multi_class="ovr", average="macro") for some in kept])
    assert error == pytest.approx(math.sqrt(149 / 150 * np.sum((areas - areas.mean()) ** 2)), rel=0.03)


def test_macro_area_leaves_out_classes_without_samples():
    scores, label = many_classes(np.random.default_rng(6), 100, 4)
    kept = np.flatnonzero(label != 2)
    found = delong_macro_interval(scores[kept], label[kept])
    expected = np.mean([delong_interval(scores[kept, one], label[kept] == one)[0] for one in (0, 1, 3)])
    assert found[0] == pytest.approx(expected) and found[1] < found[0] < found[2]
    with pytest.raises(ValueError, match="cannot rank"):
        delong_macro_interval(scores[label == 1], label[label == 1])


def test_macro_area_with_a_class_of_one_sample_has_an_interval():
    scores, label = many_classes(np.random.default_rng(7), 100, 3)
    label[label == 2] = 1
    label[0] = 2
    for value, low, high in (delong_macro_interval(scores, label), delong_macro_change(scores[::-1], scores, label)):
        assert low < value < high


@pytest.mark.parametrize("tied", [False, True])
def test_average_precision_and_what_moves_it_are_scikit_learns(tied):
    """The influence of a sample is the derivative of scikit-learn's value by its weight."""
    metrics = pytest.importorskip("sklearn.metrics")
    score, positive = rated(np.random.default_rng(11), 80, tied)
    value, moves = thresholds._average_precision(score, positive)
    assert value == pytest.approx(metrics.average_precision_score(positive, score))
    weights = np.ones(80) + 1e-4 * np.stack([np.eye(80), -np.eye(80)])
    found = [[metrics.average_precision_score(positive, score, sample_weight=row) for row in rows] for rows in weights]
    assert moves == pytest.approx((np.array(found[0]) - found[1]) / 2e-4, abs=1e-7)


def test_average_precision_interval_is_logit_with_student():
    from scipy.special import expit, logit
    from scipy.stats import t as student

    score, positive = rated(np.random.default_rng(14), 90)
    value, low, high = average_precision_interval(score, positive)
    moves = thresholds._average_precision(score, positive)[1]
    assert abs(moves.sum()) < 1e-12
    half = student.ppf(0.975, 29) * math.sqrt(np.sum(moves**2) * 30 / 29) / (value * (1 - value))
    assert (low, high) == pytest.approx((expit(logit(value) - half), expit(logit(value) + half)))


def test_perfect_average_precision_ends_where_wilson_ends():
    score = np.arange(60.0)
    assert average_precision_interval(score, score >= 50) == (1.0, pytest.approx(proportion_interval(10, 10)[0]), 1.0)
    reach = proportion_interval(0, 10)[1]
    assert average_precision_change(score, score * 2, score >= 50) == (0.0, pytest.approx(-reach), pytest.approx(reach))
    shuffled = np.append(np.random.default_rng(3).permutation(score[:50]), score[50:])
    assert average_precision_change(score, shuffled, score >= 50) == (0.0, pytest.approx(-reach), pytest.approx(reach))


@pytest.mark.parametrize("positives", [1, 2])
def test_one_or_two_positives_have_wide_intervals(positives):
    generator = np.random.default_rng(15)
    score, positive = generator.normal(size=40), np.arange(40) < positives
    value, low, high = average_precision_interval(score, positive)
    assert 0 <= low <= value <= high <= 1 and high - low > 0.25
    for other in (generator.normal(size=40), score + 0.1 * positive):
        value, low, high = average_precision_change(other, score, positive)
        assert -1 <= low < value < high <= 1 or abs(value) == 1
        value, low, high = sensitivity_change(other, score, positive, 0.9)
        assert -1 <= low <= value <= high <= 1 and high - low > 0.5


@pytest.mark.parametrize("lost", [1, 2, 5, 20])
def test_skewed_interval_of_rare_losses_is_that_of_a_poisson_count(lost):
    """Each loss moves the value by the same: the ends are nearly the exact ones of a count (Garwood 1936), the normal ones are not."""
    from scipy.stats import chi2

    n = 100_000
    moved = -np.where(np.arange(n) < lost, 1.0, 0.0) / n
    moved = moved - moved.mean()
    value, low, high = skewed_interval(-lost / n, moved, math.sqrt(float(moved @ moved)), 0.0, 0.95)
    exact = chi2.ppf(0.025, 2 * lost) / 2, chi2.ppf(0.975, 2 * lost + 2) / 2
    assert (-high * n, -low * n) == pytest.approx(exact, rel=0.1, abs=0.1)
    assert value == -lost / n and lost + 1.96 * math.sqrt(lost) < 0.95 * exact[1]


def test_a_change_made_up_by_few_samples_gets_half_a_pseudo_sample():
    """Nine equal samples are few, eleven are not."""
    for count, pseudo in ((9, 0.01), (11, 0.0)):
        moved = np.resize([0.001, -0.001], count)
        error = math.sqrt(float(moved @ moved))
        _, low, high = skewed_interval(0.0, moved, error, 0.01, 0.95)
        skewness = np.sum(moved**3) / (6 * error**3)
        reach = math.hypot(error, pseudo) * (1.959964 + skewness) / (1 - skewness * (1.959964 + skewness)) ** 2
        assert high == pytest.approx(reach) and low < 0


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("specificity", [0.5, 0.9, 0.95, 1.0])
def test_sensitivity_at_specificity_is_read_off_scikit_learns_curve(specificity, tied):
    metrics = pytest.importorskip("sklearn.metrics")
    score, positive = rated(np.random.default_rng(13), 90, tied)
    alarms, hits, _ = metrics.roc_curve(positive, score, drop_intermediate=False)
    best = hits[1 - alarms >= specificity - 1e-12].max()
    sensitivity, threshold = sensitivity_at_specificity(score, positive, specificity)
    assert sensitivity == pytest.approx(best)
    chosen = score >= threshold
    assert np.mean(chosen[positive]) == pytest.approx(sensitivity) and np.mean(~chosen[~positive]) >= specificity
    assert sensitivity_interval(score, positive, specificity)[0] == pytest.approx(sensitivity)


def test_sensitivity_without_a_threshold_that_is_specific_enough():
    sensitivity, threshold = sensitivity_at_specificity(np.array([1.0, 2.0, 3.0]), np.array([True, True, False]), 1.0)
    assert sensitivity == 0 and threshold > 3 and math.isfinite(threshold)


def test_sensitivity_interval_joins_wilson_and_the_threshold():
    """Scores on a grid: of 100 negatives the 5 highest are false alarms; the ROC curve around has a slope that can be counted."""
    others, ours = np.arange(100.0), np.arange(82.5, 112.5)
    score, positive = np.append(ours, others), np.arange(130) < 30
    value, low, high = sensitivity_interval(score, positive, 0.95)
    hits = np.count_nonzero(ours > 94)
    # Window of round(2.5 sqrt(5 0.95)) = 5 false alarms on both sides: negatives 89 to 99, all 11 of them with a positive above.
    error = 1.959964 * (10 / 30) / (11 / 100) * math.sqrt(0.05 * 0.95 / 100)
    ends = proportion_interval(hits, 30)
    assert value == hits / 30 and np.count_nonzero((ours >= 89) & (ours <= 99)) == 10
    assert (low, high) == pytest.approx((value - math.hypot(value - ends[0], error), min(1, value + math.hypot(ends[1] - value, error))))


def test_sensitivity_interval_has_the_width_of_resampling():
    """Both threshold and positives drawn anew, 2,000 times: the standard error by brute force."""
    generator = np.random.default_rng(17)
    score, positive = rated(generator, 900, shift=1.5)
    found = []
    for _ in range(2000):
        drawn = generator.integers(0, 900, 900)
        found.append(sensitivity_at_specificity(score[drawn], positive[drawn], 0.9)[0])
    _, low, high = sensitivity_interval(score, positive, 0.9)
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(found), rel=0.15)


def test_change_of_sensitivity_without_moved_negatives_is_newcombes():
    """The candidate loses 3 of 20 positives; the negatives, and so the threshold, stay where they were."""
    reference = np.append(np.arange(200.0), 300.0 + np.arange(20))
    candidate, positive = reference.copy(), np.arange(220) >= 200
    candidate[200:203] = -1
    expected = paired_difference_interval(17, 3, 0, 0)
    assert sensitivity_change(candidate, reference, positive, 0.95) == pytest.approx(expected)
    assert sensitivity_change(reference, candidate, positive, 0.95) == pytest.approx([-expected[0], -expected[2], -expected[1]])
    alike = sensitivity_change(reference, reference, positive, 0.95)
    assert alike == pytest.approx(paired_difference_interval(20, 0, 0, 0)) and alike[1] < 0 < alike[2]


@pytest.mark.parametrize("specificity", [0.0, 0.5, 1.0])
def test_sensitivity_of_scores_of_one_level(specificity):
    """A model that saturates gives one score to everything: no threshold tells a negative from a positive."""
    score, positive = np.zeros(30), np.arange(30) < 12
    value, low, high = sensitivity_interval(score, positive, specificity)
    assert value == float(specificity == 0.0) and 0 <= low <= value <= high <= 1 and high - low > 0.2
