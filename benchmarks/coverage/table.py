"""The table: for people as Markdown, for machines as JSON, and as figures with bars."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.coverage.cells import Cell, Side
from benchmarks.figures import ROOT, Figure

RESULTS = ROOT / "benchmarks" / "results"
LEAST_SHARE = 0.95
MOST_LATENCY = 1.05
MOST_SECONDS = 1.15


def write(cells: Sequence[Cell], folder: Path = RESULTS) -> None:
    """Writes what is known so far, so that an interrupted run leaves its part."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "coverage.json").write_text(json.dumps([cell.to_dict() for cell in cells], indent=1) + "\n", encoding="utf-8")
    (folder / "coverage.md").write_text(markdown(cells), encoding="utf-8")


def read(folder: Path = RESULTS) -> list[Cell]:
    """Reads what an earlier run wrote; nothing where none did."""
    file = folder / "coverage.json"
    if not file.exists():
        return []
    return [
        Cell(one["model"], one["format"], Side(**one["ours"]), Side(**one["peer"]) if one["peer"] else None) for one in json.loads(file.read_text())
    ]


def markdown(cells: Sequence[Cell]) -> str:
    """One line for each cell, then the failures with their reasons, what the routes can be trusted with, and what differs in slower files."""
    lines = [
        "| model | format | route | parity dB | seconds | start | whole | MB | ms | bare call | dB | seconds | MB | ms | latency ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        peer = cell.peer or Side(route="none")
        ratio = "" if cell.latency_ratio is None else f"{cell.latency_ratio:.2f}"
        columns = [*_columns(cell.ours, whole=True), *_columns(peer), ratio]
        lines.append(f"| {cell.model} | {cell.format} | {' | '.join(columns)} |")
    failed = [f"- {cell.model}, {cell.format}: `{cell.ours.code}`: {cell.ours.reason}" for cell in cells if not cell.ours.ok]
    slower = [
        f"- {cell.model}, {cell.format}: {cell.latency_ratio:.2f} x, {cell.difference or 'not looked into'}" for cell in cells if _is_slower(cell)
    ]
    lines += ["", "Failures:" if failed else "No failures.", *failed]
    lines += ["", "| route | passed | tried | trust |", "|---|---|---|---|"]
    lines += [f"| {route} | {right} | {tried} | {share:.2f} |" for route, (right, tried, share) in trust(cells).items()]
    return "\n".join([*lines, *(["", "Slower than the bare call's file, and what it has more (+) and less (-) of:", *slower] if slower else []), ""])


def trust(cells: Sequence[Cell]) -> dict[str, tuple[int, int, float]]:
    """Returns for each route how many cells it converted right, how many it was tried on, and the share to expect of the next.

    The share is Laplace's rule of succession, ``(passed + 1) / (tried + 2)``: a route that passed two of two is not trusted like one that
    passed forty of forty. It is what the routes state as ``trust``.
    """
    passed: Counter[str] = Counter(cell.ours.route for cell in cells if cell.ours.ok)
    failed = Counter(str(one["route"]) for cell in cells for one in cell.ours.attempts if _fell(one))
    return {route: (passed[route], passed[route] + failed[route], _expected(passed[route], failed[route])) for route in sorted({*passed, *failed})}


def _fell(attempt: dict[str, Any]) -> bool:
    """Whether a route was tried, or its preflight asked, and could not; options and what is not installed say nothing of a route."""
    return attempt["outcome"] == "failed" or attempt.get("code") == "unsupported-operator"


def _expected(passed: int, failed: int) -> float:
    return round((passed + 1) / (passed + failed + 2), 2)


def _is_slower(cell: Cell) -> bool:
    return cell.latency_ratio is not None and cell.latency_ratio > MOST_LATENCY


def _columns(side: Side, whole: bool = False) -> list[str]:
    what = side.route if side.ok or not side.code else f"{side.route} failed ({side.code})".strip()
    numbers = [(side.sqnr_db, ".0f"), (side.seconds, ".1f"), *([(side.start_seconds, ".1f"), (side.whole_seconds, ".1f")] if whole else [])]
    numbers += [(side.size_mb, ".2f"), (side.latency_ms, ".3f")]
    return [what, *("" if value is None else format(value, form) for value, form in numbers)]


def summary(cells: Sequence[Cell]) -> list[Figure]:
    """Holds the table against the bars."""
    passed = sum(cell.ours.ok for cell in cells)
    by_peer = sum(bool(cell.peer and cell.peer.ok) for cell in cells)
    lost = sum(bool(cell.peer and cell.peer.ok and not cell.ours.ok) for cell in cells)
    ratios = [cell.latency_ratio for cell in cells if cell.latency_ratio is not None]
    seconds = [cell.seconds_ratio for cell in cells if cell.seconds_ratio is not None]
    found = [
        Figure("coverage.passed", "x", [passed / len(cells)], f"share of {len(cells)} cells converted with parity", at_least=LEAST_SHARE),
        Figure("coverage.lost", "", [lost], "cells that the bare call passes and we do not", at_most=0),
        Figure("coverage.more", "", [passed - by_peer], "cells that we pass beyond those of the bare calls", at_least=1),
    ]
    if ratios:
        found += [
            Figure("coverage.latency", "x", ratios, f"median latency over the bare call's file, {len(ratios)} cells", at_most=MOST_LATENCY),
            Figure("coverage.slower", "", [sum(map(_is_slower, cells))], f"cells above {MOST_LATENCY} of it; the table says what differs"),
        ]
    if seconds:
        slower = sum(ratio > MOST_SECONDS for ratio in seconds)
        found += [
            Figure("coverage.seconds", "x", seconds, "time of a conversion without its worker's start, over the bare call", at_most=MOST_SECONDS),
            Figure("coverage.longer", "", [slower], f"conversions above {MOST_SECONDS} of it"),
        ]
    return found
