"""``toolkit.calibrate``: statistics of a float model's activations as a file, which workers can make shard by shard."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import reduce
from importlib.util import find_spec
from pathlib import Path

from toolkit import display, resources
from toolkit.artifact import Artifact, Frozen
from toolkit.config import Recipe
from toolkit.errors import ConfigError, InputRejected, MissingExtra
from toolkit.pipeline import steps
from toolkit.pipeline.deliver import check_writable
from toolkit.pipeline.listener import Listener
from toolkit.pipeline.quantize import check_float
from toolkit.pipeline.single import Samples, on_disk, open_model, run_steps
from toolkit.pipeline.steps import Need, Step
from toolkit.quantization import observing, pictures, ranges
from toolkit.quantization.statistics import Statistics
from toolkit.store import Store

SUFFIX = ".statistics.npz"


class Calibration(Frozen):
    """Statistics that were written.

    Attributes:
        path: The file, which ``toolkit.quantize`` takes as ``statistics``.
        model_sha256: Digest of the model that they are of.
        samples: How many samples were seen.
        ranges: Range of each tensor by method, for 8 bits.
    """

    path: Path
    model_sha256: str
    samples: int
    ranges: dict[str, dict[str, tuple[float, float]]]

    def _repr_html_(self) -> str:
        rows = [(name, *(f"{low:.4g} .. {high:.4g}" for low, high in found.values())) for name, found in self.ranges.items()]
        return display.table_html(f"{self.samples} samples", ("tensor", *ranges.METHODS), rows)


def calibrate(
    model: Artifact | str | Path,
    *,
    calibration: Samples | None = None,
    recipe: str = "image-classification",
    samples: int | None = None,
    shard: tuple[int, int] | None = None,
    merge: Sequence[str | Path] = (),
    evaluation: Samples | None = None,
    output: str | Path | None = None,
    picture: str | Path | None = None,
    store: Store | None = None,
    listener: Listener | None = None,
) -> Calibration:
    """Collects what a float model's activations hold on calibration samples, in one pass whose memory the samples do not change.

    Several workers may share the work: each takes another ``shard`` of the same samples, and ``merge`` adds their files up to what one pass
    over all would have given (moving averages, which depend on the order, become their mean).

    Args:
        model: The float ONNX or TFLite model: a file, or what :func:`toolkit.export` returned.
        calibration: Representative samples by input name, ``[n x ...]`` each, or a path to them. Not needed where files are merged.
        recipe: Shipped calibration recipe, or a path to a ``.toml`` file.
        samples: Overrides the recipe's number of samples, that of all shards.
        shard: Number of this worker's share, from 1 on, and how many there are.
        merge: Files of other shards, to be added.
        evaluation: Samples that the model is going to be evaluated on, so that calibration makes sure that it uses none of them.
        output: File to write; ``<name>.statistics.npz`` in the current folder by default.
        picture: PNG to draw the activations and their ranges to.
        store: Where stage outputs are kept; the user's cache by default.
        listener: Who hears about progress.

    Returns:
        The written file with the range that each method finds.

    Raises:
        ConfigError: Nothing to calibrate with, or no such shard.
        InputRejected: The model or the samples must not be used, or the files are not of one calibration.
        MissingExtra: A library is not installed.
        NoRoute: Nothing observes models of this format.
        SetupError: A folder cannot be written.
        StageError: The model cannot be run.
    """
    number, of = shard or (1, 1)
    if not 1 <= number <= of:
        raise ConfigError(f"there is no shard {number} of {of}", where="shard", hint="count from 1, as in 2/4")
    if calibration is None and not merge:
        raise ConfigError("there are no samples", where="calibration", hint="give representative samples: --calibration data.npz")
    if picture is not None and find_spec("matplotlib") is None:
        raise MissingExtra("drawing needs matplotlib, which is not installed", where="picture", hint='pip install "edgekit[finetune]"')
    opened, _ = open_model(model, store)
    check_float(opened)
    out = Path(output) if output is not None else Path(f"{opened.manifest.name}{SUFFIX}")
    for place in (out, *([Path(picture)] if picture is not None else [])):
        check_writable(place.parent)
    found = [_read(Path(path), opened.manifest.sha256) for path in merge]
    if calibration is not None:
        found.insert(0, _observed(opened, calibration, resources.load_recipe(recipe), samples, (number, of), evaluation, store, listener))
    whole = reduce(Statistics.merged, found)
    out.parent.mkdir(parents=True, exist_ok=True)
    whole.write(out)
    if picture is not None:
        Path(picture).parent.mkdir(parents=True, exist_ok=True)
        pictures.draw(whole, Path(picture))
    return Calibration(path=out, model_sha256=whole.model_sha256, samples=whole.samples, ranges=_ranges(whole))


def _observed(
    model: Artifact,
    calibration: Samples,
    recipe: Recipe,
    samples: int | None,
    shard: tuple[int, int],
    evaluation: Samples | None,
    store: Store | None,
    listener: Listener | None,
) -> Statistics:
    with ExitStack() as stack:
        apart = stack.enter_context(on_disk(evaluation)) if evaluation is not None else None
        chosen = steps.calibration(recipe, samples=samples, seed=0, origin=stack.enter_context(on_disk(calibration)), evaluation=apart)
        observed = Step(
            "observe",
            "toolkit.quantization.observing:run",
            {"format": model.format, "shard": list(shard)},
            needs={"calibration": Need("calibration", "calibration")},
            files={"model": model.path},
            resumable=True,
        )
        folder = run_steps([chosen, observed], store, listener)["observe"].folder
    assert folder is not None  # of a step that succeeded
    return Statistics.read(folder / observing.FILE)


def _read(path: Path, sha256: str) -> Statistics:
    found = Statistics.read(path)
    if found.model_sha256 != sha256:
        raise InputRejected("are statistics of another model", where=str(path), hint="merge shards of one model file")
    return found


def _ranges(whole: Statistics) -> dict[str, dict[str, tuple[float, float]]]:
    return {
        name: {method: whole.range(name, method) for method in ranges.METHODS if method in ranges.ENDS or one.counts is not None}
        for name, one in whole.tensors.items()
    }
