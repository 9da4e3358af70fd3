"""``edgekit quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    progress,
)
from toolkit.cli.render import artifact_facts


def quantize(
    model: ModelArgument,
    scheme: Annotated[str, typer.Option("--scheme", "-s", help="Number format: static_wi8_ai8, dynamic_wi8, ..., or auto.")] = "static_wi8_ai8",
    calibration: CalibrationOption = None,
    recipe: RecipeOption = "image-classification",
    samples: SamplesOption = None,
    statistics: Annotated[
        Path | None, typer.Option("--statistics", help="What edgekit calibrate wrote for this model.", show_default="collected now")
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option("--max-drop", help='Largest loss of right answers, 0.01 or "1pp": a file that loses more is repaired.', show_default=False),
    ] = None,
    search: Annotated[
        Path | None, typer.Option("--search", help="Samples to choose repairs on.", show_default="those that calibration leaves")
    ] = None,
    evaluation: EvaluationOption = None,
    rung: Annotated[list[str] | None, typer.Option("--rung", help="A repair that may be tried; may be repeated.", show_default="all")] = None,
    runtime: Annotated[str | None, typer.Option("--runtime", help="What runs the files meanwhile.", show_default="the format's first")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.", show_default="NAME.SCHEME.FORMAT")] = None,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> None:
    """Quantize a float model, and look into what came out.

    It is published only if its bytes are what the scheme says.
    """
    from toolkit import quantize as make_small

    with progress() as listener:
        artifact = make_small(
            model,
            scheme=scheme,
            calibration=calibration,
            recipe=recipe,
            samples=samples,
            statistics=statistics,
            max_drop=max_drop,
            search=search,
            evaluation=evaluation,
            rungs=rung or None,
            runtime=runtime,
            output=output,
            listener=listener,
        )
    emit(artifact, artifact_facts(artifact))
