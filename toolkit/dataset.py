"""Samples on disk: one ``.npy`` file per column in a folder, so that any number of samples can be streamed.

A column is named like the model input it feeds; ``label`` is reserved for the answers. The same reader takes an ``.npz``
file with the same names, which is what people have at hand.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.errors import InputRejected
from toolkit.metrics import CLASSIFICATION, IGNORED

LABEL = "label"
ORDER = "columns.json"
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Dataset:
    """Named columns of equal length.

    Attributes:
        columns: Model inputs by name, ``[n x ...]``.
        label: The answers: class indices ``[n] int64``; class indices or token ids for the parts of each sample ``[n x ...]`` of any
            integer type, -100 where a part does not count; texts ``[n] str``; or ``None``.
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

    def laid_out(self, layout: str | None) -> Dataset:
        """Returns the samples as a model of another layout takes them; see :func:`laid_out`."""
        return Dataset(laid_out(self.columns, layout), self.label, self.where) if layout else self

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
    """Checks answers; class indices of whole samples are returned as ``[n] int64``, anything else as it is stored.

    Raises:
        InputRejected: They are neither whole numbers nor one text per sample, or one is negative.
    """
    array = np.asarray(label)
    if array.dtype.kind == "U" and array.ndim == 1:
        return array
    if array.ndim < 1 or array.dtype.kind not in "iu":
        found = f"{list(array.shape)} {array.dtype}"
        raise InputRejected(
            f"column 'label' must be whole numbers, or one text per sample, found {found}", where=where, hint="store class indices, or texts"
        )
    for start, rows in pieces(array):
        wrong = (rows < 0) & (rows != IGNORED) if array.ndim > 1 else rows < 0
        if wrong.any():
            place = tuple(int(axis) for axis in np.argwhere(wrong)[0])
            hint = f"store class indices from 0, and {IGNORED} where a part does not count" if array.ndim > 1 else "store class indices from 0"
            raise InputRejected(f"column 'label' has class index {rows[place]} at sample {start + place[0]}", where=where, hint=hint)
    return array.astype(np.int64, copy=False) if array.ndim == 1 else array


def answers(data: Dataset, task: str) -> np.ndarray:
    """Returns the labels of a data set that fit a task.

    Raises:
        InputRejected: It has none, or those of another kind of task.
    """
    axes, what = _ANSWERS[task]
    if data.label is None:
        hint = f"add label.npy with {what}, [{' x '.join(axes)}]"
        raise InputRejected(f"has no column 'label', found {sorted(data.columns)}", where=data.where, hint=hint)
    if data.label.ndim != len(axes) or (data.label.dtype.kind == "U") != (what == _TEXT):
        raise InputRejected(
            f"column 'label' is {list(data.label.shape)} {data.label.dtype}, expected {what}, [{' x '.join(axes)}]",
            where=data.where,
            hint=f"store the answers of {task}, or choose the task that the labels are for",
        )
    return data.label


_TEXT = "one text per sample"
_LAST = (0, 2, 3, 1)  # [n x c x h x w] -> [n x h x w x c]
_ONE_CLASS = (("n",), "one class index per sample")
_ANSWERS = {
    **dict.fromkeys(CLASSIFICATION, _ONE_CLASS),
    "image-segmentation": (("n", "height", "width"), "one class index per pixel"),
    "token-classification": (("n", "tokens"), "one class index per token"),
    "text-generation": (("n", "tokens"), "one token id per token"),
    "automatic-speech-recognition": (("n",), _TEXT),
}


def hold_out(label: np.ndarray, seed: int, every: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Splits rows into training and validation, every class in its share.

    Rows are sorted by class, shuffled inside each, and every tenth is held out (systematic sampling), so that each class
    gives its tenth give or take one. The first row of every class is always trained on.

    Args:
        label: Class of every row ``[n] int64``.
        seed: Seed of the shuffling.
        every: One of how many rows is held out.

    Returns:
        Training rows and validation rows, ascending.

    Raises:
        InputRejected: No class has two samples.
    """
    generator = np.random.default_rng(seed)
    shuffled = [generator.permutation(np.flatnonzero(label == one)) for one in np.unique(label)]
    candidates = np.concatenate([rows[1:] for rows in shuffled])
    if not len(candidates):
        raise InputRejected(
            f"no class has two samples among {len(label)}", where="train split", hint="fine-tuning holds out a tenth to choose the best epoch"
        )
    every = min(every, len(candidates))
    held = np.sort(candidates[every // 2 :: every])
    return np.setdiff1d(np.arange(len(label)), held), held


def laid_out(columns: Mapping[str, np.ndarray], layout: str | None) -> dict[str, np.ndarray]:
    """Puts the channels of image inputs last, where a model wants them there.

    Args:
        columns: Samples by input.
        layout: With ``channels_last``, four-dimensional columns ``[n x c x h x w]`` become views ``[n x h x w x c]`` of the same memory.
    """
    last = layout == "channels_last"
    return {name: np.transpose(column, _LAST) if last and column.ndim == len(_LAST) else column for name, column in columns.items()}


def pieces(column: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields ``(first row, rows)`` a megabyte at a time, and lets go of the pages of a mapped file behind each."""
    size = max(1, _PIECE_BYTES // max(1, column[:1].nbytes))
    for start in range(0, len(column), size):
        yield start, np.asarray(column[start : start + size])
        release(column)


def release(column: np.ndarray) -> None:
    """Lets go of what was read from a mapped file, which otherwise counts as this process's memory; they can be read again.

    Arrays that are not a read-only mapping are left alone, as is everything on systems without ``madvise``.
    """
    root: object = column
    while isinstance(root, np.ndarray):
        if isinstance(root, np.memmap) and root.mode != "r":
            return
        root = root.base
    if isinstance(root, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        root.madvise(mmap.MADV_DONTNEED)


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
