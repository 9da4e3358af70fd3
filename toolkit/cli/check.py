"""``edgekit check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.common import Format, FormatOption, JobsOption, VerboseOption, emit, progress
from toolkit.cli.evaluate import ReferenceOption
from toolkit.cli.run import StrictOption

_HELP = "A project, or a model file (then with --data and --target)."


def check(
    subject: Annotated[Path, typer.Argument(help=_HELP, show_default="the current folder")] = Path(),
    data: Annotated[Path | None, typer.Option("--data", "-d", help="Held-out samples with labels, for a model file.", show_default=False)] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="A target's name or .toml file, for a model file.", show_default=False)] = None,
    reference: ReferenceOption = None,
    min_accuracy: Annotated[str | None, typer.Option("--min-accuracy", help="For example 0.95.", show_default=False)] = None,
    max_drop: Annotated[str | None, typer.Option("--max-drop", help="Against --reference: 1pp or 0.01.", show_default=False)] = None,
    max_size_bytes: Annotated[int | None, typer.Option("--max-size-bytes", show_default=False)] = None,
    max_size_ratio: Annotated[
        float | None, typer.Option("--max-size-ratio", help="Against a --reference of the same format.", show_default=False)
    ] = None,
    max_latency_p90_ms: Annotated[float | None, typer.Option("--max-latency-p90-ms", show_default=False)] = None,
    strict: StrictOption = False,
    jobs: JobsOption = None,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> int:
    """Hold evidence against budgets: exit 0 pass, 1 fail, 6 inconclusive under --strict."""
    from toolkit import check as check_model
    from toolkit import check_project, exit_code
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
            for_models = {"--data": data, "--target": target, "--reference": reference, "budgets": wanted or None}
            if stray := [name for name, value in for_models.items() if value is not None]:
                raise ConfigError(f"{', '.join(stray)} go with a model file; a project says these itself", hint="write them into edgekit.toml")
            report = check_project(subject, listener=listener, jobs=jobs)
        elif data is None or target is None:
            raise ConfigError("a model file needs --data and --target", where=str(subject), hint="or give a project folder")
        else:
            report = check_model(subject, data, target=target, reference=reference, budgets=make_budgets(wanted), listener=listener)
    emit(report, lambda out: text.render(report, out))
    return exit_code(report, strict=strict)
