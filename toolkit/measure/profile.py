"""Stage: where the time of one inference goes, operator by operator, in the user's layers.

The runtime's own profiler times the operators. A second session without it takes turns with the recorded one, so that
the sum of the operators can be held against what an inference takes when nobody records.
"""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, cast

import numpy as np

from toolkit import dataset, plugins
from toolkit.contents import Node
from toolkit.errors import ConfigError
from toolkit.figures import OperatorTime
from toolkit.job import Facts, Job
from toolkit.measure.affinity import pinned
from toolkit.measure.feed import batch_size, open_session
from toolkit.measure.turns import LEAD_IN, LEAD_IN_FROM, Loaded, prepare, turn_order, warm_up
from toolkit.plugins import Event, ProfiledSession, Runtime

ROUNDS = 12
# What a profiler writes of one inference of a large model are hundreds of kilobytes; 240 inferences give a 90th percentile.
MAX_BLOCK = 20
BUDGET_SECONDS = 1.0
WARMUP_SECONDS = 1.0
MS = 1e-6
TOLERANCE = 0.1
# The profilers count whole microseconds and take some themselves. Of models with 4 us an operator the sum was within a tenth.
SHORT_US = 3.0


def run(job: Job) -> Facts:
    """Profiles single inferences at batch size 1, or at the model's own when that is fixed to another.

    Inputs: ``model`` and ``data`` (folder of a data set that fits it). Options: ``runtime``, ``threads``, ``format``, and
    optionally ``cpus`` (none), ``seconds`` (time budget of each session, 1.0) and ``warmup_seconds`` (limit, 1.0).

    Returns:
        ``operators``, each a :class:`toolkit.figures.OperatorTime` as a dictionary, in the order of execution;
        ``total_ms``, ``latency_ms``, ``n`` and ``note`` as in :class:`toolkit.evidence.Profile`.

    Raises:
        ConfigError: The runtime has no profiler.
        InputRejected: The model is damaged or the data do not fit it.
        StageFailed: The runtime cannot profile this model.
    """
    options = job.options
    runtime: Runtime = plugins.get("runtimes", options["runtime"])
    check_profiler(runtime)
    with pinned(options.get("cpus") or ()) as unpinned:
        plain = open_session(runtime, job.inputs["model"], options["threads"])
        recorded = cast(Any, runtime).open_profiled(job.inputs["model"], threads=options["threads"])
        data, size = dataset.load(job.inputs["data"]), batch_size(plain.signature, free=1)
        pair = prepare(data, plain, size), prepare(data, recorded, size)
        warm_up(pair[0], float(options.get("warmup_seconds", WARMUP_SECONDS)))
        latencies_ms, runs = _take_turns(*pair, float(options.get("seconds", BUDGET_SECONDS)), job)
    operators = operator_times(runs, Layers(_nodes(options["format"], job)))
    total_ms, latency_ms = median(sum(event.ms for event in events) for events in runs), median(latencies_ms)
    unsteady = "" if pair[0].steady else "warming up never reached a steady state"
    return {
        "operators": [operator.model_dump(mode="json") for operator in operators],
        "total_ms": total_ms,
        "latency_ms": latency_ms,
        "n": len(runs),
        "note": "; ".join(filter(None, (disagreement(total_ms, latency_ms, len(operators)), unsteady, unpinned))),
    }


def disagreement(total_ms: float, latency_ms: float, operators: int) -> str:
    """Says that the operators do not add up to the latency within a tenth, and what is likely behind it; empty when they do.

    Args:
        total_ms: Sum of all operators.
        latency_ms: Latency without recording.
        operators: Number of operators.
    """
    if abs(total_ms - latency_ms) <= TOLERANCE * latency_ms:
        return ""
    mean_us = latency_ms * 1e3 / max(1, operators)
    short = f"at {mean_us:.2g} us each on average they are too short for the profiler, so take the shares as a rough order only"
    reason = short if mean_us < SHORT_US else "the machine was not quiet, or recording disturbs this model: profile again"
    return f"the operators add up to {total_ms / latency_ms:.0%} of the latency; {reason}"


def check_profiler(runtime: Runtime) -> None:
    """Makes sure that a runtime can tell the times of operators.

    Raises:
        ConfigError: It cannot.
    """
    if not hasattr(runtime, "open_profiled"):
        able = [name for name, plugin in plugins.discover("runtimes").items() if hasattr(plugin, "open_profiled")]
        raise ConfigError(f"{runtime.name} has no profiler", hint=f"profile on a target of {', '.join(able)}")


class Layers:
    """The user's layer of every node of a file, found by the node's own name and its outputs'."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._nodes: dict[str, Node] = {}
        for node in nodes:
            for name in (*node.outputs, node.name):
                self._nodes[name] = node

    def of(self, names: Sequence[str]) -> str:
        """Returns the layer of an executed operator: of its nodes, the one that multiplies most decides, else the first that has one."""
        found = [self._nodes[name] for name in names if name in self._nodes and self._nodes[name].layer]
        return max(found, key=lambda node: node.macs).layer if found else ""


@dataclass
class _Row:
    """One operator over all inferences."""

    event: Event
    times_ms: dict[int, float] = field(default_factory=dict)


def operator_times(runs: Sequence[Sequence[Event]], layers: Layers) -> list[OperatorTime]:
    """Puts the same operator of all inferences into one row, in the order of execution.

    An operator is the same when name, kind and kernel are, and its place among those that are equal so far. One that an
    inference did not reach took it no time.
    """
    rows: dict[tuple[object, ...], _Row] = {}
    for number, events in enumerate(runs):
        seen: dict[tuple[object, ...], int] = defaultdict(int)
        for event in events:
            kind = (event.name, event.operator, event.kernel, event.nodes)
            rows.setdefault((*kind, seen[kind]), _Row(event)).times_ms[number] = event.ms
            seen[kind] += 1
    quantiles = {key: np.quantile([row.times_ms.get(number, 0.0) for number in range(len(runs))], (0.5, 0.9)) for key, row in rows.items()}
    total = sum(float(p50) for p50, _ in quantiles.values())
    return [
        OperatorTime(
            name=row.event.name,
            operator=row.event.operator,
            kernel=row.event.kernel,
            layer=layers.of(row.event.nodes),
            p50_ms=float(quantiles[key][0]),
            p90_ms=float(quantiles[key][1]),
            share=float(quantiles[key][0]) / total if total else 0.0,
            n=len(runs),
        )
        for key, row in rows.items()
    ]


def _take_turns(plain: Loaded, recorded: Loaded, seconds: float, job: Job) -> tuple[list[float], list[list[Event]]]:
    """Lets both sessions alternate; returns the plain one's latencies in milliseconds and the recorded one's events."""
    block_ns = seconds * 1e9 / ROUNDS
    block = min(MAX_BLOCK, max(1, int(block_ns / plain.expected_ns)))
    # The first inferences after a change find the caches full of the other session's weights; where time allows, they do not count.
    lead_in = LEAD_IN if plain.expected_ns * LEAD_IN_FROM <= block_ns else 0
    _time_block(recorded, LEAD_IN)
    kept = [False] * LEAD_IN
    latencies: list[float] = []
    enabled = gc.isenabled()
    gc.disable()
    try:
        for number in range(ROUNDS):
            for loaded in turn_order((plain, recorded), number):
                times = _time_block(loaded, lead_in + block)
                if loaded is recorded:
                    kept += [place >= lead_in for place in range(len(times))]
                else:
                    latencies += times[lead_in:]
            job.progress(number + 1, ROUNDS, "profiling")
    finally:
        if enabled:
            gc.enable()
    events = cast(ProfiledSession, recorded.session).events()
    return latencies, [run for run, keep in zip(events, kept, strict=True) if keep]


def _time_block(loaded: Loaded, inferences: int) -> list[float]:
    times = []
    for _ in range(inferences):
        batch = next(loaded.feed)
        start = time.perf_counter_ns()
        loaded.session.run(batch)
        times.append((time.perf_counter_ns() - start) * MS)
    return times


def _nodes(format: str, job: Job) -> tuple[Node, ...]:
    reader = plugins.find_reader(format)
    return reader.read(job.inputs["model"]).nodes if reader else ()
