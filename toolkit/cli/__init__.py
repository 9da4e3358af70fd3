"""The command line: one short file per verb. Each parses, calls one public function, renders, and exits."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from toolkit.cli import (
    audit,
    baseline,
    benchmark,
    cache,
    calibrate,
    check,
    doctor,
    envelope,
    evaluate,
    export,
    finetune,
    golden,
    init,
    inspect,
    plan,
    profile,
    quantize,
    run,
    size,
    targets,
)
from toolkit.cli.common import guarded, show_version

app = typer.Typer(
    name="edgekit",
    help="From a trained model to a phone, with evidence: fine-tune, convert, quantize, measure, judge.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_VERBS: tuple[Callable[..., object], ...] = (
    run.run,
    init.init,
    plan.plan,
    finetune.finetune,
    export.export,
    calibrate.calibrate,
    quantize.quantize,
    evaluate.evaluate,
    benchmark.benchmark,
    profile.profile,
    envelope.envelope,
    check.check,
    baseline.baseline,
    size.size,
    inspect.inspect,
    audit.audit,
    targets.targets,
    doctor.doctor,
    cache.cache,
)
for verb in _VERBS:
    app.command()(verb)
app.add_typer(golden.app)


@app.callback()
def _edgekit(version: bool = typer.Option(False, "--version", callback=show_version, is_eager=True, help="Show the version and exit.")) -> None:
    """Options of the command itself."""


def main() -> None:
    """Runs the command line; the entry point of ``edgekit``."""
    sys.exit(guarded(lambda: app(standalone_mode=False)))
