"""``edgekit init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.common import Format, FormatOption, VerboseOption, emit


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write it.", show_default="the current folder")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> None:
    """Write a commented edgekit.toml to start from."""
    from toolkit import init as write_project

    file = write_project(folder, force=force)
    emit({"file": str(file)}, lambda out: out.print(f"wrote {file}; edit it, then run: edgekit plan {file.parent}", markup=False, soft_wrap=True))
