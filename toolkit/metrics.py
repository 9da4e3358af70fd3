"""The metrics by name: their scale, which way is better, and which of them a task has. No figure is computed here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

IGNORED = -100
"""Label of positions that do not count, in tasks that label parts of a sample (the convention of PyTorch's cross-entropy)."""


@dataclass(frozen=True)
class Scale:
    """What values a metric can take and what they mean.

    Attributes:
        low: Smallest possible value.
        high: Largest possible value; infinite where there is none.
        better: Whether a higher or a lower value is better.
        rate: Whether it is a share of something and shown in percent.
        idle: What a model that does nothing at all reaches, where that is known; a limit beyond it limits nothing.
    """

    low: float
    high: float
    better: Literal["higher", "lower"]
    rate: bool = True
    idle: float | None = None


_SHARE = Scale(0.0, 1.0, "higher")
_ERROR = Scale(0.0, 1.0, "lower")

METRICS: dict[str, Scale] = {
    "top1_accuracy": _SHARE,
    "top5_accuracy": _SHARE,
    "macro_f1": _SHARE,
    "roc_auc": _SHARE,
    "average_precision": _SHARE,
    "sensitivity_at_specificity": _SHARE,
    "expected_calibration_error": _ERROR,
    "mean_iou": _SHARE,
    "pixel_accuracy": _SHARE,
    "token_accuracy": _SHARE,
    "perplexity": Scale(1.0, math.inf, "lower", rate=False),
    "word_error_rate": Scale(0.0, math.inf, "lower", idle=1.0),
}

_CLASSIFICATION = (
    "top1_accuracy",
    "top5_accuracy",
    "macro_f1",
    "roc_auc",
    "average_precision",
    "sensitivity_at_specificity",
    "expected_calibration_error",
)

TASKS: dict[str, tuple[str, ...]] = {
    "image-classification": _CLASSIFICATION,
    "text-classification": _CLASSIFICATION,
    "audio-classification": _CLASSIFICATION,
    "image-segmentation": ("mean_iou", "pixel_accuracy"),
    "token-classification": ("token_accuracy", "macro_f1"),
    "text-generation": ("perplexity", "token_accuracy"),
    "automatic-speech-recognition": ("word_error_rate",),
}
"""What is measured for a task; the first one is its primary metric unless a project chooses another."""

CLASSIFICATION = tuple(task for task, names in TASKS.items() if names is _CLASSIFICATION)
"""Tasks with one class index per sample."""


def scale(name: str) -> Scale:
    """Returns a metric's scale; one that a plugin invented is a plain number of which more is better."""
    return METRICS.get(name, Scale(-math.inf, math.inf, "higher", rate=False))


def loss(name: str, change: float) -> float:
    """Returns how much worse a change of a metric is: positive is a loss, whichever way the metric counts."""
    return -change if scale(name).better == "higher" else change
