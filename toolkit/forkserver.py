"""A process that imports a framework once and forks a fresh child for each stage."""

from __future__ import annotations

import itertools
import queue
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.child import Child, kill_group

Progress = Callable[[int, int, str], None]


class ServerDied(Exception):
    """The server ended before it answered; the message is where its output is."""


class ForkServer:
    """Runs requests, each in a forked child. Several threads may ask at a time."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        """Starts the server; it imports ``modules`` before it takes requests."""
        with tempfile.NamedTemporaryFile(prefix="edgekit-server-", suffix=".txt", delete=False) as stream:
            self.log = Path(stream.name)
            self._server = Child(["--serve", ",".join(modules)], stream, self._hear)
        self._replies: dict[int, queue.SimpleQueue[list[Any]]] = {}
        self._progress: dict[int, Progress] = {}
        self._numbers = itertools.count(1)
        self._speaking = threading.Lock()

    @property
    def alive(self) -> bool:
        """Whether it still takes requests."""
        return self._server.alive

    def run(self, folder: Path, log: Path, progress: Progress, timeout_seconds: float) -> int:
        """Runs the request in ``folder`` and returns the child's exit status.

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
            while True:
                kind, _, value = self._next(job, deadline)
                if kind == "ended":
                    return int(value)
                child = int(value)
        finally:
            if child:
                kill_group(child)
            del self._replies[job], self._progress[job]

    def stop(self) -> None:
        """Ends the server and all of its children."""
        self._server.hang_up(2)
        self._server.end()
        self.log.unlink(missing_ok=True)

    def _next(self, job: int, deadline: float) -> list[Any]:
        """Waits for the next reply, the deadline, or the server's death."""
        while True:
            try:
                return self._replies[job].get(timeout=min(0.5, max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                if time.monotonic() >= deadline:
                    raise TimeoutError from None
                if not self.alive and self._replies[job].empty():
                    raise ServerDied(self.log) from None

    def _hear(self, message: list[Any]) -> None:
        kind, job, *rest = message
        if kind == "progress" and job in self._progress:
            self._progress[job](*rest)
        elif job in self._replies:
            self._replies[job].put(message)
