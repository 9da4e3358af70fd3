"""What a task is: it says how outputs become a record per sample, and what figures follow from the records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from toolkit.errors import ConfigError, InputRejected
from toolkit.figures import Change, ClassChange, Flip, Metric
from toolkit.metrics import TASKS

Measured = tuple[Metric, Change | None]
"""A metric, and its change against the reference where there is one."""


@dataclass(frozen=True)
class Question:
    """What is to be measured.

    Attributes:
        task: The task's name, a key of :data:`toolkit.metrics.TASKS`.
        names: Names of the classes by index; empty where only their number is known, or nothing.
        count: Number of classes; ``None`` takes what the model gives.
        primary: The metric that comes first.
        positive: The class that stands against the rest, by index or name; ``None`` for the task's own choice.
        specificity: The specificity at which sensitivity is measured.
        model: The model file, for messages.
        data: The data set, for messages.
    """

    task: str
    names: tuple[str, ...] = ()
    count: int | None = None
    primary: str | None = None
    positive: int | str | None = None
    specificity: float = 0.95
    model: str = "model"
    data: str = "data"

    def check_count(self, found: int, what: str = "sample") -> None:
        """Holds the number of scores against the number of classes, where that is known.

        Args:
            found: The number of scores.
            what: What they are for: a sample, a token, a frame.

        Raises:
            InputRejected: They differ.
        """
        if self.count is not None and found != self.count:
            hint = "name as many classes as the model has scores"
            raise InputRejected(f"gives {found} scores per {what}, expected {self.count}", where=self.model, hint=hint)

    def name(self, index: int) -> str:
        """Returns a class's name, or its index where it has none."""
        return self.names[index] if index < len(self.names) else str(index)

    def order(self, measures: Mapping[str, Callable[[], Measured]], left_out: Mapping[str, str]) -> list[Measured]:
        """Measures what can be measured, the primary metric first.

        Args:
            measures: What computes each metric.
            left_out: Why the others are not measured.

        Raises:
            ConfigError: The primary metric is unknown or left out.
        """
        primary = self.primary or TASKS[self.task][0]
        if primary not in measures:
            why = left_out.get(primary) or f"it is not a metric of {self.task}"
            raise ConfigError(
                f"{primary} cannot be measured: {why}", where="metrics.primary", hint=f"choose one of: {', '.join(measures)}; or mend the reason"
            )
        return [measures[name]() for name in sorted(measures, key=lambda name: name != primary)]


@dataclass(frozen=True)
class Answer:
    """What was measured.

    Attributes:
        measured: Every metric with its change, the primary one first.
        agreement: Share of samples on which model and reference pick the same class; ``None`` without one or the other.
        classes: What happened to each class; empty for tasks where a sample is not of one class.
        flips: Samples that model and reference label differently; ``None`` likewise.
        outcomes: Which samples were right, ``[n] bool``; ``None`` where a sample is not simply right or wrong.
        left_out: Why a metric of the task was not measured, by name.
    """

    measured: list[Measured]
    agreement: float | None = None
    classes: tuple[ClassChange, ...] = ()
    flips: tuple[Flip, ...] | None = None
    outcomes: np.ndarray | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)


class Task(Protocol):
    """One family of tasks, ready for one model on one data set.

    Attributes:
        axes: Axes of one sample's output, in words; several where the output may be laid out in several ways.
        file: Name of the ``.npy`` file that holds the records.
    """

    axes: tuple[str, ...]
    file: str

    def check(self, shape: tuple[int, ...]) -> None:
        """Holds the shape of one sample's output against labels and classes.

        Raises:
            InputRejected: They do not fit.
        """

    def reduce(self, start: int, output: np.ndarray) -> np.ndarray:
        """Returns what the metrics need to know of some samples, ``[k x ...]``.

        Args:
            start: The first of the samples.
            output: What the model gave for them, ``[k x ...] float32``, without NaN.

        Raises:
            InputRejected: A label does not fit the output.
            StageFailed: An output cannot be judged.
        """

    def answer(self, records: np.ndarray, reference: np.ndarray | None) -> Answer:
        """Returns the figures of a model from its records, and the changes from those of the reference on the same samples.

        Raises:
            ConfigError: The primary metric cannot be measured on these samples.
        """
