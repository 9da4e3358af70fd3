"""``toolkit.profile``: where the time of one inference goes, operator by operator."""

from __future__ import annotations

from pathlib import Path

from toolkit import plugins, resources
from toolkit.artifact import Artifact
from toolkit.columns import random_samples
from toolkit.config import Target
from toolkit.errors import ConfigError
from toolkit.evidence import Profile
from toolkit.figures import OperatorTime
from toolkit.pipeline.listener import Listener
from toolkit.pipeline.single import Samples, on_disk, open_model, run_steps, runtime_of
from toolkit.pipeline.steps import Step
from toolkit.store import Store

STAGE = "toolkit.measure.profile:run"


def profile(
    artifact: Artifact | str | Path,
    *,
    target: str | Target = "desktop-ort",
    data: Samples | None = None,
    seconds: float = 1.0,
    store: Store | None = None,
    listener: Listener | None = None,
) -> Profile:
    """Times every operator of one model file with the runtime's own profiler, in turns with inferences that nobody records.

    Args:
        artifact: The model file.
        target: A shipped target's name, a path to a ``.toml`` file, or a target.
        data: Samples to feed; random ones by default.
        seconds: Timed seconds, once with and once without recording.
        store: Where the reading of the file is kept; times never are.
        listener: Who hears about progress.

    Returns:
        Every operator with its time, its kernel and the layer it belongs to, and their sum beside the unrecorded latency.

    Raises:
        ConfigError: An unknown target, or one whose runtime does not execute this format or has no profiler.
        InputRejected: The model or the samples must not be used.
        MissingExtra: The runtime is not installed.
        StageError: The runtime failed, or cannot profile this model.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ConfigError(f"expected a positive number, found {seconds!r}", where="seconds", hint="give the time to profile for")
    opened, contents = open_model(artifact, store)
    place = target if isinstance(target, Target) else resources.load_target(target)
    with on_disk(data if data is not None else random_samples(contents.signature)) as samples:
        wanted = step(opened, samples, place, runtime_of(place, opened), float(seconds))
        facts = run_steps([wanted], store, listener)[wanted.id].facts
    return Profile(
        artifact=opened.path.name,
        runtime=place.runtime,
        target=place.name,
        operators=tuple(OperatorTime.model_validate(operator) for operator in facts["operators"]),
        total_ms=facts["total_ms"],
        latency_ms=facts["latency_ms"],
        n=facts["n"],
        stand_in=place.stand_in,
        note=facts["note"],
    )


def step(model: Artifact, data: Path, target: Target, runtime: plugins.Runtime, seconds: float) -> Step:
    """The times of one model's operators on this machine now: never cached, and nothing may run beside it."""
    reader = plugins.find_reader(model.format)
    options = {
        "runtime": runtime.name,
        "format": model.format,
        "threads": target.threads,
        "cpus": list(target.cpus),
        "seconds": seconds,
    }
    used = (runtime, reader) if reader else (runtime,)
    return Step("profile", STAGE, options, files={"model": model.path, "data": data}, plugins=used, cached=False, exclusive=True)
