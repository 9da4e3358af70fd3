"""Stage: chooses the samples that activation ranges are computed from, and refuses ones that would ruin them.

What is refused is in :mod:`toolkit.samples.lint`. Samples come from the training split, never from the one that accuracy is measured on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.dataset import Dataset, load
from toolkit.errors import ConfigError, InputRejected
from toolkit.job import Facts, Job
from toolkit.samples import lint
from toolkit.samples.checks import check_dtypes, class_counts, ranges


def run(job: Job) -> Facts:
    """Chooses, checks and writes the folder ``calibration/``, without labels.

    Args:
        job: Input is ``samples`` (an ``.npz`` file or a folder of ``.npy`` files). Where there are any, ``evaluation``: samples that
            accuracy is measured on, none of which may be among them; ``reference``: samples that are known to be prepared as the model
            wants them, for which those of the evaluation stand in. Options: ``samples`` (how many to take), ``min_samples``, ``selection``
            (``stratified`` or ``random``), ``seed``, ``value_range`` (``[low, high]`` or ``None``), ``allow_noise``, and ``classes``: names
            of all classes, or how many there are; those of the evaluation otherwise.

    Returns:
        ``n``, ``selection``, ``per_class`` (by class index; empty without labels, see
        :func:`toolkit.samples.checks.class_counts`), ``sha256`` of the chosen rows, ``range``
        (smallest and largest value by column) and ``notes``.

    Raises:
        InputRejected: Too few samples, NaN or Inf, values outside of the range or unlike the reference, samples that carry no information,
            that are noise, that are evaluated on, or that show less than half of the classes.
        ConfigError: The options contradict each other.
    """
    options = job.options
    data = load(job.inputs["samples"])
    _check_available(data, options)
    check_dtypes(data)
    lint.check_range(lint.finite_ranges(data), options.get("value_range"), data.where)
    evaluation = load(job.inputs["evaluation"]) if "evaluation" in job.inputs else None
    notes = lint.check_apart(data, evaluation) if evaluation else []
    selection = options.get("selection", "stratified")
    if selection == "stratified" and not _one_class_each(data):
        selection = "random"
        missing = "no labels" if data.label is None else "not one class each"
        notes.append(f"samples have {missing}: rows are chosen at random instead of class by class")
    rows = choose(len(data), data.label if selection == "stratified" else None, int(options["samples"]), int(options.get("seed", 0)))
    chosen = data.take(rows)
    notes += lint.check_chosen(chosen, allow_noise=bool(options.get("allow_noise")))
    notes += _compare(job, chosen, evaluation)
    Dataset(chosen.columns, None, chosen.where).write(job.out / "calibration")
    return {
        "n": len(chosen),
        "selection": selection,
        "per_class": {str(one): count for one, count in class_counts(chosen.label).items()},
        "sha256": _sha256(chosen),
        "range": ranges(chosen),
        "notes": notes,
    }


def choose(available: int, label: np.ndarray | None, samples: int, seed: int) -> np.ndarray:
    """Chooses rows without repetition; the same arguments give the same rows.

    Args:
        available: Number of rows.
        label: Class of every row ``[n] int64`` to take every class in its share; ``None`` ignores classes.
        samples: How many rows to take; all of them when there are fewer.
        seed: Seed of the choice.

    Returns:
        Row indices in ascending order ``[k] int64``.
    """
    generator = np.random.default_rng(seed)
    count = min(samples, available)
    if label is None:
        return np.sort(generator.permutation(available)[:count])
    classes, sizes = np.unique(label, return_counts=True)
    seats = apportion(sizes.tolist(), count)
    picked = [generator.permutation(np.flatnonzero(label == one))[:taken] for one, taken in zip(classes, seats, strict=True)]
    return np.sort(np.concatenate(picked))


def apportion(sizes: Sequence[int], count: int) -> list[int]:
    """Shares ``count`` samples among classes in proportion to their sizes, by the largest-remainder (Hamilton) method.

    Every class gets at least one; it is taken from the class that lies furthest above its exact share. With fewer samples
    than classes the largest classes get one each. Ties go to the lower index.

    Args:
        sizes: Samples of each class, all positive.
        count: Samples to share out, at most the sum of ``sizes``.
    """
    total = sum(sizes)
    if count <= len(sizes):
        largest = sorted(range(len(sizes)), key=lambda one: -sizes[one])[:count]
        return [int(one in largest) for one in range(len(sizes))]
    seats = [count * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda one: -(count * sizes[one] % total))
    for one in by_remainder[: count - sum(seats)]:
        seats[one] += 1
    while 0 in seats:
        # Excess over the exact share, times the total so that it stays a whole number.
        donor = max((one for one in range(len(sizes)) if seats[one] > 1), key=lambda one: seats[one] * total - count * sizes[one])
        seats[donor] -= 1
        seats[seats.index(0)] = 1
    return seats


def _check_available(data: Dataset, options: Mapping[str, Any]) -> None:
    asked, needed = int(options["samples"]), int(options.get("min_samples", 1))
    if asked < needed:
        raise ConfigError(
            f"calibration asks for {asked} samples, the recipe needs at least {needed}", where="calibration.samples", hint="ask for more"
        )
    if len(data) < needed:
        raise InputRejected(f"has {len(data)} samples, calibration needs at least {needed}", where=data.where, hint="give more training samples")


def _compare(job: Job, chosen: Dataset, evaluation: Dataset | None) -> list[str]:
    """Holds the chosen samples against what is known of the right ones: their ranges, and their classes."""
    reference = load(job.inputs["reference"]) if "reference" in job.inputs else evaluation
    called = "reference" if "reference" in job.inputs else "evaluation"
    notes = lint.check_like(chosen, reference, called) if reference else []
    if reference is None and job.options.get("value_range") is None:
        notes += lint.check_bytes(chosen)
    classes = job.options.get("classes")
    names: Sequence[str] = () if classes is None or isinstance(classes, int) else classes
    told = evaluation if evaluation is not None and _one_class_each(evaluation) else None
    known = range(classes if isinstance(classes, int) else len(names)) or (sorted(class_counts(told.label)) if told else ())
    return notes + (lint.check_classes(chosen.label, known, names, chosen.where) if known else [])


def _one_class_each(data: Dataset) -> bool:
    return data.label is not None and data.label.ndim == 1 and data.label.dtype.kind in "iu"


def _sha256(data: Dataset) -> str:
    """Digest over names, types and values of all columns."""
    digest = hashlib.sha256()
    for name, column in sorted(data.columns.items()):
        digest.update(f"{name} {column.dtype} {column.shape}\n".encode())
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
