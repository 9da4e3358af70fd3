"""The stage that turns a captured program into a format a device can run."""

from __future__ import annotations

from toolkit import plugins
from toolkit.artifact import Signature
from toolkit.errors import StageFailed
from toolkit.job import Facts, Job


def run(job: Job) -> Facts:
    """Converts ``job.inputs["program"]`` with the route ``job.options["route"]`` and writes ``model.<format>``.

    Args:
        job: Inputs ``program``; options ``route`` and ``signature`` (as a dict).

    Raises:
        ConfigError: There is no route of that name.
        MissingExtra: The route's frameworks are not installed.
        StageFailed: The route cannot convert this program, or wrote nothing.
    """
    route = plugins.get("routes", job.options["route"])
    plugins.require(route)
    signature = Signature.model_validate(job.options["signature"])
    out = job.out / f"model.{route.format}"
    job.progress(0, 1, f"{route.source} -> {route.format}")
    route.convert(job.inputs["program"], out, signature)
    if not out.is_file() or not out.stat().st_size:
        raise StageFailed("the route wrote no file", where=route.name, hint="report it to the route's project")
    job.progress(1, 1, f"{out.stat().st_size:,} bytes")
    return {"made_by": route.name, "versions": plugins.versions(route)}
