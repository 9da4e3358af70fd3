"""A model's outputs, sample by sample: recorded, read back, compared. What the envelope and goldens share."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from toolkit.artifact import Signature
from toolkit.errors import InputRejected, StageFailed
from toolkit.figures import Variant
from toolkit.measure.accuracy import scores_output
from toolkit.measure.feed import Feed, batch_size
from toolkit.plugins import Session
from toolkit.stats.signal import finite_db, power_ratio_db

Columns = Mapping[str, np.ndarray]
_CHUNK = 16  # samples compared together: outputs may be as large as pictures


def one_by_one(feed: Feed, signature: Signature) -> Feed:
    """Feeds one sample at a time where the model's batch is free, so that no sample's outputs depend on its neighbours."""
    return replace(feed, batch=batch_size(signature, free=1))


def outputs_of(session: Session, feed: Feed) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Runs every sample and yields ``(start, outputs)``, each output ``[samples x ...]`` for the samples from ``start`` on.

    Raises:
        InputRejected: An output is not numbers, or does not belong to single samples.
    """
    for start, stop, columns in feed.blocks():
        for first in range(start, stop, feed.batch):
            at = first - start
            found = session.run({name: column[at : at + feed.batch] for name, column in columns.items()})
            yield first, {name: _by_sample(name, array, feed.batch)[: stop - first] for name, array in found.items()}


def record(session: Session, feed: Feed, folder: Path) -> dict[str, np.ndarray]:
    """Runs every sample and writes the outputs as ``0.npy``, ``1.npy`` and so on: a name from a model file is no file name.

    Returns:
        The outputs by name ``[n x ...]``, mapped from these files.

    Raises:
        InputRejected: An output is not numbers, or not of one shape for all samples.
    """
    folder.mkdir(parents=True)
    recorded: dict[str, np.ndarray] = {}
    for start, found in outputs_of(session, feed):
        for number, (name, array) in enumerate(found.items()):
            if name not in recorded:
                shape = (len(feed.data), *array.shape[1:])
                recorded[name] = np.lib.format.open_memmap(folder / f"{number}.npy", "w+", dtype=array.dtype, shape=shape)
            if array.shape[1:] != recorded[name].shape[1:]:
                raise _shape_changed(name, start, array, recorded[name])
            recorded[name][start : start + len(array)] = array
    return recorded


def read(folder: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Reads what :func:`record` wrote, memory-mapped."""
    return {name: np.load(folder / f"{number}.npy", mmap_mode="r", allow_pickle=False) for number, name in enumerate(names)}


def in_chunks(outputs: Columns) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yields recorded outputs as :func:`outputs_of` does."""
    for start in range(0, len(next(iter(outputs.values()))), _CHUNK):
        yield start, {name: np.asarray(array[start : start + _CHUNK]) for name, array in outputs.items()}


def gaps(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Returns the absolute differences of two arrays of one type, ``float64``; zero says equal.

    Values that are not finite differ by nothing from themselves, and infinitely from anything else.
    """
    if expected.dtype.kind == "b":
        return (expected != found).astype(np.float64)
    if expected.dtype.kind in "iu":
        # Modulo 2^64 the difference is right whatever the signs; a float would lose the last bits.
        return (np.maximum(expected, found).astype(np.uint64) - np.minimum(expected, found).astype(np.uint64)).astype(np.float64)
    want, have = expected.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(have - want)
    gap[np.isnan(gap)] = math.inf
    gap[(want == have) | (np.isnan(want) & np.isnan(have))] = 0.0
    return gap


def labels(output: np.ndarray) -> np.ndarray | None:
    """Returns the label that an output gives each sample ``[n]``; ``None`` where it gives none.

    The largest score of ``[n x classes]``, or the value itself where the model chooses and gives ``[n]`` integers.
    """
    if output.ndim == 2 and output.shape[1] > 1:
        return np.asarray(output.argmax(axis=1))
    return np.asarray(output) if output.ndim == 1 and output.dtype.kind in "iu" else None


def labelled_outputs(signature: Signature, outputs: Columns, wanted: str | None) -> tuple[str, ...]:
    """Returns the names of the outputs that label samples: the wanted one, or all that do.

    Raises:
        InputRejected: There is no output of the wanted name, or it labels nothing.
    """
    if wanted is None:
        return tuple(name for name, array in outputs.items() if labels(array[:1]) is not None)
    name = scores_output(signature, wanted)
    if labels(outputs[name][:1]) is None:
        shape = " x ".join(map(str, outputs[name].shape))
        raise InputRejected(
            f"output {name!r} is [{shape}], expected [n x classes]", where="output", hint="name the output that holds the class scores"
        )
    return (name,)


@dataclass
class Comparison:
    """One way's outputs beside those of the default way, as far as they have come in.

    Attributes:
        expected: The default way's outputs.
        labelled: Those of them that label samples.
        flipped: Samples that are labelled differently.
        max_abs: Largest difference so far, by output.
    """

    expected: Columns
    labelled: tuple[str, ...]
    flipped: set[int] = field(default_factory=set)
    max_abs: dict[str, float] = field(default_factory=dict)
    _powers: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, start: int, found: Columns) -> None:
        """Compares the samples from ``start`` on.

        Raises:
            StageFailed: Shapes differ, or one side is a number and the other is not.
        """
        for name, array in found.items():
            want = np.asarray(self.expected[name][start : start + len(array)])
            if want.shape != array.shape or want.dtype != array.dtype:
                raise StageFailed(f"output {name!r} is {list(array.shape)} {array.dtype}, by default {list(want.shape)} {want.dtype}")
            gap = gaps(want, array)
            self._refuse_infinite(name, start, want, array, gap)
            self.max_abs[name] = max(self.max_abs.get(name, 0.0), float(gap.max(initial=0.0)))
            signal = np.where(np.isfinite(want), want, 0).astype(np.float64)
            before = self._powers.get(name, (0.0, 0.0))
            self._powers[name] = before[0] + float(np.vdot(signal, signal)), before[1] + float(np.vdot(gap, gap))
            if name in self.labelled:
                self.flipped.update(start + int(row) for row in np.flatnonzero(labels(want) != labels(array)))

    def variant(self, name: str, note: str = "") -> Variant:
        """Returns the figures of this way."""
        worst = min((finite_db(power_ratio_db(*powers)) for powers in self._powers.values()), default=0.0)
        return Variant(name=name, flips=len(self.flipped), max_abs=self.max_abs, sqnr_db=worst, note=note)

    def _refuse_infinite(self, name: str, start: int, want: np.ndarray, found: np.ndarray, gap: np.ndarray) -> None:
        if np.isinf(gap).any():
            place = tuple(int(axis) for axis in np.argwhere(np.isinf(gap))[0])
            raise StageFailed(f"output {name!r} is {found[place]} in sample {start + place[0]}, element {place[1:]}; by default {want[place]}")


def _by_sample(name: str, found: np.ndarray, batch: int) -> np.ndarray:
    if found.dtype.kind not in "biuf":
        raise InputRejected(f"output {name!r} is {found.dtype}, expected numbers", where="outputs", hint="give a model whose outputs are numbers")
    if found.shape[:1] == (batch,):
        return found
    if batch == 1:
        return found[np.newaxis]
    message = f"output {name!r} is {list(found.shape)} for a batch of {batch}, expected {batch} rows"
    raise InputRejected(message, where="outputs", hint="give a model with one row of every output per sample, or with batch size 1")


def _shape_changed(name: str, start: int, found: np.ndarray, before: np.ndarray) -> InputRejected:
    message = f"output {name!r} is {list(found.shape[1:])} for sample {start} and {list(before.shape[1:])} for earlier ones"
    return InputRejected(message, where="outputs", hint="give a model whose outputs have one shape for all samples")
