"""Stage: how far a model's outputs move when only the way of executing it changes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from toolkit import dataset, plugins
from toolkit.artifact import Signature, TensorSpec
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected, ToolkitError
from toolkit.figures import Variant
from toolkit.job import Facts, Job
from toolkit.measure import emulation
from toolkit.measure.feed import Feed, fit, open_session
from toolkit.measure.outputs import Columns, Comparison, in_chunks, labelled_outputs, one_by_one, outputs_of, read, record
from toolkit.mistakes import nearest
from toolkit.plugins import Runtime

STAGE = "toolkit.measure.envelope:run"
SAMPLES = 64
EMULATED_SAMPLES = 16
"""Emulation is 10 to 100 times slower than this CPU."""

INPUTS, OUTPUTS = "inputs", "outputs"
_THREADS = (1, 2, 4)
_EMULATION_SECONDS = 900.0


@dataclass(frozen=True)
class Way:
    """One way to execute a model.

    Attributes:
        name: What people call it.
        threads: Threads of one inference.
        variant: One of the runtime's own variants; empty for its default.
        cpu: The CPU to emulate; empty for this one.
    """

    name: str
    threads: int
    variant: str = ""
    cpu: str = ""


def run(job: Job) -> Facts:
    """Runs a model in the default way and in others, and compares every output of every sample.

    A model with a free batch is given one sample at a time. The samples are spread evenly over the data. An emulated CPU gets
    the first of them alone.

    Inputs: ``model``, ``data``. Options: ``runtime``, ``threads``, and optionally ``samples``, ``emulated_samples``,
    ``max_bytes`` (take no more samples than have their inputs and outputs in so many bytes), ``variants`` (names of the ways
    to try; all when ``None``) and ``output`` (the class scores; every output that labels samples without it). Writes
    ``inputs/`` (a data set), and ``outputs/0.npy`` and so on ``[n x ...]``: what the default way gave.

    Returns:
        ``variants`` (see :class:`toolkit.figures.Variant`; one that could not be measured says why in its note), ``flipped``
        (rows of the data that any variant labels differently), ``flips`` (their number), ``max_abs`` (largest difference of
        any variant, by output), ``n``, ``rows`` (of the data), and ``outputs`` and ``labelled`` (names).

    Raises:
        ConfigError: There is no such variant.
        InputRejected: The samples do not fit the model, or its outputs cannot be told apart by sample.
    """
    runtime = plugins.get("runtimes", job.options["runtime"])
    threads = int(job.options["threads"])
    tried = _chosen(ways(runtime, threads), job.options.get("variants"))
    session = open_session(runtime, job.inputs["model"], threads)
    data, rows = _spread(dataset.load(job.inputs["data"]), session.signature, job.options)
    data.write(job.out / INPUTS)
    feed = one_by_one(fit(data, session.signature), session.signature)
    expected = record(session, feed, job.out / OUTPUTS)
    labelled = labelled_outputs(session.signature, expected, job.options.get("output"))
    measured = _Measuring(job, runtime, feed, expected, labelled).all(tried)
    variants = [variant for variant, _ in measured]
    flipped = sorted({rows[sample] for _, samples in measured for sample in samples})
    return {
        "variants": [variant.model_dump(mode="json") for variant in variants],
        "flips": len(flipped),
        "flipped": flipped,
        "max_abs": {name: max((one.max_abs.get(name, 0.0) for one in variants), default=0.0) for name in expected},
        "n": len(data),
        "rows": rows,
        "outputs": list(expected),
        "labelled": list(labelled),
    }


def ways(runtime: Runtime, threads: int) -> list[Way]:
    """Lists every way to execute a model other than the default one, which has so many threads.

    The first is the default itself once more: what moves there moves by itself. The numbers of threads are the same on every
    machine, since they decide how work is split, whether or not there is a core for each.
    """
    others = [number for number in _THREADS if number != threads]
    return [
        Way("repeat", threads),
        *(Way(f"threads={number}", number) for number in others),
        *(Way(name, threads, variant=name) for name in getattr(runtime, "variants", ())),
        *(Way(f"cpu={cpu}", threads, cpu=cpu) for cpu in emulation.CPUS),
    ]


def _chosen(known: list[Way], names: list[str] | None) -> list[Way]:
    by_name = {way.name: way for way in known}
    for name in names or ():
        if name not in by_name:
            raise ConfigError(f"there is no variant {name!r}", where="variants", hint=nearest(name, list(by_name)))
    return known if names is None else [by_name[name] for name in dict.fromkeys(names)]


def _spread(data: Dataset, signature: Signature, options: Mapping[str, Any]) -> tuple[Dataset, list[int]]:
    """Chooses samples evenly, as data are often sorted by class."""
    count = min(int(options.get("samples") or SAMPLES), len(data))
    if options.get("max_bytes"):
        limit, each = int(options["max_bytes"]), _sample_bytes(data, signature)
        if each > limit:
            message = f"one sample takes {each:,} bytes with its outputs, expected at most {limit:,}"
            raise InputRejected(message, where=data.where, hint="only a model with smaller inputs and outputs can have a golden")
        count = min(count, limit // each)
    rows = np.arange(count) * len(data) // count
    return Dataset(data.take(rows).columns, None, data.where), [int(row) for row in rows]


def _sample_bytes(data: Dataset, signature: Signature) -> int:
    """Size of one sample with its outputs, free dimensions counted as 1."""

    def size(spec: TensorSpec) -> int:
        return np.dtype(spec.dtype).itemsize * int(np.prod([size if isinstance(size, int) else 1 for size in spec.shape[1:]]))

    return max(1, sum(column[:1].nbytes for column in data.columns.values()) + sum(map(size, signature.outputs)))


@dataclass(frozen=True)
class _Measuring:
    """Compares ways with the default one."""

    job: Job
    runtime: Runtime
    feed: Feed
    expected: Columns
    labelled: tuple[str, ...]

    def all(self, tried: list[Way]) -> list[tuple[Variant, set[int]]]:
        """Measures each way; emulated ones beside each other, the rest in turn, as some runtimes count threads by process."""
        found: dict[str, tuple[Variant, set[int]]] = {}
        with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
            emulated = {way.name: pool.submit(self.one, way) for way in tried if way.cpu}
            for number, way in enumerate(tried):
                self.job.progress(number, len(tried), way.name)
                found[way.name] = emulated[way.name].result() if way.cpu else self.one(way)
        return [found[way.name] for way in tried]

    def one(self, way: Way) -> tuple[Variant, set[int]]:
        """Measures one way; what keeps it from being measured is said in its note."""
        comparison = Comparison(self.expected, self.labelled)
        try:
            note = self._emulate(way, comparison) if way.cpu else self._execute(way, comparison)
        except ToolkitError as error:
            return Variant(name=way.name, note=error.message), set()
        variant = comparison.variant(way.name, note) if comparison.max_abs else Variant(name=way.name, note=note)
        return variant, comparison.flipped

    def _execute(self, way: Way, comparison: Comparison) -> str:
        model, runtime = self.job.inputs["model"], cast(Any, self.runtime)  # variants are no part of the protocol
        chosen = {"variant": way.variant} if way.variant else {}
        session = (runtime.open_variant if chosen else runtime.open)(model, threads=way.threads, **chosen)
        for start, found in outputs_of(session, self.feed):
            comparison.add(start, found)
        return ""

    def _emulate(self, way: Way, comparison: Comparison) -> str:
        if reason := emulation.unavailable():
            return reason
        count, total = self._emulated_samples(), len(self.feed.data)
        with tempfile.TemporaryDirectory(prefix="edgekit-envelope-") as scratch:
            given, out = Path(scratch) / "given", Path(scratch) / "out"
            self.feed.data.take(slice(0, count)).write(given)
            options = {"runtime": self.runtime.name, "threads": way.threads, "samples": count, "variants": []}
            job = Job({"model": self.job.inputs["model"], "data": given}, options, out)
            facts = emulation.run_on(way.cpu, STAGE, job, timeout_seconds=_EMULATION_SECONDS)
            for start, found in in_chunks(read(out / OUTPUTS, facts["outputs"])):
                comparison.add(start, found)
        return f"first {count} of {total} samples" if count < total else ""

    def _emulated_samples(self) -> int:
        """Whole batches, since a sample's outputs may depend on those that share its batch."""
        wanted, batch = int(self.job.options.get("emulated_samples") or EMULATED_SAMPLES), self.feed.batch
        return min(-(-wanted // batch) * batch, len(self.feed.data))
