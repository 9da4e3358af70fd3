"""How often the intervals hold the truth and how often a verdict is wrong, by simulation with known truth.

Every trial is a whole evaluation. The seeds are fixed, so a rate here is a measurement that repeats itself; the message of each
assertion gives it with its own binomial interval.
"""

import math
from statistics import NormalDist

import numpy as np
import pytest

from toolkit.checks.budgets import Evidence, judge
from toolkit.evidence import Verdict
from toolkit.limits import Budgets
from toolkit.measure.tasks.estimates import rate
from toolkit.stats.calibration import BINS, calibration_change, calibration_interval
from toolkit.stats.proportions import independent_difference_interval, paired_difference_interval, proportion_interval
from toolkit.stats.ranking import delong_change, delong_interval, delong_macro_change, delong_macro_interval
from toolkit.stats.resampling import bca_interval, block_quantile_interval
from toolkit.stats.thresholds import average_precision_change, average_precision_interval, sensitivity_change, sensitivity_interval


def share(hits):
    """Returns a rate over trials, its ends, and how to say it."""
    hits = np.asarray(hits, bool)
    low, high = proportion_interval(int(hits.sum()), len(hits))
    return hits.mean(), low, high, f"{hits.mean():.2%} of {len(hits):,} trials, 95 % interval {low:.2%} to {high:.2%}"


def assert_covers(intervals, truth, least=0.93, most=0.97):
    """``intervals`` ``[trials x 2]`` hold the truth as often as a 95 % interval should, as far as so many trials can tell.

    The trials refute the claim when the binomial interval of their rate lies outside of it: 400 of them show a coverage of 90 %.
    """
    low, high = np.asarray(intervals, float).T
    _, rate_low, rate_high, words = share((low <= truth) & (truth <= high))
    assert len(low) >= 300 and rate_high >= least and rate_low <= most, f"the interval holds the truth in {words}"


def paired_changes(generator, trials, n, accuracy, disagreement, drop=0.0):
    """Evaluates two classifiers on the same ``n`` samples; returns the ends of the change's interval, ``[trials x 2]``."""
    lost, gained = (disagreement + drop) / 2, (disagreement - drop) / 2
    tables = generator.multinomial(n, [accuracy - lost, lost, gained, 1 - accuracy - gained], size=trials)
    seen = {tuple(map(int, table)): None for table in tables}
    seen = {table: paired_difference_interval(*table)[1:] for table in seen}
    return np.array([seen[tuple(map(int, table))] for table in tables])


PAIRS = [(accuracy, disagreement, n) for accuracy in (0.7, 0.9, 0.95) for disagreement in (0.02, 0.06, 0.15) for n in (200, 1000, 5000)]
POSSIBLE = [(accuracy, disagreement, n) for accuracy, disagreement, n in PAIRS if disagreement / 2 <= 1 - accuracy]


@pytest.mark.parametrize("margin", [0.0, 0.005, 0.01])
def test_models_of_equal_accuracy_are_failed_in_at_most_5_percent(margin):
    """A/A: 1,000 trials at each accuracy, disagreement and size; even a margin of nothing may not fail more often."""
    generator = np.random.default_rng(31)
    for accuracy, disagreement, n in POSSIBLE:
        high = paired_changes(generator, 1000, n, accuracy, disagreement)[:, 1]
        rate, _, _, words = share(high < -margin)
        assert rate <= 0.05, f"accuracy {accuracy}, disagreement {disagreement}, {n} samples: failed in {words}"


@pytest.mark.parametrize("margin", [0.005, 0.01])
def test_a_loss_of_exactly_the_margin_is_rarely_judged_either_way(margin):
    """At the border fail and pass are both wrong; each is the tail of a 95 % interval."""
    generator = np.random.default_rng(32)
    for accuracy, disagreement, n in POSSIBLE:
        low, high = paired_changes(generator, 1000, n, accuracy, disagreement, drop=margin).T
        for verdict, hits in (("failed", high < -margin), ("passed", low >= -margin)):
            rate, _, _, words = share(hits)
            assert rate <= 0.05, f"accuracy {accuracy}, disagreement {disagreement}, {n} samples: {verdict} in {words}"


@pytest.mark.parametrize(("margin", "least"), [(0.0, 0.99), (0.005, 0.98), (0.01, 0.9)])
@pytest.mark.parametrize("accuracy", [0.7, 0.9, 0.95])
def test_a_loss_of_3_points_in_2000_samples_is_failed(accuracy, margin, least):
    """Against a margin of 1 point in at least 90 % of the trials; a margin of 2 points needs more samples than that."""
    high = paired_changes(np.random.default_rng(33), 1000, 2000, accuracy, 0.06, drop=0.03)[:, 1]
    rate, _, _, words = share(high < -margin)
    assert rate >= least, f"failed in {words}"
    assert share(high < -0.02)[0] < 0.55
    high = paired_changes(np.random.default_rng(33), 1000, 8000, accuracy, 0.06, drop=0.03)[:, 1]
    assert share(high < -0.02)[0] >= 0.9


def verdicts(generator, trials, n, accuracy, disagreement, drop, margin):
    """Judges two classifiers on the same samples as a run does: from which samples each got right to the verdict, ``[trials]``."""
    lost, gained = (disagreement + drop) / 2, (disagreement - drop) / 2
    found = []
    for _ in range(trials):
        kind = generator.choice(4, n, p=[accuracy - lost, lost, gained, 1 - accuracy - gained])
        metric, change = rate("top1_accuracy", (kind == 0) | (kind == 2), kind <= 1)
        (finding,) = judge(Budgets(max_drop=margin), Evidence(metrics=[metric], changes=[change]))
        found.append(finding.verdict)
    return np.array(found)


def test_whole_verdicts_are_rarely_false_and_find_a_loss_of_3_points():
    """The two claims of the documentation, through the code that gives the verdict: A/A false alarms and the power."""
    equal = verdicts(np.random.default_rng(49), 1000, 2000, 0.9, 0.06, 0.0, 0.01)
    _, _, high, words = share(equal == Verdict.FAIL)
    assert high <= 0.05, f"equal models failed in {words}"
    worse = verdicts(np.random.default_rng(50), 1000, 2000, 0.9, 0.06, 0.03, 0.01)
    _, low, _, words = share(worse == Verdict.FAIL)
    assert low >= 0.9, f"a loss of 3 points failed in {words}"
    assert not (worse == Verdict.PASS).any() and (equal == Verdict.PASS).mean() > 0.3


@pytest.mark.parametrize("n", [300, 1000, 5000])
@pytest.mark.parametrize("p", [0.6, 0.9, 0.97])
def test_wilson_covers_in_exact_enumeration(n, p):
    from scipy.stats import binom

    counts = np.arange(n + 1)
    chance = binom.pmf(counts, n, p)
    likely = counts[chance > 1e-9]
    held = [low <= p <= high for low, high in (proportion_interval(int(k), n) for k in likely)]
    assert 0.93 <= chance[likely] @ held <= 0.97


@pytest.mark.parametrize(
    ("n", "accuracy", "disagreement"), [(500, 0.9, 0.06), (500, 0.7, 0.15), (1000, 0.9, 0.06), (2000, 0.9, 0.02), (5000, 0.95, 0.01)]
)
@pytest.mark.parametrize("drop", [0.0, 0.01])
def test_newcombe_covers_where_20_samples_change(n, accuracy, disagreement, drop):
    assert_covers(paired_changes(np.random.default_rng(34), 4000, n, accuracy, disagreement, drop), -drop)


def test_newcombe_is_cautious_where_few_samples_change():
    """One changed sample is expected: it never covers too little, and says nothing but zero in nearly all trials."""
    for drop in (0.0, 0.005):
        assert_covers(paired_changes(np.random.default_rng(35), 4000, 200, 0.9, 0.005, drop), -drop, 0.97, 1.0)


@pytest.mark.parametrize(("n", "p", "m", "q"), [(500, 0.9, 500, 0.9), (300, 0.7, 2000, 0.72), (1000, 0.97, 1000, 0.95)])
def test_difference_of_independent_rates_covers(n, p, m, q):
    generator = np.random.default_rng(36)

    def rate(k, n):
        return (k / n, *proportion_interval(k, n))

    drawn = zip(generator.binomial(n, p, 3000), generator.binomial(m, q, 3000), strict=True)
    found = [independent_difference_interval(rate(int(one), n), rate(int(other), m))[1:] for one, other in drawn]
    assert_covers(found, p - q)


def distance(area):
    """Returns by how many standard deviations positives score higher for an area under the ROC curve."""
    return math.sqrt(2) * NormalDist().inv_cdf(area)


@pytest.mark.parametrize(
    ("n", "positives", "area"),
    [(200, 100, 0.8), (1000, 500, 0.7), (1000, 500, 0.9), (1000, 100, 0.8), (1000, 50, 0.8), (1000, 100, 0.9), (500, 250, 0.95)],
)
def test_delong_covers(n, positives, area):
    generator = np.random.default_rng(37)
    positive = np.arange(n) < positives
    found = [delong_interval(generator.normal(size=n) + distance(area) * positive, positive)[1:] for _ in range(1000)]
    assert_covers(found, area)


@pytest.mark.parametrize(("n", "positives", "area"), [(300, 30, 0.99), (1000, 30, 0.95), (1000, 500, 0.99), (200, 10, 0.8)])
def test_delong_never_covers_too_little_near_one_or_with_few_positives(n, positives, area):
    generator = np.random.default_rng(38)
    positive = np.arange(n) < positives
    found = [delong_interval(generator.normal(size=n) + distance(area) * positive, positive)[1:] for _ in range(600)]
    assert_covers(found, area, 0.94, 1.0)


def quantized(generator, positive, areas, broken):
    """Scores of a reference and of a candidate that is a little noisy and a little worse, or that loses some positives altogether."""
    n, (before, after) = len(positive), areas
    common = generator.normal(size=n)
    reference = common + distance(before) * positive
    if not broken:
        return 0.99 * common + math.sqrt(1 - 0.99**2) * generator.normal(size=n) + distance(after) * positive, reference
    lost = positive & (generator.random(n) < (before - after) / (before - 0.5))
    return np.where(lost, generator.normal(size=n), reference + 0.01 * generator.normal(size=n)), reference


SLIGHT = [(2000, 1000, (0.8, 0.8)), (2000, 1000, (0.8, 0.79)), (2000, 200, (0.8, 0.8)), (1000, 100, (0.95, 0.94)), (500, 50, (0.8, 0.8))]
BROKEN = [(2000, 1000, (0.8, 0.79)), (2000, 1000, (0.9, 0.88)), (2000, 200, (0.9, 0.88)), (1000, 100, (0.9, 0.85)), (500, 250, (0.9, 0.89))]


@pytest.mark.parametrize(("n", "positives", "areas", "broken"), [(*one, False) for one in SLIGHT] + [(*one, True) for one in BROKEN])
def test_change_of_area_covers(n, positives, areas, broken):
    """All scores changed a little, or 7 to 67 positives in the mean lost theirs altogether."""
    generator = np.random.default_rng(39)
    positive = np.arange(n) < positives
    found = [delong_change(*quantized(generator, positive, areas, broken), positive)[1:3] for _ in range(700)]
    assert_covers(found, areas[1] - areas[0])


@pytest.mark.parametrize(("classes", "n", "noise"), [(3, 300, 0.2), (4, 800, 0.05), (4, 800, 0.3), (10, 1000, 0.2)])
def test_macro_area_and_its_change_cover(classes, n, noise):
    generator = np.random.default_rng(40)
    shares = np.arange(classes, 0, -1) / np.arange(classes, 0, -1).sum()

    def evaluate(n):
        label = generator.choice(classes, n, p=shares)
        reference = generator.normal(size=(n, classes))
        reference[np.arange(n), label] += 1.5
        candidate = reference + noise * generator.normal(size=(n, classes))
        return candidate, reference, label

    candidate, reference, label = evaluate(200_000)
    areas, change = delong_macro_interval(candidate, label)[0], delong_macro_change(candidate, reference, label)[0]
    trials = [evaluate(n) for _ in range(300)]
    assert_covers([delong_macro_interval(candidate, label)[1:] for candidate, _, label in trials], areas)
    assert_covers([delong_macro_change(*trial)[1:] for trial in trials], change)


def damaged(generator, positive, shift, noise, lost):
    """Scores of a candidate that is a reference with noise, in which a share of the positives lost theirs altogether, and the reference's."""
    reference = generator.normal(size=len(positive)) + shift * positive
    candidate = reference + noise * generator.normal(size=len(positive))
    return np.where(positive & (generator.random(len(positive)) < lost), generator.normal(size=len(positive)), candidate), reference


PRECISIONS = [
    (200, 0.3, 1.5, 0.1, 0.0),
    (200, 0.3, 1.5, 0.5, 0.0),
    (400, 0.1, 1.5, 0.3, 0.0),
    (1000, 0.1, 1.5, 0.1, 0.0),
    (1000, 0.06, 1.0, 0.3, 0.0),
    (500, 0.5, 1.0, 0.2, 0.0),
    (2000, 0.1, 2.5, 0.01, 0.05),
    (1000, 0.3, 2.0, 0.01, 0.03),
    (2000, 0.5, 2.5, 0.05, 0.02),
]


@pytest.mark.parametrize(("n", "share", "shift", "noise", "lost"), PRECISIONS)
def test_average_precision_and_its_change_cover(n, share, shift, noise, lost):
    generator = np.random.default_rng(51)

    def evaluate(n):
        positive = generator.random(n) < share
        candidate, reference = damaged(generator, positive, shift, noise, lost)
        return average_precision_interval(candidate, positive), average_precision_change(candidate, reference, positive)

    (truth, _, _), (change, _, _) = evaluate(1_000_000)
    found = np.array([evaluate(n) for _ in range(600)])
    assert_covers(found[:, 0, 1:], truth)
    assert_covers(found[:, 1, 1:], change)


@pytest.mark.parametrize(("n", "positives"), [(300, 60), (300, 30)])
def test_average_precision_never_covers_too_little_near_one(n, positives):
    """Hardly a negative is above a positive, and hardly one moves: the change says no more than so few positives can."""
    generator = np.random.default_rng(52)

    def evaluate(n):
        positive = np.arange(n) < n * share
        candidate, reference = damaged(generator, positive, 4.0, 0.1, 0.0)
        return average_precision_interval(candidate, positive), average_precision_change(candidate, reference, positive)

    share = positives / n
    (truth, _, _), (change, _, _) = evaluate(1_000_000)
    found = np.array([evaluate(n) for _ in range(600)])
    assert_covers(found[:, 0, 1:], truth, 0.93, 1.0)
    assert_covers(found[:, 1, 1:], change, 0.93, 1.0)


def sensitivities(generator, trials, n, positives, shift, noise, specificity, lost):
    """Returns the ends for a candidate and for its change, ``[trials x 2]`` both, and the truth of both."""
    normal, positive = NormalDist(), np.arange(n) < positives
    wider, cut = math.sqrt(1 + noise**2), NormalDist().inv_cdf(specificity)
    before = 1 - normal.cdf(cut - shift)
    after = (1 - lost) * (1 - normal.cdf(cut - shift / wider)) + lost * (1 - normal.cdf(cut * wider))
    drawn = [damaged(generator, positive, shift, noise, lost) for _ in range(trials)]
    values = [sensitivity_interval(candidate, positive, specificity)[1:] for candidate, _ in drawn]
    return values, after, [sensitivity_change(*one, positive, specificity)[1:] for one in drawn], after - before


SENSITIVITIES = [
    (200, 60, 1.5, 0.5, 0.95, 0.0),
    (400, 120, 1.5, 0.2, 0.95, 0.0),
    (1000, 300, 1.5, 0.3, 0.95, 0.0),
    (1000, 100, 1.5, 0.3, 0.95, 0.0),
    (2000, 200, 1.5, 0.3, 0.9, 0.0),
    (1000, 500, 2.5, 0.5, 0.9, 0.0),
    (5000, 2500, 2.5, 0.05, 0.95, 0.0),
    (1000, 100, 2.5, 0.01, 0.95, 0.1),
    (2000, 1000, 2.5, 0.02, 0.95, 0.02),
]


@pytest.mark.parametrize("setting", SENSITIVITIES)
def test_sensitivity_and_its_change_cover(setting):
    values, truth, changes, change = sensitivities(np.random.default_rng(53), 700, *setting)
    assert_covers(values, truth)
    assert_covers(changes, change)


@pytest.mark.parametrize("setting", [(1000, 500, 4.0, 0.1, 0.95, 0.0), (1000, 100, 2.5, 0.1, 0.95, 0.0), (400, 40, 1.5, 0.2, 0.9, 0.0)])
def test_sensitivity_never_covers_too_little_near_one_or_where_few_positives_change(setting):
    values, truth, changes, change = sensitivities(np.random.default_rng(54), 600, *setting)
    assert_covers(values, truth, 0.93, 1.0)
    assert_covers(changes, change, 0.93, 1.0)


def confidences(generator, n, *temperatures):
    """How sure models at several temperatures are of the same class, and whether it is right; at 1 they are calibrated."""
    odds = np.abs(generator.normal(1, 1.5, n))
    right = generator.random(n) < 1 / (1 + np.exp(-odds))
    return [(1 / (1 + np.exp(-odds * one - 0.05 * generator.normal(size=n) * (one != 1))), right) for one in temperatures]


def calibration_error(confidence, right):
    bins = np.ceil(confidence * BINS).astype(int) - 1
    return sum(abs(np.sum((right - confidence)[bins == one])) for one in range(BINS)) / len(right)


@pytest.mark.parametrize(("n", "temperature"), [(2000, 3.0), (2000, 0.6), (5000, 1.5), (5000, 2.0), (5000, 3.0), (5000, 0.6)])
def test_calibration_error_of_a_clearly_miscalibrated_model_covers(n, temperature):
    """At 2,000 samples and temperatures of 1.5 and 2 it covers 97 to 98 %, as some gaps are about as large as their noise: see below."""
    generator = np.random.default_rng(55)
    truth = calibration_error(*confidences(generator, 2_000_000, temperature)[0])
    found = [calibration_interval(*confidences(generator, n, temperature)[0])[1:] for _ in range(1000)]
    assert_covers(found, truth)


@pytest.mark.parametrize("size", [2.0, 4.0])
def test_calibration_error_covers_where_every_gap_is_as_large_as_its_noise(size):
    """Eight bins, each with a gap of so many of its standard errors: a sign that is just not, or just, clear."""
    generator, n = np.random.default_rng(56), 2000
    middle = (7.5 + np.arange(8)) / BINS
    gap = size * np.sqrt(middle * (1 - middle) / (n / 8))

    def evaluate():
        bins = generator.integers(0, 8, n)
        confidence = middle[bins] + generator.uniform(-0.03, 0.03, n)
        return confidence, generator.random(n) < confidence - gap[bins]

    assert_covers([calibration_interval(*evaluate())[1:] for _ in range(1000)], gap.mean())


@pytest.mark.parametrize("n", [200, 2000])
@pytest.mark.parametrize("temperature", [1.0, 1.2, 2.0])
def test_calibration_error_never_covers_too_little_whether_the_model_is_calibrated_or_not(temperature, n):
    """A calibrated model is at the end of the scale. The bootstrap never covers it: its low end is above 0 in every trial."""
    generator = np.random.default_rng(47)
    truth = 0.0 if temperature == 1 else calibration_error(*confidences(generator, 2_000_000, temperature)[0])
    found = [calibration_interval(*confidences(generator, n, temperature)[0])[1:] for _ in range(1000)]
    assert_covers(found, truth, 0.94, 1.0)


def calibration_changes(generator, trials, n, after, before):
    """Returns the ends of the change between two temperatures, ``[trials x 2]``, and its truth."""
    exact = confidences(generator, 2_000_000, after, before)
    truth = (calibration_error(*exact[0]) if after != 1 else 0.0) - (calibration_error(*exact[1]) if before != 1 else 0.0)
    return [calibration_change(*confidences(generator, n, after, before))[1:] for _ in range(trials)], truth


@pytest.mark.parametrize(("after", "before"), [(2.0, 1.0), (1.0, 2.0), (0.6, 2.0)])
def test_change_of_calibration_error_between_unlike_models_covers(after, before):
    assert_covers(*calibration_changes(np.random.default_rng(57), 1000, 2000, after, before))


@pytest.mark.parametrize(("after", "before"), [(1.0, 1.2), (1.2, 1.0), (1.2, 1.2), (2.0, 1.5)])
def test_change_of_calibration_error_never_covers_too_little(after, before):
    """Two models that err alike, or hardly: noise decides which sign a gap has."""
    assert_covers(*calibration_changes(np.random.default_rng(48), 1000, 2000, after, before), 0.93, 1.0)


def ratio(part, whole):
    both = np.stack([part, whole], axis=1)

    def statistic(weights):
        sums = weights @ both
        return sums[:, 0] / sums[:, 1]

    return statistic


def perplexity(generator, n):
    tokens = generator.integers(20, 200, n).astype(float)
    log_loss = ratio(tokens * generator.normal(2, 0.3, n), tokens)
    return lambda weights: np.exp(log_loss(weights))


def macro_f1(label, choice):
    right = np.stack([(label == one) & (choice == one) for one in range(3)], axis=1).astype(float)
    either = np.stack([(label == one).astype(float) + (choice == one) for one in range(3)], axis=1)
    return lambda weights: np.mean(2 * (weights @ right) / (weights @ either), axis=1)


def choices(generator, n):
    label = generator.choice(3, n, p=[0.6, 0.3, 0.1])
    reference = np.where(generator.random(n) < 0.8, label, generator.integers(0, 3, n))
    return label, reference, np.where(generator.random(n) < 0.15, generator.integers(0, 3, n), reference)


def f1(generator, n):
    label, reference, _ = choices(generator, n)
    return macro_f1(label, reference)


def f1_change(generator, n):
    label, reference, candidate = choices(generator, n)
    ours, other = macro_f1(label, candidate), macro_f1(label, reference)
    return lambda weights: ours(weights) - other(weights)


@pytest.mark.parametrize(("make", "trials"), [(perplexity, 400), (f1, 300), (f1_change, 400)])
def test_bca_covers(make, trials):
    generator = np.random.default_rng(41)
    truth = math.exp(2) if make is perplexity else float(make(generator, 400_000)(np.ones((1, 400_000)))[0])
    found = [bca_interval(make(generator, 200), 200, resamples=500, seed=seed)[1:] for seed in range(trials)]
    assert_covers(found, truth)


def test_bca_covers_changes_of_which_few_were_drawn():
    """A candidate that picks another class on one sample in 200: about 2 of 400 change, in some trials none."""
    n, share, trials = 400, 1 / 200, 400
    generator = np.random.default_rng(45)

    def change(size):
        label, reference, _ = choices(generator, size)
        candidate = np.where(generator.random(size) < share, (reference + 1) % 3, reference)
        ours, other = macro_f1(label, candidate), macro_f1(label, reference)
        return lambda weights: ours(weights) - other(weights)

    truth = float(change(1_000_000)(np.ones((1, 1_000_000)))[0])
    drawn = [change(n) for _ in range(trials)]
    seen = [statistic for statistic in drawn if statistic(np.ones((1, n)))[0]]  # where nothing changed, the caller knows what to say
    found = [bca_interval(statistic, n, resamples=500, seed=seed, unseen=True)[1:] for seed, statistic in enumerate(seen)]
    assert len(seen) > 0.8 * trials
    assert_covers(found, truth, 0.95, 1.0)


def test_bca_leaves_intervals_alone_that_many_samples_make():
    statistic = perplexity(np.random.default_rng(46), 300)
    assert bca_interval(statistic, 300, unseen=True) == bca_interval(statistic, 300)


def paces(generator, rounds, correlation):
    """How fast the machine is in each round, ``[rounds]``; neighbouring rounds correlate."""
    pace = generator.normal(size=rounds)
    for number in range(1, rounds):
        pace[number] = correlation * pace[number - 1] + math.sqrt(1 - correlation**2) * pace[number]
    return pace


def timed(generator, correlation, rounds=36, size=20):
    """Times of one model on a machine with a pace of its own and, one time in 50, something else to do: ``[rounds x size]``."""
    times = np.exp(0.05 * paces(generator, rounds, correlation)[:, None] + 0.05 * generator.normal(size=(rounds, size)))
    return times * (1 + (generator.random(times.shape) < 0.02) * generator.exponential(0.5, times.shape))


@pytest.mark.parametrize("size", [20, 56])
@pytest.mark.parametrize("q", [0.5, 0.9])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6])
def test_quantile_of_rounds_covers(correlation, q, size):
    """Whether or not neighbouring rounds have to do with each other, which it must find out from 36 of them."""
    generator = np.random.default_rng(42)
    truth = np.quantile(timed(generator, 0.0, 20_000), q)
    found = [block_quantile_interval(timed(generator, correlation, size=size), q)[1:] for _ in range(2000)]
    assert_covers(found, truth, 0.93, 0.97)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6])
@pytest.mark.parametrize(("q", "size"), [(0.5, 2), (0.9, 2), (0.99, 20), (0.99, 56)])
def test_quantile_of_rounds_that_few_measurements_bound_never_covers_too_little(q, size, correlation):
    generator = np.random.default_rng(43)
    truth = np.quantile(timed(generator, 0.0, 20_000), q)
    found = [block_quantile_interval(timed(generator, correlation, size=size), q)[1:] for _ in range(1000)]
    assert_covers(found, truth, 0.95, 1.0)


@pytest.mark.parametrize("rounds", [6, 12, 20])
def test_median_of_few_rounds_covers(rounds):
    generator = np.random.default_rng(49)
    truth = np.quantile(timed(generator, 0.0, 20_000), 0.5)
    found = [block_quantile_interval(timed(generator, 0.3, rounds), 0.5)[1:] for _ in range(1000)]
    assert_covers(found, truth, 0.93, 0.97)
