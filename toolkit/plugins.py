"""What can be plugged in, and how it is found.

Edgekit's own sources, routes, quantizers, runtimes and readers come through the same entry points as anybody's: there
is no private door. A plugin is an object with the attributes below, named by an entry point of its group::

    [project.entry-points."edgekit.routes"]
    torch_onnx = "toolkit.convert.torch_onnx:ROUTE"

Importing a plugin's module must not import its framework; the methods do that, in a worker process. Every plugin but a
source may have ``contract_example(folder)``, which gives ``tests/contract`` a small model of a format that only it knows.
``docs/plugins.md`` shows a whole plugin.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from toolkit.errors import ConfigError, MissingExtra, NoRoute, SetupError
from toolkit.factory import CODE_ERRORS, first_line

if TYPE_CHECKING:
    import numpy as np

    from toolkit.artifact import Signature
    from toolkit.dataset import Dataset

Arrays = Mapping[str, "np.ndarray"]


@runtime_checkable
class Plugin(Protocol):
    """What every plugin says about itself.

    Attributes:
        name: Unique in its group.
        version: Raised whenever the same inputs may give another output; part of every cache key.
        modules: Import names that must be present, for example ``("torch", "onnxscript")``.
        distributions: Their distributions, whose versions are part of every cache key.
        extra: What to install when one is missing, for example ``edgekit[torch,onnx]``.

    A plugin whose framework takes seconds to import may also have ``preload``, a tuple of modules that a server imports
    once for all stages of that framework. Importing them must leave no threads behind that do not survive a fork (NumPy's
    OpenBLAS does: it ends its threads before a fork and starts them again when they are needed).
    """

    name: str
    version: int
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    extra: str


class Source(Plugin, Protocol):
    """Captures a live framework object as a program file.

    Attributes:
        format: Format of the file it writes, for example ``pt2``.
        framework: Top-level import name of the framework whose objects it takes.

    A source may also have ``prepare(model, weights)``, which returns the model in inference mode, with the ``.safetensors``
    file ``weights`` loaded unless that is ``None``. Without it, a factory must return a model that is ready, and a project
    must not name weights.
    """

    format: str
    framework: str

    def accepts(self, model: object) -> bool:
        """Whether this source can capture ``model``."""

    def capture(self, model: Any, examples: Arrays, out: Path, *, outputs: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        """Writes the program to ``out`` and returns the live model's outputs for all of ``examples``.

        Args:
            model: The live object, already in inference mode.
            examples: Named inputs with samples along the first axis. The program is captured for one sample
                (first axis of size 1), under these input names.
            out: The file to write.
            outputs: Names for the outputs, in order; the model's own names, or ``output_0`` and so on, when empty.
        """


class Route(Plugin, Protocol):
    """Converts a program file of one format into another.

    Attributes:
        source: Format it reads.
        format: Format it writes.
    """

    source: str
    format: str

    def convert(self, program: Path, out: Path, signature: Signature) -> None:
        """Reads ``program`` and writes ``out``, keeping the names of ``signature``.

        Args:
            program: The captured source.
            out: The file to write.
            signature: Inputs and outputs of the program.
        """


class Quantizer(Plugin, Protocol):
    """Makes a smaller model file of the same format.

    Attributes:
        format: Format it reads and writes.
        schemes: Schemes it can produce.
        needs_calibration: Those of them that need calibration samples.

    A quantizer may also have ``methods``, the calibration methods it knows; without it, ``min_max`` is the only one.
    """

    format: str
    schemes: tuple[str, ...]
    needs_calibration: tuple[str, ...]

    def quantize(self, model: Path, out: Path, *, scheme: str, calibration: Dataset | None, options: Mapping[str, Any]) -> None:
        """Reads ``model`` and writes ``out``.

        Args:
            model: The float model.
            out: The file to write.
            scheme: One of ``schemes``.
            calibration: Samples named like the model's inputs; ``None`` when the scheme needs none.
            options: The calibration recipe's fields that steer a quantizer: ``method``, ``per_channel``.
        """


class Session(Protocol):
    """A loaded model, ready to run.

    Attributes:
        signature: Inputs and outputs of the loaded model.
    """

    signature: Signature

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs one batch. The arrays' dtypes and shapes must fit the signature."""


@dataclass(frozen=True)
class Event:
    """One operator's time in one inference.

    Attributes:
        name: The operator's name as the runtime reports it.
        operator: Its kind, in the format's own words.
        kernel: What executed it; empty where the runtime does not say.
        ms: Time spent, in milliseconds.
        nodes: Names of the nodes, or of their output tensors, that it stands for in the file; empty where nothing tells.
    """

    name: str
    operator: str
    kernel: str
    ms: float
    nodes: tuple[str, ...] = ()


class BulkSession(Session, Protocol):
    """A session that runs many batches by one call. Any session may be one; a model of microseconds then waits less for Python."""

    def run_all(self, batches: Arrays, output: str, into: np.ndarray) -> None:
        """Runs batch after batch and keeps one output of each.

        Args:
            batches: For each input ``[k x ...]``: the arrays of ``k`` calls of ``run``.
            output: Name of the output to keep.
            into: Where to write it, ``[k x ...]``.
        """


class ProfiledSession(Session, Protocol):
    """A session that records the time of every operator."""

    def events(self) -> list[list[Event]]:
        """Ends the recording and returns the events of each ``run``, in order."""


class Runtime(Plugin, Protocol):
    """Loads and runs model files.

    Attributes:
        formats: Formats it executes.

    A runtime may also have ``open_profiled(model, *, threads)``, which returns a :class:`ProfiledSession`; and ``variants``,
    names of other ways to execute the same file (another optimisation level, another delegate), with
    ``open_variant(model, *, threads, variant)``, which opens a session that uses one of them; and ``peak_gmacs(threads)``, which
    measures the multiply-accumulates a second its best kernels reach here, in 10^9 by element type.
    """

    formats: tuple[str, ...]

    def open(self, model: Path, *, threads: int) -> Session:
        """Loads a model.

        Args:
            model: The model file.
            threads: Number of threads for one inference.

        Raises:
            InputRejected: The file is damaged or not of a format this runtime reads.
        """


class Reader(Plugin, Protocol):
    """Reads what a model file contains without executing it.

    Attributes:
        format: Format it reads.
    """

    format: str

    def read(self, model: Path) -> Any:
        """Returns the :class:`toolkit.contents.Contents` of a model file.

        Raises:
            InputRejected: The file is damaged.
        """


GROUPS = {"sources": Source, "routes": Route, "quantizers": Quantizer, "runtimes": Runtime, "readers": Reader}
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
        known = sorted({f"{route.source} -> {route.format}" for route in discover("routes").values()})
        raise NoRoute(f"no route converts {source} to {format}; routes installed: {', '.join(known)}", hint="run: edgekit doctor")
    return found


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
    """Returns the format that a file's suffix stands for, if a runtime or a reader declares it."""
    suffix = path.suffix.lower().removeprefix(".")
    declared = {format for runtime in discover("runtimes").values() for format in runtime.formats}
    declared |= {reader.format for reader in discover("readers").values()}
    return suffix if suffix in declared else None


def _by_trust(group: str) -> list[Any]:
    """A group's plugins as they are asked: ready ones first, then Edgekit's own, then by name."""
    found = discover(group)
    own = {name for name, plugin in found.items() if type(plugin).__module__.startswith("toolkit.")}
    return sorted(found.values(), key=lambda plugin: (bool(missing_modules(plugin)), plugin.name not in own, plugin.name))


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


def versions(plugin: Plugin) -> dict[str, str]:
    """Returns the versions of a plugin's distributions; ``-`` for one that is not installed."""
    return {name: distribution_version(name) for name in plugin.distributions}


def distribution_version(name: str) -> str:
    """Returns a distribution's installed version, or ``-``."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "-"


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
