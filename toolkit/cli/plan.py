"""``edgekit plan``."""

from __future__ import annotations

from pathlib import Path

from toolkit.cli.common import Format, FormatOption, ProjectArgument, VerboseOption, emit


def plan(project: ProjectArgument = Path(), format: FormatOption = Format.text, verbose: VerboseOption = False) -> None:
    """Show what a run would do, without doing it."""
    from toolkit import plan as make_plan

    planned = make_plan(project)
    document = {
        "project": planned.project.name,
        "steps": [{"step": id, "what": what, "needs": [] if needs == "-" else needs.split(", ")} for id, what, needs in planned.lines()],
        "rows": [{"artifact": row.candidate.file, "target": row.target.name, "runtime": row.target.runtime} for row in planned.rows],
    }
    emit(document, lambda out: out.print(str(planned), markup=False, soft_wrap=True))
