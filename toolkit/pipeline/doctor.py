"""``toolkit.doctor``: what works on this machine, and the exact line that installs what does not."""

from __future__ import annotations

import os
import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import Field

from toolkit import display, environment, plugins
from toolkit.artifact import Frozen
from toolkit.errors import SetupError, StoreError
from toolkit.pipeline.conversion import rewrites
from toolkit.store import Store, default_root

_SKIPPED_EXTRAS = {"all", "dev"}


class ExtraState(Frozen):
    """One optional dependency group.

    Attributes:
        extra: Its name.
        ready: Whether every distribution of it is installed in a fitting version.
        found: Each distribution with its installed version, or ``-``.
        problems: What is missing or too old.
        install: The line that mends it; empty when ready.
        used: Whether any plugin asks for it; the others are declared so that everything resolves together.
    """

    extra: str
    ready: bool
    found: dict[str, str]
    problems: tuple[str, ...]
    install: str
    used: bool


class PluginState(Frozen):
    """One plugin.

    Attributes:
        group: ``sources``, ``collections``, ``routes``, ``quantizers``, ``runtimes`` or ``readers``.
        name: Its name.
        does: What it takes and gives.
        ready: Whether its frameworks are installed.
        install: The line that mends it; empty when ready.
        trust: How far a route is trusted among those to the same format, 0..1: those of higher trust are tried first; ``None`` for
            everything else.
        rewrites: What a route may change in a graph when that is asked for, by name.
    """

    group: str
    name: str
    does: str
    ready: bool
    install: str
    trust: float | None = None
    rewrites: dict[str, str] = Field(default_factory=dict)


class Diagnosis(Frozen):
    """What works here.

    Attributes:
        environment: CPU, system and versions.
        extras: Every optional dependency group.
        plugins: Every plugin found.
        cache: The cache folder.
        cache_problem: Why it cannot be used; empty when it can.
    """

    environment: dict[str, Any]
    extras: tuple[ExtraState, ...]
    plugins: tuple[PluginState, ...]
    cache: str
    cache_problem: str

    def _repr_html_(self) -> str:
        rows = [(extra.extra, "ready" if extra.ready else "; ".join(extra.problems), extra.install) for extra in self.extras]
        return display.table_html("Edgekit on this machine", ("extra", "state", "install"), rows)


def doctor() -> Diagnosis:
    """Looks at versions, extras, plugins and the cache folder. Installs and changes nothing."""
    return Diagnosis(
        environment=environment.describe(),
        extras=_extras(),
        plugins=tuple(state for group in plugins.GROUPS for state in _plugins(group)),
        cache=str(default_root()),
        cache_problem=_cache_problem(),
    )


def _extras() -> tuple[ExtraState, ...]:
    required = _requirements()
    asked = {word for group in plugins.GROUPS for extra in _extras_named_by(group) for word in re.findall(r"\w+", extra)}
    return tuple(_extra(name, required[name], name in asked or name == "examples") for name in sorted(required) if name not in _SKIPPED_EXTRAS)


def _extras_named_by(group: str) -> list[str]:
    try:
        return [plugin.extra for plugin in plugins.discover(group).values()]
    except SetupError:
        return []


def _extra(name: str, requirements: list[Requirement], used: bool) -> ExtraState:
    found = {requirement.name: plugins.distribution_version(requirement.name) for requirement in requirements}
    problems = [_problem(requirement, found[requirement.name]) for requirement in requirements]
    real = tuple(problem for problem in problems if problem)
    return ExtraState(extra=name, ready=not real, found=found, problems=real, install=f'pip install "edgekit[{name}]"' if real else "", used=used)


def _problem(requirement: Requirement, version: str) -> str:
    if version == "-":
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version} does not fit {requirement.specifier}"
    return ""


def _requirements() -> dict[str, list[Requirement]]:
    """Requirements by extra, from the installed distribution or the checkout's own file."""
    try:
        installed = metadata.distribution("edgekit")
    except metadata.PackageNotFoundError:
        return _checkout_requirements()
    parsed = [Requirement(line) for line in installed.requires or ()]
    names = {canonicalize_name(name) for name in installed.metadata.get_all("Provides-Extra") or ()}
    environment_now = {key: str(value) for key, value in default_environment().items()}
    bare = {requirement for requirement in parsed if requirement.marker is None}
    return {
        name: [r for r in parsed if r not in bare and r.marker and r.marker.evaluate({**environment_now, "extra": name}) and r.name != "edgekit"]
        for name in names
    }


def _checkout_requirements() -> dict[str, list[Requirement]]:
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if not project.is_file():
        return {}
    declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    parsed = {name: [Requirement(line) for line in lines] for name, lines in declared.items()}
    return {name: [requirement for requirement in requirements if requirement.name != "edgekit"] for name, requirements in parsed.items()}


def _plugins(group: str) -> list[PluginState]:
    try:
        return [_plugin(group, plugin) for plugin in plugins.discover(group).values()]
    except SetupError as error:
        return [PluginState(group=group, name=error.where, does=error.message, ready=False, install=error.hint)]


def _plugin(group: str, plugin: Any) -> PluginState:
    missing = plugins.missing_modules(plugin)
    install = f'pip install "{plugin.extra}"' if missing else ""
    trust = plugins.trust(plugin) if group == "routes" else None
    known = dict(rewrites(plugin)) if group == "routes" else {}
    return PluginState(group=group, name=plugin.name, does=_does(group, plugin), ready=not missing, install=install, trust=trust, rewrites=known)


def _does(group: str, plugin: Any) -> str:
    if group == "routes":
        return f"{plugin.source} -> {plugin.format}"
    if group == "quantizers":
        return f"{plugin.format}: {', '.join(plugin.schemes)}"
    if group == "runtimes":
        return f"runs {', '.join(plugin.formats)}"
    if group == "collections":
        return f"builds {plugin.framework} models: {plugin.name}:NAME"
    return f"captures {plugin.framework} as {plugin.format}" if group == "sources" else f"reads {plugin.format}"


def _cache_problem() -> str:
    try:
        store = Store()
    except StoreError as error:
        return str(error)
    return "" if os.access(store.root, os.W_OK) else "is not writable"
