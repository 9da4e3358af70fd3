"""The stage that turns a captured program into a format a device can run."""

from __future__ import annotations

from typing import Any

from toolkit import modelfile, plugins
from toolkit.artifact import Signature
from toolkit.errors import StageFailed
from toolkit.job import Facts, Job

_OWN = ("route", "signature")


def run(job: Job) -> Facts:
    """Converts ``job.inputs["program"]`` with the route ``job.options["route"]`` and writes ``model.<format>``.

    Args:
        job: Inputs ``program``; options ``route``, ``signature`` (as a dict), and whatever else the route is asked to follow: fields of
            :class:`toolkit.config.Conversion` by name.

    Returns:
        ``signature`` (the program's; what the file says of itself is read back by its audit), ``made_by``, ``versions`` and, where
        anything was asked for, ``conversion``.

    Raises:
        ConfigError: There is no route of that name, or it cannot follow an option's value.
        MissingExtra: The route's frameworks are not installed.
        StageFailed: The route cannot convert this program, or wrote nothing.
    """
    route = plugins.get("routes", job.options["route"])
    plugins.require(route)
    signature = Signature.model_validate(job.options["signature"])
    asked = {name: value for name, value in job.options.items() if name not in _OWN}
    out = job.out / f"model.{route.format}"
    job.progress(0, 1, f"{route.name}: {route.source} -> {route.format}")
    route.convert(job.inputs["program"], out, signature, **{name: _as_given(value) for name, value in asked.items()})
    if not modelfile.exists(out) or not modelfile.size_bytes(out):
        raise StageFailed("the route wrote no file", where=route.name, hint="report it to the route's project")
    job.progress(1, 1, f"{modelfile.size_bytes(out):,} bytes by {route.name}")
    facts = {"signature": signature.model_dump(mode="json"), "made_by": route.name, "versions": plugins.versions(route)}
    return {**facts, "conversion": asked} if asked else facts


def _as_given(value: Any) -> Any:
    """Options travel as JSON, which has no tuples."""
    return tuple(value) if isinstance(value, list) else value
