"""The table: for people as Markdown, for machines as JSON, and as figures with bars."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.compiler.compare import PEERS
from benchmarks.compiler.rows import Row, Side, from_dict
from benchmarks.figures import ROOT, Figure

RESULTS = ROOT / "benchmarks" / "results"
LEAST_DB = 100.0
MOST_LATENCY, WORST_LATENCY, LEAST_SHARE = 1.0, 1.05, 0.9
MOST_MEMORY = 3.0
FASTER = {"litert_torch": 2.0, "onnx2tf": 20.0}
"""How much faster than each peer: than litert_torch with PyTorch's export to ONNX, than onnx2tf the conversion alone."""
# On a quiet machine two copies of one file differ by about as much; `copies` says by how much they did.
NOISE = 0.005


def write(rows: Sequence[Row], folder: Path = RESULTS) -> None:
    """Writes what is known so far, so that an interrupted run leaves its part."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compiler.json").write_text(json.dumps([row.to_dict() for row in rows], indent=1) + "\n", encoding="utf-8")
    (folder / "compiler.md").write_text(markdown(rows), encoding="utf-8")


def read(folder: Path = RESULTS) -> list[Row]:
    """Reads what an earlier run wrote; nothing where none did."""
    file = folder / "compiler.json"
    return [from_dict(one) for one in json.loads(file.read_text(encoding="utf-8"))] if file.exists() else []


def summary(rows: Sequence[Row]) -> list[Figure]:
    """Holds the table against the bars."""
    good = [row for row in rows if row.ours.ok]
    found = [Figure("compiler.converted", "", [len(good)], f"models of {len(rows)} that we convert with parity")]
    found += [figure for peer in PEERS for figure in _against(peer, rows)]
    ratios = [row.ratio for row in good if row.ratio is not None]
    if ratios:
        share = sum(ratio <= MOST_LATENCY + NOISE for ratio in ratios) / len(ratios)
        found += [
            Figure("compiler.latency", "x", ratios, f"median latency over the better peer's file, {len(ratios)} models"),
            Figure(
                "compiler.as_fast",
                "x",
                [share],
                f"share at {MOST_LATENCY:g} of it or less, within {NOISE:g}",
                at_least=LEAST_SHARE,
            ),
            Figure("compiler.slowest", "x", [max(ratios)], "the worst", at_most=WORST_LATENCY),
            Figure(
                "compiler.copies", "x", [row.ours.ratio for row in good if row.ours.ratio], "our file beside a copy: what latencies here can tell"
            ),
        ]
    far = [row for row in rows if row.ours.sqnr_db is not None and row.ours.sqnr_db < LEAST_DB]
    further = [row for row in far if row.onnx_db is None or row.ours.sqnr_db < row.onnx_db - 3]  # type: ignore[operator]  # far have one
    found += [
        Figure("compiler.parity", "dB", [row.ours.sqnr_db for row in rows if row.ours.sqnr_db is not None] or [0.0], "to the live model"),
        Figure("compiler.far", "", [len(far)], f"models below {LEAST_DB:g} dB", at_most=0),
        Figure("compiler.further", "", [len(further)], "of these, more than 3 dB below ONNX Runtime with the same file", at_most=0),
    ]
    memory = [used for row in good if (used := row.memory("ours")) is not None]
    if memory:
        over = sum(used > MOST_MEMORY for used in memory)
        found += [
            Figure("compiler.memory", "x", memory, "peak of the conversion beyond its interpreter, over the ONNX file"),
            Figure("compiler.larger", "", [over], f"models above {MOST_MEMORY:g} of it", at_most=0),
        ]
    return found


def _against(peer: str, rows: Sequence[Row]) -> Iterator[Figure]:
    """How much sooner than one peer we are done, and what it converts that we do not."""
    both = [row for row in rows if peer in row.sides and row.ours.seconds and row.sides[peer].ok and row.ours.ok]
    if not any(peer in row.sides for row in rows):
        return
    lost = sum(row.sides[peer].ok and not row.ours.ok for row in rows if peer in row.sides)
    more = sum(row.ours.ok and not row.sides[peer].ok for row in rows if peer in row.sides)
    yield Figure(f"compiler.lost.{peer}", "", [lost], "models that it converts with parity and we do not", at_most=0)
    yield Figure(f"compiler.more.{peer}", "", [more], "models that we convert with parity and it does not")
    if not both:
        return
    ways: list[tuple[str, str, Callable[[Row], float]]] = [
        ("whole", "with PyTorch's export to ONNX", lambda row: (row.export_seconds or 0) + (row.ours.seconds or 0)),
        ("alone", "from the ONNX file", lambda row: row.ours.seconds or 0),
    ]
    for way, words, ours in ways:
        given = 0.0 if peer == "litert_torch" else 1.0
        theirs = {row.model: (row.sides[peer].seconds or 0) + (given * (row.export_seconds or 0) if way == "whole" else 0) for row in both}
        times = [theirs[row.model] / ours(row) for row in both]
        bar = FASTER[peer] if way == ("whole" if peer == "litert_torch" else "alone") else None
        yield Figure(f"compiler.faster.{peer}.{way}", "x", times, f"its seconds over ours, {words}, {len(both)} models", at_least=bar)


def markdown(rows: Sequence[Row]) -> str:
    """The bars, a line for each model, then failures and what is below a bar, with what differs."""
    peers = [peer for peer in PEERS if any(peer in row.sides for row in rows)]
    lines = ["| figure | median | least | most | bar | | what |", "|---|---|---|---|---|---|---|"]
    for one in summary(rows):
        verdict = {True: "holds", False: "**missed**", None: ""}[one.holds]
        spread = f"{one.value:.3g} {one.unit} | {min(one.samples):.3g} | {max(one.samples):.3g}"
        lines.append(f"| {one.name.removeprefix('compiler.')} | {spread} | {one.bar} | {verdict} | {one.what} |")
    lines += ["", *_legend(), "", *_heads(peers), *(_line(row, peers) for row in rows)]
    for title, found in _lists(rows, peers):
        lines += ["", f"{title}:" if found else f"{title}: none.", *([""] if found else []), *found]
    return "\n".join([*lines, ""])


def _legend() -> list[str]:
    return [
        "`T` transposes, `P` partitions of the XNNPACK delegate, `s` the conversion in a fresh process after its imports, `whole` that process,",
        "`peak` its memory during the conversion beyond what it held before, over the size of the ONNX file, `x` our latency over the peer's from",
        "the same turns. `ORT` is ONNX Runtime's parity with the exported file, which is what float32 gives. onnx2tf makes inputs with the channels",
        "last, and is timed beside a file of ours with such inputs; its outputs have the channels last too.",
    ]


def _heads(peers: Sequence[str]) -> list[str]:
    side = ["dB", "ops", "T", "P", "ms", "s", "whole", "peak"]
    heads = ["model", "ONNX MB", "ORT dB", "export s", *(f"ours {side[0]}", *side[1:])]
    for peer in peers:
        heads += [f"{peer} {side[0]}", *side[1:], "x"]
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]


def _line(row: Row, peers: Sequence[str]) -> str:
    columns = [row.model, _number(row.onnx_mb, ".1f"), _number(row.onnx_db, ".0f"), _number(row.export_seconds, ".1f"), *_columns(row, "ours")]
    for peer in peers:
        side = row.sides.get(peer, Side())
        columns += [*(_columns(row, peer) if peer in row.sides else [""] * 8), _number(side.ratio, ".3f")]
    return f"| {' | '.join(columns)} |"


def _columns(row: Row, name: str) -> list[str]:
    side = row.sides[name]
    counts = [str(sum(side.operators.values())), str(side.operators.get("TRANSPOSE", 0))] if side.operators else ["", ""]
    close = _number(side.sqnr_db, ".0f") if side.ok else f"failed {_number(side.sqnr_db, '.0f')}".strip()
    timed = [_number(side.latency_ms, ".3f"), _number(side.seconds, ".2f"), _number(side.whole_seconds, ".1f")]
    return [close, *counts, _number(side.partitions, "d"), *timed, _number(row.memory(name), ".1f")]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _lists(rows: Sequence[Row], peers: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    yield "Not exported by PyTorch itself", [f"- {row.model}: {row.note}" for row in rows if row.note]
    yield "Not converted by us", [f"- {row.model}: {row.ours.reason}" for row in rows if not row.ours.ok]
    far = [row for row in rows if row.ours.sqnr_db is not None and row.ours.sqnr_db < LEAST_DB]
    yield f"Below {LEAST_DB:g} dB", [f"- {row.model}: {row.ours.sqnr_db:.1f}, ONNX Runtime {_number(row.onnx_db, '.1f')}" for row in far]
    for peer in peers:
        timed = [(row, side) for row in rows if (side := row.sides.get(peer)) and side.ratio and side.ratio > MOST_LATENCY + NOISE]
        yield f"Slower than {peer}'s file", [f"- {row.model}: {side.ratio:.3f} x, {row.difference(peer)}" for row, side in timed]
    used = [(row, row.memory("ours") or 0.0) for row in rows]
    heavy = [f"- {row.model}: {multiple:.1f} x ({row.ours.peak_mb:.0f} MB)" for row, multiple in used if multiple > MOST_MEMORY]
    yield f"Above {MOST_MEMORY:g} x the file in memory", heavy
    for peer in peers:
        fell = [(row, side) for row in rows if (side := row.sides.get(peer)) and (side.note or not side.ok)]
        yield f"Not converted by {peer}", [f"- {row.model}: {side.note or side.reason}" for row, side in fell]
