"""``edgekit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.common import Format, VerboseOption, emit, print_as, progress
from toolkit.cli.render import artifact_facts


def export(
    model: Annotated[Path, typer.Argument(help="A .pt2 program, or a project folder.", show_default=False)],
    formats: Annotated[
        list[str],
        typer.Option(
            "--format", "-f", help="Model format to export to: onnx, tflite, or a plugin's. Again with json: print JSON.", show_default=False
        ),
    ],
    samples: Annotated[
        Path | None, typer.Option("--samples", help="Real samples for the parity check: .npz, or a folder of .npy.", show_default="random inputs")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.", show_default="NAME.float32.FORMAT")] = None,
    route: Annotated[str | None, typer.Option("--route", help="Route to take.", show_default="the first installed one")] = None,
    min_sqnr_db: Annotated[float, typer.Option("--min-sqnr-db", help="Lowest signal-to-noise ratio against the source.")] = 60.0,
    verbose: VerboseOption = False,
) -> None:
    """Convert a model, and compare it with its source.

    It is published only if it computes what the source computes.
    """
    from toolkit import export as convert

    to = _model_format(formats)
    with progress() as listener:
        artifact = convert(model, samples, format=to, output=output, route=route, min_sqnr_db=min_sqnr_db, listener=listener)
    emit(artifact, artifact_facts(artifact))


def _model_format(formats: list[str]) -> str:
    """Tells the model's format from the printed one; both are called format, here and in every other verb."""
    from toolkit.errors import ConfigError

    for value in formats:
        if value in set(Format):
            print_as(Format(value))
    wanted = [value for value in formats if value not in set(Format)]
    if len(wanted) != 1:
        raise ConfigError(f"give one model format, found {', '.join(wanted) or 'none'}", where="--format", hint="for example --format onnx")
    return wanted[0]
