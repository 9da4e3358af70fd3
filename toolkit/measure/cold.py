"""Stage: what it takes to start, in time and in memory: from a model file to its first answer, in fresh processes.

Every figure is on top of a process that has the runtime imported, and of a file that the system has read before: neither
Python's start nor the disk is the model's doing.
"""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from toolkit import intake, plugins
from toolkit.errors import StageCrashed, StageOutOfMemory, from_dict
from toolkit.figures import ColdStart, Memory
from toolkit.job import Facts, Job
from toolkit.measure import memory

DATA = "data"
REPEATS = 5
_CHILD = Path(__file__).with_name("cold_child.py")
_SAMPLING_SECONDS = 0.001


def run(job: Job) -> Facts:
    """Measures load time, first inference and memory of each model.

    Inputs: one model file per artifact name, and ``data`` (folder of a data set that fits all of them; its first rows are fed).
    Options: ``runtime``, ``threads``, ``memory_bytes`` (cap, or ``None``), ``repeats`` (fresh processes for each model, 5),
    ``cpus`` (which CPUs they may use; all by default).

    The models take turns. The peak of private memory is the largest ``VmData`` (proc(5)) that a look each millisecond from
    outside finds, and the resident peak is ``VmHWM``, both less what the process had before it opened the model. Elsewhere than
    on Linux both are the growth of ``ru_maxrss`` (getrusage(2)).

    Returns:
        For each artifact name ``cold`` (:class:`toolkit.figures.ColdStart`) and ``memory`` (:class:`toolkit.figures.Memory`;
        ``None`` on a system that does not tell a process's memory).
        A model that needs more than the cap has ``over_cap`` and ``message`` in place of ``cold``, and its ``memory`` is what one
        process without the cap used (``cap`` is ``exceeded``), so that a budget is judged by it; no ``memory`` where even that failed.

    Raises:
        ConfigError: A CPU cannot be used.
        InputRejected: A model is damaged, or the data do not fit it.
        MissingExtra: The runtime is not installed.
        StageFailed: The runtime cannot execute a model.
        StageCrashed: A process died.
    """
    models = {name: path for name, path in job.inputs.items() if name != DATA}
    repeats = max(1, int(job.options.get("repeats", REPEATS)))
    starts: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    facts: Facts = {}
    for number in range(repeats):
        for name, path in models.items():
            if name not in facts:
                try:
                    starts[name].append(_start(path, job))
                except StageOutOfMemory as error:
                    if job.options.get("memory_bytes") is None:
                        raise
                    facts[name] = {"over_cap": True, "message": str(error), **_without_cap(path, job)}
        job.progress(number + 1, repeats, "starting")
    for name, path in models.items():
        if name not in facts:
            facts[name] = _summary(starts[name], path, job.options.get("memory_bytes"))
    return facts


def _without_cap(model: Path, job: Job) -> Facts:
    """What a model that needs more than the cap really uses."""
    try:
        start = _start(model, Job(job.inputs, {**job.options, "memory_bytes": None}, job.out))
    except StageOutOfMemory:
        return {}
    found = _summary([{**start, "cap": "exceeded"}], model, job.options["memory_bytes"])["memory"]
    return {"memory": found} if found else {}


def _start(model: Path, job: Job) -> dict[str, Any]:
    """Starts once. A runtime that a cap makes crash, instead of saying that it has no memory, is told by doing without the cap."""
    options = job.options
    # The child pins itself: this process, which watches it, must not take its CPU's time.
    where = {"runtime": options["runtime"], "threads": options["threads"], "cpus": list(options.get("cpus") or ())}
    request = {"model": str(model), "data": str(job.inputs[DATA]), "layout": options.get("layout"), **where}
    cap = options.get("memory_bytes")
    try:
        return _ask({**request, "memory_bytes": cap})
    except StageCrashed as error:
        if cap is None:
            raise
        _ask({**request, "memory_bytes": None})
        raise StageOutOfMemory(f"needs more than the memory cap of {cap:,} bytes: {error.message}") from error


def _ask(request: Mapping[str, Any]) -> dict[str, Any]:
    """Runs one child and returns its figures.

    Raises:
        ToolkitError: What the child raised, or how it died.
    """
    # -P keeps this folder, whose modules have common names, off the child's import path.
    command = [sys.executable, "-P", str(_CHILD), json.dumps(request)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            said, highest = _listen(process)
        finally:
            process.kill()
    if "done" not in said and "error" not in said:
        raise _death(process.wait(), str(request["model"]))
    if "error" in said:
        raise from_dict(said["error"])
    figures: dict[str, Any] = said["done"]
    return {**figures, "private_bytes": max(figures["private_bytes"], highest - said["ready"]["private_bytes"])}


def _listen(process: subprocess.Popen[bytes]) -> tuple[dict[str, Any], int]:
    """Collects a child's messages, and the most private memory that it is seen to have."""
    said: dict[str, Any] = {}
    highest = 0
    pipe = process.stdout
    while pipe is not None and not {"done", "error"} & said.keys():
        if "ready" in said and memory.OBSERVABLE and not select.select([pipe], [], [], _SAMPLING_SECONDS)[0]:
            highest = max(highest, memory.private_bytes(process.pid))
            continue
        line = pipe.readline()
        if not line:
            process.wait()
            break
        said.update(json.loads(line))
    return said, highest


def _death(status: int, model: str) -> StageCrashed | StageOutOfMemory:
    if status == -signal.SIGKILL:
        return StageOutOfMemory("was killed (SIGKILL): most likely out of memory", where=model, hint="use a smaller model or more memory")
    how = f"crashed with {signal.Signals(-status).name}" if status < 0 else f"ended with status {status} and no result"
    return StageCrashed(f"the process that loads the model {how}", where=model, hint="run it again; if it happens again: edgekit doctor")


def _summary(starts: Sequence[Mapping[str, Any]], model: Path, cap_bytes: int | None) -> Facts:
    loads, firsts = ([float(start[key]) for start in starts] for key in ("load_ms", "first_ms"))
    cold = ColdStart(
        load_ms=median(loads),
        load_low=min(loads),
        load_high=max(loads),
        first_ms=median(firsts),
        first_low=min(firsts),
        first_high=max(firsts),
        n=len(starts),
    )
    if not memory.MEASURABLE:
        return {"cold": cold.model_dump(mode="json"), "memory": None}
    weight_bytes, arena_bytes = _inside(model)
    used = Memory(
        peak_bytes=int(median(start["private_bytes"] for start in starts)),
        resident_bytes=int(median(start["resident_bytes"] for start in starts)),
        arena_bytes=arena_bytes,
        weight_bytes=weight_bytes,
        cap_bytes=cap_bytes,
        cap=str(starts[0]["cap"]),
        n=len(starts),
    )
    return {"cold": cold.model_dump(mode="json"), "memory": used.model_dump(mode="json")}


def _inside(model: Path) -> tuple[int, int | None]:
    """Stored weights and smallest arena, as the file's reader tells; 0 and ``None`` where nobody can look inside."""
    reader = plugins.find_reader(intake.check_model(model, plugins.format_of(model)))
    if reader is None or plugins.missing_modules(reader):
        return 0, None
    contents = reader.read(model)
    return sum(contents.weight_bytes.values()), contents.arena_bytes
