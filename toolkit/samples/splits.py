"""Stage: brings the training and the evaluation split into one form and refuses data that would make a figure worthless.

Input is a factory of the project or files; output are the folders ``train/`` and ``eval/`` (a lone ``eval/`` when there is nothing to train
on), one ``.npy`` file per column, and ``parity/``: the few samples, without their answers, on which every converted model is compared with
its source. Beside them is what a device needs: names of classes, preprocessing, the tokenizer.
"""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data_origin import Data
from toolkit.dataset import LABEL, Dataset, answers, as_label, pieces
from toolkit.errors import InputRejected
from toolkit.factory import load_factory
from toolkit.job import Facts, Job
from toolkit.samples import reading
from toolkit.samples.checks import check_dtypes, check_finite, class_counts

SPLITS = ("train", "eval")
PARITY_SAMPLES = 64


def run(job: Job) -> Facts:
    """Reads, checks and writes the splits.

    Args:
        job: Inputs are ``project`` (folder of the factory), or ``eval``, ``train`` or both (see :mod:`toolkit.samples.reading`), and
            ``tokenizer`` where it is a folder. Options: ``reading`` (how files are read), ``tokenizer`` (a hub id), ``factory``
            (``module:function``), ``task`` (the labels must be of its kind; any are taken without), ``classes`` (names by index; empty
            takes any index), ``seed`` (of a split that is made; set for Python's and NumPy's global generators before the factory is
            called) and ``parity_samples``.

    Returns:
        ``n_train``, ``n_eval``, ``inputs`` (``dtype`` and ``shape`` of one sample by column), ``classes`` (how many),
        ``class_names``, ``per_class`` (by split and class name: samples, or the parts of samples that count where those are labelled;
        empty where the labels are texts or token ids), ``notes`` (worth knowing, not wrong), and ``broken`` where pictures cannot be read.

    Raises:
        InputRejected: A split is empty or malformed, the two do not match, or they share samples.
        ConfigError: The factory does not exist.
        StageFailed: The factory raises.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-samples-") as scratch:
        found = _read(job, Path(scratch))
        splits, classes = found.splits, found.classes or tuple(job.options.get("classes") or ())
        for data in splits.values():
            _check_split(data)
            _check_label(data, classes, job.options.get("task"))
        if "train" in splits:
            _check_match(splits["train"], splits["eval"])
            _check_overlap(splits["train"], splits["eval"])
        for done, (name, data) in enumerate(splits.items()):
            job.progress(done, len(splits), f"writing {name}")
            data.write(job.out / name)
        first = next(iter(splits.values())).take(slice(0, int(job.options.get("parity_samples", PARITY_SAMPLES))))
        Dataset(first.columns, None, first.where).write(job.out / "parity")
        found.write(job.out)
        facts = _facts(splits, classes)
    facts["notes"] += found.notes
    return {**facts, **({"broken": found.broken} if found.broken else {})}


def _read(job: Job, scratch: Path) -> reading.Found:
    seed = int(job.options.get("seed", 0))
    if "project" in job.inputs:
        return reading.Found(_from_factory(job, seed))
    files = {name: job.inputs[name] for name in SPLITS if name in job.inputs}
    tokenizer = job.inputs.get("tokenizer") or job.options.get("tokenizer")
    settings = job.options.get("reading") or Data(eval=Path("eval")).reading()
    return reading.read(files, settings, tuple(job.options.get("classes") or ()), seed, scratch, job.progress, tokenizer)


def _from_factory(job: Job, seed: int) -> dict[str, Dataset]:
    spec = str(job.options["factory"])
    factory = load_factory(job.inputs["project"], spec)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    found = factory()
    if not isinstance(found, Mapping) or "eval" not in found or set(found) - set(SPLITS):
        keys = sorted(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise InputRejected(
            f"returned {keys}, expected a dict with 'eval' and optionally 'train'",
            where=f"factory {spec}",
            hint='return {"train": {"<input>": array, "label": ints}, "eval": {...}}',
        )
    return {name: _split(found[name], f"{name} split of {spec}") for name in SPLITS if found.get(name) is not None}


def _split(columns: Any, where: str) -> Dataset:
    """Turns what a factory returned for one split into a data set."""
    if not isinstance(columns, Mapping):
        raise InputRejected(f"is a {type(columns).__name__}, expected a dict of arrays", where=where, hint="name every array like the model's input")
    arrays = {str(name): _array(column, str(name), where) for name, column in columns.items()}
    label = arrays.pop(LABEL, None)
    return Dataset(arrays, None if label is None else as_label(label, where), where)


def _array(column: Any, name: str, where: str) -> np.ndarray:
    try:
        array = np.asarray(column)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputRejected(f"column {name!r} is not one array: {error}", where=where, hint="give every sample the same shape") from error
    if not array.ndim:
        raise InputRejected(
            f"column {name!r} is a {type(column).__name__}, expected an array with one row per sample", where=where, hint="stack the samples"
        )
    return array


def _check_split(data: Dataset) -> None:
    for name in data.columns:
        # Columns become file names, so a name must not be able to leave the folder.
        if not re.fullmatch(r"[A-Za-z_][\w.-]*", name):
            raise InputRejected(f"column {name!r} cannot be a name", where=data.where, hint="use letters, digits, '_', '-' and '.'")
    check_dtypes(data)
    check_finite(data)


def _check_label(data: Dataset, classes: Sequence[str], task: str | None) -> None:
    if data.label is None:
        raise InputRejected(f"has no column 'label', found {sorted(data.columns)}", where=data.where, hint="add the class index of every sample")
    label = answers(data, task) if task else data.label
    if not classes or label.dtype.kind == "U":
        return
    first, count = None, 0
    for start, rows in pieces(label):
        wrong = (rows >= len(classes)).reshape(len(rows), -1)
        if wrong.any():
            sample = int(wrong.any(axis=1).argmax())
            first = first or (start + sample, int(rows[sample].max()))
            count += int(np.count_nonzero(wrong.any(axis=1)))
    if first:
        raise InputRejected(
            f"column 'label' has {first[1]} in sample {first[0]}, expected 0..{len(classes) - 1} ({count} such samples)",
            where=data.where,
            hint="mend the labels, or name every class in data.classes",
        )


def _check_match(train: Dataset, evaluation: Dataset) -> None:
    if set(train.columns) != set(evaluation.columns):
        raise InputRejected(
            f"columns are {sorted(evaluation.columns)}, the train split has {sorted(train.columns)}",
            where=evaluation.where,
            hint="give both splits the same columns",
        )
    for name, column in train.columns.items():
        expected, found = (f"{list(one.shape[1:])} {one.dtype}" for one in (column, evaluation.columns[name]))
        if expected != found:
            raise InputRejected(
                f"column {name!r} has samples of {found}, those of the train split are {expected}",
                where=evaluation.where,
                hint="prepare both splits in the same way",
            )


def _check_overlap(train: Dataset, evaluation: Dataset) -> None:
    seen: dict[bytes, int] = {}
    for row, digest in enumerate(train.digests()):
        seen.setdefault(digest, row)
    shared = [(row, seen[digest]) for row, digest in enumerate(evaluation.digests()) if digest in seen]
    if shared:
        row, twin = shared[0]
        raise InputRejected(
            f"{len(shared)} of {len(evaluation)} samples are in the train split too; the first is sample {row}, which is train sample {twin}",
            where=evaluation.where,
            hint="remove them from one split: accuracy on samples seen in training says nothing",
        )


def _facts(splits: Mapping[str, Dataset], classes: Sequence[str]) -> Facts:
    evaluation = splits["eval"]
    counts = {name: class_counts(data.label) for name, data in splits.items()}
    found = [index for split in counts.values() for index in split]
    names = list(classes) or [str(index) for index in range(1 + max(found, default=-1))]
    per_class = {name: {one: split.get(index, 0) for index, one in enumerate(names)} for name, split in counts.items()} if found else {}
    return {
        "n_train": len(splits["train"]) if "train" in splits else 0,
        "n_eval": len(evaluation),
        "inputs": {name: {"dtype": str(column.dtype), "shape": list(column.shape[1:])} for name, column in evaluation.columns.items()},
        "classes": len(names),
        "class_names": names,
        "per_class": per_class,
        "notes": _notes(per_class, evaluation),
    }


def _notes(per_class: Mapping[str, Mapping[str, int]], evaluation: Dataset) -> list[str]:
    tested = per_class.get("eval", {})
    notes = [f"class {name!r} has no evaluation samples" for name, n in tested.items() if not n]
    if "train" in per_class:
        notes += [
            f"class {name!r} is evaluated ({n} samples) but never occurs in train" for name, n in tested.items() if n and not per_class["train"][name]
        ]
    repeated = len(evaluation) - len(set(evaluation.digests()))
    if repeated:
        notes.append(f"{repeated} of {len(evaluation)} evaluation samples repeat another one")
    return notes
