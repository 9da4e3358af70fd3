"""``edgekit run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.common import Format, FormatOption, JobsOption, ProjectArgument, VerboseOption, console, emit, progress, wants_json

BaselineOption = Annotated[
    Path | None, typer.Option("--baseline", "-b", help="Committed baseline file.", show_default="PROJECT/edgekit-baseline.json, if there")
]
NoBaselineOption = Annotated[bool, typer.Option("--no-baseline", help="Judge by the budgets alone.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Exit with 6 when the verdict is inconclusive.")]


def run(
    project: ProjectArgument = Path(),
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for models and reports.", show_default="PROJECT/edgekit-out")] = None,
    baseline: BaselineOption = None,
    no_baseline: NoBaselineOption = False,
    strict: StrictOption = False,
    jobs: JobsOption = None,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> int:
    """Take a project from training to a checked bundle.

    Fine-tune, convert, quantize, measure, judge, report. The evidence is held against the project's committed baseline too.
    """
    from toolkit import exit_code
    from toolkit import plan as make_plan
    from toolkit import run as run_project
    from toolkit.report import text

    committed = committed_baseline(project, baseline, no_baseline=no_baseline)
    if not wants_json():
        console(stderr=True).print(str(make_plan(project)), markup=False)
    with progress() as listener:
        done = run_project(project, output=output, listener=listener, jobs=jobs, baseline=committed)
    emit(done.report, lambda out: text.render(done.report, out))
    if not wants_json():
        console().print(f"models and reports: {done.folder}", markup=False, soft_wrap=True)
    return exit_code(done.report, strict=strict)


def committed_baseline(project: Path, baseline: Path | None, *, no_baseline: bool) -> Path | None:
    """Returns the baseline that a project is held against: the one that was named, else its own, if it has one."""
    from toolkit.pipeline.baseline import baseline_file, find

    refuse_both(baseline, no_baseline=no_baseline)
    return None if no_baseline else baseline or find(baseline_file(project).parent)


def refuse_both(baseline: Path | None, *, no_baseline: bool) -> None:
    """A baseline that is named and one that is not to be used cannot both be meant."""
    from toolkit.errors import ConfigError

    if baseline is not None and no_baseline:
        raise ConfigError("--baseline and --no-baseline exclude each other", where="--no-baseline", hint="give one of them")
