"""``edgekit baseline``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.common import Format, FormatOption, JobsOption, ProjectArgument, VerboseOption, emit, progress

if TYPE_CHECKING:
    from rich.console import Console

    from toolkit.checks.baseline import Baseline
    from toolkit.pipeline.baseline import Updated


class Action(StrEnum):
    """What to do with the baseline."""

    update = "update"
    show = "show"


def baseline(
    action: Annotated[Action, typer.Argument(help="update it with what is better now, or show it.", show_default=False)],
    project: ProjectArgument = Path(),
    file: Annotated[Path | None, typer.Option("--file", help="The baseline file.", show_default="PROJECT/edgekit-baseline.json")] = None,
    jobs: JobsOption = None,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> int:
    """Record what a project reaches, for edgekit check.

    An update only tightens: what is worse now stays as it is recorded, and is loosened by editing the file. Rows that fail are
    not recorded, and the exit code is then 1.
    """
    from toolkit import load_baseline, update_baseline
    from toolkit.errors import EXIT_CHECK_FAILED, EXIT_PASS

    if action is Action.show:
        found = load_baseline(project, file=file)
        emit(found, lambda out: _show(found, out))
        return EXIT_PASS
    with progress() as listener:
        updated = update_baseline(project, file=file, listener=listener, jobs=jobs)
    emit(updated, lambda out: _tell(updated, out))
    return EXIT_CHECK_FAILED if updated.refused else EXIT_PASS


def _tell(updated: Updated, out: Console) -> None:
    lines = [*updated.changes, *(f"kept: {line}" for line in updated.kept), *(f"refused: {line}" for line in updated.refused)]
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)
    out.print(f"{updated.file}: {'commit it' if updated.changes else 'nothing changed'}", markup=False, soft_wrap=True)


def _show(found: Baseline, out: Console) -> None:
    from rich.table import Table

    from toolkit.figures import show_name, show_size, show_value

    table = Table("artifact", "target", "metrics [95 %]", "size", "median / float twin", "p90 ms", "peak memory")
    for entry in found.rows:
        metrics = "\n".join(
            f"{show_name(name)} {show_value(name, one.value)} \\[{show_value(name, one.low)}, {show_value(name, one.high)}] n={one.n}"
            for name, one in entry.metrics.items()
        )
        timed = entry.latency_ms
        ratio = f"{timed.ratio_to_float:.3f}" if timed and timed.ratio_to_float is not None else "-"
        p90 = f"{timed.p90:.3f}" if timed else "-"
        table.add_row(entry.artifact, entry.target, metrics or "-", show_size(entry.size_bytes), ratio, p90, show_size(entry.peak_bytes))
    out.print(table)
    allowed = found.tolerances.model_dump(exclude={"metrics"}) | found.tolerances.metrics
    out.print("tolerated: " + ", ".join(f"{name} {value}" for name, value in allowed.items()), markup=False, soft_wrap=True)
