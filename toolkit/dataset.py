"""Samples on disk: one ``.npy`` file per column in a folder, so that any number of samples can be streamed.

A column is named like the model input it feeds; ``label`` is reserved for the answers. The same reader takes an ``.npz``
file with the same names, which is what people have at hand.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.errors import InputRejected

LABEL = "label"
ORDER = "columns.json"


@dataclass(frozen=True)
class Dataset:
    """Named columns of equal length.

    Attributes:
        columns: Model inputs by name, ``[n x ...]``.
        label: Class indices ``[n] int64``, or ``None``.
        where: The file or folder it came from, for messages.
    """

    columns: Mapping[str, np.ndarray]
    label: np.ndarray | None = None
    where: str = "data"

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self._all().items()}
        if not self.columns:
            raise InputRejected("has no input columns", where=self.where, hint="name the arrays like the model's inputs")
        if len(set(lengths.values())) > 1:
            raise InputRejected(f"columns differ in length: {lengths}", where=self.where, hint="give every column one row per sample")
        if not len(self):
            raise InputRejected("has no samples", where=self.where, hint="give at least one sample")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def _all(self) -> dict[str, np.ndarray]:
        return dict(self.columns) if self.label is None else {**self.columns, LABEL: self.label}

    def take(self, rows: Sequence[int] | np.ndarray | slice) -> Dataset:
        """Returns the chosen rows as a new data set."""
        label = None if self.label is None else self.label[rows]
        return Dataset({name: column[rows] for name, column in self.columns.items()}, label, self.where)

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields the columns in slices of ``size`` samples; the last one may be shorter."""
        for start in range(0, len(self), size):
            yield {name: column[start : start + size] for name, column in self.columns.items()}

    def digests(self) -> list[bytes]:
        """Returns a content digest per sample, over the inputs alone: equal digests are the same sample."""
        columns = [np.ascontiguousarray(self.columns[name]) for name in sorted(self.columns)]
        return [hashlib.sha256(b"".join(column[row].tobytes() for column in columns)).digest() for row in range(len(self))]

    def write(self, folder: Path) -> None:
        """Writes one ``.npy`` file per column, and their order, in which a model may take them by position."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ORDER).write_text(json.dumps(list(self.columns)), encoding="utf-8")
        for name, column in self._all().items():
            np.save(folder / f"{name}.npy", np.ascontiguousarray(column), allow_pickle=False)


def load(path: Path) -> Dataset:
    """Reads a folder of ``.npy`` files (memory-mapped) or an ``.npz`` file. Pickled arrays are refused.

    Raises:
        InputRejected: The path is missing, damaged, empty, or its columns differ in length.
    """
    where = str(path)
    if path.is_dir():
        columns = {file.stem: _read_npy(file) for file in sorted(path.glob("*.npy"))}
        columns = {name: columns[name] for name in sorted(columns, key=_rank(path))}
    elif path.is_file():
        columns = _read_npz(path)
    else:
        raise InputRejected("does not exist", where=where, hint="give a folder of .npy files or an .npz file")
    if not columns:
        found = "has no .npy files here" if path.is_dir() else "has no arrays"
        raise InputRejected(found, where=where, hint="give one array per model input, named like it, and label for the answers")
    for name, column in columns.items():
        if not isinstance(column, np.ndarray) or not column.ndim:
            raise InputRejected(f"column {name!r} is not an array with one row per sample", where=where, hint="give one row per sample")
    label = columns.pop(LABEL, None)
    return Dataset(columns, None if label is None else as_label(label, where), where)


def as_label(label: np.ndarray, where: str) -> np.ndarray:
    """Checks class indices and returns them as ``[n] int64``.

    Raises:
        InputRejected: They are not whole numbers, not one per sample, or negative.
    """
    array = np.asarray(label)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputRejected(f"column 'label' must be [n] integers, found {list(array.shape)} {array.dtype}", where=where, hint="store class indices")
    if len(array) and int(array.min()) < 0:
        first = int(np.argmax(array < 0))
        raise InputRejected(f"column 'label' has class index {array[first]} at sample {first}", where=where, hint="store class indices from 0")
    return array.astype(np.int64, copy=False)


def _rank(folder: Path) -> Callable[[str], tuple[int, str]]:
    """Orders columns as they were written; by name where nothing says how."""
    try:
        written: list[str] = json.loads((folder / ORDER).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        written = []
    places = {name: place for place, name in enumerate(written)}
    return lambda name: (places.get(name, len(places)), name)


def _read_npy(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputRejected(f"is not a readable .npy file: {_why(error)}", where=str(file), hint="write it again with numpy.save") from error


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise InputRejected(f"is not a readable .npz file: {_why(error)}", where=str(file), hint="write it again with numpy.savez") from error


def _why(error: Exception) -> str:
    """NumPy's reason, without its advice to read a file that may run code."""
    said = str(error)
    if isinstance(error, AttributeError | TypeError):
        return "it is a single array; give it the suffix .npy, in a folder"
    if "object arrays" in said.lower():
        return "it holds Python objects, expected numbers"
    return "it holds something else than NumPy arrays" if "pickle" in said.lower() else said
