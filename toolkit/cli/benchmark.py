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
    """Time one inference at a time, on whatever stands in for the target."""
    from toolkit import benchmark as measure

    with progress() as listener:
        found = measure(model, target=target, baseline=baseline, data=data, seconds=seconds, listener=listener)
    latency = found.latency_ms
    rows: dict[str, object] = {
        "artifact": found.artifact,
        "target": f"{found.target} ({latency.stand_in}, {found.runtime})",
        "p50": f"{latency.p50:.4f} ms [{latency.p50_low:.4f}, {latency.p50_high:.4f}]",
        "p90": f"{latency.p90:.4f} ms [{latency.p90_low:.4f}, {latency.p90_high:.4f}]",
        "inferences": latency.n,
    }
    emit(found, facts(rows | ({"median / baseline": f"{latency.ratio_to_float:.2f}"} if latency.ratio_to_float else {})))
