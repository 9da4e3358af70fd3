"""``edgekit audit``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.common import Format, FormatOption, VerboseOption, emit, facts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from toolkit.contents import Structure
    from toolkit.pipeline.audit import Audit, Label

_NAMED = 3

ModelsArgument = Annotated[list[Path], typer.Argument(help="Model files.", show_default=False)]
ExpectOption = Annotated[
    str | None,
    typer.Option("--expect", "-e", help="Scheme that each should follow, for example static_wi8_ai8.", show_default="label.json, else the manifest"),
]
KeptOption = Annotated[list[str] | None, typer.Option("--kept-float", help="A layer that should be float, repeatable.", show_default=False)]
IoOption = Annotated[str | None, typer.Option("--io", help="Element type of every input and output, for example int8.", show_default=False)]
TopOption = Annotated[int, typer.Option("--top", "-n", min=0, help="How many layers to list, the largest first; 0 lists all.")]


def audit(
    models: ModelsArgument,
    expect: ExpectOption = None,
    kept_float: KeptOption = None,
    io: IoOption = None,
    top: TopOption = 10,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> int:
    """Read files back and hold them against their labels.

    Exit 0 when every label fits, 1 when one does not.
    """
    from toolkit import audit_model
    from toolkit.errors import EXIT_CHECK_FAILED, EXIT_PASS

    found = [audit_model(model, expect=expect, kept_float=kept_float or (), io=io) for model in models]
    emit([one.model_dump(mode="json") | {"holds": one.holds} for one in found], lambda out: _show(found, top, out))
    return EXIT_PASS if all(one.holds for one in found) else EXIT_CHECK_FAILED


def _show(found: Iterable[Audit], top: int, out: Console) -> None:
    from rich.text import Text

    for one in found:
        verdict = "labelled otherwise" if one.problems else "as labelled" if one.label else "no label to hold it against"
        style = "bold red" if one.problems else "green" if one.label else "yellow"
        out.print(Text.assemble((one.artifact, "bold"), "  ", (verdict, style)))
        facts(_rows(one))(out)
        _layers(one, top, out)


def _rows(found: Audit) -> dict[str, object]:
    from toolkit.figures import show_size

    rows: dict[str, object] = {"scheme found": found.scheme}
    if found.label:
        rows["label"] = _label(found.label)
    rows |= {f"problem {number}": problem for number, problem in enumerate(found.problems, 1)}
    rows["size"] = show_size(found.size_bytes)
    rows["inputs"] = ", ".join(map(str, found.signature.inputs))
    rows["outputs"] = ", ".join(map(str, found.signature.outputs))
    rows["weights"] = ", ".join(f"{dtype} {size:,} B" for dtype, size in found.weight_bytes.items()) or "none"
    rows["layers' weights"] = _counted(layer.weight_dtype for layer in found.layers if layer.weight_dtype != "-")
    rows["layers' activations"] = _counted(layer.activation_dtype for layer in found.layers)
    rows["layers' scales"] = _counted("per tensor" if layer.scales == 1 else "by channel or block" for layer in found.layers if layer.scales)
    if found.structure:
        rows |= structure_rows(found.structure)
    lacking = {(one.operator, one.reason) for one in found.structure.no_kernel} if found.structure else set()
    for one in found.suspects:
        if (one.operator, one.reason) not in lacking:
            rows[f"slow: {one.operator}"] = f"{one.count}: {one.reason}"
    return rows


def structure_rows(structure: Structure) -> dict[str, object]:
    """Names how integers and floats lie in a file."""
    rows: dict[str, object] = {}
    if structure.int8_share is not None:
        rows["int8 share"] = f"{structure.int8_share:.1%} of the multiply-accumulates"
    for reason, count in Counter(one.reason for one in structure.no_kernel).most_common():
        named = [f"{one.operator} {one.name!r}" for one in structure.no_kernel if one.reason == reason]
        rows[f"no kernel ({count})"] = f"{reason}: {_first(named)}"
    if structure.float_islands:
        rows["float islands"] = f"{len(structure.float_islands)}: {_first([f'[{_first(island)}]' for island in structure.float_islands])}"
    rows["transposes"] = structure.transposes
    return rows


def _label(label: Label) -> str:
    kept = f", {len(label.kept_float)} layers kept in float: {_first(label.kept_float)}" if label.kept_float else ""
    return f"{label.scheme} ({label.given_by}){kept}"


def _first(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_NAMED]) + f" and {len(listed) - _NAMED} more" * (len(listed) > _NAMED)


def _counted(dtypes: Iterable[str]) -> str:
    return ", ".join(f"{dtype} {count}" for dtype, count in Counter(dtypes).most_common()) or "none"


def _layers(found: Audit, top: int, out: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not found.layers:
        return
    table = Table("layer", "operator", "weights", "activations", "bytes", title="largest layers", title_justify="left")
    for layer in found.layers[: top or None]:
        table.add_row(escape(layer.name), layer.operator, layer.weight_dtype, layer.activation_dtype, f"{layer.weight_bytes:,}")
    out.print(table)
    if top and len(found.layers) > top:
        out.print(f"{len(found.layers) - top} more; --top 0 lists all", style="dim")
