"""Metrics against scikit-learn, statsmodels, SciPy and brute force."""

import functools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import softmax
from sklearn import metrics as sk
from statsmodels.stats.multitest import multipletests

from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected, StageFailed
from toolkit.measure.tasks import estimates, prepare
from toolkit.measure.tasks.interface import Question
from toolkit.measure.tasks.one_by_one import class_changes, list_flips
from toolkit.measure.tasks.speech import Speech, edits
from toolkit.measure.tasks.summary import class_counts, standing, summarize
from toolkit.metrics import TASKS, scale
from toolkit.stats.proportions import paired_difference_interval, proportion_interval

N = 80


def task(name, label, **wanted):
    return prepare(Question(name, **wanted), Dataset({"x": np.zeros((len(label), 1), np.float32)}, label))


def logits(n, classes, seed=0, step=8):
    """Multiples of a step, so that many scores are equal, as those of a quantized model are."""
    return ((np.random.default_rng(seed).normal(scale=1.5, size=(n, classes)) * step).round() / step).astype(np.float32)


def labels(n, classes, seed=1):
    return np.random.default_rng(seed).integers(0, classes, n)


def by_name(answer):
    return {metric.name: (metric, change) for metric, change in answer.measured}


def repeated(statistic, weights, values):
    """Holds a weighted statistic against a plain metric of samples that are repeated as often as they count."""
    for row, found in zip(weights, statistic(weights), strict=True):
        chosen = np.repeat(np.arange(len(row)), row.astype(int))
        assert found == pytest.approx(values(chosen), abs=1e-12)


WEIGHTS = np.random.default_rng(5).multinomial(N, np.full(N, 1 / N), size=6).astype(float)


# --- classification ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 4, 7])
def test_classification_agrees_with_scikit_learn(classes):
    scores, label = logits(N, classes), labels(N, classes)
    found = by_name(task("image-classification", label, positive=1).answer(scores, None))
    chance, picked = softmax(scores.astype(np.float64), axis=1), scores.argmax(axis=1)
    expected = {
        "top1_accuracy": sk.accuracy_score(label, picked),
        "macro_f1": sk.f1_score(label, picked, average="macro"),
        "roc_auc": sk.roc_auc_score(label, chance[:, 1] if classes == 2 else chance, multi_class="ovr"),
        "average_precision": sk.average_precision_score(label == 1, chance[:, 1]),
        "sensitivity_at_specificity": best_sensitivity(label == 1, chance[:, 1], 0.95),
        "expected_calibration_error": calibration_by_hand(chance.max(axis=1), picked == label),
    }
    if classes > 5:
        expected["top5_accuracy"] = np.mean(
            [one in sorted(range(classes), key=lambda k: -row[k])[:5] for one, row in zip(label, scores, strict=True)]
        )
    assert set(found) == set(expected)
    for name, value in expected.items():
        metric, change = found[name]
        assert metric.value == pytest.approx(value, abs=1e-9), name
        assert metric.low <= metric.value <= metric.high and metric.low < metric.high and metric.n == N and change is None
    assert list(found) == [name for name in TASKS["image-classification"] if name in expected]


def best_sensitivity(positive, score, specificity):
    """Tries every threshold."""
    thresholds = [*np.unique(score), np.inf]
    return max(np.mean(score[positive] >= t) for t in thresholds if np.mean(score[~positive] < t) >= specificity)


def calibration_by_hand(confidence, right):
    total = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def test_statistics_of_weights_are_metrics_of_repeated_samples():
    scores, label = logits(N, 4), labels(N, 4)
    summary = summarize(scores, label)
    repeated(estimates.macro_f1(class_counts(summary, label)), WEIGHTS, lambda rows: sk.f1_score(label[rows], summary.picked[rows], average="macro"))


def test_probabilities_are_told_from_logits_even_after_8_bit_rounding():
    scores, label = logits(N, 5, step=1000), labels(N, 5)
    chance = softmax(scores, axis=1)
    eighth = (np.round(chance * 256) / 256).astype(np.float32)
    assert [summarize(one, label).probabilities for one in (scores, chance, eighth, np.abs(scores))] == [False, True, True, False]
    flat = softmax(np.random.default_rng(2).normal(size=(N, 1000)), axis=1)  # most of 1,000 classes round to 0 or to twice what they were
    assert summarize((np.round(flat * 256) / 256).astype(np.float32), label).probabilities
    assert not summarize((scores - scores.min()) / 1000, label).probabilities
    from_logits, from_chances = (by_name(task("text-classification", label, positive=2).answer(one, None)) for one in (scores, chance))
    for name, (metric, _) in from_logits.items():
        assert from_chances[name][0].value == pytest.approx(metric.value, abs=1e-6), name


def test_standing_ranks_like_the_softmax_and_does_not_saturate():
    label, scores = labels(N, 4), logits(N, 4)
    order = standing(scores, summarize(scores, label))
    chance = softmax(scores.astype(np.float64), axis=1)
    for one in range(4):
        np.testing.assert_array_equal(stats.rankdata(order[:, one]), stats.rankdata(chance[:, one].round(12)))
    sure = np.array([[0, 50], [0, 60], [3, 63], [70, 0]], np.float32)
    np.testing.assert_array_equal(standing(sure, summarize(sure, np.zeros(4, int)), 1), [50, 60, 60, -70])


def test_equal_margins_of_a_quantized_model_tie():
    steps = np.random.default_rng(0).integers(-40, 40, (500, 2))
    scores = (steps * 0.1).astype(np.float32)
    order = standing(scores, summarize(scores, labels(500, 2)), 1)
    np.testing.assert_array_equal(stats.rankdata(order), stats.rankdata(steps[:, 1] - steps[:, 0]))


def test_a_calibrated_model_is_within_its_own_calibration_interval_and_a_model_within_its_change():
    generator = np.random.default_rng(8)
    scores = generator.normal(scale=2, size=(300, 4))
    label = (softmax(scores, axis=1).cumsum(axis=1) > generator.random((300, 1))).argmax(axis=1)
    answer = task("image-classification", label).answer(scores.astype(np.float32), scores.astype(np.float32))
    metric, change = by_name(answer)["expected_calibration_error"]
    assert metric.low == 0 < metric.value < metric.high
    assert (change.value, change.low, change.high) == pytest.approx((0, -proportion_interval(0, 300)[1], proportion_interval(0, 300)[1]))


def test_infinite_scores_are_the_largest_there_are():
    scores = np.array([[np.inf, 0, -np.inf], [-np.inf, -np.inf, 1], [0, np.inf, np.inf]], np.float32)
    summary = summarize(scores, np.array([0, 2, 2]))
    assert (summary.picked.tolist(), summary.rank.tolist(), summary.confidence.tolist()) == ([0, 2, 1], [0, 0, 1], [1, 1, 0.5])
    assert np.isfinite(standing(scores, summary)).all()


@pytest.mark.parametrize(("wanted", "positive"), [({}, 1), ({"positive": 0}, 0), ({"positive": "ill", "names": ("ill", "well"), "count": 2}, 0)])
def test_the_positive_class_of_two(wanted, positive):
    scores, label = logits(N, 2), labels(N, 2)
    found = by_name(task("image-classification", label, **wanted).answer(scores, None))
    expected = sk.average_precision_score(label == positive, scores[:, positive] - scores[:, 1 - positive])
    assert found["average_precision"][0].value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("wanted", "where", "words"),
    [
        ({"positive": 3}, "metrics.positive", "unknown positive class 3; known: 0 to 2"),
        ({"positive": "cow", "names": ("a", "b", "c")}, "metrics.positive", "unknown positive class 'cow'; known: a, b, c"),
        ({"primary": "top5_accuracy"}, "metrics.primary", "top5_accuracy cannot be measured: any 5 of 3 classes hold the right one"),
        ({"primary": "average_precision"}, "metrics.primary", "no positive class is named"),
        ({"primary": "average_precision", "positive": 2}, "metrics.primary", "all samples or none are of the positive class '2'"),
        ({"primary": "mean_iou"}, "metrics.primary", "it is not a metric of image-classification"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(wanted, where, words):
    with pytest.raises(ConfigError, match=words) as caught:
        task("image-classification", labels(N, 2), **wanted).answer(logits(N, 3), None)
    assert caught.value.where == where


def test_the_primary_metric_comes_first_and_curves_of_many_classes_only_then():
    scores, label = logits(300, 101), labels(300, 101)
    assert "roc_auc" not in by_name(task("image-classification", label).answer(scores, None))
    found = task("image-classification", label, primary="roc_auc").answer(scores, None).measured
    assert [metric.name for metric, _ in found] == ["roc_auc", "top1_accuracy", "top5_accuracy", "macro_f1", "expected_calibration_error"]


def test_a_single_score_per_sample_picks_nothing():
    with pytest.raises(InputRejected, match="gives one score per sample"):
        task("image-classification", np.zeros(9, int)).check((1,))


def test_one_class_alone_has_no_curve():
    found = by_name(task("image-classification", np.zeros(9, int)).answer(logits(9, 3), None))
    assert set(found) == {"top1_accuracy", "macro_f1", "expected_calibration_error"}


@pytest.mark.parametrize("classes", [2, 6])
def test_changes_are_differences_on_the_same_samples(classes):
    label, scores = labels(N, classes), logits(N, classes)
    other = (scores + logits(N, classes, seed=9) * 0.4).astype(np.float32)
    measure = functools.partial(task("audio-classification", label, positive=1).answer)
    paired = {
        "Wilson": "Newcombe",
        "Wilson with threshold error": "Newcombe with threshold error",
        "logit with jackknife error": "jackknife with skewness",
    }
    answer, now, before = measure(scores, other), by_name(measure(scores, None)), by_name(measure(other, None))
    for name, (metric, change) in by_name(answer).items():
        assert metric == now[name][0]
        assert change.value == pytest.approx(now[name][0].value - before[name][0].value, abs=1e-9)
        assert change.metric == name and change.low <= change.value <= change.high and change.method == paired.get(metric.method, metric.method)
        alone = now[name][0].high - now[name][0].low
        assert change.high - change.low < 1.5 * alone, "paired is no wider than two independent ones"
    right, old = scores.argmax(axis=1) == label, other.argmax(axis=1) == label
    top = by_name(answer)["top1_accuracy"][1]
    assert (top.lost, top.gained) == (np.sum(old & ~right), np.sum(right & ~old))
    assert top.p_value == pytest.approx(stats.binomtest(top.lost, top.lost + top.gained).pvalue)
    assert answer.agreement == np.mean(scores.argmax(axis=1) == other.argmax(axis=1))
    np.testing.assert_array_equal(answer.outcomes, right)


def test_nothing_changed_is_not_known_for_certain():
    label = np.arange(20) % 4
    scores = np.eye(4, dtype=np.float32)[label] * 9
    reach = proportion_interval(0, 20)[1]
    for name, (metric, change) in by_name(task("image-classification", label).answer(scores, scores)).items():
        assert change.value == 0 and change.low < 0 < change.high, name
        assert metric.low < metric.high, name
        if name == "macro_f1":
            assert (metric.value, metric.low, metric.high) == (1, pytest.approx(1 - reach), 1)
            assert (change.low, change.high) == (pytest.approx(-reach), pytest.approx(reach))


def test_a_reference_that_guesses_makes_no_change_informative():
    """Two classes in 7 to 3: labels that have nothing to do with the scores, and labels that the scores follow."""
    n = 400
    label = (np.random.default_rng(5).random(n) < 0.3).astype(np.int64)
    good = np.stack([1.0 - label, label], axis=1).astype(np.float32) * 3 + logits(n, 2)
    for scores, expected in ((logits(n, 2, seed=9), False), (good, True)):
        answer = task("image-classification", label).answer(scores, scores)
        assert {change.informative for _, change in answer.measured if change} == {expected}


def test_one_class_alone_tells_nothing_about_losses():
    label = np.zeros(300, np.int64)
    scores = np.tile(np.float32([4.0, 0.0]), (300, 1))
    answer = task("image-classification", label).answer(scores, scores)
    assert not any(change.informative for _, change in answer.measured if change)


def test_what_was_left_out_is_said_with_the_reason():
    answer = task("image-classification", labels(90, 3)).answer(logits(90, 3), None)
    assert "no positive class" in answer.left_out["average_precision"] and "top5_accuracy" in answer.left_out


def test_class_changes_are_tests_class_by_class():
    generator = np.random.default_rng(2)
    label = generator.choice([0, 1, 3], 400, p=[0.5, 0.3, 0.2])
    before = generator.random(400) < 0.9
    right = before & ~((label == 1) & (generator.random(400) < 0.2)) | (generator.random(400) < 0.02)
    found = class_changes(label, right, before, "abcd".__getitem__)
    raw = {}
    for one in (0, 1, 3):
        lost, gained = np.sum((label == one) & before & ~right), np.sum((label == one) & right & ~before)
        raw["abcd"[one]] = (stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0, lost, gained, label == one)
    adjusted = dict(zip(raw, multipletests([p for p, *_ in raw.values()], method="holm")[1], strict=True))
    assert [change.name for change in found] == sorted(raw, key=lambda name: right[raw[name][3]].mean() - before[raw[name][3]].mean())
    assert found[0].name == "b"
    for change in found:
        _, lost, gained, rows = raw[change.name]
        assert (change.lost, change.gained, change.n) == (lost, gained, rows.sum())
        assert (change.reference, change.candidate) == (pytest.approx(before[rows].mean()), pytest.approx(right[rows].mean()))
        assert change.p_value == pytest.approx(adjusted[change.name])
        both = np.sum(before & right & rows)
        assert (change.low, change.high) == paired_difference_interval(both, lost, gained, rows.sum() - both - lost - gained)[1:]


def test_classes_without_a_reference_come_with_the_least_right_first():
    found = class_changes(np.array([0, 0, 2, 2, 2]), np.array([1, 1, 1, 0, 0], bool), None, str)
    assert [(one.name, one.n, one.candidate, one.reference, one.p_value) for one in found] == [("2", 3, 1 / 3, None, None), ("0", 2, 1, None, None)]


def test_flips_list_lost_samples_first():
    label, before, picked = (np.array(one) for one in ([0, 1, 2, 0, 1], [1, 1, 2, 2, 0], [0, 2, 2, 1, 0]))
    found = [(flip.sample, flip.label, flip.reference, flip.candidate) for flip in list_flips(label, picked, before)]
    assert found == [(1, 1, 1, 2), (0, 0, 1, 0), (3, 0, 2, 1)]


# --- parts of samples ----------------------------------------------------------------------------------------------------------


def segmentation(classes=4, size=(6, 5), n=12, dtype=np.int64):
    generator = np.random.default_rng(3)
    label = generator.integers(0, classes, (n, *size)).astype(dtype)
    return label, generator.normal(size=(n, classes, *size)).astype(np.float32) + 2 * (np.arange(classes)[:, None, None] == label[:, None])


def reduced(name, label, output, batch=5, **wanted):
    """Goes the way of the stage: the shape is checked, then outputs come in batches."""
    one = task(name, label, **wanted)
    one.check(output.shape[1:])
    return one, np.concatenate([one.reduce(start, output[start : start + batch]) for start in range(0, len(output), batch)])


@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_segmentation_agrees_with_scikit_learn_in_both_layouts(ignored):
    label, output = segmentation()
    label[np.random.default_rng(1).random(label.shape) < ignored] = -100
    one, records = reduced("image-segmentation", label, output)
    _, last = reduced("image-segmentation", label, np.moveaxis(output, 1, -1), batch=12)
    np.testing.assert_array_equal(records, last)
    counted, picked = label != -100, output.argmax(axis=1)
    found = by_name(one.answer(records, None))
    assert list(found) == ["mean_iou", "pixel_accuracy"]
    assert found["mean_iou"][0].value == pytest.approx(sk.jaccard_score(label[counted], picked[counted], average="macro"))
    assert found["pixel_accuracy"][0].value == pytest.approx(sk.accuracy_score(label[counted], picked[counted]))
    assert all(metric.n == 12 and metric.method == "BCa bootstrap" and metric.low < metric.high for metric, _ in found.values())


def test_mean_iou_of_resamples_leaves_out_classes_that_do_not_occur():
    label, output = segmentation(classes=6, size=(2, 2), n=N)
    picked = output.argmax(axis=1)
    _, records = reduced("image-segmentation", label, output)
    few = np.zeros((6, N))
    few[np.arange(6), np.arange(6)] = 3
    for weights in (WEIGHTS, few):
        repeated(
            estimates.mean_iou(records.reshape(N, -1)),
            weights,
            lambda rows: sk.jaccard_score(label[rows].ravel(), picked[rows].ravel(), average="macro"),
        )


@pytest.mark.parametrize("wanted", [{}, {"count": 5}])
def test_classes_come_first_where_both_layouts_would_fit(wanted):
    label, output = segmentation(classes=5, size=(5, 5))
    one, records = reduced("image-segmentation", label, output, **wanted)
    assert by_name(one.answer(records, None))["pixel_accuracy"][0].value == pytest.approx(np.mean(output.argmax(axis=1) == label))


def test_the_number_of_classes_tells_layouts_apart():
    label, output = segmentation(classes=3, size=(4, 4))
    square = np.concatenate([output, np.full((12, 1, 4, 4), -9, np.float32)], axis=1)
    for wanted, words in (({"count": 3}, "gives 4 x 4 x 4 per sample, expected 3 x 4 x 4 or 4 x 4 x 3"), ({"count": 4}, None)):
        if words:
            with pytest.raises(InputRejected, match=words):
                reduced("image-segmentation", label, square, **wanted)
        else:
            reduced("image-segmentation", label, square, **wanted)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_labels_beyond_the_classes_are_refused_by_sample(dtype):
    label, output = segmentation(dtype=dtype)
    label[7, 2, 1] = 200
    with pytest.raises(InputRejected, match="label 200 in sample 7 is beyond the 4 classes"):
        reduced("image-segmentation", label, output)


def test_labels_of_another_size_than_the_output_are_refused():
    label, output = segmentation()
    with pytest.raises(InputRejected, match="gives 4 x 6 x 4 per sample, expected classes x 6 x 5 or 6 x 5 x classes"):
        reduced("image-segmentation", label, output[..., :-1])
    with pytest.raises(InputRejected, match="gives 4 x 9 per sample, expected 9 x classes"):
        reduced("token-classification", labels(12, 4)[:, None].repeat(9, 1), np.zeros((12, 4, 9), np.float32))


def test_token_classification_agrees_with_scikit_learn():
    label, output = segmentation(classes=4, size=(9, 1))
    label, output = label[..., 0], np.moveaxis(output[..., 0], 1, 2)
    label[:, 7:] = -100
    one, records = reduced("token-classification", label, output)
    counted, picked = label != -100, output.argmax(axis=2)
    found = by_name(one.answer(records, None))
    assert list(found) == ["token_accuracy", "macro_f1"]
    assert found["macro_f1"][0].value == pytest.approx(sk.f1_score(label[counted], picked[counted], average="macro"))
    assert found["token_accuracy"][0].value == pytest.approx(sk.accuracy_score(label[counted], picked[counted]))


def test_samples_without_any_counted_part_are_refused_only_when_all_are():
    label, output = segmentation()
    label[:11] = -100
    one, records = reduced("image-segmentation", label, output)
    metric = by_name(one.answer(records, None))["pixel_accuracy"][0]
    assert metric.value == np.mean(output[11].argmax(axis=0) == label[11]) and metric.low < metric.high
    label[:] = -100
    one, records = reduced("image-segmentation", label, output)
    with pytest.raises(InputRejected, match="every part of every sample is labelled -100"):
        one.answer(records, None)


# --- texts and speech ----------------------------------------------------------------------------------------------------------


def language(n=40, tokens=7, vocabulary=11):
    generator = np.random.default_rng(4)
    label = generator.integers(0, vocabulary, (n, tokens))
    label[:, 0] = vocabulary - 1
    label[generator.random(label.shape) < 0.2] = -100
    return label, generator.normal(scale=2, size=(n, tokens, vocabulary)).astype(np.float32)


def test_perplexity_and_token_accuracy_of_the_next_token():
    label, output = language()
    one, records = reduced("text-generation", label, output)
    found = by_name(one.answer(records, None))
    ahead, target = output[:, :-1].astype(np.float64), label[:, 1:]
    counted = target != -100
    loss = sk.log_loss(target[counted], softmax(ahead[counted], axis=1), labels=range(11))
    assert found["perplexity"][0].value == pytest.approx(math.exp(loss), rel=1e-6)
    assert found["token_accuracy"][0].value == pytest.approx(sk.accuracy_score(target[counted], ahead[counted].argmax(axis=1)))


def test_intervals_of_perplexity_agree_with_scipys_bootstrap_alone_and_paired():
    n = 120  # with fewer than 47 the interval allows for samples that were not drawn
    label, output = language(n)
    other = output + 0.3 * language(n)[1][::-1]
    one, records = reduced("text-generation", label, output)
    _, before = reduced("text-generation", label, other)
    metric, change = by_name(one.answer(records, before))["perplexity"]

    def perplexity(found, rows):
        return np.exp(found[rows, 2].sum(axis=-1) / found[rows, 1].sum(axis=-1))

    def difference(rows, axis=-1):
        return perplexity(records, rows) - perplexity(before, rows)

    rows, settings = (np.arange(n),), {"method": "BCa", "n_resamples": 4000, "rng": np.random.default_rng(0)}
    alone = stats.bootstrap(rows, lambda rows, axis=-1: perplexity(records, rows), **settings).confidence_interval
    paired = stats.bootstrap(rows, difference, **settings).confidence_interval
    for found, expected in ((metric, alone), (change, paired)):
        width = expected.high - expected.low
        assert (found.low, found.high) == (pytest.approx(expected.low, abs=0.06 * width), pytest.approx(expected.high, abs=0.06 * width))


def test_probabilities_in_place_of_logits_are_refused_and_log_probabilities_taken():
    label, output = language()
    chances = softmax(output, axis=2)
    with pytest.raises(InputRejected, match="gives probabilities"):
        reduced("text-generation", label, chances)
    assert reduced("text-generation", label, np.log(chances))[1] == pytest.approx(reduced("text-generation", label, output)[1], rel=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_ends_stay_on_the_scale_and_a_sample_or_two_show_no_change_of_perplexity(n):
    label, output = language(40)
    label, output = np.abs(label[:n]) % 11, output[:n]
    one, records = reduced("text-generation", label, output)
    _, before = reduced("text-generation", label, 2 * output if n == 1 else output[::-1] * 0.9)
    found = by_name(one.answer(records, before))
    for name, (metric, change) in found.items():
        least, most = scale(name).low, scale(name).high
        assert least <= metric.low <= metric.value <= metric.high <= most, name
        assert least - most <= change.low <= change.value <= change.high <= most - least, name
    assert found["perplexity"][1].low < 0 < found["perplexity"][1].high


def test_a_token_without_any_chance_is_named():
    label, output = language()
    label[23, 4] = 3
    output[23, 3, 3] = -np.inf
    with pytest.raises(StageFailed, match="sample 23"):
        reduced("text-generation", label, output)
    label[23, 4] = 50
    with pytest.raises(InputRejected, match="label 50 in sample 23 is beyond the vocabulary of 11"):
        reduced("text-generation", label, output)


def test_a_hopeless_language_model_has_a_finite_perplexity():
    label, output = language()
    one, records = reduced("text-generation", label, output * 1e6)
    metric = by_name(one.answer(records, records))["perplexity"]
    assert all(math.isfinite(number) for number in (metric[0].value, metric[0].low, metric[0].high, metric[1].low, metric[1].high))


SYMBOLS = ("<pad>", "|", "a", "b", "c")


def frames(*texts, symbols=SYMBOLS):
    """Logits of which each frame's best symbol is the given one."""
    best = np.array([[symbols.index("<pad>" if one == "_" else one) for one in text] for text in texts])
    return np.eye(len(symbols), dtype=np.float32)[best]


def test_greedy_decoding_collapses_repetitions_and_drops_blanks():
    one = task("automatic-speech-recognition", np.array(["x"]), names=SYMBOLS)
    assert isinstance(one, Speech)
    for text, spoken in (("aa_abb|_|c", "aab  c"), ("____", ""), ("a_a_a", "aaa"), ("bbbbb", "b"), ("|a|", " a ")):
        assert one.decode(frames(text)[0].argmax(axis=1)) == spoken


@pytest.mark.parametrize(("symbols", "blank"), [(("a", "<pad>"), 1), (("a", "<blank>", "b"), 1), (("a", ""), 1), (("?", "a"), 0), (("", "<pad>"), 1)])
def test_the_blank_is_found_by_its_name(symbols, blank):
    one = task("automatic-speech-recognition", np.array(["x"]), names=symbols)
    assert [one.decode(np.array([index])) for index in range(len(symbols))] == [name if index != blank else "" for index, name in enumerate(symbols)]


def test_word_error_rate_of_known_sentences():
    label = np.array(["ab c", "a a a", "b", "c"])
    output = frames("ab|c______", "a_|_b|____", "b|a|c|____", "cc________")
    one, records = reduced("automatic-speech-recognition", label, output, batch=3, names=SYMBOLS, count=5)
    np.testing.assert_array_equal(records, [[0, 2], [2, 3], [2, 1], [0, 1]])
    metric = by_name(one.answer(records, None))["word_error_rate"][0]
    assert metric.value == 4 / 7 and metric.low < metric.value < metric.high


@functools.cache
def fewest_edits(one, other):
    """Levenshtein's distance by its definition."""
    if not one or not other:
        return len(one) + len(other)
    return min(fewest_edits(one[1:], other) + 1, fewest_edits(one, other[1:]) + 1, fewest_edits(one[1:], other[1:]) + (one[0] != other[0]))


@given(st.lists(st.sampled_from("abc"), max_size=6), st.lists(st.sampled_from("abc"), max_size=6))
def test_edits_are_levenshteins_distance(one, other):
    assert edits(one, other) == fewest_edits(tuple(one), tuple(other))


def test_speech_needs_the_names_of_its_symbols_and_some_words():
    with pytest.raises(ConfigError, match="names of the symbols") as caught:
        task("automatic-speech-recognition", np.array(["a"]), count=5)
    assert caught.value.where == "classes"
    one, records = reduced("automatic-speech-recognition", np.array(["", " "]), frames("a", "b"), names=SYMBOLS)
    with pytest.raises(InputRejected, match="no words"):
        one.answer(records, None)


# --- what labels a task needs --------------------------------------------------------------------------------------------------

KINDS = {
    "[n]": np.zeros(3, np.int64),
    "[n x t]": np.zeros((3, 4), np.int64),
    "[n x h x w]": np.zeros((3, 4, 4), np.uint8),
    "text": np.array(["a", "b", "c"]),
}
NEEDED = {
    **dict.fromkeys(("image-classification", "text-classification", "audio-classification"), "[n]"),
    "image-segmentation": "[n x h x w]",
    "token-classification": "[n x t]",
    "text-generation": "[n x t]",
    "automatic-speech-recognition": "text",
}


@pytest.mark.parametrize("name", list(TASKS))
def test_a_task_takes_labels_of_its_own_kind_only(name):
    for kind, label in KINDS.items():
        if kind == NEEDED[name]:
            task(name, label, names=SYMBOLS)
        else:
            with pytest.raises(InputRejected, match=r"column 'label' is .*, expected one .*") as caught:
                task(name, label, names=SYMBOLS)
            assert name in caught.value.hint
    with pytest.raises(InputRejected, match="has no column 'label'"):
        prepare(Question(name, names=SYMBOLS), Dataset({"x": np.zeros((3, 1))}))
