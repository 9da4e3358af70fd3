"""Checks that every data set passes before anything is computed from it. Columns may be memory-mapped: rows are read in chunks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from toolkit.dataset import Dataset
from toolkit.errors import InputRejected

_CHUNK_BYTES = 16 * 2**20


def check_finite(data: Dataset) -> None:
    """Makes sure that no float column holds NaN or Inf.

    Raises:
        InputRejected: One does; the message names column and first sample.
    """
    for name, column in data.columns.items():
        if column.dtype.kind not in "fc":
            continue
        for start, rows in chunks(column):
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


def chunks(column: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields ``(first row, rows)`` in pieces of a few megabytes."""
    size = max(1, _CHUNK_BYTES // max(1, column[0].nbytes))
    for start in range(0, len(column), size):
        yield start, np.asarray(column[start : start + size])


def ranges(data: Dataset) -> dict[str, list[float]]:
    """Returns the smallest and largest value of every column, as ``[low, high]``."""
    found = {}
    for name, column in data.columns.items():
        ends = [(rows.min(), rows.max()) for _, rows in chunks(column)]
        found[name] = [float(min(low for low, _ in ends)), float(max(high for _, high in ends))]
    return found
