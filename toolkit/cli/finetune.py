"""``edgekit finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.common import Format, FormatOption, ProjectArgument, VerboseOption, emit, facts, progress


def finetune(
    project: ProjectArgument = Path(),
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write to.", show_default="PROJECT/edgekit-out")] = None,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> None:
    """Train a project's model, and capture it as a program."""
    from toolkit import finetune as train
    from toolkit.finetuning import processes
    from toolkit.report import wording

    with progress() as listener:
        trained = train(project, output=output, listener=listener)
    if processes.rank():  # of the processes that accelerate launch starts, the first one speaks
        return
    found = trained.facts
    validation = found["validation_accuracy"]
    rows: dict[str, object] = {
        "weights": f"{trained.weights}{' (cached)' if trained.cached else ''}",
        "program": trained.program.path,
        "best epoch": f"{found['best_epoch']} of {found['epochs']}",
        "validation accuracy": f"{validation['value']:.2%} n={validation['n']} (held out of the training split, chooses the epoch)",
        "parameters": f"{found['parameters']:,}, {found['trainable']:,} trained",
        "device": f"{found['device']}: {found['why']}",
        "speed": wording.pace(found.get("samples_per_second"), found.get("cpu_samples_per_second")) or "-",
        "seconds": found["seconds"],
    }
    if trained.pictures:
        rows["pictures"] = ", ".join(map(str, trained.pictures))
    if found.get("notes"):
        rows["notes"] = "; ".join(found["notes"])
    emit(trained, facts(rows))
