"""One class for each part of a sample: pixels of images, tokens of texts."""

from __future__ import annotations

from functools import partial

import numpy as np

from toolkit.dataset import Dataset, answers, release
from toolkit.errors import InputRejected
from toolkit.measure.tasks import estimates
from toolkit.measure.tasks.interface import Answer, Question
from toolkit.metrics import IGNORED, TASKS
from toolkit.stats.resampling import Statistic


class Parts:
    """Scores for each part against one class index for each part; parts labelled -100 do not count.

    Images are ``[n x classes x height x width]`` or ``[n x height x width x classes]``, told apart by the labels' height and width
    and by the number of classes; where both would fit, the classes come first. Texts are ``[n x tokens x classes]``.

    A record says how many parts of a sample are right, labelled and picked as each class, ``[3 x classes] int32``: the sums from
    which every metric follows, for the samples themselves as for any resample of them.
    """

    file = "records.npy"

    def __init__(self, question: Question, data: Dataset) -> None:
        self._question = question
        self._label = answers(data, question.task)
        self._image = self._label.ndim == 3
        self.axes: tuple[str, ...] = ("classes", "height", "width") if self._image else ("tokens", "classes")
        self._first = self._image

    def check(self, shape: tuple[int, ...]) -> None:
        """Finds the axis of the classes; see :meth:`interface.Task.check`."""
        sizes, count = self._label.shape[1:], self._question.count
        first = self._image and shape[1:] == sizes and count in (None, shape[0])
        last = shape[:-1] == sizes and count in (None, shape[-1])
        if not first and not last:
            self._refuse(shape, sizes)
        self._first = first

    def _refuse(self, shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
        names = ["classes" if self._question.count is None else str(self._question.count), *map(str, sizes)]
        layouts = [" x ".join(names), " x ".join([*names[1:], names[0]])] if self._image else [" x ".join([*names[1:], names[0]])]
        raise InputRejected(
            f"gives {' x '.join(map(str, shape))} per sample, expected {' or '.join(layouts)}",
            where=self._question.model,
            hint="give labels of the size that the model gives, and as many classes as it has scores",
        )

    def reduce(self, start: int, output: np.ndarray) -> np.ndarray:
        """Counts right, labelled and picked parts by class; see :meth:`interface.Task.reduce`."""
        axis = 1 if self._first else output.ndim - 1
        classes = output.shape[axis]
        label = np.asarray(self._label[start : start + len(output)]).reshape(len(output), -1)
        picked = output.argmax(axis=axis).reshape(len(output), -1)
        counted = label != IGNORED
        if counted.any() and int(label[counted].max()) >= classes:
            sample = int(np.argmax(((label >= classes) & counted).any(axis=1)))
            raise InputRejected(
                f"label {label[sample].max()} in sample {start + sample} is beyond the {classes} classes",
                where=self._question.data,
                hint=f"labels go from 0 to classes - 1; {IGNORED} marks parts that do not count",
            )
        owner = np.broadcast_to(np.arange(len(output))[:, None] * classes, label.shape)[counted]
        label, picked = label[counted].astype(np.int64), picked[counted]
        right = label == picked
        keys = (owner[right] + label[right], owner + label, owner + picked)
        counts = [np.bincount(key, minlength=len(output) * classes).reshape(-1, classes) for key in keys]
        release(self._label)
        return np.stack(counts, axis=1).astype(np.int32)

    def answer(self, records: np.ndarray, reference: np.ndarray | None) -> Answer:
        """Returns the figures; see :meth:`interface.Task.answer`."""
        if not records[:, 1].any():
            raise InputRejected(f"every part of every sample is labelled {IGNORED}", where=self._question.data, hint="label what is to count")
        measures = {name: partial(estimates.resampled, name, len(records), _MAKERS[name], records, reference) for name in TASKS[self._question.task]}
        return Answer(self._question.order(measures, {}))


def _accuracy(counts: np.ndarray) -> Statistic:
    return estimates.ratio(counts[:, 0].sum(axis=1), counts[:, 1].sum(axis=1))


def _flat(counts: np.ndarray) -> np.ndarray:
    return np.asarray(counts, dtype=np.float64).reshape(len(counts), -1)


_MAKERS = {
    "mean_iou": lambda counts: estimates.mean_iou(_flat(counts)),
    "macro_f1": lambda counts: estimates.macro_f1(_flat(counts)),
    "pixel_accuracy": _accuracy,
    "token_accuracy": _accuracy,
}
