"""The table: for people as Markdown, for machines as JSON, and as figures with bars."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.coverage.cells import Cell, Side
from benchmarks.figures import ROOT, Figure

RESULTS = ROOT / "benchmarks" / "results"
LEAST_SHARE = 0.95
MOST_LATENCY = 1.05


def write(cells: Sequence[Cell], folder: Path = RESULTS) -> None:
    """Writes what is known so far, so that an interrupted run leaves its part."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "coverage.json").write_text(json.dumps([cell.to_dict() for cell in cells], indent=1) + "\n", encoding="utf-8")
    (folder / "coverage.md").write_text(markdown(cells), encoding="utf-8")


def markdown(cells: Sequence[Cell]) -> str:
    """One line for each cell."""
    lines = [
        "| model | format | route | parity dB | seconds | MB | ms | bare call | dB | seconds | ms | latency over the bare call's |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        peer = cell.peer or Side(route="none")
        ratio = "" if cell.latency_ratio is None else f"{cell.latency_ratio:.2f}"
        lines.append(f"| {cell.model} | {cell.format} | {' | '.join(_columns(cell.ours, size=True))} | {' | '.join(_columns(peer))} | {ratio} |")
    failed = [f"- {cell.model}, {cell.format}: `{cell.ours.code}`: {cell.ours.reason}" for cell in cells if not cell.ours.ok]
    return "\n".join([*lines, "", "Failures:" if failed else "No failures.", *failed, ""])


def _columns(side: Side, size: bool = False) -> list[str]:
    what = side.route if side.ok or not side.code else f"{side.route} failed ({side.code})".strip()
    numbers = [(side.sqnr_db, ".0f"), (side.seconds, ".1f"), *([(side.size_mb, ".2f")] if size else []), (side.latency_ms, ".3f")]
    return [what, *("" if value is None else format(value, form) for value, form in numbers)]


def summary(cells: Sequence[Cell]) -> list[Figure]:
    """Holds the table against the bars."""
    passed = sum(cell.ours.ok for cell in cells)
    by_peer = sum(bool(cell.peer and cell.peer.ok) for cell in cells)
    lost = sum(bool(cell.peer and cell.peer.ok and not cell.ours.ok) for cell in cells)
    ratios = [cell.latency_ratio for cell in cells if cell.latency_ratio is not None]
    seconds = [
        cell.ours.seconds / cell.peer.seconds
        for cell in cells
        if cell.peer and cell.peer.ok and cell.ours.ok and cell.ours.seconds and cell.peer.seconds
    ]
    found = [
        Figure("coverage.passed", "x", [passed / len(cells)], f"share of {len(cells)} cells converted with parity", at_least=LEAST_SHARE),
        Figure("coverage.lost", "", [lost], "cells that the bare call passes and we do not", at_most=0),
        Figure("coverage.more", "", [passed - by_peer], "cells that we pass beyond those of the bare calls", at_least=1),
    ]
    if ratios:
        slower = sum(ratio > MOST_LATENCY for ratio in ratios)
        found += [
            Figure(
                "coverage.latency",
                "x",
                [statistics.median(ratios)],
                f"median latency over the bare call's file, {len(ratios)} cells",
                at_most=MOST_LATENCY,
            ),
            Figure("coverage.slower", "", [slower], f"cells above {MOST_LATENCY} of it"),
        ]
    if seconds:
        found.append(
            Figure("coverage.seconds", "x", [statistics.median(seconds)], "median time of a conversion with its evidence over the bare call")
        )
    return found
