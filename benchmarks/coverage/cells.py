"""One cell: our conversion and the peer's, each in a process of its own, then both files side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.coverage.child import PEERS
from benchmarks.coverage.models import Model
from benchmarks.figures import ROOT

LIMIT_SECONDS = 900
LEAST_DB = 60.0


@dataclass
class Side:
    """What became of one side's conversion.

    Attributes:
        route: The route taken, or the bare call.
        ok: Whether there is a file that computes what the model computes.
        code: Why not, for scripts.
        reason: Why not, for people.
        seconds: Time of the conversion, with everything that it starts.
        sqnr_db: Lowest over all outputs.
        size_mb: Size of the file.
        latency_ms: Median of one inference on one thread.
        attempts: Routes tried before.
    """

    route: str = ""
    ok: bool = False
    code: str = ""
    reason: str = ""
    seconds: float | None = None
    sqnr_db: float | None = None
    size_mb: float | None = None
    latency_ms: float | None = None
    attempts: list[dict[str, Any]] = field(default_factory=list)


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

    def line(self) -> str:
        """The cell in one line."""
        sides = [("ours", self.ours), *([("peer", self.peer)] if self.peer else [])]
        return f"{self.model} {self.format}: " + "; ".join(f"{name} {_words(side)}" for name, side in sides)

    def to_dict(self) -> dict[str, Any]:
        """The cell as JSON can carry it."""
        return {**asdict(self), "latency_ratio": self.latency_ratio}


def _words(side: Side) -> str:
    if not side.ok:
        return f"FAILED {side.code}: {side.reason[:160]}"
    parts = [side.route, f"{side.seconds:.1f} s", f"{side.sqnr_db:.0f} dB", f"{side.size_mb:.2f} MB"]
    return ", ".join([*parts, *([f"{side.latency_ms:.3f} ms"] if side.latency_ms else [])])


def run_cell(model: Model, format: str) -> Cell:
    """Converts by both sides and measures what came out."""
    peer = PEERS.get((model.framework, format))
    with tempfile.TemporaryDirectory(prefix="edgekit-coverage-") as scratch:
        folders = {side: Path(scratch) / str(number) for number, side in enumerate(filter(None, ("ours", peer)))}
        found = {side: _convert(side, model, format, folder) for side, folder in folders.items()}
        _measure({side: folders[side] for side in found if not found[side].code}, found, model, format, Path(scratch))
    return Cell(model.name, format, found["ours"], found[peer] if peer else None)


def _convert(side: str, model: Model, format: str, folder: Path) -> Side:
    folder.mkdir()
    error = _run(["benchmarks.coverage.child", side, model.name, format, str(folder)], folder / "log")
    if error:
        return Side(route=side, code=error[0], reason=error[1])
    facts = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
    refused = facts.get("error")
    if refused:
        return Side(code=refused["code"], reason=f"{refused['message']} ({refused['hint']})", seconds=facts["seconds"])
    return Side(route=facts["route"], seconds=facts["seconds"], attempts=facts.get("attempts", []))


def _measure(folders: dict[str, Path], found: dict[str, Side], model: Model, format: str, scratch: Path) -> None:
    """Compares and times the files of both sides in one process, so that both see the same machine."""
    if not folders:
        return
    files = [f"{side}={folder / f'model.{format}'}" for side, folder in folders.items()]
    error = _run(["benchmarks.coverage.compare", model.name, format, str(scratch / "compared.json"), *files], scratch / "log")
    facts = {} if error else json.loads((scratch / "compared.json").read_text(encoding="utf-8"))
    for side in folders:
        one = found[side]
        if error or "error" in facts[side]:
            one.code, one.reason = error or ("does-not-run", facts[side]["error"])
            continue
        one.sqnr_db, one.size_mb, one.latency_ms = facts[side]["sqnr_db"], facts[side]["size_mb"], facts[side]["latency_ms"]
        one.ok = one.sqnr_db >= LEAST_DB
        if not one.ok:
            one.code, one.reason = "parity", f"the outputs are {one.sqnr_db:.1f} dB from the model's"


def _run(module: list[str], log: Path) -> tuple[str, str] | None:
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
                timeout=LIMIT_SECONDS,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            return "timeout", f"not done after {LIMIT_SECONDS} s"
    if not done.returncode:
        return None
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if done.returncode < 0:
        return "crash", f"ended by signal {-done.returncode}"
    return "raised", lines[-1][:300] if lines else f"ended with {done.returncode}"
