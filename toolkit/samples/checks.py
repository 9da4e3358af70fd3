"""Checks that every data set passes before anything is computed from it. Columns may be memory-mapped: rows are read in pieces."""

from __future__ import annotations

from collections import Counter

import numpy as np

from toolkit.dataset import Dataset, pieces
from toolkit.errors import InputRejected
from toolkit.metrics import IGNORED

MOST_CLASSES = 1000


def check_finite(data: Dataset) -> None:
    """Makes sure that no float column holds NaN or Inf.

    Raises:
        InputRejected: One does; the message names column and first sample.
    """
    for name, column in data.columns.items():
        if column.dtype.kind not in "fc":
            continue
        for start, rows in pieces(column):
            bad = ~np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
            if bad.any():
                row = int(bad.argmax())
                values = rows[row].ravel()
                found = values[~np.isfinite(values)][0]
                raise InputRejected(
                    f"column {name!r} has {found} in sample {start + row}, expected finite numbers",
                    where=data.where,
                    hint="remove or mend that sample",
                )


def check_dtypes(data: Dataset) -> None:
    """Makes sure that every column holds numbers or booleans.

    Raises:
        InputRejected: One holds objects, text or nothing at all.
    """
    for name, column in data.columns.items():
        if column.dtype.kind not in "biuf":
            raise InputRejected(
                f"column {name!r} is {column.dtype}, expected numbers",
                where=data.where,
                hint="give one array with the same shape for every sample, for example float32 or int64",
            )
        if not column.size:
            found = f"column {name!r} has samples of shape {list(column.shape[1:])}, expected at least one value"
            raise InputRejected(found, where=data.where, hint="give samples with values")


def class_counts(label: np.ndarray | None) -> dict[int, int]:
    """Returns how many samples each class has; where parts of samples are labelled, how many parts that count.

    Empty where nothing is labelled with classes: no labels, texts, or more than 1,000 different labels of parts, which are the
    token ids of a vocabulary.
    """
    if label is None or label.dtype.kind not in "iu":
        return {}
    counts: Counter[int] = Counter()
    for _, rows in pieces(label):
        counts.update(dict(zip(*(found.tolist() for found in np.unique(rows, return_counts=True)), strict=True)))
    if label.ndim > 1:
        counts.pop(IGNORED, None)
        if len(counts) > MOST_CLASSES:
            return {}
    return dict(sorted(counts.items()))


def ranges(data: Dataset) -> dict[str, list[float]]:
    """Returns the smallest and largest value of every column, as ``[low, high]``."""
    found = {}
    for name, column in data.columns.items():
        ends = [(rows.min(), rows.max()) for _, rows in pieces(column)]
        found[name] = [float(min(low for low, _ in ends)), float(max(high for _, high in ends))]
    return found
