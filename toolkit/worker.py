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
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.child import Child
from toolkit.errors import Interrupted, StageCrashed, StageOutOfMemory, StageTimeout, ToolkitError, from_dict
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
        self._stopped = False

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(
        self, stage: str, job: Job, *, timeout_seconds: float, log: Path | None = None, preload: Sequence[str] = (), warm: Sequence[str] = ()
    ) -> Facts:
        """Runs ``stage``.

        Args:
            stage: Dotted name, ``package.module:function``.
            job: What the stage is to do. Its ``progress`` is called here, from another thread; what it raises is raised
                from here, after the stage has ended.
            timeout_seconds: The child is ended after this time.
            log: Where the child's output is kept; thrown away when absent.
            preload: Modules that a server imports once and shares with later stages that name the same ones.
            warm: Modules that a later stage of the same server will import: the server does so while this one runs.

        Returns:
            The stage's facts.

        Raises:
            ToolkitError: Whatever the stage raised on purpose.
            StageFailed: The framework raised.
            StageCrashed: The child died by a signal or without a result.
            StageTimeout: It ran too long.
            StageOutOfMemory: It found no memory, or the system killed it.
            Interrupted: :meth:`stop` was called, before or meanwhile.
        """
        progress = _Progress(job.progress)
        shared = (tuple(preload), tuple(warm)) if _FORKS else ((), ())
        try:
            with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
                facts = self._run(stage, replace(job, progress=progress), Path(scratch), log, timeout_seconds, *shared)
        except ToolkitError as error:
            if progress.error:
                raise progress.error from error
            if self._stopped and isinstance(error, StageCrashed | StageOutOfMemory):
                raise _interrupted(stage) from error
            raise
        if progress.error:
            raise progress.error
        return facts

    def prepare(self, preload: Sequence[str]) -> None:
        """Starts the server that stages with these modules will be forked from, so that its imports happen beside other work."""
        if _FORKS and preload:
            self._server("worker", tuple(preload))

    def stop(self) -> None:
        """Ends every child and every server, for good; whoever waits for one, or asks for one later, is interrupted."""
        with self._lock:
            self._stopped = True
            children, servers = list(self._children), list(self._servers.values())
            self._servers.clear()
        for server in servers:
            server.stop()
        for child in children:
            child.end()

    def _run(
        self, stage: str, job: Job, folder: Path, log: Path | None, timeout_seconds: float, preload: tuple[str, ...], warm: tuple[str, ...]
    ) -> Facts:
        request = {
            "stage": stage,
            "inputs": {role: str(path) for role, path in job.inputs.items()},
            "options": dict(job.options),
            "out": str(job.out),
            "kept": str(job.kept) if job.kept else None,
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        output = log or folder / "log.txt"
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            if preload:
                status = self._server(stage, preload).run(folder, output, job.progress, timeout_seconds, warm)
            else:
                status = self._run_alone(stage, folder, output, job.progress, timeout_seconds)
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            raise StageTimeout(f"ran past {timeout_seconds:g} s and was ended", where=stage, hint="raise timing.stage_timeout_seconds") from error
        except ServerDied as error:
            raise _server_death(stage, error) from error
        return _outcome(stage, status, folder, output, kept=log is not None)

    def _run_alone(self, stage: str, folder: Path, log: Path, progress: Progress, timeout_seconds: float) -> int:
        with self._lock, log.open("wb") as stream:
            if self._stopped:
                raise _interrupted(stage)
            child = Child([str(folder)], stream, lambda message: progress(*message[2:]))
            self._children.add(child)
        try:
            return child.wait(timeout_seconds)
        finally:
            child.end()
            with self._lock:
                self._children.discard(child)

    def _server(self, stage: str, preload: tuple[str, ...]) -> ForkServer:
        dead = None
        with self._lock:
            if self._stopped:
                raise _interrupted(stage)
            if preload in self._servers and not self._servers[preload].alive:
                dead = self._servers.pop(preload)
            if preload not in self._servers:
                self._servers[preload] = ForkServer(preload)
            server = self._servers[preload]
        if dead:
            dead.stop()
        return server


class _Progress:
    """Passes progress on, and keeps what the listener raises: in the thread that calls it, nobody would see it."""

    def __init__(self, listener: Progress) -> None:
        self._listener = listener
        self.error: BaseException | None = None

    def __call__(self, done: int, total: int, note: str) -> None:
        if self.error:
            return
        try:
            self._listener(done, total, note)
        except BaseException as error:  # noqa: BLE001  raised again by whoever waits for the stage
            self.error = error


def _interrupted(stage: str) -> Interrupted:
    return Interrupted("was ended, as its workers were stopped", where=stage)


def _outcome(stage: str, status: int, folder: Path, log: Path, *, kept: bool) -> Facts:
    hint = f"full output: {log}" if kept else ""
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        raise _death(stage, status, _last_words(log), hint) from None
    if "error" in result:
        error = from_dict(result["error"])
        error.hint = error.hint or hint
        error.where = error.where or stage
        raise error
    facts: Facts = result["facts"]
    return facts


def _death(stage: str, status: int, said: str, hint: str) -> StageCrashed | StageOutOfMemory:
    if status == -signal.SIGKILL:
        return StageOutOfMemory("was killed (SIGKILL): most likely out of memory", where=stage, hint="use fewer samples or more memory")
    how = f"crashed with {signal.Signals(-status).name}" if status < 0 else f"ended with status {status} and no result"
    return StageCrashed(f"{how}{f'; it last said: {said}' if said else ''}", where=stage, hint=hint)


def _server_death(stage: str, death: ServerDied) -> StageCrashed | StageOutOfMemory:
    """A server does nothing but its imports until it is ready; after that, something ended it below a running stage."""
    said = _telling_line(death.output)
    if death.ready:
        return _death(stage, death.status, said, "run it again; if it happens again: edgekit doctor")
    how = said or (signal.Signals(-death.status).name if death.status < 0 else f"nothing, and ended with status {death.status}")
    return StageCrashed(f"its framework cannot be imported; it last said: {how}", where=stage, hint="run: edgekit doctor")


def _last_words(log: Path) -> str:
    try:
        return _telling_line(log.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""


def _telling_line(output: str) -> str:
    """The most telling line of a crash log: the fatal error, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("Fatal Python error") or "Check failed" in line]
    return (fatal or lines or [""])[-1][:200]
