"""``edgekit envelope``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.common import Format, FormatOption, ModelArgument, TargetOption, VerboseOption, emit, progress

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console
    from rich.table import Table

    from toolkit.evidence import Envelope
    from toolkit.figures import Variant

SamplesOption = Annotated[Path, typer.Option("--data", "-d", help="Real samples: .npz, or a folder of .npy.", show_default=False)]
ScoresOption = Annotated[
    str | None, typer.Option("--scores", help="Output that holds the class scores.", show_default="every output that labels samples")
]


def envelope(
    model: ModelArgument,
    data: SamplesOption,
    target: TargetOption,
    samples: Annotated[int, typer.Option("--samples", min=1, help="How many samples to run, spread over the data.")] = 64,
    variant: Annotated[list[str] | None, typer.Option("--variant", help="Way to try; may be given again.", show_default="all")] = None,
    scores: ScoresOption = None,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> None:
    """Show how far outputs move with the way of executing.

    Threads, optimisation levels, delegates, instruction sets.
    """
    from toolkit import envelope as measure

    with progress() as listener:
        found = measure(model, data, target=target, samples=samples, variants=variant or None, output=scores, listener=listener)
    emit(found, lambda out: _show(found, out))


def _show(found: Envelope, out: Console) -> None:
    out.print(f"{found.artifact} on {found.target} ({found.runtime}), n={found.n}", markup=False)
    out.print(variants_table(found.variants))
    furthest = ", ".join(f"{name} {difference:.3g}" for name, difference in found.max_abs.items())
    out.print(f"samples that any of them labels differently: {found.flips} of {found.n}; largest differences: {furthest}", markup=False)


def variants_table(variants: Iterable[Variant]) -> Table:
    """Lays out ways of executing a model with what each of them changed."""
    from rich.table import Table
    from rich.text import Text

    table = Table("variant", "flips", "max |difference|", "SQNR dB", "note")
    for one in variants:
        changed = ", ".join(f"{name} {difference:.3g}" for name, difference in one.max_abs.items())
        figures = (str(one.flips), changed, f"{one.sqnr_db:.1f}") if one.max_abs else ("-", "-", "-")
        table.add_row(*(Text(cell) for cell in (one.name, *figures, one.note)))
    return table
