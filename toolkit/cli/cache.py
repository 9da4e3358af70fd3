"""``edgekit cache``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from toolkit.cli.common import Format, FormatOption, VerboseOption, emit, facts


class Action(StrEnum):
    """What to do with the cache."""

    show = "show"
    prune = "prune"
    clear = "clear"


def cache(
    action: Annotated[Action, typer.Argument(help="show it, prune what was unused for --days, or clear it.")] = Action.show,
    days: Annotated[float, typer.Option("--days", min=0, help="For prune: keep what was used within this many days.")] = 30.0,
    force: Annotated[bool, typer.Option("--force", help="For prune and clear: also while a run uses the cache; that run may fail.")] = False,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> None:
    """Show or empty the store of stage outputs."""
    from toolkit import Store

    store = Store()
    if action is Action.show:
        entries = store.entries()
        found = {"folder": str(store.root), "entries": len(entries), "size_bytes": sum(size_bytes for _, size_bytes, _ in entries)}
    else:
        entries_removed, bytes_removed = store.remove(unused_days=days if action is Action.prune else 0.0, force=force)
        found = {"folder": str(store.root), "entries_removed": entries_removed, "bytes_removed": bytes_removed}
    emit(found, facts({name: f"{value:,}" if isinstance(value, int) else value for name, value in found.items()}))
