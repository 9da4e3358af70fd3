"""``edgekit targets``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.cli.common import Format, FormatOption, VerboseOption, emit

if TYPE_CHECKING:
    from rich.console import Console

    from toolkit.config import Target


def targets(format: FormatOption = Format.text, verbose: VerboseOption = False) -> None:
    """List the shipped targets."""
    from toolkit import targets as shipped

    found = shipped()
    emit([target.model_dump(mode="json") for target in found], lambda out: _show(found, out))


def _show(found: tuple[Target, ...], out: Console) -> None:
    from rich.table import Table

    table = Table("target", "runtime", "threads", "memory", "stand-in", "description")
    for target in found:
        memory = f"{target.memory_mb} MB" if target.memory_mb else "-"
        table.add_row(target.name, target.runtime, str(target.threads), memory, target.stand_in, target.description)
    out.print(table)
    out.print("A target of your own is a .toml file like these: --target ./mine.toml", markup=False)
