"""Draws a run's progress on standard error: bars on a terminal, one plain line per event elsewhere."""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from toolkit.evidence import StageRecord

if TYPE_CHECKING:
    from rich.console import Console

QUIET_SECONDS = 30.0
_COLOURS = {"done": "green", "cached": "cyan", "failed": "red", "skipped": "yellow"}


class Progress:
    """Plain lines: what continuous integration and files get."""

    def __init__(self, console: Console, *, verbose: bool) -> None:
        """Makes a listener.

        Args:
            console: Where it writes.
            verbose: Whether cache keys are shown.
        """
        self.console = console
        self.verbose = verbose
        self.total = 0
        self.count = 0
        self._lock = threading.Lock()
        self._notes: dict[str, str] = {}
        self._spoke: dict[str, float] = {}
        self._failed: list[str] = []
        self._skipped: list[str] = []

    def planned(self, steps: list[str]) -> None:
        """Notes how many steps there are."""
        self.total = len(steps)

    def started(self, step: str) -> None:
        """Says that a step runs."""
        self._spoke[step] = time.monotonic()
        self.console.print(f"        {step} ...", markup=False)

    def progressed(self, step: str, done: int, total: int, note: str) -> None:
        """Says how far a long step got, now and then: a log is no place for a moving bar."""
        now = time.monotonic()
        with self._lock:
            self._notes[step] = note
            due = now - self._spoke.setdefault(step, now) >= QUIET_SECONDS
            if due:
                self._spoke[step] = now
        if due:
            self.console.print(f"        {step}: {note or f'{done}/{total}'}", markup=False)

    def finished(self, record: StageRecord) -> None:
        """Says what became of a step, unless it was only there in case of need."""
        if record.status == "unneeded":
            self.count += 1
            return
        if record.status == "skipped":
            self.count += 1
            self._skipped.append(record.step)
            return
        self._fold_skipped()
        self.count += 1
        if record.status == "failed":
            self._failed.append(record.step)
        line = f"[{self.count:2}/{self.total}] {record.step}: {_outcome(record)}{self._last_words(record)}"
        self.console.print(line, markup=False, style=_COLOURS[record.status])
        if self.verbose and record.key:
            self.console.print(f"        key {record.key}", markup=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._fold_skipped()

    def _last_words(self, record: StageRecord) -> str:
        """The last note of a step that ran, if it has a figure: the others only say what is going on."""
        note = self._notes.pop(record.step, "")
        return f", {note}" if record.status == "done" and re.search(r"\d", note) else ""

    def _fold_skipped(self) -> None:
        """Says in one line which steps were passed over in a row, and for want of what."""
        if not self._skipped:
            return
        number = len(self._skipped)
        what = f"{number} steps skipped: they need" if number > 1 else f"{self._skipped[0]}: skipped, it needs"
        line = f"[{self.count:2}/{self.total}] {what} {' or '.join(self._failed) or 'what failed'}"
        self._skipped.clear()
        self.console.print(line, markup=False, style=_COLOURS["skipped"])


class LiveProgress(Progress):
    """A bar for each running step, and a line above for each finished one."""

    def __init__(self, console: Console, *, verbose: bool) -> None:
        """Makes a listener; see :class:`Progress`."""
        super().__init__(console, verbose=verbose)
        columns = (
            TextColumn("        {task.description}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        self._bars = RichProgress(*columns, console=console, transient=True)
        self._tasks: dict[str, TaskID] = {}

    def started(self, step: str) -> None:
        """Opens a bar."""
        self._tasks[step] = self._bars.add_task(step, total=None, note="")

    def progressed(self, step: str, done: int, total: int, note: str) -> None:
        """Moves a bar."""
        if step in self._tasks:
            self._bars.update(self._tasks[step], completed=done, total=total, note=note)

    def finished(self, record: StageRecord) -> None:
        """Closes a bar."""
        task = self._tasks.pop(record.step, None)
        if task is not None:
            self._bars.remove_task(task)
        super().finished(record)

    def __enter__(self) -> LiveProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._fold_skipped()
        self._bars.stop()


def make(console: Console, *, verbose: bool) -> Progress:
    """Chooses by what standard error is."""
    return LiveProgress(console, verbose=verbose) if console.is_terminal else Progress(console, verbose=verbose)


def _outcome(record: StageRecord) -> str:
    return record.status if record.status in ("cached", "skipped") else f"{record.status} in {record.seconds:.1f} s"
