"""``python -m benchmarks [NAME ...]``: runs benchmarks, prints a table, writes JSON; exits with 1 when a bar is missed."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.figures import ROOT, Figure

NAMES = ("startup", "run", "rerun", "throughput", "training", "noise", "profile")
DEFAULT_OUTPUT = ROOT / "benchmarks" / "results" / "latest.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line names and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What Edgekit costs, held against bars.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run: {', '.join(NAMES)} (all by default)")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="JSON file to write (%(default)s)")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="rounds in which the rivals take turns (%(default)s)")
    asked = parser.parse_args(arguments)
    unknown = set(asked.names) - set(NAMES)
    if unknown or asked.repeat < 1:
        parser.error(f"unknown benchmark: {', '.join(sorted(unknown))}" if unknown else "--repeat must be at least 1")
    figures: list[Figure] = []
    document = _environment(asked.repeat)
    for name in asked.names or NAMES:
        found = import_module(f"benchmarks.{name}").measure(asked.repeat)
        print(table(found), flush=True)
        figures += found
    document["load_1min_after"] = _load()
    document["figures"] = [figure.to_dict() for figure in figures]
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return status(figures)


def status(figures: Sequence[Figure]) -> int:
    """Names the bars that were missed; 1 when there are any."""
    missed = [figure for figure in figures if figure.holds is False]
    for figure in missed:
        print(f"missed: {figure.name} is {figure.value:.3g} {figure.unit}, the bar is {figure.bar}", file=sys.stderr)
    return 1 if missed else 0


def table(figures: Sequence[Figure]) -> str:
    """Formats figures: median, smallest and largest sample, bar, and what it means."""
    width = max(len(figure.name) for figure in figures)
    lines = []
    for one in figures:
        verdict = {True: "holds", False: "MISSED", None: ""}[one.holds]
        spread = f"[{min(one.samples):.3f}, {max(one.samples):.3f}] n={len(one.samples)}"
        lines.append(f"{one.name:{width}} {one.value:9.3f} {one.unit:2} {spread:26} {one.bar:8} {verdict:6} {one.what}".rstrip())
    return "\n".join(lines)


def _environment(rounds: int) -> dict[str, Any]:
    from toolkit.environment import describe

    return {
        "schema": 1,
        "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "rounds": rounds,
        "environment": describe(),
        "load_1min_before": _load(),
    }


def _load() -> float:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0


if __name__ == "__main__":
    sys.exit(main())
