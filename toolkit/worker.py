"""Runs one stage in a child process, and turns every way it can die into a typed error.

One framework per process is the only arrangement in which today's frameworks do not hurt each other, and a process of
its own is the only thing that survives a converter's segmentation fault. Where importing a framework takes seconds, a
server imports it once and forks a fresh child for each stage (Linux alone: elsewhere, forking after such imports is unsafe).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.child import Child
from toolkit.errors import StageCrashed, StageOutOfMemory, StageTimeout, from_dict
from toolkit.forkserver import ForkServer, Progress, ServerDied
from toolkit.job import Facts, Job

_FORKS = sys.platform == "linux"


class Workers:
    """Runs stages, each in a process of its own, and owns those processes. Several threads may ask at a time."""

    def __init__(self) -> None:
        """Starts nothing yet."""
        self._children: set[Child] = set()
        self._servers: dict[tuple[str, ...], ForkServer] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(
        self,
        stage: str,
        job: Job,
        *,
        timeout_seconds: float,
        log: Path | None = None,
        memory_bytes: int | None = None,
        preload: Sequence[str] = (),
    ) -> Facts:
        """Runs ``stage``.

        Args:
            stage: Dotted name, ``package.module:function``.
            job: What the stage is to do. Its ``progress`` is called here, from another thread.
            timeout_seconds: The child is ended after this time.
            log: Where the child's output is kept; thrown away when absent.
            memory_bytes: Cap of the child's address space.
            preload: Modules that a server imports once and shares with later stages that name the same ones.

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
            try:
                status = self._status(folder, output, job.progress, timeout_seconds, tuple(preload) if _FORKS else ())
            except (TimeoutError, subprocess.TimeoutExpired) as error:
                hint = "raise timing.stage_timeout_seconds"
                raise StageTimeout(f"ran past {timeout_seconds:g} s and was ended", where=stage, hint=hint) from error
            except ServerDied as error:
                said = _last_words(Path(str(error)))
                raise StageCrashed(f"its framework cannot be imported; it last said: {said}", where=stage, hint="run: edgekit doctor") from error
            return _outcome(stage, status, folder, output, kept=log is not None)

    def stop(self) -> None:
        """Ends every child and every server; whoever waits for one gets an error."""
        with self._lock:
            children, servers = list(self._children), list(self._servers.values())
            self._servers.clear()
        for server in servers:
            server.stop()
        for child in children:
            child.end()

    def _status(self, folder: Path, log: Path, progress: Progress, timeout_seconds: float, preload: tuple[str, ...]) -> int:
        if preload:
            return self._server(preload).run(folder, log, progress, timeout_seconds)
        with log.open("wb") as stream:
            child = Child([str(folder)], stream, lambda message: progress(*message[2:]))
        with self._lock:
            self._children.add(child)
        try:
            return child.wait(timeout_seconds)
        finally:
            child.end()
            with self._lock:
                self._children.discard(child)

    def _server(self, preload: tuple[str, ...]) -> ForkServer:
        with self._lock:
            if preload not in self._servers or not self._servers[preload].alive:
                self._servers[preload] = ForkServer(preload)
            return self._servers[preload]


def _outcome(stage: str, status: int, folder: Path, log: Path, *, kept: bool) -> Facts:
    hint = f"full output: {log}" if kept else ""
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
        return StageOutOfMemory("was killed (SIGKILL): most likely out of memory", where=stage, hint="use fewer samples or more memory")
    how = f"crashed with {signal.Signals(-status).name}" if status < 0 else f"ended with status {status} and no result"
    said = _last_words(log)
    return StageCrashed(f"{how}{f'; it last said: {said}' if said else ''}", where=stage, hint=hint)


def _last_words(log: Path) -> str:
    """The most telling line of a crash log: the fatal error, else the last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("Fatal Python error") or "Check failed" in line]
    return (fatal or lines or [""])[-1][:200]
