"""Folders that Hugging Face ``datasets`` saved with ``save_to_disk``: Arrow files and their description; no code is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import InputRejected, MissingExtra
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.samples.tables import check_columns

_OF_EVAL = ("eval", "validation", "test")


def is_saved(path: Path) -> bool:
    """Whether a folder was saved by ``datasets``."""
    return path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


class Saved:
    """One split of a saved data set.

    Args:
        path: The folder; one of several splits gives its own: ``train``, or the first of ``eval``, ``validation`` and ``test``.
        split: ``train`` or ``eval``.
        label: The column of the classes.
        texts: The columns of texts; pictures where there are none.
        group: The column of what stays on one side of a split.

    Attributes:
        labels: The class of each sample; by name where the data set tells names, as another one may have them in another order.
        classes: Names of the classes, where the data set tells them.
        groups: The group of each sample.

    Raises:
        InputRejected: It cannot be read, or lacks a column or the split.
        MissingExtra: ``datasets`` is not installed.
    """

    def __init__(self, path: Path, split: str, label: str, texts: Sequence[str], group: str | None) -> None:
        self._data, self._where, self._texts = _open(path, split), str(path), list(texts)
        names = list(self._data.column_names)
        check_columns(names, [label, *texts, *([group] if group else ())], self._where)
        self.classes = tuple(getattr(self._data.features[label], "names", None) or ())
        self.labels: list[Any] = [self._named(one) for one in self._filled(label)]
        self.groups: list[Hashable] | None = self._filled(group) if group else None
        if not self._texts:
            self._column = self._picture_column(names)

    def texts(self) -> list[list[Any]]:
        """Returns the texts, by column."""
        return [self._filled(name) for name in self._texts]

    def pictures(self, rows: np.ndarray) -> list[bytes]:
        """Returns some pictures, encoded as they were saved."""
        found = [self._encoded[int(row)][self._column] for row in rows]
        # One without bytes is broken: save_to_disk stores them, and a path in a data set may point anywhere.
        return [(one or {}).get("bytes") or b"" for one in found]

    def contents(self) -> list[Hashable]:
        """Returns what is equal for copies of one picture."""
        return [hashlib.sha256(one).hexdigest() for one in self.pictures(np.arange(len(self.labels)))]

    def _filled(self, column: str) -> list[Any]:
        values = list(self._data[column])
        row = next((row for row, value in enumerate(values) if value is None or value == ""), None)
        if row is not None:
            raise InputRejected(f"column {column!r} is empty in row {row + 1}", where=self._where, hint="fill it in, or remove the row")
        return values

    def _named(self, label: Any) -> Any:
        return self.classes[label] if self.classes and 0 <= label < len(self.classes) else label

    def _picture_column(self, names: Sequence[str]) -> str:
        import datasets

        found = [name for name in names if isinstance(self._data.features[name], datasets.Image)]
        if len(found) != 1:
            told = f"has {len(found)} columns of pictures: {', '.join(map(repr, found)) or 'none'}"
            raise InputRejected(told, where=self._where, hint="name the column of texts in data.text, or keep one column of pictures")
        self._encoded = self._data.cast_column(found[0], datasets.Image(decode=False))
        return found[0]


def _open(path: Path, split: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtra("reading this folder needs datasets", where=str(path), hint='pip install "edgekit[finetune]"') from error
    try:
        found = datasets.load_from_disk(str(path))
    except CODE_ERRORS as error:
        raise InputRejected(
            f"is no data set that can be read: {first_line(error)}", where=str(path), hint="save it again with save_to_disk"
        ) from error
    if not isinstance(found, datasets.DatasetDict):
        return found
    wanted = ("train",) if split == "train" else _OF_EVAL
    name = next((name for name in wanted if name in found), None)
    if name is None:
        told = f"has no split {' or '.join(map(repr, wanted))}, found {', '.join(map(repr, found))}"
        raise InputRejected(told, where=str(path), hint="name the folder of one split")
    return found[name]
