"""``edgekit calibrate``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.common import (
    CalibrationOption,
    EvaluationOption,
    Format,
    FormatOption,
    ModelArgument,
    RecipeOption,
    SamplesOption,
    VerboseOption,
    emit,
    facts,
    progress,
)

if TYPE_CHECKING:
    from rich.console import Console

    from toolkit.pipeline.calibrate import Calibration


def calibrate(
    model: ModelArgument,
    calibration: CalibrationOption = None,
    recipe: RecipeOption = "image-classification",
    samples: SamplesOption = None,
    shard: Annotated[str | None, typer.Option("--shard", help="This worker's share, for example 2/4.", show_default="all")] = None,
    merge: Annotated[list[Path] | None, typer.Option("--merge", help="Statistics of another shard; may be repeated.", show_default=False)] = None,
    evaluation: EvaluationOption = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="PNG of the activations and their ranges.", show_default="none")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.", show_default="NAME.statistics.npz")] = None,
    top: Annotated[int, typer.Option("--top", min=0, help="How many tensors to list, the widest first; 0 lists all.")] = 10,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> None:
    """Collect statistics of activations for quantize.

    Several workers may share the samples, and add up what they saw.
    """
    from toolkit import calibrate as collect

    with progress() as listener:
        found = collect(
            model,
            calibration=calibration,
            recipe=recipe,
            samples=samples,
            shard=_shard(shard),
            merge=merge or (),
            evaluation=evaluation,
            picture=picture,
            output=output,
            listener=listener,
        )
    emit(found, lambda out: _show(found, top, out))


def _shard(given: str | None) -> tuple[int, int] | None:
    from toolkit.errors import ConfigError

    if given is None:
        return None
    parts = re.fullmatch(r"(\d+)/(\d+)", given)
    if not parts:
        raise ConfigError(f"{given!r} is no share", where="--shard", hint="number and count, as in 2/4")
    return int(parts[1]), int(parts[2])


def _show(found: Calibration, top: int, out: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    facts({"statistics": str(found.path), "samples": found.samples, "tensors": len(found.ranges)})(out)
    named = sorted(found.ranges.items(), key=lambda item: item[1]["min_max"][0] - item[1]["min_max"][1])
    methods = list(named[0][1]) if named else []
    table = Table("tensor", *methods, title="widest ranges", title_justify="left")
    for name, by_method in named[: top or None]:
        table.add_row(escape(name), *(f"{low:.4g} .. {high:.4g}" for low, high in by_method.values()))
    out.print(table)
    if top and len(named) > top:
        out.print(f"{len(named) - top} more; --top 0 lists all", style="dim")
