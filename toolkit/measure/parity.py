"""Stage: does a converted model compute what its source computes?"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import dataset, plugins
from toolkit.artifact import Signature
from toolkit.dataset import Dataset
from toolkit.errors import InputRejected, ParityFailed, StageFailed
from toolkit.job import Facts, Job
from toolkit.measure.feed import Feed, fit, open_session, room
from toolkit.plugins import Arrays, Runtime, Session
from toolkit.stats.signal import finite_db, power_ratio_db

HINT = "convert with another route, or look for the first layer that differs"
# Integers of any width may stand for each other; a float for an integer may not.
_KINDS = {"i": "integer", "u": "integer", "f": "float", "b": "bool"}


@dataclass
class Difference:
    """What is known so far about one output.

    Attributes:
        signal: Sum of squares of the expected values.
        noise: Sum of squares of the differences.
        max_abs: Largest absolute difference.
        worst: Where that is: sample, index within the sample, expected and found value.
        agreed: Samples whose largest element sits at the same place.
        samples: Samples compared.
    """

    signal: float = 0.0
    noise: float = 0.0
    max_abs: float = 0.0
    worst: tuple[int, tuple[int, ...], Any, Any] | None = None
    agreed: int = 0
    samples: int = 0

    @property
    def sqnr_db(self) -> float:
        """Signal-to-quantization-noise ratio over all samples, limited to what JSON can carry."""
        return finite_db(power_ratio_db(self.signal, self.noise))


@dataclass
class Comparison:
    """One output of the model beside the values that the source gave.

    Attributes:
        name: The output's name.
        expected: The source's values ``[n x ...]``.
        where: The artifact, for messages.
        difference: What is known so far.
    """

    name: str
    expected: np.ndarray
    where: str
    difference: Difference = field(default_factory=Difference)

    def add(self, start: int, found: np.ndarray, given: int) -> None:
        """Compares the samples from ``start`` on.

        Args:
            start: The first of them.
            found: What the model gave, ``[given x ...]``; rows beyond the last sample are padding.
            given: Rows that the model was given.

        Raises:
            ParityFailed: Number of rows, shape or kind of number differ, or a value is not a number.
        """
        if found.shape[:1] != (given,):
            raise self._failed(f"has shape {list(found.shape)} for the batch from sample {start} on, expected {given} rows")
        found = found[: len(self.expected) - start]
        expected = np.asarray(self.expected[start : start + len(found)])
        self._check_kind(expected, found)
        want, have = expected.astype(np.float64), found.astype(np.float64)
        odd = ~(np.isfinite(want) & np.isfinite(have))
        if odd.any():
            self._check_odd(start, want, have)
            want, have = np.where(odd, 0.0, want), np.where(odd, 0.0, have)
        self._measure(start, want, have)

    def _check_kind(self, expected: np.ndarray, found: np.ndarray) -> None:
        if expected.shape[1:] != found.shape[1:]:
            raise self._failed(f"has shape {list(found.shape[1:])} per sample, expected {list(expected.shape[1:])}")
        if _kind(expected) != _kind(found):
            raise self._failed(f"has element type {found.dtype}, expected {expected.dtype}")

    def _check_odd(self, start: int, want: np.ndarray, have: np.ndarray) -> None:
        """Equal infinities may stand, for example in a mask; everything else that is not finite is a failure."""
        bad = (want != have) & ~(np.isfinite(want) & np.isfinite(have))
        if bad.any():
            place = tuple(int(axis) for axis in np.argwhere(bad)[0])
            raise self._failed(f"is {have[place]} in sample {start + place[0]}, element {place[1:]}, expected {want[place]}")

    def _measure(self, start: int, want: np.ndarray, have: np.ndarray) -> None:
        state = self.difference
        gap = np.abs(have - want)
        state.signal += float(np.vdot(want, want))
        state.noise += float(np.vdot(gap, gap))
        state.samples += len(want)
        if gap.size and (state.worst is None or gap.max() > state.max_abs):
            place = tuple(int(axis) for axis in np.unravel_index(int(gap.argmax()), gap.shape))
            state.max_abs = float(gap[place])
            state.worst = (start + place[0], place[1:], want[place], have[place])
        flat = len(want), -1
        if want.size:
            state.agreed += int(np.count_nonzero(want.reshape(flat).argmax(axis=1) == have.reshape(flat).argmax(axis=1)))

    def judge(self, min_sqnr_db: float) -> None:
        """Holds the whole output against the tolerance.

        Raises:
            ParityFailed: The output differs by more than that.
        """
        state = self.difference
        if state.sqnr_db < min_sqnr_db and state.worst is not None:
            sample, element, want, have = state.worst
            raise self._failed(
                f"differs: SQNR {state.sqnr_db:.1f} dB, required {min_sqnr_db:.1f} dB; max |difference| {state.max_abs:.6g}"
                f" in sample {sample}, element {element}: expected {want:.6g}, found {have:.6g}"
            )

    def facts(self) -> Facts:
        """Returns the figures; ``top1_agreement`` only for an output of one row of scores per sample."""
        state = self.difference
        agreement = state.agreed / state.samples if self.expected.ndim == 2 and state.samples else None
        return {"sqnr_db": state.sqnr_db, "max_abs": state.max_abs, "top1_agreement": agreement}

    def _failed(self, what: str) -> ParityFailed:
        return ParityFailed(f"output {self.name!r} {what}", where=self.where, hint=HINT)


def run(job: Job) -> Facts:
    """Runs a converted model on real samples and compares every output with the live source's.

    Inputs: ``model``, and ``expected`` (folder with ``inputs/`` and ``outputs/``, one ``.npy`` file per tensor of the
    source; where sizes are free also ``variants/``, see :mod:`toolkit.sources.variants`). Options: ``runtime``,
    ``min_sqnr_db``, ``name`` (for messages), and where they were asked for ``layout`` (``channels_last``: the model takes
    the source's ``[n x c x h x w]`` as ``[n x h x w x c]``) and ``batch_sizes`` (each with a signature of its own).

    Returns:
        ``n``, ``outputs`` (``sqnr_db``, ``max_abs`` and ``top1_agreement`` by name; 200 dB is bit-identical), ``casts``
        (inputs whose integers the model stores in another width), and ``informative``. With free sizes also ``sizes`` (those
        compared, by name) and ``worst_sqnr_db`` (of any output at any of them); with batch sizes also ``batch_sizes``.

    Raises:
        ParityFailed: Names, shapes, kinds of numbers or values differ, or the expected outputs cannot tell anything.
        InputRejected: A file is damaged.
    """
    where = str(job.options.get("name") or job.inputs["model"].name)
    data = dataset.load(job.inputs["expected"] / "inputs").laid_out(job.options.get("layout"))
    expected = _read_columns(job.inputs["expected"] / "outputs", len(data))
    runtime = plugins.get("runtimes", job.options["runtime"])
    session = open_session(runtime, job.inputs["model"], 1)
    _check_names(session.signature, set(data.columns), set(expected), where)
    feed, comparisons = _judged(session, data, expected, where, job)
    if not any(informative(column) for column in expected.values()):
        raise ParityFailed(
            "parity cannot be judged on constant outputs", where=where, hint="give different, real samples; check that the source is trained"
        )
    facts = {"n": len(data), "outputs": {one.name: one.facts() for one in comparisons}, "casts": feed.casts, "informative": True}
    return facts | _batch_sizes(runtime, data, expected, where, job) | _free_sizes(session, where, job)


def _judged(session: Session, data: Dataset, expected: Arrays, where: str, job: Job) -> tuple[Feed, list[Comparison]]:
    """Compares all samples, and raises when an output is further from the source's than the tolerance."""
    try:
        feed = fit(data, session.signature, room(session))
    except InputRejected as error:
        raise ParityFailed(f"does not take the source's inputs: {error.message}", where=where, hint=HINT) from error
    comparisons = [Comparison(name, column, where) for name, column in expected.items()]
    _compare(session, feed, comparisons, job)
    for comparison in comparisons:
        comparison.judge(float(job.options["min_sqnr_db"]))
    return feed, comparisons


def _batch_sizes(runtime: Runtime, data: Dataset, expected: Arrays, where: str, job: Job) -> Facts:
    """Compares by every signature of a file that has one for each batch size."""
    sizes = [int(size) for size in job.options.get("batch_sizes") or ()]
    if not sizes:
        return {}
    if not hasattr(runtime, "open_batch"):
        raise ParityFailed(f"{runtime.name} cannot run one batch size of several", where=where, hint="convert each batch size to a file of its own")
    for size in sizes:
        session: Session = runtime.open_batch(job.inputs["model"], threads=1, batch=size)
        _judged(session, data, expected, f"{where}, batch size {size}", job)
    return {"batch_sizes": sizes}


def _free_sizes(session: Session, where: str, job: Job) -> Facts:
    """Compares at every recorded size."""
    sizes: dict[str, set[int]] = defaultdict(set)
    worst = finite_db(float("inf"))
    for place, (named, inputs, outputs) in enumerate(_variants(job.inputs["expected"] / "variants")):
        here = f"{where} at {', '.join(f'{name}={size}' for name, size in named.items())}"
        given = _cast(dataset.laid_out(inputs, job.options.get("layout")), session.signature)
        found = _at_size(session, given, here)
        for name, column in outputs.items():
            comparison = Comparison(name, column, here)
            comparison.add(0, found[name], len(column))
            comparison.judge(float(job.options["min_sqnr_db"]))
            worst = min(worst, comparison.difference.sqnr_db)
        for name, size in named.items():
            sizes[name].add(size)
        job.progress(place + 1, place + 1, here)
    return {"sizes": {name: sorted(values) for name, values in sizes.items()}, "worst_sqnr_db": worst} if sizes else {}


def _at_size(session: Session, given: Arrays, where: str) -> dict[str, np.ndarray]:
    try:
        return session.run(given)
    except (InputRejected, StageFailed) as error:
        raise ParityFailed(f"fails where the source does not: {error.message}", where=where, hint="fix that size, or take another route") from error


def _variants(folder: Path) -> Iterator[tuple[dict[str, int], dict[str, np.ndarray], dict[str, np.ndarray]]]:
    for one in sorted(folder.iterdir() if folder.is_dir() else (), key=lambda path: int(path.name)):
        named = json.loads((one / "sizes.json").read_text(encoding="utf-8"))
        yield named, _read_columns(one / "inputs"), _read_columns(one / "outputs")


def _cast(inputs: Arrays, signature: Signature) -> dict[str, np.ndarray]:
    """Gives integers the width that the model takes; everything else is left as it is, for the session to judge."""
    dtypes = {spec.name: np.dtype(spec.dtype) for spec in signature.inputs}
    return {
        name: np.ascontiguousarray(column, dtypes[name] if column.dtype.kind in "iu" and dtypes[name].kind in "iu" else column.dtype)
        for name, column in inputs.items()
    }


def informative(column: np.ndarray) -> bool:
    """Whether an output varies: from sample to sample, or within the only sample. A single number must not be zero."""
    values = np.asarray(column)
    if values.size <= 1:
        return bool(values.any())
    return bool((values != values[:1]).any()) if len(values) > 1 else bool((values != values.flat[0]).any())


def _compare(session: Session, feed: Feed, comparisons: list[Comparison], job: Job) -> None:
    total = len(feed.data)
    for start, stop, columns in feed.blocks():
        for first in range(start, stop, feed.batch):
            offset = first - start
            outputs = session.run({name: column[offset : offset + feed.batch] for name, column in columns.items()})
            for comparison in comparisons:
                comparison.add(first, outputs[comparison.name], feed.batch)
            job.progress(min(first + feed.batch, total), total, "")


def _check_names(signature: Signature, inputs: set[str], outputs: set[str], where: str) -> None:
    for side, specs, wanted in (("input", signature.inputs, inputs), ("output", signature.outputs, outputs)):
        found = {spec.name for spec in specs}
        for name in sorted(wanted - found):
            raise ParityFailed(f"lacks the source's {side} {name!r}; found {', '.join(map(repr, sorted(found)))}", where=where, hint=HINT)
        for name in sorted(found - wanted):
            raise ParityFailed(f"has an {side} {name!r} that the source has not", where=where, hint=HINT)


def _read_columns(folder: Path, rows: int | None = None) -> dict[str, np.ndarray]:
    """Reads the expected outputs. No name is special here, so an output may be called ``label``."""
    columns = {}
    for file in sorted(folder.glob("*.npy")):
        try:
            columns[file.stem] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise InputRejected(f"is not a readable .npy file: {error}", where=str(file), hint="capture the source again") from error
        if rows is not None and (columns[file.stem].ndim == 0 or len(columns[file.stem]) != rows):
            raise InputRejected(f"has shape {list(columns[file.stem].shape)}, expected {rows} rows", where=str(file), hint="capture the source again")
    if not columns:
        raise InputRejected("has no expected outputs", where=str(folder), hint="capture the source again")
    return columns


def _kind(array: np.ndarray) -> str:
    return _KINDS.get(array.dtype.kind, array.dtype.kind)
