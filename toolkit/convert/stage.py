"""The stage that turns a captured program into a format a device can run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toolkit import modelfile, plugins
from toolkit.artifact import Signature
from toolkit.errors import ConfigError, InputRejected, StageError, StageFailed, UnsupportedOperators
from toolkit.job import Facts, Job
from toolkit.plugins import Obstacle, Route

_OWN = ("route", "signature")
_MOST_OBSTACLES = 5
_PICTURE_AXES = 4
_HELD_BY = {"onnx": "a Protocol Buffer", "tflite": "a FlatBuffer", "ort": "a FlatBuffer"}


def run(job: Job) -> Facts:
    """Converts ``job.inputs["program"]`` with the route ``job.options["route"]`` and writes ``model.<format>``.

    A route with a preflight is asked first what it cannot convert. That happens in the same process, so the program is loaded once.

    Args:
        job: Inputs ``program``; options ``route``, ``signature`` (as a dict), and whatever else the route is asked to follow: fields of
            :class:`toolkit.config.Conversion` by name.

    Returns:
        ``signature`` (the program's; what the file says of itself is read back by its audit), ``made_by``, ``versions`` and, where
        anything was asked for, ``conversion``; with rewrites that the route accounts for, ``rewritten``: the places that each changed.

    Raises:
        ConfigError: There is no route of that name, or it cannot follow an option's value.
        MissingExtra: The route's frameworks are not installed.
        InputRejected: The program is damaged, or larger than a file of the route's format can be.
        UnsupportedOperators: The preflight found operators that the route cannot convert; nothing was tried then.
        StageFailed: The route cannot convert this program, or wrote nothing.
    """
    route = plugins.get("routes", job.options["route"])
    plugins.require(route)
    signature = Signature.model_validate(job.options["signature"])
    asked = {name: value for name, value in job.options.items() if name not in _OWN}
    given = {name: _as_given(value) for name, value in asked.items()}
    out = job.out / f"model.{route.format}"
    job.progress(0, 1, f"{route.name}: {route.source} -> {route.format}")
    _check_layout(given.get("layout"), signature)
    _check_size(route, modelfile.size_bytes(job.inputs["program"]))
    _look_ahead(route, job, signature, given)
    rewritten = route.convert(job.inputs["program"], out, signature, **given)
    if not modelfile.exists(out) or not modelfile.size_bytes(out):
        raise StageFailed("the route wrote no file", where=route.name, hint="report it to the route's project")
    job.progress(1, 1, f"{modelfile.size_bytes(out):,} bytes by {route.name}")
    facts = {"signature": signature.model_dump(mode="json"), "made_by": route.name, "versions": plugins.versions(route)}
    told = {"rewritten": {name: list(places) for name, places in rewritten.items()}} if rewritten else {}
    return {**facts, **({"conversion": asked} if asked else {}), **told}


def _check_layout(layout: str | None, signature: Signature) -> None:
    """Refuses a layout of pictures where no input is one: the file would be as if nothing had been asked for."""
    if layout and not any(len(spec.shape) == _PICTURE_AXES for spec in signature.inputs):
        found = ", ".join(map(str, signature.inputs))
        raise ConfigError(f"layout {layout!r} is for inputs of four axes, found {found}", where="convert.layout", hint="leave out layout")


def _check_size(route: Route, size_bytes: int) -> None:
    """Refuses at once what would fail after minutes: weights beyond what one file of a format holds."""
    if size_bytes > modelfile.BUFFER_BYTES and route.format in _HELD_BY and not getattr(route, "large", False):
        what = f"the program has {size_bytes / 1e9:.2f} GB, and {route.name} writes {_HELD_BY[route.format]}, which holds 2.15 GB at most"
        hint = "convert to openvino, or from PyTorch to onnx or pte; or use a smaller model"
        raise InputRejected(what, where=f"{route.source} -> {route.format}", hint=hint)


def _look_ahead(route: Route, job: Job, signature: Signature, given: dict[str, Any]) -> None:
    """Refuses what the preflight says cannot be converted; a preflight that fails itself has nothing to say."""
    if not hasattr(route, "preflight"):
        return
    allowed = {"rewrites": given["rewrites"]} if "rewrites" in given else {}
    try:
        found = route.preflight(job.inputs["program"], signature, **allowed)
    except StageError:
        return
    if found:
        raise _unsupported(found, route.name)


def _unsupported(found: Sequence[Obstacle], where: str) -> UnsupportedOperators:
    """One error that names each obstacle once, the first few of them."""
    named = list(dict.fromkeys(map(_name, found)))
    more = f"; and {len(named) - _MOST_OBSTACLES} more" if len(named) > _MOST_OBSTACLES else ""
    hint = "; ".join(dict.fromkeys(one.hint for one in found if one.hint))
    return UnsupportedOperators("; ".join(named[:_MOST_OBSTACLES]) + more, where=where, hint=hint)


def _name(obstacle: Obstacle) -> str:
    layer = f" in layer {obstacle.layer!r}" if obstacle.layer else ""
    return f"operator {obstacle.operator}{layer} {obstacle.reason}"


def _as_given(value: Any) -> Any:
    """Options travel as JSON, which has no tuples."""
    return tuple(value) if isinstance(value, list) else value
