"""``edgekit run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.common import Format, FormatOption, JobsOption, ProjectArgument, VerboseOption, console, emit, progress, wants_json

StrictOption = Annotated[bool, typer.Option("--strict", help="Exit with 6 when the verdict is inconclusive.")]


def run(
    project: ProjectArgument = Path(),
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for models and reports.", show_default="PROJECT/edgekit-out")] = None,
    strict: StrictOption = False,
    jobs: JobsOption = None,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> int:
    """Take a project from training to a checked bundle.

    Fine-tune, convert, quantize, measure, judge, report.
    """
    from toolkit import exit_code
    from toolkit import plan as make_plan
    from toolkit import run as run_project
    from toolkit.report import text

    if not wants_json():
        console(stderr=True).print(str(make_plan(project)), markup=False)
    with progress() as listener:
        done = run_project(project, output=output, listener=listener, jobs=jobs)
    emit(done.report, lambda out: text.render(done.report, out))
    if not wants_json():
        console().print(f"models and reports: {done.folder}", markup=False, soft_wrap=True)
    return exit_code(done.report, strict=strict)
