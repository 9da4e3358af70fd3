"""Steps that measure: accuracy, latency, cold start, memory and the roofline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit import plugins
from toolkit.config import Metrics, Target, Timing
from toolkit.pipeline.steps import Fact, Need, Step, in_layout, wire

# What every evaluation imports before its runtime; the libraries behind the metrics take over a second.
_ANSWERING = ("toolkit.measure.accuracy", "toolkit.measure.tasks.classification", "sklearn.metrics")
COLD_PROCESSES = 3
"""Fresh processes for each model in a whole run; their spread is shown, and a run must not take minutes for it."""


def evaluate(
    id: str,
    model: Need | Path,
    data: Need | Path,
    runtime: plugins.Runtime,
    *,
    threads: int,
    memory_mb: int | None,
    task: str,
    reference: Need | None,
    output: str | Fact | None = None,
    classes: tuple[str, ...] = (),
    metrics: Metrics | None = None,
    layout: str | None = None,
) -> Step:
    """Outputs and metrics of one model on one runtime.

    ``output`` names the output that answers: runtimes sort outputs differently, so the first one of a file need not be the source's.
    ``layout``, here and below, is the model's where the samples have another.
    """
    options = {
        "runtime": runtime.name,
        "threads": threads,
        "memory_bytes": _bytes(memory_mb),
        "task": task,
        "classes": list(classes),
        "metrics": (metrics or Metrics()).model_dump(mode="json"),
        **in_layout(layout),
    }
    derived = {"output": output} if isinstance(output, Fact) else {}
    if isinstance(output, str):
        options["output"] = output
    needs, files = _origins({"model": model, "data": data})
    if reference:
        needs["reference"] = reference
    preload = () if plugins.preload(runtime) else _ANSWERING
    return Step(id, "toolkit.measure.accuracy:run", options, needs=needs, files=files, plugins=(runtime,), derived=derived, preload=preload)


def benchmark(
    id: str,
    models: Mapping[str, Need | Path],
    data: Need | Path,
    runtime: plugins.Runtime,
    target: Target,
    timing: Timing,
    *,
    baseline: str | None,
    layout: str | None = None,
) -> Step:
    """Latency of several models on one runtime, interleaved; measured anew each time."""
    options = {
        "runtime": runtime.name,
        "threads": target.threads,
        "cpus": list(target.cpus),
        "seconds": timing.seconds,
        "max_noise": timing.max_noise,
        "baseline": baseline,
        "stand_in": target.stand_in,
        **in_layout(layout),
    }
    return _on_this_machine(id, "toolkit.measure.latency:run", options, {**models, "data": data}, (runtime,))


def cold(
    id: str,
    models: Mapping[str, Need | Path],
    data: Need | Path,
    runtime: plugins.Runtime,
    target: Target,
    *,
    processes: int = COLD_PROCESSES,
    layout: str | None = None,
) -> Step:
    """Load time, first inference and memory of several models, each in fresh processes on the target's CPUs and under its memory cap."""
    options = {
        "runtime": runtime.name,
        "threads": target.threads,
        "cpus": list(target.cpus),
        "memory_bytes": _bytes(target.memory_mb),
        "repeats": processes,
        **in_layout(layout),
    }
    return _on_this_machine(id, "toolkit.measure.cold:run", options, {**models, "data": data}, (runtime,))


def roofline(id: str, models: Mapping[str, Need | Path], format: str, target: Target) -> Step:
    """The time this CPU needs at least for each of several models of one format."""
    reader = plugins.find_reader(format)
    options = {"format": format, "threads": target.threads, "cpus": list(target.cpus)}
    return _on_this_machine(id, "toolkit.measure.roofline:run", options, models, (reader,) if reader else ())


def curve(
    id: str, model: Path, data: Path, runtime: plugins.Runtime, target: Target, timing: Timing, batches: Sequence[int], threads: Sequence[int]
) -> Step:
    """Throughput of one model by batch size and thread count."""
    options = {
        "runtime": runtime.name,
        "batches": list(batches),
        "threads": list(threads) or [target.threads],
        "cpus": list(target.cpus),
        "seconds": timing.seconds,
    }
    return _on_this_machine(id, "toolkit.measure.curve:run", options, {"model": model, "data": data}, (runtime,))


def _on_this_machine(id: str, stage: str, options: Mapping[str, Any], inputs: Mapping[str, Need | Path], used: tuple[plugins.Plugin, ...]) -> Step:
    """A measurement that says something about this machine now: never cached, and nothing may run beside it."""
    needs, files = _origins(inputs)
    return Step(id, stage, options, needs=needs, files=files, plugins=used, cached=False, exclusive=True, partial=True)


def _origins(inputs: Mapping[str, Need | Path]) -> tuple[dict[str, Need], dict[str, Path]]:
    needs: dict[str, Need] = {}
    files: dict[str, Path] = {}
    for role, given in inputs.items():
        more_needs, more_files = wire(role, given)
        needs.update(more_needs)
        files.update(more_files)
    return needs, files


def _bytes(memory_mb: int | None) -> int | None:
    return memory_mb * 1_000_000 if memory_mb else None
