"""``edgekit evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.common import Format, FormatOption, ModelArgument, TargetOption, TaskName, TaskOption, VerboseOption, emit, facts, progress

DataOption = Annotated[Path, typer.Option("--data", "-d", help="Held-out samples with labels: .npz, or a folder of .npy.", show_default=False)]
ReferenceOption = Annotated[
    Path | None, typer.Option("--reference", "-r", help="Model to compare with on the same samples, usually the float source.", show_default=False)
]
ScoresOption = Annotated[str | None, typer.Option("--scores", help="Output that holds the class scores, when there are several.", show_default=False)]


def evaluate(
    model: ModelArgument,
    data: DataOption,
    target: TargetOption,
    reference: ReferenceOption = None,
    task: TaskOption = TaskName.image_classification,
    scores: ScoresOption = None,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> None:
    """Measure accuracy on a target's runtime, with its interval."""
    from toolkit import evaluate as measure
    from toolkit.evidence import show_change, show_metric, show_name

    with progress() as listener:
        found = measure(model, data, target=target, reference=reference, task=task.value, output=scores, listener=listener)
    rows: dict[str, object] = {
        "artifact": found.artifact,
        "target": f"{found.target} ({found.stand_in}, {found.runtime})",
        show_name(found.metric.name): show_metric(found.metric),
    }
    emit(found, facts(rows | ({"change": show_change(found.change)} if found.change else {})))
