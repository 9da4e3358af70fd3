"""Reads splits from files: arrays, folders of pictures, tables of texts, and what Hugging Face ``datasets`` saved.

What is read is listed first, so that a split can be made before anything large is decoded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.dataset import Dataset, load
from toolkit.errors import InputRejected
from toolkit.samples import hugging_face, pictures, tables
from toolkit.samples.dividing import divide
from toolkit.samples.texts import Tokenizer

Progress = Callable[[int, int, str], None]
Columns = tuple[dict[str, np.ndarray], np.ndarray, list[dict[str, str]]]


@dataclass
class Listing:
    """Samples that are not read yet.

    Attributes:
        where: What they come from.
        names: What each is called.
        labels: The class of each, by name or index.
        groups: What is equal for samples that must stay on one side of a split.
        read: Reads some of them: the columns, which of those asked for they are, and those that cannot be read.
        classes: Names of the classes, where the files or folders tell them.
    """

    where: str
    names: list[str]
    labels: list[Any]
    groups: list[Hashable]
    read: Callable[[np.ndarray], Columns]
    classes: tuple[str, ...] = ()


@dataclass
class Found:
    """What was read.

    Attributes:
        splits: The splits.
        classes: Names of the classes, by index; empty where arrays were read.
        preprocessing: What a device must do to a sample; empty for arrays.
        split: Which sample is where; empty where the splits were given.
        broken: Pictures that cannot be read, by split.
        notes: What is worth knowing.
        tokenizer: The tokenizer that texts were read with.
    """

    splits: dict[str, Dataset]
    classes: tuple[str, ...] = ()
    preprocessing: dict[str, Any] = field(default_factory=dict)
    split: dict[str, list[str]] = field(default_factory=dict)
    broken: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tokenizer: Tokenizer | None = None

    def write(self, folder: Path) -> None:
        """Writes what belongs beside the splits."""
        documents = {"classes": {"classes": list(self.classes)} if self.classes else {}, "preprocessing": self.preprocessing, "split": self.split}
        for name, content in documents.items():
            if content:
                (folder / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if self.tokenizer:
            self.tokenizer.write(folder)


def read(
    files: Mapping[str, Path],
    settings: Mapping[str, Any],
    classes: Sequence[str],
    seed: int,
    scratch: Path,
    progress: Progress,
    tokenizer: str | Path | None,
) -> Found:
    """Reads the splits.

    Args:
        files: The files or folders, by split: ``eval``, ``train``, or both.
        settings: :meth:`toolkit.data_origin.Data.reading`.
        classes: Names of the classes, where they are given.
        seed: Seed of a split that is made.
        scratch: Folder for what is too large for memory; it is used for as long as the splits are.
        progress: Callback ``(done, total, note)``.
        tokenizer: Folder or hub id.

    Raises:
        ConfigError: Texts, and no tokenizer.
        InputRejected: The files cannot be used.
        MissingExtra: A library that reads them is not installed.
        SetupError: A tokenizer cannot be fetched.
    """
    if all(_holds_arrays(path) for path in files.values()):
        return _arrays({name: load(path) for name, path in files.items()}, settings, seed)
    made = Tokenizer(tokenizer, settings["max_length"]) if any(_holds_texts(path, settings) for path in files.values()) else None
    listings = {name: _listing(path, name, settings, scratch, progress, made) for name, path in files.items()}
    found = Found({}, _classes(list(listings.values()), classes), made.described() if made else pictures.described(settings["image"]), tokenizer=made)
    rows = {name: np.arange(len(one.names)) for name, one in listings.items()}
    if len(listings) == 1 and "train" in listings:
        only = listings["train"]
        rows = dict(zip(("train", "eval"), divide(only.labels, only.groups, settings["eval_share"], seed, only.where), strict=True))
        listings = {"train": only, "eval": only}
    broken: dict[str, list[dict[str, str]]] = {}
    made_here = len(files) == 1 and "train" in files
    for name, listing in listings.items():
        columns, kept, broken[name] = listing.read(rows[name])
        if made_here:
            found.split[name] = [listing.names[row] for row in rows[name][kept]]
        labels = [listing.labels[row] for row in rows[name][kept]]
        found.splits[name] = Dataset(columns, _indices(labels, found.classes, listing.where), f"{name} split of {listing.where}")
    found.broken = {name: pictures.told(one) for name, one in broken.items() if one}
    found.notes = [
        f"{one['count']} pictures of the {name} split cannot be read, such as {one['first'][0]['name']}" for name, one in found.broken.items()
    ]
    if found.split:
        _drop_repeated(found)
    return found


def _arrays(splits: dict[str, Dataset], settings: Mapping[str, Any], seed: int) -> Found:
    if "eval" in splits:
        return Found(splits)
    whole = splits["train"]
    if whole.label is None or whole.label.ndim != 1:
        raise InputRejected("has no class for each sample to make a split by", where=whole.where, hint="give data.eval")
    train, held = divide(whole.label.tolist(), whole.digests(), settings["eval_share"], seed, whole.where)
    split = {"train": [str(row) for row in train], "eval": [str(row) for row in held]}
    return Found({"train": whole.take(train), "eval": whole.take(held)}, split=split)


def _drop_repeated(found: Found) -> None:
    """Takes pictures out of the training split that the evaluation split has from other files: the split made here shall leak nothing."""
    held = set(found.splits["eval"].digests())
    train = found.splits["train"]
    kept = np.array([row for row, digest in enumerate(train.digests()) if digest not in held], np.int64)
    if len(kept) == len(train):
        return
    found.notes.append(f"{len(train) - len(kept)} training samples are in the evaluation split too, from other files; they were left out")
    for place, row in enumerate(kept):  # in place, as the column may be larger than memory
        for column in train.columns.values():
            column[place] = column[row]
    columns = {name: column[: len(kept)] for name, column in train.columns.items()}
    found.splits["train"] = Dataset(columns, None if train.label is None else train.label[kept], train.where)
    found.split["train"] = [found.split["train"][row] for row in kept]


def _holds_arrays(path: Path) -> bool:
    if path.is_dir():
        return any(path.glob("*.npy"))
    return path.suffix not in tables.SUFFIXES  # .npz, and what is none of these is told by who reads .npz


def _holds_texts(path: Path, settings: Mapping[str, Any]) -> bool:
    return bool(settings["text"]) and (path.is_file() or hugging_face.is_saved(path))


def _listing(path: Path, name: str, settings: Mapping[str, Any], scratch: Path, progress: Progress, tokenizer: Tokenizer | None) -> Listing:
    if hugging_face.is_saved(path):
        return _saved(path, name, settings, scratch, progress, tokenizer)
    if path.is_dir():
        return _folder(path, name, settings, scratch, progress)
    return _table(path, settings, tokenizer)


def _folder(folder: Path, split: str, settings: Mapping[str, Any], scratch: Path, progress: Progress) -> Listing:
    files = pictures.files_of(folder)
    names = [file.relative_to(folder).as_posix() for file in files]
    pattern = settings["group"]
    groups: list[Hashable] = [
        pictures.group_of(pattern, name, str(folder)) if pattern else pictures.content_of(file) for file, name in zip(files, names, strict=True)
    ]
    image = settings["image"]

    def read(rows: np.ndarray) -> Columns:
        out = scratch / f"{split}-{len(rows)}-{int(rows[0]) if len(rows) else 0}.npy"
        chosen = [files[row] for row in rows]
        column, kept, broken = pictures.numbers(chosen, [names[row] for row in rows], image, out, progress, where=str(folder))
        return {image["column"]: column}, kept, broken

    labels = [name.partition("/")[0] for name in names]
    return Listing(str(folder), names, labels, groups, read, tuple(dict.fromkeys(labels)))


def _table(file: Path, settings: Mapping[str, Any], tokenizer: Tokenizer | None) -> Listing:
    texts, label, group = settings["text"], settings["label"], settings["group"]
    if not texts:
        raise InputRejected("is a table, and data.text names no column of it", where=str(file), hint='for example text = "sentence"')
    table = tables.read(file, [*texts, label, *([group] if group else ())])
    return _texts(str(file), [table[name] for name in texts], table[label], table[group] if group else None, tokenizer)


def _texts(where: str, texts: list[list[Any]], labels: list[Any], groups: list[Any] | None, tokenizer: Tokenizer | None) -> Listing:
    assert tokenizer is not None
    alike: list[Hashable] = list(groups) if groups else list(zip(*texts, strict=True))
    names = [str(row) for row in range(len(labels))]

    def read(rows: np.ndarray) -> Columns:
        return tokenizer.columns([[column[row] for row in rows] for column in texts]), np.arange(len(rows)), []

    return Listing(where, names, labels, alike, read)


def _saved(path: Path, split: str, settings: Mapping[str, Any], scratch: Path, progress: Progress, tokenizer: Tokenizer | None) -> Listing:
    group = settings["group"]
    opened = hugging_face.Saved(path, split, settings["label"], settings["text"], group)
    if settings["text"]:
        made = _texts(str(path), opened.texts(), opened.labels, opened.groups, tokenizer)
        made.classes = opened.classes
        return made
    image = settings["image"]
    names = [str(row) for row in range(len(opened.labels))]

    def read(rows: np.ndarray) -> Columns:
        out = scratch / f"{split}-{len(rows)}-{int(rows[0]) if len(rows) else 0}.npy"
        column, kept, broken = pictures.numbers(opened.pictures(rows), [names[row] for row in rows], image, out, progress, where=str(path))
        return {image["column"]: column}, kept, broken

    return Listing(str(path), names, opened.labels, opened.groups or opened.contents(), read, opened.classes)


def _classes(listings: Sequence[Listing], given: Sequence[str]) -> tuple[str, ...]:
    """Names of the classes: those given, those that files tell, or those that occur, in order.

    Raises:
        InputRejected: The classes are numbers from one on, which may be indices that lack one, or names.
    """
    if given:
        return tuple(given)
    known = tuple(dict.fromkeys(name for one in listings for name in one.classes))
    if known:
        return known
    labels = {_plain(label) for one in listings for label in one.labels}
    numbers = sorted(label for label in labels if isinstance(label, int))
    if len(numbers) < len(labels):
        return tuple(sorted(map(str, labels)))
    if numbers[0] != 0:
        names = ", ".join(f'"{number}"' for number in numbers[:10]) + (", ..." if len(numbers) > 10 else "")
        hint = f"name the classes in their order: data.classes = [{names}]"
        raise InputRejected(f"has classes {numbers[0]} to {numbers[-1]} and none that is 0", where=listings[0].where, hint=hint)
    return tuple(str(index) for index in range(1 + numbers[-1]))


def _indices(labels: Sequence[Any], classes: Sequence[str], where: str) -> np.ndarray:
    """Returns the class of each sample by its index ``[n] int64``.

    Raises:
        InputRejected: A class is not known.
    """
    places = {name: place for place, name in enumerate(classes)}
    found = np.empty(len(labels), np.int64)
    for row, label in enumerate(labels):
        plain = _plain(label)
        place = places.get(str(label), plain if isinstance(plain, int) and 0 <= plain < len(classes) else None)
        if place is None:
            known = ", ".join(map(repr, classes[:10]))
            hint = "mend the label, or name the class in data.classes"
            raise InputRejected(f"sample {row + 1} is of class {label!r}; known: {known}", where=where, hint=hint)
        found[row] = place
    return found


def _plain(label: Any) -> int | str:
    """A label as a number where it is one, however the table wrote it."""
    if isinstance(label, bool | np.bool_):
        return int(label)
    if isinstance(label, int | np.integer):
        return int(label)
    text = str(label).strip()
    return int(text) if text.isascii() and text.isdigit() else text
