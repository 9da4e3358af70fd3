"""Stage: chooses the samples that activation ranges are computed from, and refuses ones that would ruin them.

Quantizers accept NaN, images in 0..255 where the model saw 0..1, or one sample 200 times; the int8 model is then wrong
without a word. Samples come from the training split, never from the one that accuracy is measured on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.dataset import Dataset, load
from toolkit.errors import ConfigError, InputRejected
from toolkit.job import Facts, Job
from toolkit.samples.checks import check_dtypes, check_finite, class_counts, ranges


def run(job: Job) -> Facts:
    """Chooses, checks and writes the folder ``calibration/``, without labels.

    Args:
        job: Input is ``samples`` (an ``.npz`` file or a folder of ``.npy`` files). Options: ``samples`` (how many to take),
            ``min_samples``, ``selection`` (``stratified`` or ``random``), ``seed`` and ``value_range`` (``[low, high]`` or ``None``).

    Returns:
        ``n``, ``selection``, ``per_class`` (by class index; empty without labels, see
        :func:`toolkit.samples.checks.class_counts`), ``sha256`` of the chosen rows, ``range``
        (smallest and largest value by column) and ``notes``.

    Raises:
        InputRejected: Too few samples, NaN or Inf, values outside of the range, or samples that carry no information.
        ConfigError: The options contradict each other.
    """
    options = job.options
    data = load(job.inputs["samples"])
    _check_available(data, options)
    check_dtypes(data)
    check_finite(data)
    _check_range(data, options.get("value_range"))
    selection = options.get("selection", "stratified")
    notes = []
    if selection == "stratified" and not _one_class_each(data):
        selection = "random"
        missing = "no labels" if data.label is None else "not one class each"
        notes.append(f"samples have {missing}: rows are chosen at random instead of class by class")
    rows = choose(len(data), data.label if selection == "stratified" else None, int(options["samples"]), int(options.get("seed", 0)))
    chosen = data.take(rows)
    _check_variety(chosen)
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


def _check_range(data: Dataset, allowed: Sequence[float] | None) -> None:
    if allowed is None:
        return
    low, high = allowed
    for name, (smallest, largest) in ranges(data).items():
        if smallest < low or largest > high:
            raise InputRejected(
                f"column {name!r} has values {smallest:g}..{largest:g}, the recipe says {low:g}..{high:g}",
                where=data.where,
                hint="prepare calibration samples like the training samples, for example divide 8-bit images by 255",
            )


def _check_variety(data: Dataset) -> None:
    """Refuses samples that cannot show what activations look like."""
    digests = data.digests()
    distinct = len(set(digests))
    if len(data) > 1 and distinct == 1:
        raise InputRejected(f"all {len(data)} calibration samples are identical", where=data.where, hint="give real samples")
    if (len(data) - distinct) * 2 > len(data):
        raise InputRejected(
            f"{len(data) - distinct} of {len(data)} calibration samples repeat another one, expected at most half",
            where=data.where,
            hint="give more different samples",
        )
    for name in _signal_columns(data):
        flat = data.columns[name].reshape(len(data), -1)
        if flat.shape[1] > 1 and bool((flat == flat[:, :1]).all()):
            found = f"column {name!r}: every one of the {len(data)} calibration samples is constant"
            raise InputRejected(found, where=data.where, hint="check the code that prepares samples")


def _signal_columns(data: Dataset) -> list[str]:
    """Names the columns that must vary inside a sample: the float ones, or a lone one. Masks and token types may be all ones."""
    floats = [name for name, column in data.columns.items() if column.dtype.kind == "f"]
    return floats or (list(data.columns) if len(data.columns) == 1 else [])


def _one_class_each(data: Dataset) -> bool:
    return data.label is not None and data.label.ndim == 1 and data.label.dtype.kind in "iu"


def _sha256(data: Dataset) -> str:
    """Digest over names, types and values of all columns."""
    digest = hashlib.sha256()
    for name, column in sorted(data.columns.items()):
        digest.update(f"{name} {column.dtype} {column.shape}\n".encode())
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
