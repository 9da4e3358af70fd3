"""``edgekit benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.common import Format, FormatOption, ModelArgument, TargetOption, VerboseOption, emit, facts, progress

if TYPE_CHECKING:
    from toolkit.evidence import Benchmark


def benchmark(
    model: ModelArgument,
    target: TargetOption,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", "-b", help="Model to interleave with, usually the float twin.", show_default=False)
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", "-d", help="Samples to feed.", show_default="random inputs")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.05, help="Timed seconds for each model.")] = 1.0,
    batches: Annotated[str, typer.Option("--batches", help="Batch sizes of a throughput curve: 1,2,4.", show_default=False)] = "",
    threads: Annotated[str, typer.Option("--threads", help="Thread counts of the curve: 1,2.", show_default=False)] = "",
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> None:
    """Time single inferences; cold start, memory, roofline."""
    from toolkit import benchmark as measure

    sizes, counts = numbers(batches, "--batches"), numbers(threads, "--threads")
    with progress() as listener:
        found = measure(model, target=target, baseline=baseline, data=data, seconds=seconds, batches=sizes, threads=counts, listener=listener)
    emit(found, facts(rows(found)))


def rows(found: Benchmark) -> dict[str, object]:
    """Names every figure."""
    from toolkit.figures import latency_facts
    from toolkit.report.wording import cold_line, memory_line, point_line, roofline_line
    from toolkit.suspects import show_slower

    latency = found.latency_ms
    shown: dict[str, object] = {
        "artifact": found.artifact,
        "target": f"{found.target} ({latency.stand_in}, {found.runtime})",
        **latency_facts(latency),
    }
    if found.slower:
        shown["slower"] = show_slower(found.slower)
    if found.cold:
        shown["cold start"] = cold_line(found.cold)
    if found.memory:
        shown["memory"] = memory_line(found.memory)
    if found.roofline:
        shown["roofline"] = roofline_line(found.roofline)
    shown |= {f"batch {point.batch}, threads {point.threads}": point_line(point) for point in found.curve}
    return shown | ({"note": "\n".join(found.notes)} if found.notes else {})


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Reads ``1,2,4``."""
    from toolkit.errors import ConfigError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if any(not part.isdecimal() or not int(part) for part in parts):
        raise ConfigError(f"expected whole numbers from 1, found {text!r}", where=option, hint="for example 1,2,4")
    return tuple(int(part) for part in parts)
