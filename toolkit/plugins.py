"""What can be plugged in, and how it is found.

Edgekit's own sources, routes, quantizers, runtimes and readers come through the same entry points as anybody's: there
is no private door. A plugin is an object with the attributes of its protocol (:mod:`toolkit.protocols`), named by an entry point of its group::

    [project.entry-points."edgekit.routes"]
    torch_onnx = "toolkit.convert.torch_onnx:ROUTE"

Importing a plugin's module must not import its framework; the methods do that, in a worker process. Every plugin but a
source may have ``contract_example(folder)``, which gives ``tests/contract`` a small model of a format that only it knows.
``docs/plugins.md`` shows a whole plugin.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from toolkit import intake_keras, modelfile
from toolkit.errors import ConfigError, MissingExtra, NoRoute, SetupError
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.mistakes import nearest
from toolkit.protocols import (
    Arrays,
    Built,
    BulkSession,
    Collection,
    Event,
    Obstacle,
    Plugin,
    ProfiledSession,
    Quantizer,
    Reader,
    Route,
    Runtime,
    Session,
    Source,
)

__all__ = [
    "Arrays",
    "Built",
    "BulkSession",
    "Collection",
    "Event",
    "Obstacle",
    "Plugin",
    "ProfiledSession",
    "Quantizer",
    "Reader",
    "Route",
    "Runtime",
    "Session",
    "Source",
    "between",
    "discover",
    "distribution_version",
    "find_reader",
    "format_of",
    "get",
    "last_leg",
    "missing_modules",
    "preload",
    "quantizer",
    "reader",
    "require",
    "routes",
    "runtime_for",
    "trust",
    "versions",
]

GROUPS = {"sources": Source, "collections": Collection, "routes": Route, "quantizers": Quantizer, "runtimes": Runtime, "readers": Reader}
AnyPlugin = TypeVar("AnyPlugin", bound=Plugin)


@cache
def discover(group: str) -> dict[str, Any]:
    """Loads every plugin of a group, by name.

    Args:
        group: A key of ``GROUPS``.

    Raises:
        SetupError: A plugin cannot be imported, lacks an attribute, or takes a name that is taken.
    """
    found: dict[str, Any] = {}
    for point in _entry_points(f"edgekit.{group}"):
        where = f"plugin {point.name} ({point.value})"
        try:
            plugin = point.load()
        except CODE_ERRORS as error:  # a plugin's module is code of others: it may raise anything
            hint = "reinstall or remove the distribution that declares it"
            raise SetupError(f"cannot be loaded: {first_line(error)}", where=where, hint=hint) from error
        missing = [name for name in _attributes(GROUPS[group]) if not hasattr(plugin, name)]
        if missing:
            raise SetupError(f"lacks {', '.join(missing)} of the {group} protocol", where=where, hint="see docs/plugins.md")
        if plugin.name in found:
            raise SetupError(f"takes the name {plugin.name!r}, which another plugin has", where=where, hint="rename one of the two")
        found[plugin.name] = plugin
    return dict(sorted(found.items()))


def get(group: str, name: str) -> Any:
    """Returns one plugin.

    Raises:
        ConfigError: There is none of that name.
    """
    plugins = discover(group)
    if name not in plugins:
        raise ConfigError(f"unknown {group[:-1]} {name!r}; installed: {', '.join(plugins) or 'none'}", hint="run: edgekit doctor")
    return plugins[name]


def routes(source: str, format: str) -> list[Route]:
    """Returns the routes from one format to another, ready ones first, then Edgekit's own.

    Raises:
        NoRoute: There is none.
    """
    found = [route for route in _by_trust("routes") if (route.source, route.format) == (source, format)]
    if not found:
        made = sorted({route.format for route in discover("routes").values()})
        if format not in made:
            raise ConfigError(f"nothing makes {format!r}; formats: {', '.join(made)}", where="format", hint=nearest(format, made))
        reached = sorted({route.format for route in discover("routes").values() if route.source == source}) or ["nothing"]
        raise NoRoute(f"no route converts {source} to {format}; from {source} routes lead to: {', '.join(reached)}", hint="run: edgekit doctor")
    return found


def between(source: str, format: str) -> tuple[str, ...]:
    """Returns the formats on the way from one to another where no route leads straight there: the way with the fewest, or none.

    A format on the way must have a runtime, as every file is held against the source. Where nothing leads there the way is empty too,
    and :func:`routes` says what is missing.
    """
    ready = [route for route in discover("routes").values() if not missing_modules(route)]
    executed = {one for runtime in discover("runtimes").values() if not missing_modules(runtime) for one in runtime.formats}
    ways: list[tuple[str, ...]] = [(source,)]
    reached = {source}
    while ways and not any(way[-1] == format for way in ways):
        nearer = [(way, route.format) for way in ways for route in sorted(ready, key=lambda one: -trust(one)) if route.source == way[-1]]
        ways = []
        for way, stop in nearer:
            if stop not in reached and (stop == format or stop in executed):
                reached.add(stop)
                ways.append((*way, stop))
    return next((way[1:-1] for way in ways if way[-1] == format), ())


def last_leg(source: str, format: str) -> tuple[str, str]:
    """Returns the formats between which the last route on the way from one to another converts; see :func:`between`."""
    return (between(source, format) or (source,))[-1], format


def quantizer(format: str, scheme: str) -> Quantizer:
    """Returns the quantizer that makes ``scheme`` of a format.

    Raises:
        NoRoute: There is none.
    """
    for plugin in _by_trust("quantizers"):
        if plugin.format == format and scheme in plugin.schemes:
            found: Quantizer = plugin
            return found
    known = sorted(f"{p.format}: {scheme}" for p in discover("quantizers").values() for scheme in p.schemes)
    raise NoRoute(f"no quantizer makes {scheme} for {format}; known: {', '.join(known)}", hint="run: edgekit doctor")


def runtime_for(format: str) -> Runtime:
    """Returns the first runtime that executes a format.

    Raises:
        NoRoute: There is none.
    """
    for plugin in _by_trust("runtimes"):
        if format in plugin.formats:
            found: Runtime = plugin
            return found
    raise NoRoute(f"no runtime executes {format} files", hint="run: edgekit doctor")


def reader(format: str) -> Reader:
    """Returns the reader of a format.

    Raises:
        NoRoute: There is none.
    """
    found = find_reader(format)
    if found is None:
        raise NoRoute(f"no reader looks into {format} files", hint="run: edgekit doctor")
    return found


def find_reader(format: str) -> Reader | None:
    """Returns the reader of a format, or ``None``: a plugin may bring a format that nobody can look into yet."""
    return next((plugin for plugin in discover("readers").values() if plugin.format == format), None)


def format_of(path: Path) -> str | None:
    """Returns the format that a file's suffix stands for, if a runtime or a reader declares it; of a folder also by what it holds."""
    if path.is_dir() and (folder := modelfile.folder_format(path)):
        return folder
    suffix = intake_keras.SUFFIXES.get(path.suffix.lower(), path.suffix.lower().removeprefix("."))
    declared = {format for runtime in discover("runtimes").values() for format in runtime.formats}
    declared |= {reader.format for reader in discover("readers").values()}
    return suffix if suffix in declared else None


def _by_trust(group: str) -> list[Any]:
    """A group's plugins as they are asked: ready ones first, then those of higher trust, then Edgekit's own, then by name."""
    found = discover(group)
    own = {name for name, plugin in found.items() if type(plugin).__module__.startswith("toolkit.")}
    return sorted(found.values(), key=lambda plugin: (bool(missing_modules(plugin)), -trust(plugin), plugin.name not in own, plugin.name))


def trust(plugin: Plugin) -> float:
    """Returns how far a plugin is trusted, 0..1, among those that could do the same."""
    return float(getattr(plugin, "trust", 0.5))


def missing_modules(plugin: Plugin) -> list[str]:
    """Returns the import names that a plugin needs and this environment lacks."""
    return [name for name in plugin.modules if not _importable(name)]


def require(plugin: Plugin) -> None:
    """Makes sure that a plugin's frameworks are installed.

    Raises:
        MissingExtra: One is not; the message names the exact install line.
    """
    missing = missing_modules(plugin)
    if missing:
        raise MissingExtra(f"{plugin.name} needs {', '.join(missing)}, which is not installed", hint=f'run: pip install "{plugin.extra}"')


def preload(plugin: Plugin) -> tuple[str, ...]:
    """Returns the modules that may be imported once and shared between this plugin's stages; usually none."""
    return tuple(getattr(plugin, "preload", ()))


def warm(plugin: Plugin) -> tuple[str, ...]:
    """Returns the modules that this plugin's work will import, on top of those of :func:`preload`; usually none."""
    return tuple(getattr(plugin, "warm", ()))


def versions(plugin: Plugin) -> dict[str, str]:
    """Returns the versions of a plugin's distributions; ``-`` for one that is not installed."""
    return {name: distribution_version(name) for name in plugin.distributions}


def distribution_version(name: str) -> str:
    """Returns a distribution's installed version, or ``-``."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "-"


def build(inputs: Mapping[str, Path], options: Mapping[str, Any]) -> Built:
    """Builds the model of a collection that a stage is asked for.

    Args:
        inputs: The stage's; perhaps ``model``, a folder, and ``weights``, a file.
        options: The stage's: ``collection``, ``model`` (its name there; after an input ``model`` only its part), ``weights`` (their name),
            ``task``, and ``classes`` (their names) where it is to be trained for others.

    Raises:
        ConfigError: The collection does not exist; also what :meth:`Collection.build` raises.
        MissingExtra: What the collection needs is not installed.
    """
    collection = get("collections", options["collection"])
    require(collection)
    weights = str(inputs["weights"]) if "weights" in inputs else options.get("weights")
    model = f"{inputs.get('model', '')}{options.get('model') or ''}"
    other = {"classes": tuple(options["classes"])} if options.get("classes") else {}
    built: Built = collection.build(model, weights=weights, task=options.get("task"), **other)
    return built


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _attributes(protocol: type) -> list[str]:
    """Names that a protocol asks for, inherited ones included."""
    names: set[str] = set()
    for base in protocol.__mro__:
        names.update(vars(base).get("__annotations__", {}))
        names.update(name for name, value in vars(base).items() if callable(value) and not name.startswith("_"))
    return sorted(names)


def _entry_points(group: str) -> list[metadata.EntryPoint]:
    installed = list(metadata.entry_points(group=group))
    return installed if any(point.value.startswith("toolkit.") for point in installed) else installed + _checkout_entry_points(group)


def _checkout_entry_points(group: str) -> list[metadata.EntryPoint]:
    """Our own plugins when the package runs from a bare checkout, where nothing has been installed."""
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if not project.is_file():
        return []
    declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"].get("entry-points", {}).get(group, {})
    return [metadata.EntryPoint(name, value, group) for name, value in declared.items()]
