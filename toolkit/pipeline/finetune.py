"""``toolkit.finetune``: a project's model, trained and captured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toolkit import display
from toolkit.artifact import Artifact, Frozen
from toolkit.config import load_project
from toolkit.errors import ConfigError
from toolkit.pipeline import deliver
from toolkit.pipeline.export import ancestors
from toolkit.pipeline.listener import Listener
from toolkit.pipeline.plan import make_plan
from toolkit.pipeline.run import OUTPUT
from toolkit.pipeline.single import run_steps
from toolkit.store import Store


class Finetuned(Frozen):
    """A trained model.

    Attributes:
        weights: The ``.safetensors`` file.
        program: The captured program.
        training: Every epoch, as in ``training.json``.
        facts: Best epoch, validation accuracy, device and why, seconds.
        cached: Whether the weights came from the store.
    """

    weights: Path
    program: Artifact
    training: Any
    facts: dict[str, Any]
    cached: bool

    def _repr_html_(self) -> str:
        return display.facts_html(f"{self.program.manifest.name}: fine-tuned", {"weights": self.weights, "program": self.program.path, **self.facts})


def finetune(project: str | Path, *, output: str | Path | None = None, store: Store | None = None, listener: Listener | None = None) -> Finetuned:
    """Trains a project's model on its training split, and captures it.

    Args:
        project: Folder with an ``edgekit.toml``, or the file itself.
        output: Folder to write to; ``edgekit-out`` in the project's folder by default.
        store: Where stage outputs are kept; the user's cache by default.
        listener: Who hears about progress.

    Raises:
        ConfigError: The project is wrong, or has no ``[finetune]`` table.
        InputRejected: The samples or the weights must not be used.
        MissingExtra: PyTorch is not installed.
        StageError: Training failed.
    """
    plan = make_plan(*load_project(Path(project)))
    if plan.project.finetune is None:
        raise ConfigError("the project has no [finetune] table", where=str(project), hint="add one; edgekit init shows it")
    folder = Path(output) if output else plan.folder / OUTPUT
    deliver.check_output(folder, plan.folder)
    results = run_steps(ancestors(plan.steps, "source"), store, listener, timeout_seconds=plan.project.timing.stage_timeout_seconds)
    trained, captured = results["finetune"], results["source"]
    assert trained.folder is not None
    deliver.mark_output(folder, plan.project.name)
    weights = folder / f"{plan.project.name}.safetensors"
    deliver.copy(trained.folder / "weights.safetensors", weights)
    deliver.copy(trained.folder / "training.json", folder / "training.json")
    out = folder / f"{plan.project.name}.{plan.source_format}"
    program = deliver.deliver_model(captured, out, name=plan.project.name, format=plan.source_format, scheme="float32", parent_sha256="")
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return Finetuned(weights=weights, program=program, training=training, facts=trained.facts, cached=trained.cached)
