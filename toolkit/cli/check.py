"""``edgekit check``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.common import Format, FormatOption, JobsOption, TaskName, VerboseOption, emit, progress
from toolkit.cli.evaluate import ReferenceOption, ScoresOption
from toolkit.cli.run import StrictOption

_HELP = "A project, or a model file (then with --data and --target)."


def check(
    subject: Annotated[Path, typer.Argument(help=_HELP, show_default="the current folder")] = Path(),
    data: Annotated[Path | None, typer.Option("--data", "-d", help="Held-out samples with labels, for a model file.", show_default=False)] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="A target's name or .toml file, for a model file.", show_default=False)] = None,
    reference: ReferenceOption = None,
    min_accuracy: Annotated[str | None, typer.Option("--min-accuracy", help="0.95 or 95%.", show_default=False)] = None,
    max_drop: Annotated[str | None, typer.Option("--max-drop", help="Against --reference: 1pp or 0.01.", show_default=False)] = None,
    max_size_bytes: Annotated[int | None, typer.Option("--max-size-bytes", help="Largest model file.", show_default=False)] = None,
    max_size_ratio: Annotated[
        float | None, typer.Option("--max-size-ratio", help="Against a --reference of the same format.", show_default=False)
    ] = None,
    max_latency_p90_ms: Annotated[
        float | None, typer.Option("--max-latency-p90-ms", help="Largest p90 of one inference, in ms.", show_default=False)
    ] = None,
    task: Annotated[TaskName | None, typer.Option("--task", help="What a model file does.", show_default=TaskName.image_classification.value)] = None,
    scores: ScoresOption = None,
    strict: StrictOption = False,
    jobs: JobsOption = None,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> int:
    """Hold a project or a model file against budgets.

    Exit 0 pass, 1 fail, 6 inconclusive under --strict.
    """
    from toolkit import check as check_model
    from toolkit import check_project, exit_code
    from toolkit import inspect as read
    from toolkit.config import make_budgets
    from toolkit.errors import ConfigError
    from toolkit.report import text

    given = {
        "min_accuracy": min_accuracy,
        "max_drop": max_drop,
        "max_size_bytes": max_size_bytes,
        "max_size_ratio": max_size_ratio,
        "max_latency_p90_ms": max_latency_p90_ms,
    }
    wanted = {name: value for name, value in given.items() if value is not None}
    with progress() as listener:
        if subject.is_dir() or subject.suffix in ("", ".toml"):
            for_models = {"--data": data, "--target": target, "--reference": reference, "--task": task, "--scores": scores, "budgets": wanted or None}
            if stray := [name for name, value in for_models.items() if value is not None]:
                raise ConfigError(f"{', '.join(stray)} go with a model file; a project says these itself", hint="write them into edgekit.toml")
            report = check_project(subject, listener=listener, jobs=jobs)
        else:
            budgets = make_budgets(wanted)
            try:
                data, target = _complete(subject, wanted, data, target, reference)
            except ConfigError:
                read(subject)  # a damaged file is the first thing to tell, whatever else is missing
                raise
            kind = task or TaskName.image_classification
            report = check_model(
                subject, data, target=target, reference=reference, budgets=budgets, task=kind.value, output=scores, listener=listener
            )
    emit(report, lambda out: text.render(report, out))
    return exit_code(report, strict=strict)


def _complete(subject: Path, wanted: Mapping[str, object], data: Path | None, target: str | None, reference: Path | None) -> tuple[Path, str]:
    """A check without a budget would pass whatever it is given, and a budget without its reference is never judged."""
    from toolkit.config import Budgets
    from toolkit.errors import ConfigError
    from toolkit.resources import load_target

    if data is None or target is None:
        raise ConfigError("a model file needs --data and --target", where=str(subject), hint="or give a project folder")
    if not wanted and load_target(target).budgets == Budgets():
        raise ConfigError("there is no budget to hold it against", where="check", hint="give at least one budget, or a target that has some")
    for name in ("max_drop", "max_size_ratio"):
        if name in wanted and reference is None:
            raise ConfigError(f"--{name.replace('_', '-')} needs --reference", where="check", hint="give the float source as --reference")
    return data, target
