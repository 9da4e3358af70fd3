"""``edgekit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.common import Format, VerboseOption, emit, print_as, progress
from toolkit.cli.render import artifact_facts


def export(
    model: Annotated[
        str, typer.Argument(help="A model file or folder, a project, or a name like torchvision:mobilenet_v2.", metavar="MODEL", show_default=False)
    ],
    formats: Annotated[
        list[str],
        typer.Option(
            "--format", "-f", help="Model format to export to: onnx, tflite, or a plugin's. Again with json: print JSON.", show_default=False
        ),
    ],
    samples: Annotated[
        Path | None, typer.Option("--samples", help="Real samples for the parity check: .npz, or a folder of .npy.", show_default="random inputs")
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="Weights of a named model: DEFAULT, or a .safetensors file.", show_default="random")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="What a named model shall do.", show_default="what its name says")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.", show_default="NAME.float32.FORMAT")] = None,
    route: Annotated[str, typer.Option("--route", help="The only route to take; auto tries all, the most trusted first.")] = "auto",
    opset: Annotated[int | None, typer.Option("--opset", help="ONNX operator set.", show_default="the route's")] = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option("--dynamic", help="Sizes that stay free: 'ids:0=batch<=8,1=16<=steps<=128', bounds or none. Repeatable.", show_default=False),
    ] = None,
    layout: Annotated[str | None, typer.Option("--layout", help="channels_last: image inputs as n x h x w x c.", show_default="the source's")] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option("--batch-size", help="A batch size of its own signature in the file. Repeatable.", show_default=False)
    ] = None,
    rewrite: Annotated[
        list[str] | None, typer.Option("--rewrite", help="A rewrite that may be applied: see edgekit doctor. Repeatable.", show_default=False)
    ] = None,
    no_clean_up: Annotated[bool, typer.Option("--no-clean-up", help="Leave the graph as the exporter wrote it.")] = False,
    min_sqnr_db: Annotated[
        float | None, typer.Option("--min-sqnr-db", help="Lowest signal-to-noise ratio against the source.", show_default="60; 20 for an int8 source")
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Convert a model, and compare it with its source.

    It is published only if it computes what the source computes. Where several routes lead to the format, the first that does is taken.
    """
    from toolkit import export as convert

    to, free = _model_format(formats), _free_sizes(dynamic or [])
    with progress() as listener:
        artifact = convert(
            model,
            samples,
            format=to,
            output=output,
            weights=weights,
            task=task,
            route=route,
            opset=opset,
            dynamic=free,
            layout=layout,
            batch_sizes=batch_size or [],
            rewrites=rewrite or [],
            clean_up=not no_clean_up,
            min_sqnr_db=min_sqnr_db,
            listener=listener,
        )
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


def _free_sizes(given: list[str]) -> dict[str, dict[int, str]]:
    """Reads ``input:axis=name,axis=name<=most``. Input names may have colons of their own."""
    from toolkit.errors import ConfigError

    found: dict[str, dict[int, str]] = {}
    for text in given:
        name, _, axes = text.rpartition(":")
        pairs = [pair.partition("=") for pair in axes.split(",")]
        if not name or not all(axis.strip().isdecimal() and size.strip() for axis, _, size in pairs):
            hint = "write INPUT:AXIS=NAME,AXIS=NAME, for example 'input_ids:0=batch<=8,1=sequence'"
            raise ConfigError(f"cannot be read: {text!r}", where="--dynamic", hint=hint)
        found.setdefault(name, {}).update({int(axis): size.strip() for axis, _, size in pairs})
    return found
