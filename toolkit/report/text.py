"""The report on a terminal: a table that folds before it drops anything, and beneath it whatever does not pass."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from toolkit.evidence import Report, Row, StageRecord, Verdict, table_header, table_row
from toolkit.report import wording

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

STYLES = {Verdict.PASS: "green", Verdict.FAIL: "bold red", Verdict.INCONCLUSIVE: "yellow"}
RIGHT_ALIGNED = {"size"}
GAP = 2
NAME_WIDTH = 18

_Cells = tuple[str, ...]
_Layout = tuple[_Cells, list[_Cells]]


def table(report: Report, width: int | None = None) -> Table:
    """Lays the rows out as a table.

    Args:
        report: What to show.
        width: Columns there are; the widest layout that fits is taken. ``None`` puts each row on one line.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    header, rows = _choose(report, width)
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, GAP - 1, 0, 0), header_style="bold")
    for name in header:
        whole = name == "verdict"
        justify: Literal["right", "left"] = "right" if name in RIGHT_ALIGNED else "left"
        grid.add_column(name, justify=justify, overflow="fold", no_wrap=whole, min_width=len(Verdict.INCONCLUSIVE) if whole else None)
    multiline = any("\n" in cell for row in rows for cell in row)
    for index, (row, cells) in enumerate(zip(report.rows, rows, strict=True)):
        if multiline and index:
            grid.add_row()
        *plain, verdict = cells
        grid.add_row(*(Text(cell) for cell in plain), Text(verdict, style=STYLES[row.verdict]))
    return grid


def render(report: Report, console: Console) -> None:
    """Prints the whole report: headline, source, table, what does not pass, failed stages, routes that fell and the note on latency."""
    from rich.padding import Padding
    from rich.text import Text

    def say(text: str, *, style: str = "", indent: int = 0) -> None:
        console.print(Padding(Text(wording.printable(text, lines=True), style=style), (0, 0, 0, indent), expand=False), highlight=False)

    title = Text.assemble((wording.printable(report.project), "bold"), "  ", (str(report.verdict), STYLES[report.verdict]))
    console.print(title.append(f"  ({wording.counts(report)})"), highlight=False)
    say(wording.source_line(report))
    if trained := wording.training_line(report):
        say(trained)
    if notes := wording.source_notes(report):
        say(notes, style="dim")
    console.print()
    if report.rows:
        console.print(table(report, console.width))
        console.print()
    for row in report.rows:
        for line, style, indent in (*_explanation(row, alone=len(report.rows) == 1), *_made(row), *_slower(row)):
            say(line, style=style, indent=indent)
    for stage in wording.failed(report):
        for line, style, indent in _failure(stage):
            say(line, style=style, indent=indent)
    for line in filter(None, (*wording.route_lines(report), wording.skipped_line(report), wording.stand_in_note(report))):
        say(line, style="dim")


def _explanation(row: Row, *, alone: bool) -> list[tuple[str, str, int]]:
    """Says why a row does not pass, as lines with style and indent; of the only row also what held."""
    found = wording.problems(row) or (row.findings if alone else ())
    if not found:
        return []
    heading = (f"{row.verdict}: {wording.place(row)}", STYLES[row.verdict], 0)
    return [
        heading,
        *((finding.reason if finding.budget == wording.WHOLE_ROW else f"{finding.budget}: {finding.reason}", "", 2) for finding in found),
    ]


def _slower(row: Row) -> list[tuple[str, str, int]]:
    """Says that a row is slower than its float twin, whatever its budgets allow."""
    line = wording.slower_line(row)
    return [(f"slower: {wording.place(row)}", "yellow", 0), (line, "", 2)] if line else []


def _made(row: Row) -> list[tuple[str, str, int]]:
    """Says how a row's file was chosen or repaired."""
    return [(f"made: {wording.place(row)}", "", 0), *((line, "dim", 2) for line in row.made)] if row.made else []


def _failure(stage: StageRecord) -> list[tuple[str, str, int]]:
    heading = (f"stage {stage.step} failed after {stage.seconds:.1f} s", STYLES[Verdict.FAIL], 0)
    return [heading, *((line, "", 2) for line in wording.error_lines(stage))]


def _choose(report: Report, width: int | None) -> _Layout:
    rows = [tuple(wording.printable(cell) for cell in table_row(row)) for row in report.rows]
    one_line: _Layout = (table_header(report.rows), rows)
    if width is None:
        return one_line
    stacked = _stacked(one_line, name_width=1000)
    folded = _stacked(one_line, name_width=NAME_WIDTH)
    for layout in (one_line, stacked, folded, _without(folded, "runtime")):
        if _natural_width(layout) <= width:
            return layout
    return _compact(one_line, width)


def _natural_width(layout: _Layout) -> int:
    from rich.cells import cell_len

    header, rows = layout
    columns = zip(header, *rows, strict=True)
    widest = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in columns]
    return sum(widest) + GAP * len(widest)


def _stacked(layout: _Layout, name_width: int) -> _Layout:
    """Puts intervals, counts and stand-ins on lines of their own, and folds long names."""

    def stack(column: str, cell: str) -> str:
        if column in ("artifact", "target"):
            name, bracket, rest = cell.partition(" (") if column == "target" else (cell, "", "")
            return _fold(name, name_width) + (f"\n({rest}" if bracket else "")
        return re.sub(r" (?=\[|n=)|(?<= /) ", "\n", cell)

    header, rows = layout
    return tuple(re.sub(r" (?=\[)|(?<= /) ", "\n", name) for name in header), [tuple(map(stack, header, row)) for row in rows]


def _without(layout: _Layout, column: str) -> _Layout:
    header, rows = layout
    at = header.index(column)
    return header[:at] + header[at + 1 :], [row[:at] + row[at + 1 :] for row in rows]


def _compact(layout: _Layout, width: int) -> _Layout:
    """Three columns for narrow terminals: who, what was measured, verdict. Nothing is left out."""
    header, rows = layout
    labels = [name.removesuffix(" [95 %]").removesuffix(" ms") for name in header[3:7]]
    units = ["", "", "", " ms"]
    # The figures need about 40 and fold at spaces where there is less.
    name_width = max(10, min(40, width - len(Verdict.INCONCLUSIVE) - 3 * GAP - 40))

    def squeeze(row: Sequence[str]) -> _Cells:
        name = "\n".join([_fold(row[0], name_width), _fold(row[2], name_width), row[1]])
        figures = (f"{label} {cell}{unit if cell != '-' else ''}" for label, cell, unit in zip(labels, row[3:7], units, strict=True))
        return name, "\n".join(figures), row[7]

    return ("artifact, target", "measured [95 %]", "verdict"), [squeeze(row) for row in rows]


def _fold(name: str, width: int) -> str:
    """Breaks a name after its dots, dashes and underscores, so that no part is cut in the middle if that can be helped."""
    lines = [""]
    for part in re.findall(r"[^\s._/-]*[\s._/-]*", name):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)
