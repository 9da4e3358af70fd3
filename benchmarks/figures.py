"""What every benchmark shares: a figure with its bar, timed commands, and the order in which rivals take turns."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "examples" / "digits"


class Skipped(Exception):
    """A benchmark, or a part of it, cannot run here; the message says why."""


@dataclass(frozen=True)
class Figure:
    """One measured figure: the median of its samples, and whether that keeps to the bar.

    Attributes:
        name: Unique, for example ``startup.help``.
        unit: ``s``, ``ms`` or ``x`` (a ratio).
        samples: Every repetition, in order.
        what: One sentence: what was measured against what.
        at_most: The bar, when less is better.
        at_least: The bar, when more is better. With both, it must lie between; a figure without a bar only informs.
    """

    name: str
    unit: str
    samples: Sequence[float]
    what: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def value(self) -> float:
        return statistics.median(self.samples)

    @property
    def bar(self) -> str:
        if self.at_most is not None and self.at_least is not None:
            return f"{self.at_least:g}..{self.at_most:g}"
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return f">= {self.at_least:g}" if self.at_least is not None else ""

    @property
    def holds(self) -> bool | None:
        if self.at_most is None and self.at_least is None:
            return None
        return (self.at_most is None or self.value <= self.at_most) and (self.at_least is None or self.value >= self.at_least)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": round(self.value, 6),
            "unit": self.unit,
            "bar": self.bar or None,
            "holds": self.holds,
            "samples": [round(sample, 6) for sample in self.samples],
            "what": self.what,
        }


@dataclass(frozen=True)
class Cost:
    """What a command cost.

    Attributes:
        seconds: Wall time.
        cpu_seconds: User and system time of the process and of everything it waited for.
    """

    seconds: float
    cpu_seconds: float


@dataclass
class Samples:
    """Costs by rival, one list entry a round."""

    costs: dict[str, list[Cost]] = field(default_factory=dict)

    def add(self, rival: str, cost: Cost) -> None:
        self.costs.setdefault(rival, []).append(cost)

    def seconds(self, rival: str) -> list[float]:
        return [cost.seconds for cost in self.costs[rival]]

    def cpu_seconds(self, rival: str) -> list[float]:
        return [cost.cpu_seconds for cost in self.costs[rival]]


def turns(rivals: Sequence[str], rounds: int) -> Iterator[str]:
    """Yields who goes when: forwards, backwards, forwards (A B, B A), so that a drift of the machine hits all alike."""
    for number in range(rounds):
        yield from rivals if number % 2 == 0 else reversed(rivals)


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Divides round by round, as both sides of a round saw the same machine."""
    return [a / b for a, b in zip(over, under, strict=True)]


def differences(of: Sequence[float], less: Sequence[float]) -> list[float]:
    """Subtracts round by round."""
    return [a - b for a, b in zip(of, less, strict=True)]


def timed(command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None) -> Cost:
    """Runs a command in the repository's root and returns its cost.

    Raises:
        RuntimeError: It ended with another status than 0; the message holds the end of its output.
    """
    with log.open("wb") as stream:
        started = time.perf_counter()
        child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {child.returncode}: {log.read_text(errors='replace')[-2000:]}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime)


def edgekit(*arguments: str | Path) -> list[str | Path]:
    """The command line of this checkout."""
    return [sys.executable, "-m", "toolkit", *arguments]
