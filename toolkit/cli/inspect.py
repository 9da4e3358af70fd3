"""``edgekit inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.cli.common import Format, FormatOption, ModelArgument, VerboseOption, emit

if TYPE_CHECKING:
    from rich.console import Console

    from toolkit.contents import Contents


def inspect(model: ModelArgument, format: FormatOption = Format.text, verbose: VerboseOption = False) -> None:
    """Show a model's inputs, outputs, operators and sizes."""
    from toolkit import inspect as read

    contents = read(model)
    emit(contents, lambda out: _show(contents, out))


def _show(contents: Contents, out: Console) -> None:
    from collections import Counter

    from toolkit.cli.audit import structure_rows
    from toolkit.cli.common import facts

    rows: dict[str, object] = {"format": contents.format, "size_bytes": f"{contents.size_bytes:,}", "sha256": contents.sha256}
    rows |= {f"input {index}": spec for index, spec in enumerate(contents.signature.inputs)}
    rows |= {f"output {index}": spec for index, spec in enumerate(contents.signature.outputs)}
    rows["operators"] = ", ".join(f"{name} {count}" for name, count in Counter(contents.operators).most_common())
    rows["weights"] = ", ".join(f"{dtype} {size:,} B" for dtype, size in contents.weight_bytes.items()) or "none"
    rows |= structure_rows(contents.structure) if contents.structure else {}
    facts({**rows, **contents.details})(out)
    _layers(contents, out)


def _layers(contents: Contents, out: Console) -> None:
    from rich.table import Table

    if not contents.layers:
        return
    table = Table("layer", "operator", "weights", "activations", "bytes", title="layers that multiply with weights", title_justify="left")
    for layer in contents.layers:
        table.add_row(layer.name, layer.operator, layer.weight_dtype, layer.activation_dtype, f"{layer.weight_bytes:,}")
    out.print(table)
