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
ScoresOption = Annotated[str | None, typer.Option("--scores", help="Output that answers, when there are several.", show_default=False)]
ClassesOption = Annotated[Path | None, typer.Option("--classes", help="Text file with one class or symbol per line, by index.", show_default=False)]
PrimaryOption = Annotated[str | None, typer.Option("--primary", help="The metric that matters.", show_default="the task's first")]
PositiveOption = Annotated[
    str | None, typer.Option("--positive", help="Class that stands against the rest: index or name.", show_default="1 of two classes")
]


def evaluate(
    model: ModelArgument,
    data: DataOption,
    target: TargetOption,
    reference: ReferenceOption = None,
    task: TaskOption = TaskName.image_classification,
    scores: ScoresOption = None,
    classes: ClassesOption = None,
    primary: PrimaryOption = None,
    positive: PositiveOption = None,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> None:
    """Measure metrics with intervals, changes and label flips."""
    from toolkit import evaluate as measure
    from toolkit.figures import show_change, show_metric, show_name
    from toolkit.report.wording import class_line, flips_line

    with progress() as listener:
        found = measure(
            model,
            data,
            target=target,
            reference=reference,
            task=task.value,
            output=scores,
            classes=read_classes(classes),
            metrics=chosen(primary, positive),
            listener=listener,
        )
    rows: dict[str, object] = {"artifact": found.artifact, "target": f"{found.target} ({found.stand_in}, {found.runtime})"}
    changes = {change.metric: change for change in found.changes}
    for metric in found.metrics:
        rows[show_name(metric.name)] = f"{show_metric(metric)}, {metric.method}"
        if metric.name in changes:
            rows[f"  change of {show_name(metric.name)}"] = f"{show_change(changes[metric.name])}, {changes[metric.name].method}"
    rows |= {show_name(name): f"not measured: {why}" for name, why in found.left_out.items()}
    if found.flips:
        rows["label flips"] = flips_line(found.flips)
    if lost := [one for one in found.classes if one.lost > one.gained]:
        rows["classes that lost most"] = "; ".join(class_line(one) for one in lost[:3])
    emit(found, facts(rows))


def chosen(primary: str | None, positive: str | None) -> dict[str, str | int]:
    """What the options say about metrics; a number is a class index."""
    found: dict[str, str | int] = {} if primary is None else {"primary": primary}
    return found if positive is None else {**found, "positive": int(positive) if positive.isdecimal() else positive}


def read_classes(file: Path | None) -> tuple[str, ...]:
    """Reads names from a text file, one a line."""
    from toolkit.errors import ConfigError

    if file is None:
        return ()
    try:
        return tuple(file.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(file), hint="give a UTF-8 text file with one name per line") from error
