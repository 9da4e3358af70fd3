"""``toolkit.quantize``: a float model in, a smaller one out whose bytes are what its label says."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from toolkit import plugins, resources
from toolkit.artifact import Artifact
from toolkit.config import Recipe
from toolkit.errors import ConfigError, InputRejected
from toolkit.mistakes import nearest
from toolkit.pipeline import deliver, steps
from toolkit.pipeline.listener import Listener
from toolkit.pipeline.plan import FLOAT
from toolkit.pipeline.single import Samples, on_disk, open_model, output_path, run_steps
from toolkit.pipeline.steps import Need, Step
from toolkit.store import Store


def quantize(
    artifact: Artifact | str | Path,
    *,
    scheme: str = "static_wi8_ai8",
    calibration: Samples | None = None,
    recipe: str = "image-classification",
    samples: int | None = None,
    output: str | Path | None = None,
    store: Store | None = None,
    listener: Listener | None = None,
) -> Artifact:
    """Quantizes a model file and reads the result back before it is published.

    Args:
        artifact: The float model: a file, or what :func:`toolkit.export` returned.
        scheme: ``static_wi8_ai8``, ``dynamic_wi8``, or another that the format's quantizer makes.
        calibration: Representative samples by input name, ``[n x ...]`` each, or a path to them. Keep them apart from
            what the model is evaluated on. Needed for static schemes.
        recipe: Shipped calibration recipe, or a path to a ``.toml`` file.
        samples: Overrides the recipe's number of samples.
        output: File to write; ``<name>.<scheme>.<format>`` in the current folder by default.
        store: Where stage outputs are kept; the user's cache by default.
        listener: Who hears about progress.

    Returns:
        The delivered file with its manifest.

    Raises:
        AuditFailed: The quantizer's file is not what the scheme says.
        ConfigError: An unknown recipe, or a static scheme without calibration samples.
        InputRejected: The model or the samples must not be used.
        MissingExtra: The quantizer is not installed.
        NoRoute: Nothing makes this scheme for this format.
        StageError: The quantizer failed.
    """
    opened, _ = open_model(artifact, store)
    _check_scheme(opened, scheme)
    quantizer = plugins.quantizer(opened.format, scheme)
    chosen = resources.load_recipe(recipe)
    name = opened.manifest.name
    out = output_path(output, name, scheme, opened.format, opened.path)
    with ExitStack() as stack:
        chain = _calibration(stack, quantizer, scheme, calibration, chosen, samples)
        step = steps.quantize(opened.path, opened.format, scheme, chosen, Need("calibration", "calibration") if chain else None)
        results = run_steps([*chain, step], store, listener)
    kept = {"output": opened.manifest.evidence["output"]} if "output" in opened.manifest.evidence else {}
    return deliver.deliver_model(
        results[step.id],
        out,
        name=name,
        format=opened.format,
        scheme=scheme,
        parent_sha256=opened.manifest.sha256,
        evidence=kept | ({"calibration_samples": results["calibration"].facts} if chain else {}),
    )


def _check_scheme(model: Artifact, scheme: str) -> None:
    known = [name for plugin in plugins.discover("quantizers").values() if plugin.format == model.format for name in plugin.schemes]
    if known and scheme not in known:
        raise ConfigError(f"unknown scheme {scheme!r} for {model.format}", where="scheme", hint=nearest(scheme, known))
    if model.scheme not in (FLOAT, "unknown"):
        message = f"is {model.scheme} already, expected a {FLOAT} model"
        raise InputRejected(message, where=str(model.path), hint="give the float model that it was made from")


def _calibration(
    stack: ExitStack, quantizer: plugins.Quantizer, scheme: str, samples: Samples | None, recipe: Recipe, count: int | None
) -> list[Step]:
    if scheme not in quantizer.needs_calibration:
        return []
    if samples is None:
        raise ConfigError(f"scheme {scheme!r} needs calibration samples", hint="give representative samples: --calibration data.npz")
    return [steps.calibration(recipe, samples=count, seed=0, origin=stack.enter_context(on_disk(samples)))]
