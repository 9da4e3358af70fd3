"""One class for each sample: images, texts, sounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from toolkit.dataset import Dataset, answers
from toolkit.errors import ConfigError, InputRejected
from toolkit.figures import Change, Metric
from toolkit.measure.tasks import estimates
from toolkit.measure.tasks.interface import Answer, Measured, Question
from toolkit.measure.tasks.one_by_one import class_changes, list_flips
from toolkit.measure.tasks.summary import Summary, class_counts, standing, summarize
from toolkit.stats import ranking, thresholds
from toolkit.stats.calibration import calibration_change, calibration_interval
from toolkit.stats.proportions import proportion_interval

TOP = 5
MOST_CURVES = 100


@dataclass(frozen=True)
class _Side:
    """One model's scores ``[n x classes] float32`` and what is known of them."""

    scores: np.ndarray
    summary: Summary


class Classification:
    """Scores ``[n x classes]`` against one class index for each sample. The records are the scores themselves.

    The area under the ROC curve is the mean over classes of each against the rest; with two classes both have the same. Above 100
    classes it is left out unless it comes first. Average precision and sensitivity are those of the positive class: class 1 of
    two, or the one that was named; without one they are left out. So is top-5 accuracy with five classes or fewer.
    """

    axes: tuple[str, ...] = ("classes",)
    file = "scores.npy"

    def __init__(self, question: Question, data: Dataset) -> None:
        self._question = question
        self._label = answers(data, question.task)

    def check(self, shape: tuple[int, ...]) -> None:
        """Holds the number of scores against the classes and the labels; see :meth:`interface.Task.check`."""
        self._question.check_count(shape[0])
        if shape[0] < 2:
            raise InputRejected(
                "gives one score per sample, which is always the highest, so that every model would be right",
                where=self._question.model,
                hint="export one score for each class; of a sigmoid p these are 1 - p and p",
            )
        sample = int(self._label.argmax())
        if self._label[sample] >= shape[0]:
            raise InputRejected(
                f"label {self._label[sample]} of sample {sample} is beyond the {shape[0]} classes",
                where=self._question.data,
                hint="labels go from 0 to classes - 1",
            )

    def reduce(self, start: int, output: np.ndarray) -> np.ndarray:
        """Keeps the scores as they are; see :meth:`interface.Task.reduce`."""
        return output

    def answer(self, records: np.ndarray, reference: np.ndarray | None) -> Answer:
        """Returns the figures; see :meth:`interface.Task.answer`."""
        now = _Side(records, summarize(records, self._label))
        before = _Side(reference, summarize(reference, self._label)) if reference is not None else None
        picked, right = now.summary.picked, now.summary.right
        positive = self._positive(records.shape[1])
        left_out = self._left_out(records.shape[1], positive)
        measured = self._measured(now, before, positive, left_out)
        if before and not self._tells_anything(before):
            measured = [(metric, change and change.model_copy(update={"informative": False})) for metric, change in measured]
        return Answer(
            measured,
            float(np.mean(picked == before.summary.picked)) if before else None,
            class_changes(self._label, right, before.summary.right if before else None, self._question.name),
            list_flips(self._label, picked, before.summary.picked) if before else None,
            right,
            left_out,
        )

    def _tells_anything(self, reference: _Side) -> bool:
        """Whether the reference does better than always naming the most frequent class, or at least ranks better than chance.

        A model that guesses loses nothing when it is damaged, and neither does a right one whose labels are wrong.
        """
        guessed = np.bincount(self._label).max() / len(self._label)
        if proportion_interval(int(np.count_nonzero(reference.summary.right)), len(self._label))[0] > guessed:
            return True
        return bool(guessed < 1) and reference.scores.shape[1] <= MOST_CURVES and _roc_auc(self._label, reference, None)[0].low > 0.5

    def _measured(self, now: _Side, before: _Side | None, positive: int | None, left_out: dict[str, str]) -> list[Measured]:
        label = self._label
        measures: dict[str, Callable[[], Measured]] = {
            "top1_accuracy": lambda: _top("top1_accuracy", 1, now, before),
            "top5_accuracy": lambda: _top("top5_accuracy", TOP, now, before),
            "macro_f1": lambda: _macro_f1(label, now, before),
            "roc_auc": lambda: _roc_auc(label, now, before),
            "average_precision": lambda: _average_precision(label, positive or 0, now, before),
            "sensitivity_at_specificity": lambda: _sensitivity(label, positive or 0, self._question.specificity, now, before),
            "expected_calibration_error": lambda: _calibration(now, before),
        }
        return self._question.order({name: make for name, make in measures.items() if name not in left_out}, left_out)

    def _left_out(self, classes: int, positive: int | None) -> dict[str, str]:
        """Returns why a metric is not measured."""
        why = {}
        if classes <= TOP:
            why["top5_accuracy"] = f"any {TOP} of {classes} classes hold the right one"
        if (self._label == self._label[0]).all():
            why["roc_auc"] = "all samples are of one class"
        elif classes > MOST_CURVES and self._question.primary != "roc_auc":
            why["roc_auc"] = f"there are more than {MOST_CURVES} classes"
        no_curve = "no positive class is named; set metrics.positive" if positive is None else ""
        if positive is not None and not 0 < np.count_nonzero(self._label == positive) < len(self._label):
            no_curve = f"all samples or none are of the positive class {self._question.name(positive)!r}"
        return why | (dict.fromkeys(("average_precision", "sensitivity_at_specificity"), no_curve) if no_curve else {})

    def _positive(self, classes: int) -> int | None:
        """Returns the index of the positive class, or ``None`` where there is no telling."""
        wanted, names = self._question.positive, self._question.names
        if wanted is None:
            return 1 if classes == 2 else None
        if isinstance(wanted, int) and 0 <= wanted < classes:
            return wanted
        if isinstance(wanted, str) and wanted in names:
            return names.index(wanted)
        known = ", ".join(names[:10]) or f"0 to {classes - 1}"
        raise ConfigError(
            f"unknown positive class {wanted!r}; known: {known}", where="metrics.positive", hint="give the index or the name of a class"
        )


def _top(name: str, k: int, now: _Side, before: _Side | None) -> Measured:
    return estimates.rate(name, now.summary.rank < k, before.summary.rank < k if before else None)


def _macro_f1(label: np.ndarray, now: _Side, before: _Side | None) -> Measured:
    from sklearn.metrics import f1_score

    point = float(f1_score(label, now.summary.picked, average="macro", zero_division=0.0))
    return estimates.resampled("macro_f1", len(label), lambda side: estimates.macro_f1(class_counts(side.summary, label)), now, before, point)


def _average_precision(label: np.ndarray, positive: int, now: _Side, before: _Side | None) -> Measured:
    from sklearn.metrics import average_precision_score

    found, ours, name = standing(now.scores, now.summary, positive), label == positive, "average_precision"
    value, (_, low, high) = float(average_precision_score(ours, found)), thresholds.average_precision_interval(found, ours)
    metric = Metric(name=name, value=value, low=low, high=high, n=len(label), method="logit with jackknife error")
    if before is None:
        return metric, None
    value, low, high = thresholds.average_precision_change(found, standing(before.scores, before.summary, positive), ours)
    return metric, Change(metric=name, value=value, low=low, high=high, n=len(label), method="jackknife with skewness")


def _sensitivity(label: np.ndarray, positive: int, specificity: float, now: _Side, before: _Side | None) -> Measured:
    found, ours, name = standing(now.scores, now.summary, positive), label == positive, "sensitivity_at_specificity"
    value, low, high = thresholds.sensitivity_interval(found, ours, specificity)
    metric = Metric(name=name, value=value, low=low, high=high, n=len(label), method="Wilson with threshold error")
    if before is None:
        return metric, None
    value, low, high = thresholds.sensitivity_change(found, standing(before.scores, before.summary, positive), ours, specificity)
    return metric, Change(metric=name, value=value, low=low, high=high, n=len(label), method="Newcombe with threshold error")


def _calibration(now: _Side, before: _Side | None) -> Measured:
    name, method, n = "expected_calibration_error", "normal with bounded bias", len(now.scores)
    side = now.summary.confidence, now.summary.right
    value, low, high = calibration_interval(*side)
    metric = Metric(name=name, value=value, low=low, high=high, n=n, method=method)
    if before is None:
        return metric, None
    value, low, high = calibration_change(side, (before.summary.confidence, before.summary.right))
    return metric, Change(metric=name, value=value, low=low, high=high, n=n, method=method)


def _roc_auc(label: np.ndarray, now: _Side, before: _Side | None) -> Measured:
    """Measures the mean area of every class that occurs against the rest, by DeLong's method."""
    from sklearn.metrics import roc_auc_score

    found, n = standing(now.scores, now.summary), len(label)
    value = float(np.mean([roc_auc_score(label == one, found[:, one]) for one in np.unique(label)]))
    two = found.shape[1] == 2  # the two curves mirror each other: one says it all
    _, low, high = ranking.delong_interval(found[:, 1], label == 1) if two else ranking.delong_macro_interval(found, label)
    metric = Metric(name="roc_auc", value=value, low=low, high=high, n=n, method="DeLong")
    if before is None:
        return metric, None
    other = standing(before.scores, before.summary)
    if two:
        value, low, high, _ = ranking.delong_change(found[:, 1], other[:, 1], label == 1)
    else:
        value, low, high = ranking.delong_macro_change(found, other, label)
    return metric, Change(metric="roc_auc", value=value, low=low, high=high, n=n, method="DeLong")
