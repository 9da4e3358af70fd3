"""The whole digits job against a script that makes the same library calls by hand."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import product
from benchmarks.figures import DIGITS, Cost, Figure, Samples, differences, ratios, timed, turns

MOST = 1.25
BATCH = 32
HERE = Path(__file__).parent


def measure(rounds: int) -> list[Figure]:
    """Times three rivals in turns: the raw script, Edgekit without its evidence, and Edgekit as it is."""
    samples = Samples()
    parts: dict[str, list[float]] = {}
    rivals = {"raw": _raw, "bare": _bare, "whole": product.run}
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as scratch:
        _raw(Path(scratch) / "warm")  # a first import of torch reads gigabytes from the disk
        for rival in turns(list(rivals), rounds):
            folder = Path(scratch) / rival
            shutil.rmtree(folder, ignore_errors=True)
            samples.add(rival, rivals[rival](folder))
            for name, seconds in _parts(rival, folder).items():
                parts.setdefault(name, []).append(seconds)
            if (Path(scratch) / "raw").exists() and (Path(scratch) / "whole").exists():
                check_same_work(_read(Path(scratch) / "raw" / "raw.json"), Path(scratch) / "whole")
    return _figures(samples) + [Figure(f"run.{name}", "s", seconds, "") for name, seconds in parts.items()]


def _figures(samples: Samples) -> list[Figure]:
    raw, bare, whole = (samples.seconds(rival) for rival in ("raw", "bare", "whole"))
    raw_cpu, bare_cpu, whole_cpu = (samples.cpu_seconds(rival) for rival in ("raw", "bare", "whole"))
    return [
        Figure("run.raw", "s", raw, "the raw script, one process"),
        Figure("run.bare", "s", bare, "Edgekit from an empty cache, evidence left out"),
        Figure("run.whole", "s", whole, "edgekit run examples/digits from an empty cache"),
        Figure("run.bare_over_raw", "x", ratios(bare, raw), "wall, evidence left out, over the raw script", at_most=MOST),
        Figure("run.whole_over_raw", "x", ratios(whole, raw), "wall, with all evidence, over the raw script"),
        Figure("run.evidence", "s", differences(whole, bare), "what parity, audits, source accuracy, latency and reports add"),
        Figure("run.raw_cpu", "s", raw_cpu, "CPU time of the raw script"),
        Figure("run.bare_cpu", "s", bare_cpu, "CPU time of Edgekit's processes, evidence left out"),
        Figure("run.whole_cpu", "s", whole_cpu, "CPU time of all of Edgekit's processes"),
        Figure("run.bare_over_raw_cpu", "x", ratios(bare_cpu, raw_cpu), "CPU time, evidence left out, over the raw script"),
    ]


def _raw(folder: Path) -> Cost:
    folder.mkdir(parents=True)
    return timed([sys.executable, HERE / "raw_digits.py", folder], folder / "log.txt")


def _bare(folder: Path) -> Cost:
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.without_evidence", DIGITS, folder]
    return timed(command, folder / "log.txt", {"EDGEKIT_CACHE": str(folder / "cache")})


def _parts(rival: str, folder: Path) -> dict[str, float]:
    """The seconds of every step; Edgekit's overlap, as two run side by side."""
    if rival == "raw":
        return {f"raw/{name}": seconds for name, seconds in _read(folder / "raw.json")["seconds"].items()}
    if rival == "bare":
        return {f"bare/{name}": seconds for name, seconds in _read(folder / "steps.json").items()}
    stages = _read(folder / "out" / "report.json")["stages"]
    return {f"whole/{stage['step']}": stage["seconds"] for stage in stages}


def check_same_work(raw: dict[str, Any], whole: Path) -> None:
    """Refuses a comparison of different work: equal training steps, as many evaluations, accuracies within one point.

    The accuracies need not be equal: two programs that train alike add up in another order.

    Raises:
        RuntimeError: They differ.
    """
    (history,) = (_read(file) for file in (whole / "cache").glob("stages/*/*/out/training.json"))
    steps = len(history["epochs"]) * -(-history["n_train"] // BATCH)
    rows = _read(whole / "out" / "report.json")["rows"]
    ours = sorted(row["metric"]["value"] for row in rows)
    theirs = sorted(raw["accuracy"].values())
    alike = len(theirs) == len(ours) and all(abs(one - other) <= 0.01 for one, other in zip(theirs, ours, strict=False))
    if raw["steps"] != steps or not alike:
        raise RuntimeError(f"not the same work: raw {raw['steps']} steps, {raw['accuracy']}; Edgekit {steps} steps, {ours}")


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))
