"""Runs one stage in a child process, and turns every way it can die into a typed error.

One framework per process is the only arrangement in which today's frameworks do not hurt each other, and a process of
its own is the only thing that survives a converter's segmentation fault.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from toolkit.errors import StageCrashed, StageOutOfMemory, StageTimeout, from_dict
from toolkit.job import Facts, Job

_CHILD = Path(__file__).with_name("worker_child.py")
# Frameworks that print at import, and a fixed order of hashes, which some exporters let into their files.
_ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false"}
_running: set[subprocess.Popen[str]] = set()
_running_lock = threading.Lock()


def run(
    stage: str,
    job: Job,
    *,
    timeout_seconds: float,
    log: Path | None = None,
    memory_bytes: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Facts:
    """Runs ``stage`` in a fresh interpreter.

    Args:
        stage: Dotted name, ``package.module:function``.
        job: What the stage is to do. Its ``progress`` is called here, from another thread.
        timeout_seconds: The child is ended after this time.
        log: Where the child's output is kept; thrown away on success when absent.
        memory_bytes: Cap of the child's address space.
        environment: Variables added to the child's environment.

    Returns:
        The stage's facts.

    Raises:
        ToolkitError: Whatever the stage raised on purpose.
        StageFailed: The framework raised.
        StageCrashed: The child died by a signal or without a result.
        StageTimeout: It ran too long.
        StageOutOfMemory: It hit a memory limit, or the system killed it.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        folder = Path(scratch)
        request = {
            "stage": stage,
            "inputs": {role: str(path) for role, path in job.inputs.items()},
            "options": dict(job.options),
            "out": str(job.out),
            "memory_bytes": memory_bytes,
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        output = log or folder / "log.txt"
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("w", encoding="utf-8") as stream:
            status = _wait(folder, stream, job, stage, timeout_seconds, {**os.environ, **_ENVIRONMENT, **(environment or {})})
        return _outcome(stage, status, folder, output, kept=log is not None)


def stop_all() -> None:
    """Ends every child that is still running; for interrupts."""
    with _running_lock:
        children = list(_running)
    for child in children:
        _kill(child)


def _wait(folder: Path, log: IO[str], job: Job, stage: str, timeout_seconds: float, environment: dict[str, str]) -> int:
    """Starts the child, relays its progress, and returns its exit status."""
    child = subprocess.Popen(
        [sys.executable, "-P", "-X", "faulthandler", str(_CHILD), str(folder)],
        stdin=subprocess.PIPE,  # closes when we die, which tells the child to end
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=environment,
        start_new_session=True,
    )
    with _running_lock:
        _running.add(child)
    reader = threading.Thread(target=_relay, args=(child.stdout, job.progress), daemon=True)
    reader.start()
    try:
        return child.wait(timeout_seconds)
    except subprocess.TimeoutExpired as error:
        raise StageTimeout(f"ran past {timeout_seconds:g} s and was ended", where=stage, hint="raise timing.stage_timeout_seconds") from error
    finally:
        _kill(child)
        reader.join(timeout=5)
        for pipe in (child.stdin, child.stdout):
            if pipe:
                pipe.close()
        with _running_lock:
            _running.discard(child)


def _relay(stream: IO[str], progress: Callable[[int, int, str], None]) -> None:
    for line in stream:
        with contextlib.suppress(ValueError, TypeError):
            progress(*json.loads(line))


def _kill(child: subprocess.Popen[str]) -> None:
    """Ends the child with everything that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    child.wait()


def _outcome(stage: str, status: int, folder: Path, log: Path, *, kept: bool) -> Facts:
    hint = f"full output: {log}" if kept else "run again with -v for the full output"
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        raise _death(stage, status, log, hint) from None
    if "error" in result:
        error = from_dict(result["error"])
        error.hint = error.hint or hint
        error.where = error.where or stage
        raise error
    facts: Facts = result["facts"]
    return facts


def _death(stage: str, status: int, log: Path, hint: str) -> StageCrashed | StageOutOfMemory:
    if status == -signal.SIGKILL:
        return StageOutOfMemory(
            "was killed (SIGKILL): most likely out of memory", where=stage, hint="use fewer samples or a machine with more memory"
        )
    how = f"crashed with {signal.Signals(-status).name}" if status < 0 else f"ended with status {status} and no result"
    said = _last_words(log)
    return StageCrashed(f"{how}{f'; it last said: {said}' if said else ''}", where=stage, hint=hint)


def _last_words(log: Path) -> str:
    """The most telling line of a crash log: the fatal error, else the last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("Fatal Python error") or "Check failed" in line]
    return (fatal or lines or [""])[-1][:200]
