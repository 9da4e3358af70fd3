"""Runs one stage in a child process, and turns every way it can die into a typed error.

One framework per process is the only arrangement in which today's frameworks do not hurt each other, and a process of
its own is the only thing that survives a converter's segmentation fault. Where importing a framework takes seconds, a
server imports it once and forks a fresh child for each stage (Linux alone: elsewhere, forking after such imports is unsafe).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from toolkit.errors import StageCrashed, StageOutOfMemory, StageTimeout, from_dict
from toolkit.job import Facts, Job

_CHILD = Path(__file__).with_name("worker_child.py")
# Frameworks that print at import, and a fixed order of hashes, which some exporters let into their files.
_ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false"}
_FORKS = sys.platform == "linux"
_running: set[subprocess.Popen[bytes]] = set()
_servers: dict[tuple[str, ...], _Server] = {}
_lock = threading.RLock()


def run(
    stage: str,
    job: Job,
    *,
    timeout_seconds: float,
    log: Path | None = None,
    memory_bytes: int | None = None,
    preload: Sequence[str] = (),
) -> Facts:
    """Runs ``stage`` in a process of its own.

    Args:
        stage: Dotted name, ``package.module:function``.
        job: What the stage is to do. Its ``progress`` is called here, from another thread.
        timeout_seconds: The child is ended after this time.
        log: Where the child's output is kept; thrown away when absent.
        memory_bytes: Cap of the child's address space.
        preload: Modules that a server imports once and shares with later stages that name the same ones; call
            :func:`stop_all` in the end.

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
        execute = _run_forked if preload and _FORKS else _run_fresh
        status = execute(folder, output, job.progress, stage, timeout_seconds, tuple(preload))
        return _outcome(stage, status, folder, output, kept=log is not None)


def stop_all() -> None:
    """Ends every child and every server of this process."""
    with _lock:
        children, servers = list(_running), list(_servers.values())
        _servers.clear()
    for server in servers:
        server.stop()
    for child in children:
        _end(child)


def _run_fresh(folder: Path, log: Path, progress: Callable[[int, int, str], None], stage: str, timeout_seconds: float, _: tuple[str, ...]) -> int:
    """Starts an interpreter for this stage alone, and returns its exit status."""
    with log.open("wb") as stream:
        child = _start([str(folder)], stream)
    messages = _Messages(child, lambda message: progress(*message[2:]))
    try:
        return child.wait(timeout_seconds)
    except subprocess.TimeoutExpired as error:
        raise _too_slow(stage, timeout_seconds) from error
    finally:
        _end(child)
        messages.drain()


def _run_forked(
    folder: Path, log: Path, progress: Callable[[int, int, str], None], stage: str, timeout_seconds: float, preload: tuple[str, ...]
) -> int:
    """Asks the server of these modules for a child, and returns the child's exit status."""
    with _lock:
        if preload not in _servers or not _servers[preload].alive:
            _servers[preload] = _Server(preload)
        server = _servers[preload]
    return server.run(folder, log, progress, stage, timeout_seconds)


def _start(arguments: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-P", "-X", "faulthandler", str(_CHILD), *arguments],
        stdin=subprocess.PIPE,  # closes when we die, which tells the child to end
        stdout=subprocess.PIPE,
        stderr=log,
        env={**os.environ, **_ENVIRONMENT},
        start_new_session=True,
    )
    with _lock:
        _running.add(child)
    return child


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends a child with everything that it started."""
    _kill_group(child.pid)
    child.wait()
    if child.stdin:
        with contextlib.suppress(OSError):
            child.stdin.close()
    with _lock:
        _running.discard(child)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGTERM)


class _Messages:
    """Reads a child's messages in a thread of its own."""

    def __init__(self, child: subprocess.Popen[bytes], handle: Callable[[list[Any]], None]) -> None:
        self._stream = child.stdout
        self._handle = handle
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._stream or ():
            with contextlib.suppress(ValueError, TypeError):
                self._handle(json.loads(line))

    def drain(self) -> None:
        """Waits for the last message and closes the stream."""
        self._thread.join(timeout=5)
        if self._stream:
            self._stream.close()


class _Server:
    """A process that has imported some modules and forks a child for each stage."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        with tempfile.NamedTemporaryFile(prefix="edgekit-server-", suffix=".txt", delete=False) as stream:
            self._log = Path(stream.name)
            self._process = _start(["--serve", ",".join(modules)], stream)
        self._replies: dict[int, queue.SimpleQueue[list[Any]]] = {}
        self._progress: dict[int, Callable[[int, int, str], None]] = {}
        self._numbers = itertools.count(1)
        self._messages = _Messages(self._process, self._dispatch)

    @property
    def alive(self) -> bool:
        """Whether the process still takes requests."""
        return self._process.poll() is None

    def run(self, folder: Path, log: Path, progress: Callable[[int, int, str], None], stage: str, timeout_seconds: float) -> int:
        """Runs one request in a forked child and returns its exit status."""
        job = next(self._numbers)
        self._replies[job], self._progress[job] = queue.SimpleQueue(), progress
        deadline = time.monotonic() + timeout_seconds
        child = 0
        try:
            self._send({"job": job, "folder": str(folder), "log": str(log)})
            while True:
                reply = self._next(job, stage, deadline, timeout_seconds)
                if reply[0] == "ended":
                    return int(reply[2])
                child = int(reply[2])
        finally:
            if child:
                _kill_group(child)
            del self._replies[job], self._progress[job]

    def stop(self) -> None:
        """Ends the server and all of its children."""
        if self._process.stdin and self.alive:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2)
        _end(self._process)
        self._messages.drain()
        self._log.unlink(missing_ok=True)

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with _lock, contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def _next(self, job: int, stage: str, deadline: float, timeout_seconds: float) -> list[Any]:
        """Waits for the next reply, a dead server, or the deadline."""
        while True:
            try:
                return self._replies[job].get(timeout=min(0.5, max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                if time.monotonic() >= deadline:
                    raise _too_slow(stage, timeout_seconds) from None
                if not self.alive and self._replies[job].empty():
                    hint = "run: edgekit doctor"
                    raise StageCrashed(f"its framework cannot be imported; it last said: {_last_words(self._log)}", where=stage, hint=hint) from None

    def _dispatch(self, message: list[Any]) -> None:
        kind, job, *rest = message
        if kind == "progress" and job in self._progress:
            self._progress[job](*rest)
        elif job in self._replies:
            self._replies[job].put(message)


def _too_slow(stage: str, timeout_seconds: float) -> StageTimeout:
    return StageTimeout(f"ran past {timeout_seconds:g} s and was ended", where=stage, hint="raise timing.stage_timeout_seconds")


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
