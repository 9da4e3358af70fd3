"""``edgekit size``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.common import Format, FormatOption, VerboseOption, emit, wants_json


def size(
    files: Annotated[list[Path], typer.Argument(help="Model files.", show_default=False)],
    max_size_bytes: Annotated[
        str | None, typer.Option("--max-size-bytes", help="Largest size of any of them: bytes, 5MB or 5MiB.", show_default=False)
    ] = None,
    baseline: Annotated[Path | None, typer.Option("--baseline", "-b", help="Baseline file; it limits files by name.", show_default=False)] = None,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> int:
    """Hold the sizes of files against a limit.

    Nothing is parsed, which makes it quick enough for a commit hook. Exit 1 when a file is larger.
    """
    from toolkit import check_sizes
    from toolkit.errors import EXIT_CHECK_FAILED, EXIT_PASS

    checks = check_sizes(files, max_size_bytes=max_size_bytes, baseline=baseline)
    if wants_json():
        emit([check.to_dict() for check in checks], lambda _: None)
    for check in () if wants_json() else checks:
        limit = "no limit" if check.limit_bytes is None else f"at most {check.limit_bytes:,} ({check.limit_from})"
        # Plain: a console would take as long to import as all the rest.
        typer.echo(f"{'pass' if check.holds else 'FAIL'}  {check.file}: {check.size_bytes:,} bytes, {limit}")
    return EXIT_PASS if all(check.holds for check in checks) else EXIT_CHECK_FAILED
