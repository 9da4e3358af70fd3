"""``edgekit profile``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.common import Format, FormatOption, ModelArgument, TargetOption, VerboseOption, emit, facts, progress

if TYPE_CHECKING:
    from rich.console import Console

    from toolkit.evidence import Profile
    from toolkit.figures import OperatorTime


class By(StrEnum):
    """What the times are summed by."""

    operator = "operator"
    layer = "layer"
    kind = "kind"


def profile(
    model: ModelArgument,
    target: TargetOption,
    data: Annotated[Path | None, typer.Option("--data", "-d", help="Samples to feed.", show_default="random inputs")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.05, help="Timed seconds, once with and once without recording.")] = 1.0,
    top: Annotated[int, typer.Option("--top", "-n", min=0, help="How many rows to show, the slowest first; 0 shows all in the order they run.")] = 20,
    by: Annotated[By, typer.Option("--by", help="One row for each operator, or sums by layer or by kind of operator.")] = By.operator,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> None:
    """Show where the time goes, by operator and layer."""
    from toolkit import profile as measure

    with progress() as listener:
        found = measure(model, target=target, data=data, seconds=seconds, listener=listener)
    emit(found, text(found, top, by))


def text(found: Profile, top: int, by: By) -> Callable[[Console], None]:
    """Shows the rows and what they add up to."""

    def show(out: Console) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table

        words, figures, rows = _operators(found.operators) if by is By.operator else _sums(found.operators, by)
        shown = sorted(rows, key=lambda row: -row[1])[:top] if top else rows
        table = Table(box=SIMPLE_HEAD, show_edge=False)
        for name in words:
            table.add_column(name, overflow="fold")
        for name in (*figures, "share", "cumulative"):
            table.add_column(name, justify="right", no_wrap=True)
        cumulative = 0.0
        for cells, share in shown:
            cumulative += share
            table.add_row(*map(escape, cells), f"{share:.1%}", f"{cumulative:.1%}")
        out.print(table)
        if len(shown) < len(rows):
            out.print(f"{len(rows) - len(shown)} more; --top 0 shows all in the order they run", style="dim")
        facts(summary(found))(out)

    return show


def summary(found: Profile) -> dict[str, object]:
    """Names what the table adds up to."""
    known = sum(one.share for one in found.operators if one.layer)
    ratio = f", {found.total_ms / found.latency_ms:.0%} of the latency" if found.latency_ms else ""
    shown: dict[str, object] = {
        "artifact": found.artifact,
        "target": f"{found.target} ({found.stand_in}, {found.runtime})",
        "operators": f"{len(found.operators)}, together p50 {found.total_ms:.4f} ms{ratio}, n={found.n}",
        "latency": f"p50 {found.latency_ms:.4f} ms, measured in turns without recording",
        "layers": f"known for {known:.0%} of the time",
    }
    return shown | ({"note": found.note} if found.note else {})


_Rows = list[tuple[tuple[str, ...], float]]


def _operators(operators: Iterable[OperatorTime]) -> tuple[tuple[str, ...], tuple[str, ...], _Rows]:
    rows: _Rows = [
        ((one.layer or "-", one.operator, one.name, one.kernel or "-", f"{one.p50_ms:.4f}", f"{one.p90_ms:.4f}"), one.share) for one in operators
    ]
    return ("layer", "operator", "name", "kernel"), ("p50 ms", "p90 ms"), rows


def _sums(operators: Iterable[OperatorTime], by: By) -> tuple[tuple[str, ...], tuple[str, ...], _Rows]:
    groups: dict[str, list[OperatorTime]] = {}
    for one in operators:
        groups.setdefault((one.layer or "-") if by is By.layer else one.operator, []).append(one)
    rows: _Rows = [
        ((name, str(len(group)), f"{sum(one.p50_ms for one in group):.4f}"), sum(one.share for one in group)) for name, group in groups.items()
    ]
    return ("layer" if by is By.layer else "operator",), ("count", "sum of p50 ms"), rows
