"""What happened to each class and to each sample of a classification."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from toolkit.figures import ClassChange, Flip
from toolkit.stats.proportions import holm, mcnemar_p, paired_difference_interval


def class_changes(label: np.ndarray, right: np.ndarray, before: np.ndarray | None, name: Callable[[int], str]) -> tuple[ClassChange, ...]:
    """Returns what happened to each class that has samples, the largest loss first; without a reference, the least right one first.

    The p values are adjusted for the number of classes.

    Args:
        label: Class of each sample, ``[n] int64``.
        right: Which samples the model got right, ``[n] bool``.
        before: Which ones the reference got right; ``None`` without one.
        name: Gives a class's name.
    """
    found = []
    sizes, hits = np.bincount(label), np.bincount(label[right], minlength=int(label.max()) + 1)
    if before is None:
        for one in np.flatnonzero(sizes).tolist():
            found.append(ClassChange(name=name(one), n=int(sizes[one]), candidate=float(hits[one] / sizes[one])))
        return tuple(sorted(found, key=lambda change: change.candidate))
    lost, gained = (np.bincount(label[mask], minlength=len(sizes)) for mask in (before & ~right, right & ~before))
    occurring = np.flatnonzero(sizes).tolist()
    p_values = holm([mcnemar_p(int(lost[one]), int(gained[one])) for one in occurring])
    for one, p_value in zip(occurring, p_values, strict=True):
        found.append(_class_change(name(one), int(sizes[one]), int(hits[one]), int(lost[one]), int(gained[one]), p_value))
    return tuple(sorted(found, key=lambda change: (change.candidate - (change.reference or 0.0), change.p_value)))


def _class_change(name: str, n: int, hits: int, lost: int, gained: int, p_value: float) -> ClassChange:
    _, low, high = paired_difference_interval(hits - gained, lost, gained, n - hits - lost)
    return ClassChange(
        name=name,
        n=n,
        reference=(hits - gained + lost) / n,
        candidate=hits / n,
        low=low,
        high=high,
        lost=lost,
        gained=gained,
        p_value=p_value,
    )


def list_flips(label: np.ndarray, picked: np.ndarray, before: np.ndarray) -> tuple[Flip, ...]:
    """Returns every sample that model and reference label differently: lost ones first, then gained ones, then those both got wrong."""
    samples = np.flatnonzero(picked != before)
    kind = np.where(before == label, 0, np.where(picked == label, 1, 2))[samples]
    ordered = samples[np.argsort(kind, kind="stable")].tolist()
    return tuple(Flip(sample=one, label=int(label[one]), reference=int(before[one]), candidate=int(picked[one])) for one in ordered)
