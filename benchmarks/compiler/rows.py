"""One model by all sides: exported once, converted in a process for each side, and the files side by side in one more."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.compiler.compare import PEERS
from benchmarks.compiler.models import models
from benchmarks.coverage.cells import LEAST_DB
from benchmarks.figures import ROOT

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Side:
    """What became of one side's conversion, and of its file.

    Attributes:
        ok: Whether there is a file that computes what the model computes.
        reason: Why not.
        note: What else it took.
        seconds: The conversion, in a fresh process once its libraries were imported.
        whole_seconds: That process, from its start to its end.
        start_mb: What it held before the conversion: interpreter, libraries, and for litert_torch the live model.
        peak_mb: What it held at most beyond that.
        sqnr_db: Lowest over all outputs, to the live model's.
        size_mb: Size of the file.
        operators: How often each operator is in the file.
        partitions: How many parts of the graph XNNPACK executes.
        reordered: Whether it takes an input with its axes in another order than the model.
        latency_ms: Median of one inference on one thread.
        ratio: Our latency over its, from the same turns; of ours over that of a copy.
        beside: Of a peer: the operators of our file that it was timed beside.
    """

    ok: bool = False
    reason: str = ""
    note: str = ""
    seconds: float | None = None
    whole_seconds: float | None = None
    start_mb: float | None = None
    peak_mb: float | None = None
    sqnr_db: float | None = None
    size_mb: float | None = None
    operators: dict[str, int] = field(default_factory=dict)
    partitions: int | None = None
    reordered: bool = False
    latency_ms: float | None = None
    ratio: float | None = None
    beside: dict[str, int] = field(default_factory=dict)


@dataclass
class Row:
    """One model.

    Attributes:
        model: Its name.
        onnx_mb: Size of the exported file.
        export_seconds: PyTorch's own export to ONNX, once its libraries were imported.
        note: What else the export took.
        onnx_db: How close ONNX Runtime comes with that file: what float32 gives.
        sides: ``ours`` and the peers that were asked for.
    """

    model: str
    onnx_mb: float | None = None
    export_seconds: float | None = None
    note: str = ""
    onnx_db: float | None = None
    sides: dict[str, Side] = field(default_factory=dict)

    @property
    def ours(self) -> Side:
        """Our side."""
        return self.sides["ours"]

    @property
    def ratio(self) -> float | None:
        """Our latency over that of the better peer."""
        found = [self.sides[peer].ratio for peer in PEERS if peer in self.sides]
        return max((ratio for ratio in found if ratio is not None), default=None)

    def difference(self, peer: str) -> str:
        """What our file has more and less of than a peer's."""
        ours, theirs = self.sides[peer].beside, self.sides[peer].operators
        counts = {name: ours.get(name, 0) - theirs.get(name, 0) for name in sorted({*ours, *theirs})}
        return ", ".join(f"{count:+d} {name}" for name, count in counts.items() if count) or "the same operators"

    def memory(self, side: str) -> float | None:
        """A side's peak as a multiple of the exported file."""
        peak_mb = self.sides[side].peak_mb
        return peak_mb / self.onnx_mb if peak_mb is not None and self.onnx_mb else None

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON can carry it."""
        return asdict(self)

    def line(self) -> str:
        """The row in one line."""
        said = [f"export {self.export_seconds:.1f} s" if self.export_seconds else "no export"]
        return f"{self.model}: " + "; ".join([*said, *(f"{name} {_words(side)}" for name, side in self.sides.items())])


def from_dict(stored: dict[str, Any]) -> Row:
    """Reads a row that was written."""
    return Row(**{**stored, "sides": {name: Side(**side) for name, side in stored["sides"].items()}})


def _words(side: Side) -> str:
    if not side.ok:
        return f"FAILED {side.reason[:200]}"
    parts = [f"{side.seconds:.2f} s", f"{side.sqnr_db:.0f} dB", f"{sum(side.operators.values())} operators", f"{side.latency_ms or 0:.3f} ms"]
    return ", ".join([*parts, *([f"ratio {side.ratio:.3f}"] if side.ratio else [])])


def run_model(name: str, limit_s: float, onnx2tf: Path | None = None) -> Row:
    """Exports, converts and measures one model; onnx2tf takes part where the Python of its environment is named."""
    assert name in models()
    with tempfile.TemporaryDirectory(prefix="edgekit-compiler-") as scratch:
        folder = Path(scratch)
        exported = _step([sys.executable, "-m", "benchmarks.compiler.child", "export", name, scratch], folder, "export", limit_s)
        row = Row(name, exported.get("onnx_mb"), exported.get("seconds"), exported.get("note", ""))
        sides = ["ours", "litert_torch", *(["onnx2tf"] if onnx2tf else [])]
        if "error" in exported:
            row.sides = {side: Side(reason=f"PyTorch's export to ONNX: {exported['error']}") for side in sides}
            return row
        for side in sides:
            row.sides[side] = _side(_convert(side, name, folder, limit_s, onnx2tf))
        if onnx2tf:
            _convert("ours_last", name, folder, limit_s, None)
        _compare(row, folder, limit_s)
        return row


def _convert(side: str, name: str, folder: Path, limit_s: float, onnx2tf: Path | None) -> dict[str, Any]:
    if side == "onnx2tf":
        return _step([str(onnx2tf), "-m", "benchmarks.compiler.onnx2tf_child", str(folder)], folder, side, limit_s)
    return _step([sys.executable, "-m", "benchmarks.compiler.child", side, name, str(folder)], folder, side, limit_s)


def _side(facts: dict[str, Any]) -> Side:
    kept: dict[str, Any] = {name: facts.get(name) for name in ("seconds", "whole_seconds", "start_mb", "peak_mb")}
    return Side(ok="error" not in facts, reason=facts.get("error", ""), note=facts.get("note", ""), **kept)


def _compare(row: Row, folder: Path, limit_s: float) -> None:
    """Runs and times the files of all sides in one process, so that they see the same machine."""
    made = [side for side in ("onnx", "ours", "ours_last", "litert_torch", "onnx2tf") if side == "onnx" or (folder / f"{side}.tflite").exists()]
    compared = _step([sys.executable, "-m", "benchmarks.compiler.compare", str(folder), *made], folder, "compared", limit_s)
    row.onnx_db = compared.get("onnx", {}).get("sqnr_db")
    for name, side in row.sides.items():
        if not side.ok:
            continue
        facts = compared.get(name, {"error": compared.get("error", "was not compared")})
        side.ok, side.reason = "error" not in facts, facts.get("error", "")
        for key in ("sqnr_db", "size_mb", "operators", "partitions", "reordered", "latency_ms", "ratio", "beside"):
            setattr(side, key, facts.get(key, getattr(side, key)))
        if side.ok and side.sqnr_db is not None and side.sqnr_db < LEAST_DB:
            side.ok, side.reason, side.ratio = False, f"the outputs are {side.sqnr_db:.1f} dB from the model's", None


def _step(command: Sequence[str], folder: Path, name: str, limit_s: float) -> dict[str, Any]:
    """Runs one step in a process of its own and returns what it wrote, with the time of the whole process, or why it wrote nothing."""
    log = folder / f"{name}.log"
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    started = time.perf_counter()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            # Its whole session: onnx2tf works in processes of its own.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return {"error": f"not done after {limit_s:.0f} s"}
    seconds = time.perf_counter() - started
    written = folder / f"{name}.json"
    facts = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {"error": _last_words(process.returncode, log)}
    if facts.get("exits"):
        facts["error"] = _last_words(process.returncode, log)
    return {**facts, "whole_seconds": seconds}


def _last_words(code: int, log: Path) -> str:
    if code < 0:
        return f"ended by signal {-code}"
    lines = [_COLOURS.sub("", line).strip() for line in log.read_text(errors="replace").splitlines()]
    told = [line for line in lines if "ERROR" in line and len(line) > len("ERROR:")] or [line for line in lines if line]
    return told[-1][:400] if told else f"ended with {code}"
