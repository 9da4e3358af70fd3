"""``edgekit golden``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.common import Format, FormatOption, ModelArgument, TargetOption, VerboseOption, emit, progress
from toolkit.cli.envelope import SamplesOption, ScoresOption, variants_table

if TYPE_CHECKING:
    from rich.console import Console

    from toolkit.evidence import Report
    from toolkit.measure.golden import Golden

app = typer.Typer(
    name="golden",
    help="Keep a model's outputs; tolerate its envelope and no more.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def update(
    model: ModelArgument,
    data: SamplesOption,
    target: TargetOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .npz file to write; commit it.", show_default=False)],
    samples: Annotated[int, typer.Option("--samples", min=1, max=32, help="At most so many, and no more than 5 MB.")] = 32,
    scores: ScoresOption = None,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> None:
    """Write a model's inputs, outputs and envelope into one file."""
    from toolkit import make_golden

    with progress() as listener:
        made = make_golden(model, data, output, target=target, samples=samples, output=scores, listener=listener)
    emit(made, lambda out: _show_golden(made, output, out))


@app.command()
def check(
    model: ModelArgument,
    golden: Annotated[Path, typer.Argument(help="The golden's .npz file.", show_default=False)],
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="A target with the golden's runtime.", show_default="the golden's runtime and threads")
    ] = None,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> int:
    """Run a model on a golden's inputs; its outputs must lie within the golden's envelope.

    Exit 0 pass, 1 fail.
    """
    from toolkit import check_golden, exit_code

    with progress() as listener:
        report = check_golden(model, golden, target=target, listener=listener)
    emit(report, lambda out: _show_report(report, out))
    return exit_code(report)


def _show_golden(made: Golden, file: Path, out: Console) -> None:
    out.print(f"{file}: {made.n} samples of {made.model} on {made.target} ({made.runtime}, {made.threads} threads)", markup=False, soft_wrap=True)
    out.print(variants_table(made.variants))
    allowed = ", ".join(f"{name} {difference:.3g}" for name, difference in made.max_abs.items())
    flipped = ", ".join(map(str, made.flipped)) or "none"
    out.print(f"a check allows differences up to: {allowed}; samples whose label may change: {flipped}", markup=False)


def _show_report(report: Report, out: Console) -> None:
    from toolkit.report.wording import place, printable

    row = report.rows[0]
    out.print(f"{row.verdict}: {printable(place(row))} ({row.runtime})", markup=False)
    for finding in row.findings:
        out.print(f"  {finding.verdict}  {printable(f'{finding.budget}: {finding.reason}')}", markup=False, soft_wrap=True)
