"""Work in processes of their own, several at a time: what one does to itself is nobody else's trouble."""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

Item = TypeVar("Item")
Outcome = tuple[str, str]
_POLL_S = 1.0
_MOST_TEXT = 300


@dataclass
class _Child:
    item: Any
    process: int
    pipe: int
    ends: float
    said: bytes = b""
    late: bool = field(default=False)


def forked(work: Callable[[Item], Outcome], items: Iterable[Item], jobs: int, limit_s: float) -> Iterator[tuple[Item, Outcome]]:
    """Yields every item with what became of it, as they get ready.

    Args:
        work: Returns an outcome and its reason; what it raises is ``failed``.
        items: What is worked on.
        jobs: How many processes there are at a time.
        limit_s: When a process is ended, which then is ``failed``; one that ends by itself without an answer has ``crashed``.
    """
    left, running = iter(items), dict[int, _Child]()
    with selectors.DefaultSelector() as watched:
        more = True
        while more or running:
            while more and len(running) < jobs:
                item = next(left, None)
                more = item is not None
                if item is not None:
                    child = _start(work, item, limit_s)
                    running[child.pipe] = child
                    watched.register(child.pipe, selectors.EVENT_READ)
            for key, _ in watched.select(_POLL_S):
                child = running[key.fd]
                part = os.read(child.pipe, 1 << 16)
                child.said += part
                if not part:
                    watched.unregister(child.pipe)
                    del running[child.pipe]
                    yield child.item, _ended(child, limit_s)
            for child in running.values():
                if time.monotonic() > child.ends and not child.late:
                    child.late = True
                    os.kill(child.process, signal.SIGKILL)


def _start(work: Callable[[Item], Outcome], item: Item, limit_s: float) -> _Child:
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        os.close(reading)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        try:
            found = work(item)
        except BaseException as error:  # noqa: BLE001  whatever comes is the result
            found = ("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:_MOST_TEXT]}")
        os.write(writing, json.dumps(found).encode())
        os._exit(0)
    os.close(writing)
    return _Child(item, process, reading, time.monotonic() + limit_s)


def _ended(child: _Child, limit_s: float) -> Outcome:
    os.close(child.pipe)
    _, status = os.waitpid(child.process, 0)
    if child.late:
        return "failed", f"took more than {limit_s:g} s"
    if not child.said:
        return "crashed", f"ended with {os.waitstatus_to_exitcode(status)}"
    outcome, reason = json.loads(child.said)
    return outcome, reason
