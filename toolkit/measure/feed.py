"""Samples into a session, batch by batch: what accuracy, parity and latency share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit import plugins
from toolkit.artifact import Signature
from toolkit.columns import check_columns
from toolkit.dataset import Dataset, release
from toolkit.errors import InputRejected
from toolkit.plugins import Runtime, Session

FREE_BATCH = 32
BLOCK_BYTES = 16 << 20
BLOCK_ROWS = 1024


@dataclass(frozen=True)
class Feed:
    """A data set that fits a model.

    Attributes:
        data: The samples.
        dtypes: NumPy's element type of each model input.
        batch: Samples per inference.
        casts: Inputs whose integers are stored in another width than the model's, ``name: "int64 -> int32"``.
    """

    data: Dataset
    dtypes: dict[str, str]
    batch: int
    casts: dict[str, str]

    def blocks(self) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
        """Yields ``(start, stop, columns)``: long runs of whole batches in the model's dtypes, the last one padded with its last row.

        The rows from ``start`` to ``stop`` are samples; what follows them in the columns is padding.
        """
        rows = self._block_rows()
        for start in range(0, len(self.data), rows):
            stop = min(start + rows, len(self.data))
            padding = -(stop - start) % self.batch
            yield start, stop, {name: self._block(name, start, stop, padding) for name in self.dtypes}

    def _block_rows(self) -> int:
        return max(1, _rows(self.data) // self.batch) * self.batch

    def _block(self, name: str, start: int, stop: int, padding: int) -> np.ndarray:
        # A copy in memory: slicing numpy.memmap costs as much as a small model's inference, and first touches of a mapped
        # file are waits that belong to the disk and not to the model.
        block = np.array(self.data.columns[name][start:stop], dtype=self.dtypes[name], order="C")
        release(self.data.columns[name])
        return np.concatenate([block, np.repeat(block[-1:], padding, axis=0)]) if padding else block


def open_session(runtime: Runtime, model: Path, threads: int) -> Session:
    """Loads a model after making sure that its runtime is installed.

    Raises:
        MissingExtra: The runtime is not installed.
        InputRejected: The file is damaged.
    """
    plugins.require(runtime)
    return runtime.open(model, threads=threads)


def fit(data: Dataset, signature: Signature, free: int = FREE_BATCH) -> Feed:
    """Checks that every column fits the model input of its name. Integers may differ in width where no value changes.

    Args:
        data: The samples.
        signature: The model's inputs.
        free: Samples per inference where the model takes any number.

    Raises:
        InputRejected: A column is missing, left over, has another shape or element type, or holds NaN or Inf.
    """
    _check(data, signature)
    found = {spec.name: data.columns[spec.name].dtype.name for spec in signature.inputs}
    casts = {spec.name: f"{found[spec.name]} -> {spec.dtype}" for spec in signature.inputs if found[spec.name] != spec.dtype}
    return Feed(data, {spec.name: spec.dtype for spec in signature.inputs}, batch_size(signature, free), casts)


def _check(data: Dataset, signature: Signature) -> None:
    """Checks the columns block by block, so that mapped files of any size are read in little memory."""
    rows = _rows(data)
    for start in range(0, len(data), rows):
        try:
            check_columns(data.take(slice(start, start + rows)), signature)
        except InputRejected:
            check_columns(data, signature)  # says the same, with the sample's number in the whole data set
            raise
        for column in data.columns.values():
            release(column)


def _rows(data: Dataset) -> int:
    """Returns how many samples make a block."""
    row_bytes = sum(column[:1].nbytes for column in data.columns.values())
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(1, row_bytes)))


def room(session: Session, wanted: int = FREE_BATCH) -> int:
    """Returns how many samples to give a model at once where it takes any number: no more than it has memory planned for, if it says so."""
    most: int | None = getattr(session, "largest_batch", None)
    return min(wanted, most) if most else wanted


def batch_size(signature: Signature, free: int = FREE_BATCH) -> int:
    """Returns the model's own batch size, or ``free`` when its first axis is free."""
    sizes = [spec.shape[0] for spec in signature.inputs if spec.shape]
    return next((size for size in sizes if isinstance(size, int)), free)
