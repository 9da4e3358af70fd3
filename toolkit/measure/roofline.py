"""Stage: the time that this CPU needs at least for a model, whatever runtime executes it.

The roofline model: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
architectures", Comm. ACM 52:4 (2009). Its two roofs are measured here and now, not looked up, and are the best of several
repetitions: a floor must not be beaten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit import plugins
from toolkit.contents import Contents
from toolkit.job import Facts, Job
from toolkit.measure.affinity import pinned
from toolkit.measure.peaks import bandwidth_gbs, near_bandwidth_gbs, peak_gmacs

_GIGA = 1e9
_MS = 1e3


def run(job: Job) -> Facts:
    """Measures the roofs and holds each model's work under them.

    Inputs: one model file per artifact name. Options: ``format``, ``threads``, and optionally ``cpus`` (which CPUs to use; all by
    default).

    Returns:
        For each artifact name the fields of a :class:`toolkit.figures.Roofline` but ``reached``; ``None`` for a model that multiplies
        nothing, whose format no reader looks into, or that computes in a type whose peak nothing here measures.

    Raises:
        InputRejected: A model is damaged.
        ConfigError: A CPU cannot be used.
    """
    reader = plugins.find_reader(job.options["format"])
    if reader is None or plugins.missing_modules(reader):
        return dict.fromkeys(job.inputs)
    contents = {name: reader.read(path) for name, path in job.inputs.items()}
    threads = int(job.options["threads"])
    with pinned(job.options.get("cpus") or ()):
        peaks = peak_gmacs(threads)
        near = near_bandwidth_gbs(threads)
        job.progress(1, 1 + len(contents), "peaks")
        facts: Facts = {}
        for number, (name, found) in enumerate(contents.items()):
            facts[name] = floor(found, peaks, near, bandwidth_gbs(working_set_bytes(found), threads))
            job.progress(2 + number, 1 + len(contents), Path(job.inputs[name]).name)
    return facts


def working_set_bytes(contents: Contents) -> int:
    """Returns what a model touches in every inference: the weights that are multiplied, and the tensors between operators."""
    arena = contents.arena_bytes or max((node.moved_bytes for node in contents.nodes), default=0)
    return _weight_bytes(contents) + arena


def floor(contents: Contents, peaks: Mapping[str, float], near_gbs: float, far_gbs: float) -> dict[str, Any] | None:
    """Returns the larger of arithmetic and memory time.

    Only operators that multiply are held under the roofs: all others can be computed while their inputs pass by. Weights come
    from where a set of the model's size lies; the rest, which was written a moment ago, may still be in the nearest cache. The
    bandwidth that is reported is that of both together.

    Args:
        contents: What the model's file contains.
        peaks: Arithmetic peaks by element type, in 10^9 multiply-accumulates a second.
        near_gbs: Read bandwidth of the nearest caches, in 10^9 bytes a second.
        far_gbs: Read bandwidth at a working set like the model's.

    Returns:
        ``macs``, ``moved_bytes``, ``peak_gmacs`` (of the types that the model uses), ``bandwidth_gbs``, ``floor_ms`` and ``bound``,
        which is ``arithmetic`` or ``memory``; ``None`` when nothing is multiplied or a type's peak is not known.
    """
    macs: Counter[str] = Counter()
    for node in contents.nodes:
        macs[node.dtype] += node.macs
    used = {dtype: peaks.get(dtype, 0.0) for dtype, count in macs.items() if count}
    if not used or not all(used.values()):
        return None
    moved = sum(node.moved_bytes for node in contents.nodes if node.macs)
    weights = min(moved, _weight_bytes(contents))
    arithmetic = sum(macs[dtype] / peak for dtype, peak in used.items()) / _GIGA
    memory = (weights / far_gbs + (moved - weights) / max(near_gbs, far_gbs)) / _GIGA
    return {
        "macs": macs.total(),
        "moved_bytes": moved,
        "peak_gmacs": used,
        "bandwidth_gbs": moved / memory / _GIGA,
        "floor_ms": max(arithmetic, memory) * _MS,
        "bound": "arithmetic" if arithmetic >= memory else "memory",
    }


def _weight_bytes(contents: Contents) -> int:
    return sum(layer.weight_bytes for layer in contents.layers)
