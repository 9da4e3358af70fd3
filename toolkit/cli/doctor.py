"""``edgekit doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.cli.common import Format, FormatOption, VerboseOption, emit

if TYPE_CHECKING:
    from rich.console import Console

    from toolkit.pipeline.doctor import Diagnosis, ExtraState


def doctor(format: FormatOption = Format.text, verbose: VerboseOption = False) -> None:
    """Show what works here, and how to install what does not."""
    from toolkit import doctor as diagnose

    diagnosis = diagnose()
    emit(diagnosis, lambda out: _show(diagnosis, out))


def _show(diagnosis: Diagnosis, out: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    machine = diagnosis.environment
    out.print(f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}", markup=False)
    cache = f"cache: {diagnosis.cache}"
    out.print(f"{cache}: {diagnosis.cache_problem}" if diagnosis.cache_problem else cache, markup=False, soft_wrap=True)
    extras = Table("extra", "installed", "state", title="Optional dependencies", title_justify="left")
    for extra in diagnosis.extras:
        found = ", ".join(f"{name} {version}" for name, version in extra.found.items())
        extras.add_row(extra.extra, found, _state(extra))
    out.print(extras)
    plugins = Table("kind", "plugin", "does", "state", title="Plugins", title_justify="left")
    for plugin in diagnosis.plugins:
        state = "[green]ready[/green]" if plugin.ready else "[yellow]missing framework[/yellow]"
        trusted = f", trust {plugin.trust:.2f}" if plugin.trust is not None else ""
        plugins.add_row(plugin.group.removesuffix("s"), plugin.name, f"{plugin.does}{trusted}", state)
    out.print(plugins)
    rewrites: dict[tuple[str, str], list[str]] = {}
    for plugin in diagnosis.plugins:
        for rewrite in plugin.rewrites.items():
            rewrites.setdefault(rewrite, []).append(plugin.name)
    if rewrites:
        table = Table("rewrite", "does", "routes", title="Rewrites, applied where they are asked for: --rewrite NAME", title_justify="left")
        for (name, does), routes in rewrites.items():
            table.add_row(*map(escape, (name, does, ", ".join(routes))))
        out.print(table)
    lines = [extra.install for extra in diagnosis.extras if extra.install and extra.used]
    if lines:
        out.print("To install what is missing:", markup=False)
        for line in lines:
            out.print(f"  {line}", markup=False)


def _state(extra: ExtraState) -> str:
    state = "[green]ready[/green]" if extra.ready else f"[yellow]{'; '.join(extra.problems)}[/yellow]"
    return state if extra.used else f"{state} (nothing in this version uses it)"
