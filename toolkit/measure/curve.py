"""Stage: how many samples a second one model answers, by batch size and number of threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from toolkit import dataset, modelfile, plugins
from toolkit.dataset import Dataset
from toolkit.errors import InputRejected, StageFailed, StageOutOfMemory
from toolkit.figures import CurvePoint
from toolkit.job import Facts, Job
from toolkit.measure.affinity import pinned
from toolkit.measure.feed import batch_size, open_session
from toolkit.measure.turns import Contender, prepare, take_turns, warm_up
from toolkit.plugins import Runtime
from toolkit.stats.resampling import block_quantile_interval

FREE = 0
ROUNDS = 20
BUDGET_SECONDS = 1.0
WARMUP_SECONDS = 1.0
TOGETHER_BYTES = 1 << 30
MS = 1e-6
SECOND_MS = 1000.0


def run(job: Job) -> Facts:
    """Times one model at several batch sizes and thread counts; the points take turns.

    Inputs: ``model``, and ``data`` (folder of a data set that fits it; a batch larger than that repeats samples). Options: ``runtime``,
    ``batches``, ``threads`` (lists of positive numbers), and optionally ``seconds`` (time budget per point, 1.0) and ``cpus`` (which
    CPUs to use; all by default).

    Returns:
        ``points``, each a :class:`toolkit.figures.CurvePoint` as a dictionary, by threads and batch size; and ``notes`` about what was
        asked for and could not be measured. A model with a fixed batch size is measured at that size alone.

    Raises:
        ConfigError: A CPU cannot be used.
        InputRejected: The model is damaged or the data do not fit it.
    """
    options, model = job.options, job.inputs["model"]
    data, runtime = dataset.load(job.inputs["data"]), plugins.get("runtimes", options["runtime"])
    notes: list[str] = []
    points: list[CurvePoint] = []
    with pinned(options.get("cpus") or ()) as unpinned:
        notes += [unpinned] if unpinned else []
        asked = _asked(model, runtime, options["batches"], options["threads"], notes)
        for together in _by_memory(asked, modelfile.size_bytes(model)):
            job.progress(len(points), len(asked), "timing")
            points += _measure(together, model, data, runtime, float(options.get("seconds", BUDGET_SECONDS)), notes)
    return {"points": [point.model_dump(mode="json") for point in points], "notes": notes}


def _asked(model: Path, runtime: Runtime, batches: Sequence[int], threads: Sequence[int], notes: list[str]) -> list[tuple[int, int]]:
    """Lists ``(threads, batch)`` without repetition; a fixed batch size takes the place of whatever was asked for."""
    counts, sizes = sorted(set(threads)), sorted(set(batches))
    own = batch_size(open_session(runtime, model, counts[0]).signature, free=FREE)
    refused = [size for size in sizes if own != FREE and size != own]
    if refused:
        notes.append(f"batch {', '.join(map(str, refused))}: the model's batch size is fixed to {own}")
        sizes = [own]
    return [(count, size) for count in counts for size in sizes]


def _by_memory(asked: Sequence[tuple[int, int]], model_bytes: int) -> Iterator[Sequence[tuple[int, int]]]:
    """Splits the points into as few groups as may be loaded side by side."""
    most = max(1, TOGETHER_BYTES // max(1, model_bytes))
    for start in range(0, len(asked), most):
        yield asked[start : start + most]


def _measure(together: Sequence[tuple[int, int]], model: Path, data: Dataset, runtime: Runtime, seconds: float, notes: list[str]) -> list[CurvePoint]:
    """Loads, warms and times a few points side by side; those that the model refuses become notes."""
    ready: dict[tuple[int, int], Contender] = {}
    for threads, batch in together:
        loaded = prepare(data, open_session(runtime, model, threads), batch)
        try:
            warm_up(loaded, WARMUP_SECONDS)
        except (InputRejected, StageFailed, StageOutOfMemory) as error:
            notes.append(f"batch {batch}, threads {threads}: {error.message}")
            continue
        if not loaded.steady:
            notes.append(f"batch {batch}, threads {threads}: warming up never reached a steady state")
        ready[threads, batch] = Contender([loaded])
    if ready:
        take_turns(list(ready.values()), ROUNDS, seconds)
    return [_point(threads, batch, contender) for (threads, batch), contender in ready.items()]


def _point(threads: int, batch: int, contender: Contender) -> CurvePoint:
    rounds_ms = [[one * MS for one in times] for times in contender.rounds_ns]
    p50, low, high = block_quantile_interval(rounds_ms, 0.5)
    return CurvePoint(
        batch=batch,
        threads=threads,
        p50_ms=p50,
        samples_per_second=batch / p50 * SECOND_MS,
        low=batch / high * SECOND_MS,
        high=batch / low * SECOND_MS,
        n=sum(map(len, rounds_ms)),
    )
