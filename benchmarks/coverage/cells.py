"""The cells of one model: our conversions and the bare calls, in processes of their own, then the files of each cell side by side."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.coverage.child import FORKED, LIMIT_SECONDS, PEERS
from benchmarks.coverage.models import Model
from benchmarks.figures import ROOT

LEAST_DB = 60.0


@dataclass
class Side:
    """What became of one side's conversion.

    Attributes:
        route: The route taken, or the bare call.
        ok: Whether there is a file that computes what the model computes.
        code: Why not, for scripts.
        reason: Why not, for people.
        seconds: Time until the file was there.
        whole_seconds: Time of the whole call, with the checks of the file.
        start_seconds: Part of both that a process with the framework needs to start, measured on its own: median over the model's formats.
        sqnr_db: Lowest over all outputs.
        size_mb: Size of the file.
        latency_ms: Median of one inference on one thread.
        attempts: Routes tried before.
        operators: How often each operator is in the file; only where one side's file is slower.
    """

    route: str = ""
    ok: bool = False
    code: str = ""
    reason: str = ""
    seconds: float | None = None
    whole_seconds: float | None = None
    start_seconds: float = 0.0
    sqnr_db: float | None = None
    size_mb: float | None = None
    latency_ms: float | None = None
    attempts: list[dict[str, Any]] = field(default_factory=list)
    operators: dict[str, int] = field(default_factory=dict)


@dataclass
class Cell:
    """One model in one format, by us and by the bare call of a peer's library (``None`` where there is none)."""

    model: str
    format: str
    ours: Side
    peer: Side | None

    @property
    def latency_ratio(self) -> float | None:
        """Ours over the peer's, from the same turns."""
        if self.peer is None or not (self.ours.latency_ms and self.peer.latency_ms):
            return None
        return self.ours.latency_ms / self.peer.latency_ms

    @property
    def seconds_ratio(self) -> float | None:
        """Our conversion without the start of its worker, over the bare call, where both hold."""
        if self.peer is None or not (self.ours.ok and self.peer.ok and self.ours.seconds and self.peer.seconds):
            return None
        return (self.ours.seconds - self.ours.start_seconds) / self.peer.seconds

    @property
    def difference(self) -> str:
        """What our file has more and less of than the peer's: that is why it takes longer, or that it is not the graph."""
        if self.peer is None or not (self.ours.operators and self.peer.operators):
            return ""
        names = sorted({*self.ours.operators, *self.peer.operators})
        counts = {name: self.ours.operators.get(name, 0) - self.peer.operators.get(name, 0) for name in names}
        return ", ".join(f"{count:+d} {name}" for name, count in counts.items() if count) or "the same operators"

    def line(self) -> str:
        """The cell in one line."""
        sides = [("ours", self.ours), *([("peer", self.peer)] if self.peer else [])]
        return f"{self.model} {self.format}: " + "; ".join(f"{name} {_words(side)}" for name, side in sides)

    def to_dict(self) -> dict[str, Any]:
        """The cell as JSON can carry it."""
        return {**asdict(self), "latency_ratio": self.latency_ratio, "seconds_ratio": self.seconds_ratio, "difference": self.difference}


def _words(side: Side) -> str:
    if not side.ok:
        return f"FAILED {side.code}: {side.reason[:160]}"
    parts = [side.route, f"{side.seconds:.1f} s", f"{side.sqnr_db:.0f} dB", f"{side.size_mb:.2f} MB"]
    return ", ".join([*parts, *([f"{side.latency_ms:.3f} ms"] if side.latency_ms else [])])


def run_model(model: Model, formats: Sequence[str], jobs: int = 2) -> list[Cell]:
    """Converts by both sides, in up to ``jobs`` processes at a time, and then, with nothing beside it, measures what came out."""
    peers = {format: PEERS[model.framework, format] for format in formats if (model.framework, format) in PEERS}
    with tempfile.TemporaryDirectory(prefix="edgekit-coverage-") as scratch:
        # Two processes for ours, so that neither side is the long one: with two at a time, a model takes as long as both sides need in all.
        halves = [part for part in (tuple(formats[::2]), tuple(formats[1::2])) if part]
        calls = [_Call(model, Path(scratch) / f"ours{number}", "ours", part) for number, part in enumerate(halves)]
        parts = [tuple(peers)] if model.framework in FORKED else [(format,) for format in peers]
        calls += [_Call(model, Path(scratch) / f"bare{number}", "bare", part) for number, part in enumerate(parts)]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(_Call.run, calls))
        cells = []
        for format in formats:
            found = {call.name(format): (call.side_of(format), call.folder / format / f"model.{format}") for call in calls if format in call.formats}
            _measure(model, format, found, Path(scratch))
            cells.append(Cell(model.name, format, found["ours"][0], found[peers[format]][0] if format in peers else None))
        start_seconds = statistics.median(cell.ours.start_seconds for cell in cells)
        for cell in cells:
            cell.ours.start_seconds = start_seconds
        return cells


@dataclass(frozen=True)
class _Call:
    """A process that converts a model to some formats, each by one side."""

    model: Model
    folder: Path
    side: str
    formats: tuple[str, ...]

    def run(self) -> None:
        self.folder.mkdir()
        limit_seconds = 60 + LIMIT_SECONDS * len(self.formats)
        error = _run(["benchmarks.coverage.child", self.side, self.model.name, str(self.folder), *self.formats], self.folder / "log", limit_seconds)
        for format in self.formats:
            facts = self.folder / format / "cell.json"
            if error and not facts.exists():
                facts.parent.mkdir(exist_ok=True)
                facts.write_text(json.dumps({"error": {"code": error[0], "message": error[1], "hint": ""}}), encoding="utf-8")

    def name(self, format: str) -> str:
        return "ours" if self.side == "ours" else PEERS[self.model.framework, format]

    def side_of(self, format: str) -> Side:
        facts = json.loads((self.folder / format / "cell.json").read_text(encoding="utf-8"))
        times = {"seconds": facts.get("seconds"), "whole_seconds": facts.get("whole_seconds"), "start_seconds": facts.get("start_seconds", 0.0)}
        if refused := facts.get("error"):
            hint = f" ({refused['hint']})" if refused["hint"] else ""
            return Side(route=self.name(format), code=refused["code"], reason=refused["message"] + hint, **times)
        return Side(route=facts["route"], attempts=facts.get("attempts", []), **times)


def _measure(model: Model, format: str, found: dict[str, tuple[Side, Path]], scratch: Path) -> None:
    """Compares and times the files of both sides in one process, so that both see the same machine."""
    made = {name: (side, file) for name, (side, file) in found.items() if not side.code}
    if not made:
        return
    out = scratch / "compared.json"
    error = _run(
        ["benchmarks.coverage.compare", format, str(out), *(f"{name}={file}" for name, (_, file) in made.items())], scratch / "log", LIMIT_SECONDS
    )
    facts = {} if error else json.loads(out.read_text(encoding="utf-8"))
    for name, (side, _) in made.items():
        if error or "error" in facts[name]:
            side.code, side.reason = error or ("does-not-run", facts[name]["error"])
            continue
        side.sqnr_db, side.size_mb, side.latency_ms = (facts[name][key] for key in ("sqnr_db", "size_mb", "latency_ms"))
        side.operators = facts[name].get("operators", {})
        side.ok = side.sqnr_db >= LEAST_DB
        if not side.ok:
            side.code, side.reason = "parity", f"the outputs are {side.sqnr_db:.1f} dB from the model's"


def _run(module: list[str], log: Path, limit_seconds: float) -> tuple[str, str] | None:
    """Runs a module and returns why it failed: a code and the last line it said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with log.open("wb") as stream:
        try:
            done = subprocess.run(
                [sys.executable, "-m", *module],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=limit_seconds,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            return "timeout", f"not done after {limit_seconds:.0f} s"
    if not done.returncode:
        return None
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if done.returncode < 0:
        return "crash", f"ended by signal {-done.returncode}"
    return "raised", lines[-1][:300] if lines else f"ended with {done.returncode}"
