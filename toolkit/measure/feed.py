"""Samples into a session, batch by batch: what accuracy, parity and latency share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit import plugins
from toolkit.artifact import Signature
from toolkit.columns import check_columns
from toolkit.dataset import Dataset
from toolkit.plugins import Runtime, Session

FREE_BATCH = 32
BLOCK_BYTES = 64 << 20
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
        row_bytes = sum(column[:1].nbytes for column in self.data.columns.values())
        return max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(1, row_bytes)) // self.batch) * self.batch

    def _block(self, name: str, start: int, stop: int, padding: int) -> np.ndarray:
        # A copy in memory: slicing numpy.memmap costs as much as a small model's inference, and first touches of a mapped
        # file are waits that belong to the disk and not to the model.
        block = np.array(self.data.columns[name][start:stop], dtype=self.dtypes[name])
        return np.concatenate([block, np.repeat(block[-1:], padding, axis=0)]) if padding else block


def open_session(runtime: Runtime, model: Path, threads: int) -> Session:
    """Loads a model after making sure that its runtime is installed.

    Raises:
        MissingExtra: The runtime is not installed.
        InputRejected: The file is damaged.
    """
    plugins.require(runtime)
    return runtime.open(model, threads=threads)


def fit(data: Dataset, signature: Signature) -> Feed:
    """Checks that every column fits the model input of its name. Integers may differ in width where no value changes.

    Raises:
        InputRejected: A column is missing, left over, has another shape or element type, or holds NaN or Inf.
    """
    check_columns(data, signature)
    found = {spec.name: data.columns[spec.name].dtype.name for spec in signature.inputs}
    casts = {spec.name: f"{found[spec.name]} -> {spec.dtype}" for spec in signature.inputs if found[spec.name] != spec.dtype}
    return Feed(data, {spec.name: spec.dtype for spec in signature.inputs}, batch_size(signature), casts)


def batch_size(signature: Signature, free: int = FREE_BATCH) -> int:
    """Returns the model's own batch size, or ``free`` when its first axis is free."""
    sizes = [spec.shape[0] for spec in signature.inputs if spec.shape]
    return next((size for size in sizes if isinstance(size, int)), free)
