"""``edgekit benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.common import Format, FormatOption, ModelArgument, TargetOption, VerboseOption, emit, facts, progress


def benchmark(
    model: ModelArgument,
    target: TargetOption,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", "-b", help="Model to interleave with, usually the float twin.", show_default=False)
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", "-d", help="Samples to feed.", show_default="random inputs")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.05, help="Timed seconds for each model.")] = 1.0,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> None:
    """Time single inferences on the target's stand-in."""
    from toolkit import benchmark as measure
    from toolkit.evidence import latency_facts

    with progress() as listener:
        found = measure(model, target=target, baseline=baseline, data=data, seconds=seconds, listener=listener)
    latency = found.latency_ms
    rows: dict[str, object] = {
        "artifact": found.artifact,
        "target": f"{found.target} ({latency.stand_in}, {found.runtime})",
        **latency_facts(latency),
    }
    emit(found, facts(rows))
