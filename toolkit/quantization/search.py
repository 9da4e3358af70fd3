"""The search split: what repairs are chosen by, and never what the verdict comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import plugins
from toolkit.dataset import Dataset
from toolkit.errors import InputRejected
from toolkit.metrics import CLASSIFICATION, IGNORED
from toolkit.stats.proportions import paired_difference_interval
from toolkit.stats.signal import finite_db, sqnr_db

LABELLED = (*CLASSIFICATION, "image-segmentation", "token-classification")
"""Tasks whose labels an argmax is held against; elsewhere it is held against the float model's own."""
CLEAN_DB = 20.0
"""An output whose noise is a tenth of it."""
_CLEANER_DB = 0.5
_CLOSER = 0.95
_MOST_BYTES = 256 << 20
_BATCH = 16
_SPREAD = 0.1
_Z = 1.959964
_SUM = 0.02  # int8 probabilities add up to one as well as they can
_LEAST = 1e-6


@dataclass(frozen=True)
class Judged:
    """How a quantized file does on the search split.

    Attributes:
        n: Samples.
        drop: Share of right answers that the float model has and this one has not: value, low and high end of the 95 % interval.
        sqnr_db: Signal over quantization noise of the output, in dB.
        divergence: Mean Kullback-Leibler divergence of its class probabilities from the float model's, in nats; ``None`` where the output has
            no classes. It tells which of two files is closer where few answers change: noise in a score that is far ahead anyway is in the
            SQNR, and says nothing.
    """

    n: int
    drop: tuple[float, float, float]
    sqnr_db: float
    divergence: float | None = None

    def facts(self) -> dict[str, Any]:
        """It as plain values."""
        return {"n": self.n, "drop": list(self.drop), "sqnr_db": self.sqnr_db, "divergence": self.divergence}

    def holds(self, max_drop: float) -> bool:
        """Whether the search may stop: the interval holds the budget; or the value has half of it to spare, and the output is clean.

        Few samples say little about how many answers are lost, but enough about how far the output is off.
        """
        return self.drop[2] <= max_drop or (self.drop[0] <= max_drop / 2 and self.sqnr_db >= CLEAN_DB)

    def better_than(self, other: Judged | None) -> bool:
        """Whether this is the better file: more right answers than chance explains, or about as many and an output that is clearly closer."""
        if other is None:
            return True
        if abs(self.drop[0] - other.drop[0]) > max(self._error(), other._error()):
            return self.drop[0] < other.drop[0]
        if self.divergence is not None and other.divergence is not None:
            return self.divergence < other.divergence * _CLOSER
        return self.sqnr_db > other.sqnr_db + _CLEANER_DB

    def _error(self) -> float:
        """Standard error of the loss."""
        return (self.drop[2] - self.drop[1]) / 2 / _Z


@dataclass
class Search:
    """Runs files on the search split.

    Attributes:
        data: The samples, as the model takes them.
        runtime: What runs the files.
        threads: Threads of one inference.
        output: Name of the output that answers; the first one where it is empty.
        task: What the model does; decides what labels are worth.
    """

    data: Dataset
    runtime: Any
    threads: int = 1
    output: str = ""
    task: str = ""
    _float: dict[Path, np.ndarray] = field(default_factory=dict)

    def judge(self, model: Path, twin: Path) -> Judged:
        """Compares a quantized file with its float twin.

        Args:
            model: The quantized file.
            twin: The float file that it stands for.

        Raises:
            InputRejected: The outputs differ in shape.
        """
        expected, found = self.reference(twin), self.outputs(model, rows=len(self.reference(twin)))
        if expected.shape != found.shape:
            what = f"gives {list(found.shape)} where its float twin gives {list(expected.shape)}"
            raise InputRejected(what, where=model.name, hint="report it with the model")
        label = self.data.label[: len(expected)] if self.data.label is not None and self.task in LABELLED else None
        reference, candidate = right(expected, label, expected), right(found, label, expected)
        return Judged(len(expected), lost(reference, candidate), finite_db(sqnr_db(expected, found)), divergence(expected, found, label))

    def reference(self, twin: Path) -> np.ndarray:
        """The float model's output on the split ``[n x ...]``."""
        if twin not in self._float:
            self._float[twin] = self.outputs(twin)
        return self._float[twin]

    def outputs(self, model: Path, *, rows: int | None = None) -> np.ndarray:
        """One file's output, as many rows of it as asked for or as fit into memory ``[n x ...] float32``."""
        session = self.runtime.open(model, threads=self.threads)
        name = self.output or session.signature.outputs[0].name
        free = all(isinstance(spec.shape[0], str) for spec in session.signature.inputs if spec.shape)
        size = min(_BATCH, getattr(session, "largest_batch", _BATCH)) if free else 1
        found: list[np.ndarray] = []
        taken, most = 0, rows or len(self.data)
        for batch in self.data.take(slice(0, most)).batches(size):
            found.append(np.asarray(session.run(_typed(batch, session.signature))[name], np.float32))
            taken += len(found[-1])
            if rows is None and taken * found[0][:1].nbytes >= _MOST_BYTES:
                break
        return np.concatenate(found)


def right(scores: np.ndarray, label: np.ndarray | None, reference: np.ndarray) -> np.ndarray:
    """Share of each sample's answers that are right ``[n] float64``.

    Args:
        scores: A model's output ``[n x ...]``.
        label: The answers; without them, or where they do not fit the output, the reference's own count.
        reference: The float model's output.
    """
    axis = _class_axis(scores, label)
    if axis is None:
        near = np.abs(scores - reference) <= _SPREAD * max(float(reference.std()), 1e-30)
        return near.reshape(len(scores), -1).mean(axis=1)
    answer = reference.argmax(axis) if label is None or label.shape != scores.argmax(axis).shape else label
    counts = answer != IGNORED
    hit = ((scores.argmax(axis) == answer) & counts).reshape(len(scores), -1).sum(axis=1)
    return hit / np.maximum(counts.reshape(len(scores), -1).sum(axis=1), 1)


def lost(reference: np.ndarray, candidate: np.ndarray) -> tuple[float, float, float]:
    """Mean loss with its 95 % interval: Newcombe's paired one for answers that are right or wrong, else that of the mean difference."""
    if set(np.unique(reference)) | set(np.unique(candidate)) <= {0.0, 1.0}:
        both, gone = int((reference * candidate).sum()), int((reference * (1 - candidate)).sum())
        gained = int(((1 - reference) * candidate).sum())
        value, low, high = paired_difference_interval(both, gone, gained, len(reference) - both - gone - gained)
        return -value, -high, -low
    loss = reference - candidate
    half = _Z * float(loss.std(ddof=1)) / sqrt(len(loss)) if len(loss) > 1 else 1.0
    return float(loss.mean()), float(loss.mean()) - half, float(loss.mean()) + half


def divergence(expected: np.ndarray, found: np.ndarray, label: np.ndarray | None = None) -> float | None:
    """Mean Kullback-Leibler divergence of one output's class probabilities from another's, in nats.

    Args:
        expected: Scores or probabilities ``[n x ...]`` of the float model.
        found: Those of the other file.
        label: The answers, which tell the axis of the classes.

    Returns:
        ``None`` where the output has no classes.
    """
    axis = _class_axis(expected, label)
    if axis is None:
        return None
    told = [_logarithms(one, axis) for one in (expected, found)]
    return float((np.exp(told[0]) * (told[0] - told[1])).sum(axis).mean())


def _logarithms(scores: np.ndarray, axis: int) -> np.ndarray:
    """Logarithms of probabilities, which a softmax makes of scores that are none yet."""
    if (scores >= 0).all() and np.allclose(scores.sum(axis), 1, atol=_SUM):
        return np.log(np.maximum(scores, _LEAST))
    best: np.ndarray = scores - scores.max(axis, keepdims=True)
    return np.asarray(best - np.log(np.exp(best).sum(axis, keepdims=True)))


def open_search(samples: Dataset, options: Mapping[str, Any], format: str) -> Search:
    """Makes a search as a stage's options ask for it."""
    runtime = plugins.get("runtimes", options["runtime"]) if options.get("runtime") else plugins.runtime_for(format)
    return Search(samples, runtime, int(options.get("threads", 1)), str(options.get("output") or ""), str(options.get("task", "")))


def _class_axis(scores: np.ndarray, label: np.ndarray | None) -> int | None:
    """The axis of the classes; ``None`` where the output has none."""
    if scores.ndim < 2:
        return None
    if label is not None and label.ndim == scores.ndim - 1:
        axis = -1 if label.shape == scores.shape[:-1] else 1
    else:
        axis = 1 if scores.ndim in (2, 4) else -1
    return axis if scores.shape[axis] > 1 else None


def _typed(batch: Mapping[str, np.ndarray], signature: Any) -> dict[str, np.ndarray]:
    return {spec.name: np.ascontiguousarray(batch[spec.name], dtype=spec.dtype) for spec in signature.inputs}
