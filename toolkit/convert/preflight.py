"""The stage that looks for what a route would fail on, in seconds instead of the minutes that a conversion may take."""

from __future__ import annotations

from dataclasses import asdict

from toolkit import plugins
from toolkit.artifact import Signature
from toolkit.job import Facts, Job


def run(job: Job) -> Facts:
    """Asks the route ``job.options["route"]`` what it cannot convert in ``job.inputs["program"]``. Writes no file.

    Args:
        job: Inputs ``program``; options ``route``, ``signature`` (as a dict) and perhaps ``rewrites``, those that may be applied.

    Returns:
        ``obstacles``: ``operator``, ``layer``, ``reason`` and ``hint`` of each, in the program's order.

    Raises:
        ConfigError: There is no route of that name.
        MissingExtra: The route's frameworks are not installed.
        InputRejected: The program is damaged.
    """
    route = plugins.get("routes", job.options["route"])
    plugins.require(route)
    signature = Signature.model_validate(job.options["signature"])
    job.progress(0, 1, f"{route.name}: looking for unsupported operators")
    allowed = {"rewrites": tuple(job.options["rewrites"])} if "rewrites" in job.options else {}
    obstacles = [asdict(one) for one in route.preflight(job.inputs["program"], signature, **allowed)]
    job.progress(1, 1, f"{route.name}: {f'unsupported operators: {len(obstacles)}' if obstacles else 'preflight passed'}")
    return {"obstacles": obstacles, "made_by": route.name, "versions": plugins.versions(route)}
