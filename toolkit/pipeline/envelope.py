"""``toolkit.envelope``: how far one model file's outputs move when only the way of executing it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit import plugins, resources
from toolkit.artifact import Artifact
from toolkit.config import Target
from toolkit.errors import ConfigError
from toolkit.evidence import Envelope
from toolkit.figures import Variant
from toolkit.measure import emulation
from toolkit.measure import envelope as stage
from toolkit.pipeline.listener import Listener
from toolkit.pipeline.single import Samples, on_disk, open_model, run_steps, runtime_of
from toolkit.pipeline.steps import Step
from toolkit.store import Store


def envelope(
    artifact: Artifact | str | Path,
    data: Samples,
    *,
    target: str | Target = "desktop-ort",
    samples: int = stage.SAMPLES,
    variants: Sequence[str] | None = None,
    output: str | None = None,
    store: Store | None = None,
    listener: Listener | None = None,
) -> Envelope:
    """Executes one model file in the target's way and in every other that its runtime has, and compares all outputs.

    The other ways are: once more the same; 1, 2 and 4 threads; the runtime's own variants, such as optimisation levels or
    other kernels; and CPUs with fewer instructions, where QEMU's user-mode emulator (``qemu-x86_64``) is installed. Under
    emulation the first 16 samples are run.

    Args:
        artifact: The model file.
        data: Real samples by input name, or a path to them. Labels are not needed.
        target: A shipped target's name, a path to a ``.toml`` file, or a target; its runtime and threads are the default way.
        samples: How many samples to run, spread evenly over the data.
        variants: Names of the ways to try; all by default.
        output: Name of the output that holds the class scores; by default every output that labels samples counts.
        store: Where stage outputs are kept; the user's cache by default.
        listener: Who hears about progress.

    Raises:
        ConfigError: An unknown target or variant, or a target whose runtime does not execute this format.
        InputRejected: The model or the samples must not be used.
        MissingExtra: The runtime is not installed.
        StageError: The runtime failed in the default way.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ConfigError(f"expected a positive whole number, found {samples!r}", where="samples", hint="give the number of samples to run")
    opened, _ = open_model(artifact, store)
    place = find_target(target)
    options = {"samples": samples, "variants": None if variants is None else list(variants), "output": scores_of(opened, output)}
    with on_disk(data) as path:
        chain = [step(opened, path, runtime_of(place, opened), place.threads, options)]
        facts = run_steps(chain, store, listener)["envelope"].facts
    return Envelope(
        artifact=opened.path.name,
        runtime=place.runtime,
        target=place.name,
        variants=tuple(Variant.model_validate(variant) for variant in facts["variants"]),
        flips=facts["flips"],
        max_abs=facts["max_abs"],
        n=facts["n"],
    )


def step(model: Artifact, data: Path, runtime: plugins.Runtime, threads: int, options: Mapping[str, Any]) -> Step:
    """The outputs of one model in the default way, compared with other ways.

    The CPU counts among the options: a store may be carried from machine to machine, and what ran on another one says nothing.
    """
    all_options = {"runtime": runtime.name, "threads": threads, "cpu": emulation.this_cpu(), **options}
    return Step("envelope", stage.STAGE, all_options, files={"model": model.path, "data": data}, plugins=(runtime,))


def find_target(target: str | Target) -> Target:
    """Returns a target, loaded if it is only named."""
    return target if isinstance(target, Target) else resources.load_target(target)


def scores_of(model: Artifact, output: str | None) -> str | None:
    """Returns the output of class scores: as named, or as known from the model's manifest."""
    return output or model.manifest.evidence.get("output")
