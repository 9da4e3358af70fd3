"""``edgekit finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.common import Format, FormatOption, ProjectArgument, VerboseOption, emit, facts, progress


def finetune(
    project: ProjectArgument = Path(),
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write to.", show_default="PROJECT/edgekit-out")] = None,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> None:
    """Train a project's model, and capture it as a .pt2 program."""
    from toolkit import finetune as train

    with progress() as listener:
        trained = train(project, output=output, listener=listener)
    emit(trained, facts({"weights": trained.weights, "program": trained.program.path, **trained.facts}))
