"""A process that imports a framework once and forks a fresh child for each stage."""

from __future__ import annotations

import itertools
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.child import Child, kill_group

Progress = Callable[[int, int, str], None]


_OUTPUT_BYTES = 1 << 16


@dataclass(eq=False)
class ServerDied(Exception):
    """The server ended before it answered.

    Attributes:
        ready: Whether it had imported its modules.
        status: Its exit status, negative for a signal.
        output: The end of what it printed.
    """

    ready: bool
    status: int
    output: str


class ForkServer:
    """Runs requests, each in a forked child. Several threads may ask at a time."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        """Starts the server; it imports ``modules`` before it takes requests."""
        self._ready = threading.Event()
        self._replies: dict[int, queue.SimpleQueue[list[Any]]] = {}
        self._progress: dict[int, Progress] = {}
        self._numbers = itertools.count(1)
        self._speaking = threading.Lock()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  without a name, so that nothing stays behind, whatever dies
        self._reading = threading.Lock()
        self._output = ""
        self._server = Child(["--serve", ",".join(modules)], self._log, self._hear)

    @property
    def alive(self) -> bool:
        """Whether it still takes requests."""
        return self._server.alive

    def run(self, folder: Path, log: Path, progress: Progress, timeout_seconds: float, warm: Sequence[str] = ()) -> int:
        """Runs the request in ``folder`` and returns the child's exit status.

        Meanwhile the server itself imports ``warm``, modules for a later request; one that cannot be imported is passed over.

        Raises:
            TimeoutError: The child ran past the limit and was ended.
            ServerDied: The server cannot import its modules, or was killed.
        """
        job = next(self._numbers)
        self._replies[job], self._progress[job] = queue.SimpleQueue(), progress
        deadline = time.monotonic() + timeout_seconds
        child = 0
        try:
            with self._speaking:
                self._server.say({"job": job, "folder": str(folder), "log": str(log)})
                if warm:
                    self._server.say({"warm": list(warm)})
            while True:
                kind, _, value = self._next(job, deadline)
                if kind == "ended":
                    return int(value)
                child = int(value)
        finally:
            if child:
                kill_group(child)
            self._replies.pop(job), self._progress.pop(job)

    def stop(self) -> None:
        """Ends the server and all of its children."""
        if self._ready.is_set():  # before that it has no children, and does not listen
            self._server.hang_up(2)
        self._server.end()
        with self._reading:
            self._output = self._read_output()
            self._log.close()

    def _next(self, job: int, deadline: float) -> list[Any]:
        """Waits for the next reply, the deadline, or the server's death."""
        while True:
            try:
                return self._replies[job].get(timeout=min(0.5, max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                if time.monotonic() >= deadline:
                    raise TimeoutError from None
                if self.alive:
                    continue
                self._server.listen_out(5)
                if self._replies[job].empty():
                    with self._reading:
                        raise ServerDied(self._ready.is_set(), self._server.status or 0, self._read_output()) from None

    def _read_output(self) -> str:
        """Reads without moving the position at which the server writes; a stopped server is remembered."""
        if self._log.closed:
            return self._output
        start = max(0, os.fstat(self._log.fileno()).st_size - _OUTPUT_BYTES)
        return os.pread(self._log.fileno(), _OUTPUT_BYTES, start).decode(errors="replace")

    def _hear(self, message: list[Any]) -> None:
        kind, job, *rest = message
        # Whoever asked may have given up meanwhile, in another thread: looked up once, then used.
        progress, replies = self._progress.get(job), self._replies.get(job)
        if kind == "ready":
            self._ready.set()
        elif kind == "progress" and progress:
            progress(*rest)
        elif kind in ("started", "ended") and replies:
            replies.put(message)
