"""``toolkit.finetune``: a project's model, trained and captured; or a live one, trained where it is."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, overload

from pydantic import ConfigDict, Field, ValidationError

from toolkit import display, plugins
from toolkit.artifact import Artifact, Frozen
from toolkit.config import PROJECT_FILE, load_project
from toolkit.dataset import load
from toolkit.errors import ConfigError
from toolkit.evidence import StageRecord
from toolkit.finetuning import processes
from toolkit.mistakes import explain
from toolkit.pipeline import companions, deliver
from toolkit.pipeline.export import ancestors
from toolkit.pipeline.listener import Listener, Silent
from toolkit.pipeline.plan import make_plan
from toolkit.pipeline.run import OUTPUT
from toolkit.pipeline.single import Samples, as_dataset, run_steps
from toolkit.pipeline.steps import Step
from toolkit.store import Store
from toolkit.training import Finetune


class Finetuned(Frozen):
    """A trained model.

    Attributes:
        weights: The ``.safetensors`` file.
        program: The captured program.
        training: Every epoch, as in ``training.json``.
        pictures: Learning curves and confusion matrix, where matplotlib is installed.
        facts: Best epoch, validation accuracy, device and why, samples per second, seconds.
        cached: Whether the weights came from the store.
    """

    weights: Path
    program: Artifact
    training: Any
    pictures: tuple[Path, ...] = ()
    facts: dict[str, Any]
    cached: bool

    def _repr_html_(self) -> str:
        return display.facts_html(f"{self.program.manifest.name}: fine-tuned", {"weights": self.weights, "program": self.program.path, **self.facts})


class Tuned(Frozen):
    """A live model that was trained in this process.

    Attributes:
        model: The model, with the weights of the best epoch, in evaluation mode on the device it was trained on.
        training: Every epoch, as in ``training.json``.
        facts: Best epoch, validation accuracy, device and why, samples per second, seconds.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())

    model: Any = Field(exclude=True)
    training: Any
    facts: dict[str, Any]

    def _repr_html_(self) -> str:
        return display.facts_html(f"{type(self.model).__name__}: fine-tuned", self.facts)


@overload
def finetune(model: str | Path, *, output: str | Path | None = ..., store: Store | None = ..., listener: Listener | None = ...) -> Finetuned: ...


@overload
def finetune(
    model: Any, samples: Samples, *, classes: Sequence[str] = ..., seed: int = ..., listener: Listener | None = ..., **settings: Any
) -> Tuned: ...


def finetune(
    model: Any,
    samples: Samples | None = None,
    *,
    classes: Sequence[str] = (),
    seed: int = 0,
    output: str | Path | None = None,
    store: Store | None = None,
    listener: Listener | None = None,
    **settings: Any,
) -> Finetuned | Tuned:
    """Trains a project's model on its training split, and captures it; or trains a live PyTorch model on samples, in this process.

    Several processes, as ``accelerate launch`` starts them, train one model together, each on its share of every batch. The first of
    them writes.

    Args:
        model: A folder with an ``edgekit.toml``, or the file itself; or a ``torch.nn.Module``, which is changed in place.
        samples: For a live model: arrays by input name with ``label`` for the class indices ``[n]``, or a path to such. A tenth of them
            chooses the best epoch.
        classes: Names of the classes of a live model, which must have as many outputs.
        seed: Seed of everything random in the training of a live model.
        output: Folder to write a project's results to; ``edgekit-out`` in its folder by default.
        store: Where stage outputs of a project are kept; the user's cache by default.
        listener: Who hears about progress.
        **settings: Keys of the table ``[finetune]`` for a live model: ``epochs``, ``learning_rate`` and so on.

    Returns:
        Files for a project, and the model itself for a live one.

    Raises:
        ConfigError: The project is wrong, or has no ``[finetune]`` table; or a setting does not fit.
        InputRejected: The samples or the weights must not be used.
        MissingExtra: PyTorch is not installed.
        StageError: Training failed.
    """
    if isinstance(model, str | Path):
        if samples is not None or settings or classes:
            raise ConfigError("a project names its samples and settings itself", where=str(model), hint=f"write them into {PROJECT_FILE}")
        return _project(Path(model), output, store, listener or Silent())
    if samples is None:
        raise ConfigError("a live model needs samples to learn from", where="samples", hint='give {"<input>": array, "label": class indices}')
    if output is not None or store is not None:
        raise ConfigError("a live model is returned, not written", where="output", hint="save it, or give its state to toolkit.export")
    return _live(model, samples, tuple(classes), seed, listener or Silent(), settings)


def _project(project: Path, output: str | Path | None, store: Store | None, listener: Listener) -> Finetuned:
    plan = make_plan(*load_project(project))
    if plan.project.finetune is None:
        raise ConfigError("the project has no [finetune] table", where=str(project), hint="add one; edgekit init shows it")
    steps, together = ancestors(plan.steps, "source"), processes.count()
    if together > 1:
        steps = [_together(step, together) for step in steps]
    if processes.rank():  # what the first process writes, no other one may
        store, output, listener = Store(_apart() / "store"), _apart() / "output", Silent()
    folder = Path(output) if output else plan.folder / OUTPUT
    deliver.check_output(folder, plan.folder)
    results = run_steps(steps, store, listener, timeout_seconds=plan.project.timing.stage_timeout_seconds)
    trained, captured = results["finetune"], results["source"]
    assert trained.folder is not None
    deliver.mark_output(folder, plan.project.name)
    weights = folder / f"{plan.project.name}.safetensors"
    deliver.copy(trained.folder / "weights.safetensors", weights)
    pictures = companions.copy(results, folder)
    out = folder / f"{plan.project.name}.{plan.source_format}"
    program = deliver.deliver_model(captured, out, name=plan.project.name, format=plan.source_format, scheme="float32", parent_sha256="")
    training = json.loads((folder / companions.TRAINING).read_text(encoding="utf-8"))
    return Finetuned(weights=weights, program=program, training=training, pictures=pictures, facts=trained.facts, cached=trained.cached)


def _together(step: Step, count: int) -> Step:
    """Makes a step train with others: it always runs, as the others would wait for one that takes its result from the store."""
    return replace(step, options={**step.options, "processes": count, "launch": uuid.uuid4().hex}) if step.id == "finetune" else step


@cache
def _apart() -> Path:
    """A folder that is gone when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="edgekit-process-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _live(model: Any, samples: Samples, classes: tuple[str, ...], seed: int, listener: Listener, settings: dict[str, Any]) -> Tuned:
    try:
        asked = Finetune(**settings)
    except ValidationError as error:
        raise explain(Finetune, error, "finetune") from error
    plugins.require(plugins.get("sources", "torch"))
    import torch

    from toolkit.finetuning.fitting import Run, fit
    from toolkit.finetuning.stage import history_of

    if not isinstance(model, torch.nn.Module):
        told = f"expected a project's folder or a torch.nn.Module, found a {type(model).__name__}"
        raise ConfigError(told, where="model", hint='models of Keras are trained as projects: [model] framework = "keras"')
    data = load(Path(samples)) if isinstance(samples, str | Path) else as_dataset(samples)
    listener.planned(["finetune"])
    listener.started("finetune")
    run = Run(asked, seed, classes or None, processes=processes.count(), progress=lambda *told: listener.progressed("finetune", *told))
    fitted = fit(lambda: model, data, run)
    fitted.model.eval()
    listener.finished(StageRecord(step="finetune", status="done", seconds=fitted.facts["seconds"]))
    return Tuned(model=fitted.model, training=history_of(fitted), facts=fitted.facts)
