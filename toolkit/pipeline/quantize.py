"""``toolkit.quantize``: a float model in, a smaller one out whose bytes are what its label says."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

from toolkit import plugins, resources
from toolkit.artifact import Artifact
from toolkit.config import AUTO, Recipe, Rung, make_budgets
from toolkit.errors import ConfigError, InputRejected
from toolkit.mistakes import nearest
from toolkit.pipeline import deliver, quantizing, steps
from toolkit.pipeline.listener import Listener
from toolkit.pipeline.plan import FLOAT
from toolkit.pipeline.single import Samples, on_disk, open_model, output_path, run_steps
from toolkit.pipeline.steps import Need, Step
from toolkit.store import Store

SEARCH_SAMPLES = 512
"""How many samples repairs are chosen on."""


def quantize(
    artifact: Artifact | str | Path,
    *,
    scheme: str = "static_wi8_ai8",
    calibration: Samples | None = None,
    recipe: str = "image-classification",
    samples: int | None = None,
    statistics: str | Path | None = None,
    max_drop: float | str | None = None,
    search: Samples | None = None,
    evaluation: Samples | None = None,
    rungs: Sequence[str] | None = None,
    runtime: str | None = None,
    output: str | Path | None = None,
    store: Store | None = None,
    listener: Listener | None = None,
) -> Artifact:
    """Quantizes a model file and reads the result back before it is published.

    Args:
        artifact: The float model: a file, or what :func:`toolkit.export` returned.
        scheme: ``static_wi8_ai8``, ``dynamic_wi8``, or another that the format's quantizer makes; ``auto`` chooses between these two by
            what the model consists of, measures both where there are samples, and climbs the cheap rungs of the ladder where the choice loses
            more than a point.
        calibration: Representative samples by input name, ``[n x ...]`` each, or a path to them. Keep them apart from
            what the model is evaluated on. Needed for static schemes, unless ``statistics`` are given.
        recipe: Shipped calibration recipe, or a path to a ``.toml`` file.
        samples: Overrides the recipe's number of samples.
        statistics: What :func:`toolkit.calibrate` wrote for this model file, so that ranges are not collected anew.
        max_drop: Largest loss of right answers against the float model, ``0.01`` or ``"1pp"``: where the file loses more, the repair ladder
            is climbed until the search samples say that it holds. What it found is in ``manifest.evidence["ladder"]``; whether it holds on
            samples that the search never saw is for :func:`toolkit.check` to say.
        search: Samples to choose repairs on, with labels where there are some; those of ``calibration`` that ranges do not come from by
            default.
        evaluation: Samples that the model is going to be evaluated on, so that calibration makes sure that it uses none of them, and that
            both were prepared alike.
        rungs: What the ladder may try; everything by default.
        runtime: What runs the files meanwhile; the first one that executes the format by default.
        output: File to write; ``<name>.<scheme>.<format>`` in the current folder by default.
        store: Where stage outputs are kept; the user's cache by default.
        listener: Who hears about progress.

    Returns:
        The delivered file with its manifest.

    Raises:
        AuditFailed: The quantizer's file is not what the scheme says.
        ConfigError: An unknown recipe or rung, a static scheme without calibration samples, or a budget without samples to hold it against.
        InputRejected: The model or the samples must not be used.
        MissingExtra: The quantizer is not installed.
        NoRoute: Nothing makes this scheme for this format.
        StageError: The quantizer failed.
    """
    opened, _ = open_model(artifact, store)
    _check_scheme(opened, scheme)
    chosen = resources.load_recipe(recipe)
    name = opened.manifest.name
    out = output_path(output, name, scheme, opened.format, opened.path)
    with ExitStack() as stack:
        needed = quantizing.calibrated(opened.format, scheme) and statistics is None
        chain = _calibration(stack, needed, scheme, calibration, chosen, samples, evaluation, repaired=max_drop is not None)
        origin = Need("calibration", "calibration") if chain else None
        repair = _repair(opened, scheme, chosen, max_drop, rungs, runtime) if _samples_for(scheme, max_drop, search, calibration) else None
        if repair:
            given = stack.enter_context(on_disk(search if search is not None else _present(calibration)))
            chain.append(quantizing.search(SEARCH_SAMPLES, seed=0, origin=given, calibration=origin, trained=False))
        seen = _statistics(statistics)
        step = quantizing.quantize(opened.path, opened.format, scheme, chosen, origin, repair=repair, statistics=seen)
        results = run_steps([*chain, step], store, listener)
    kept = {"output": opened.manifest.evidence["output"]} if "output" in opened.manifest.evidence else {}
    return deliver.deliver_model(
        results[step.id],
        out,
        name=name,
        format=opened.format,
        scheme=results[step.id].facts["scheme"],
        parent_sha256=opened.manifest.sha256,
        evidence=kept | ({"calibration_samples": results["calibration"].facts} if "calibration" in results else {}),
    )


def _samples_for(scheme: str, max_drop: float | str | None, search: Samples | None, calibration: Samples | None) -> bool:
    """Whether something is chosen or repaired, and there is something to do it on.

    Raises:
        ConfigError: A budget is to be held, and there are no samples.
    """
    given = search is not None or calibration is not None
    if max_drop is not None and not given:
        raise ConfigError("max_drop needs samples to hold it against", where="max_drop", hint="give representative samples: --calibration data.npz")
    return given and (max_drop is not None or scheme == AUTO)


def _repair(
    opened: Artifact, scheme: str, recipe: Recipe, max_drop: float | str | None, rungs: Sequence[str] | None, runtime: str | None
) -> quantizing.Repair:
    limit = make_budgets({"max_drop": max_drop}).max_drop if max_drop is not None else None
    known = get_args(Rung)
    for name in rungs or ():
        if name not in known:
            raise ConfigError(f"unknown rung {name!r}", where="rungs", hint=nearest(name, list(known)))
    runs = plugins.get("runtimes", runtime) if runtime else plugins.runtime_for(opened.format)
    output = opened.manifest.evidence.get("output")
    return quantizing.Repair(Need("search", "search"), runs, 1, recipe.task, output, limit, tuple(rungs if rungs is not None else known))


def _statistics(path: str | Path | None) -> Path | None:
    if path is not None and not Path(path).is_file():
        raise InputRejected("does not exist", where=str(path), hint="make it: edgekit calibrate MODEL --calibration data.npz")
    return Path(path) if path is not None else None


def _present(calibration: Samples | None) -> Samples:
    assert calibration is not None
    return calibration


def _check_scheme(model: Artifact, scheme: str) -> None:
    known = [name for plugin in plugins.discover("quantizers").values() if plugin.format == model.format for name in plugin.schemes]
    if known and scheme not in (*known, AUTO):
        raise ConfigError(f"unknown scheme {scheme!r} for {model.format}", where="scheme", hint=nearest(scheme, [*known, AUTO]))
    check_float(model)


def check_float(model: Artifact) -> None:
    """Refuses a model that is quantized already.

    Raises:
        InputRejected: It is.
    """
    if model.scheme not in (FLOAT, "unknown"):
        message = f"is {model.scheme} already, expected a {FLOAT} model"
        raise InputRejected(message, where=str(model.path), hint="give the float model that it was made from")


def _calibration(
    stack: ExitStack, needed: bool, scheme: str, samples: Samples | None, recipe: Recipe, count: int | None, held: Samples | None, *, repaired: bool
) -> list[Step]:
    if samples is None and needed:
        raise ConfigError(f"scheme {scheme!r} needs calibration samples", hint="give representative samples: --calibration data.npz")
    if samples is None or not (needed or repaired):
        return []
    apart = stack.enter_context(on_disk(held)) if held is not None else None
    return [steps.calibration(recipe, samples=count, seed=0, origin=stack.enter_context(on_disk(samples)), evaluation=apart)]
