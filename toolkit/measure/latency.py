"""Stage: how long one inference takes, for several models side by side.

A machine drifts: clocks change, neighbours come and go. So all models sit in one process and take turns in short blocks,
in an order that visits each of them early as often as late; a drift then moves all of them alike, and their ratio little.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from toolkit import dataset, plugins
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError
from toolkit.evidence import Latency
from toolkit.job import Facts, Job
from toolkit.measure.feed import batch_size, fit, open_session
from toolkit.measure.statistics import median_ratio_interval, quantile_interval
from toolkit.plugins import Arrays, Session

DATA = "data"
TIMED_SAMPLES = 16
MAX_INFERENCES = 2000
STEADY_SHARE = 0.05
# Each round times every model at least once, and below 36 times no order statistic bounds the 90th percentile with 95 %.
ROUNDS = 36
BUDGET_SECONDS = 1.0
WARMUP_SECONDS = 1.0
MS = 1e-6


@dataclass
class Contender:
    """One model with its prepared inputs and the times taken so far.

    Attributes:
        session: The loaded model.
        batches: Inputs to take in turn.
        expected_ns: Time of one inference after warming up, for planning.
        rounds_ns: Every timed inference, by round.
    """

    session: Session
    batches: Sequence[Arrays]
    expected_ns: float = 1.0
    rounds_ns: list[list[int]] = field(default_factory=list)


def run(job: Job) -> Facts:
    """Times single inferences at batch size 1, or at the model's own when that is fixed to another.

    Inputs: one model file per artifact name, and ``data`` (folder of a data set that fits all of them). Options:
    ``runtime``, ``threads``, ``baseline`` (artifact name or ``None``), ``stand_in``, and optionally ``rounds`` (36),
    ``warmup_seconds`` (limit per model, 1.0) and ``seconds`` (time budget per model, 1.0).

    Returns:
        A :class:`toolkit.evidence.Latency` as a dictionary for each artifact name.

    Raises:
        ConfigError: The baseline is not among the models.
        InputRejected: A model is damaged or the data do not fit it.
    """
    options = job.options
    models = {name: path for name, path in job.inputs.items() if name != DATA}
    baseline = options.get("baseline")
    if baseline is not None and baseline not in models:
        raise ConfigError(f"baseline {baseline!r} is not among the models: {', '.join(models)}")
    data = dataset.load(job.inputs[DATA])
    contenders = {name: _open(path, data, options["runtime"], options["threads"]) for name, path in models.items()}
    for contender in contenders.values():
        _warm_up(contender, float(options.get("warmup_seconds", WARMUP_SECONDS)))
    _take_turns(contenders, max(1, options.get("rounds", ROUNDS)), float(options.get("seconds", BUDGET_SECONDS)), job)
    reference = contenders[baseline] if baseline is not None else None
    return {name: _latency(contender, reference, options["stand_in"]).model_dump(mode="json") for name, contender in contenders.items()}


def _open(model: Path, data: Dataset, runtime: str, threads: int) -> Contender:
    session = open_session(plugins.get("runtimes", runtime), model, threads)
    size = batch_size(session.signature, free=1)
    rows = [[(sample * size + row) % len(data) for row in range(size)] for sample in range(min(TIMED_SAMPLES, len(data)))]
    dtypes = fit(data, session.signature).dtypes
    batches = [
        {name: np.ascontiguousarray(data.columns[name][chosen].astype(dtype, copy=False)) for name, dtype in dtypes.items()} for chosen in rows
    ]
    return Contender(session, batches)


def _warm_up(contender: Contender, limit_seconds: float) -> None:
    """Runs until a block's median is within 5 % of the one before, or the time is up."""
    end = time.perf_counter_ns() + int(limit_seconds * 1e9)
    previous = _block_median(contender)
    while True:
        current = _block_median(contender)
        steady = abs(current - previous) <= STEADY_SHARE * previous
        previous = current
        if steady or time.perf_counter_ns() >= end:
            break
    contender.expected_ns = max(1.0, previous)


def _block_median(contender: Contender, inferences: int = 5) -> float:
    return median(_time_block(contender, inferences, budget_ns=10**12))


def _take_turns(contenders: Mapping[str, Contender], rounds: int, seconds: float, job: Job) -> None:
    budget_ns = seconds * 1e9
    with _no_garbage_collection():
        for number in range(rounds):
            for name in turn_order(list(contenders), number):
                contender = contenders[name]
                wanted = min(MAX_INFERENCES, max(1, int(budget_ns / contender.expected_ns)))
                block = max(1, -(-wanted // rounds))
                contender.rounds_ns.append(_time_block(contender, block, budget_ns / rounds))
            job.progress(number + 1, rounds, "timing")


def turn_order(names: Sequence[str], number: int) -> list[str]:
    """Returns who goes when in a round: rotating every two rounds, and every odd round backwards (A B, B A)."""
    shift = number // 2 % len(names)
    order = [*names[shift:], *names[:shift]]
    return order[::-1] if number % 2 else order


def _time_block(contender: Contender, inferences: int, budget_ns: float) -> list[int]:
    """Times inferences one by one; stops early when the budget is used up, but not before the first."""
    clock, run, batches = time.perf_counter_ns, contender.session.run, contender.batches
    count, times = len(batches), []
    deadline = clock() + budget_ns
    for number in range(inferences):
        batch = batches[number % count]
        start = clock()
        run(batch)
        end = clock()
        times.append(end - start)
        if end >= deadline:
            break
    return times


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keeps Python's collector from stopping the clock of whoever is being timed."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _latency(contender: Contender, reference: Contender | None, stand_in: str) -> Latency:
    times_ms = np.concatenate(contender.rounds_ns) * MS
    p50, p50_low, p50_high = quantile_interval(times_ms, 0.5)
    p90, p90_low, p90_high = quantile_interval(times_ms, 0.9)
    ratio, ratio_low, ratio_high = median_ratio_interval(contender.rounds_ns, reference.rounds_ns) if reference else (None, None, None)
    return Latency(
        p50=p50,
        p90=p90,
        p50_low=p50_low,
        p50_high=p50_high,
        p90_low=p90_low,
        p90_high=p90_high,
        n=len(times_ms),
        ratio_to_float=ratio,
        ratio_low=ratio_low,
        ratio_high=ratio_high,
        stand_in=stand_in,
    )
