"""Steps: what a stage is asked to do, from which inputs.

One builder per stage; this, :mod:`toolkit.pipeline.origins`, :mod:`toolkit.pipeline.conversion`, :mod:`toolkit.pipeline.quantizing`,
:mod:`toolkit.pipeline.measuring` and
the modules of single verbs know a stage's dotted name and which of its options decide its output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from toolkit import plugins
from toolkit.config import Model, Parity, Recipe
from toolkit.data_origin import Data
from toolkit.evidence import Attempt
from toolkit.finetuning import keras_stage
from toolkit.training import Finetune

TRAINERS = {"torch": "toolkit.finetuning.stage:run", "keras": "toolkit.finetuning.keras_stage:run"}
"""The stage that trains a framework's models."""

PROJECT = "project"
"""Role of a project's folder among a step's files: its code and everything beside it decide the output."""


@dataclass(frozen=True)
class Need:
    """Something below another step's output folder.

    Attributes:
        step: The other step's identifier.
        path: Path below its folder; empty for the folder itself.
    """

    step: str
    path: str = ""


@dataclass(frozen=True)
class Fact:
    """A value that only another step's result will tell.

    Attributes:
        step: The other step's identifier.
        name: Name of the fact.
    """

    step: str
    name: str


@dataclass(frozen=True)
class Check:
    """A stage that inspects a step's output before it is published.

    Attributes:
        name: Short name, under which its facts are kept.
        stage: Dotted name of the stage.
        model: Path of the model below the checked step's folder.
        options: Its options.
        needs: Outputs of earlier steps that it reads.
        files: The user's files that it reads.
        plugins: Plugins that it calls.
    """

    name: str
    stage: str
    model: str
    options: Mapping[str, Any]
    _: KW_ONLY
    needs: Mapping[str, Need] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    plugins: tuple[plugins.Plugin, ...] = ()


@dataclass(frozen=True)
class Step:
    """One call of a stage, its inputs named but not yet computed.

    Attributes:
        id: Unique in a plan, for example ``convert:onnx``.
        stage: Dotted name of the stage.
        options: Plain values; all of them decide the output.
        derived: Options whose values are facts of earlier steps.
        needs: Outputs of earlier steps, by role.
        files: The user's files and folders, by role; their content decides the output.
        apart: Files in a project's folder that are no part of its code, as the project names them as data or weights.
        plugins: Plugins that it calls; their versions decide the output.
        checks: What must hold before the output is published.
        not_checked: Checks that cannot be done here, and why.
        preload: Modules that a server may import once for all steps that name the same ones.
        cached: Whether the output may come from the store. A latency never does.
        exclusive: Whether nothing may run beside it.
        partial: Whether it goes on with the inputs that exist when others failed.
        resumable: Whether it can go on where it was interrupted.
        only_if: Facts of earlier steps of which one must be true; otherwise it is skipped, and nothing is wrong.
        route: What it is called where it is one of several ways to the same output; empty for all other steps.
        otherwise: The next way to the same output, under the same identifier, for when this one falls.
        passed_over: Ways that were ruled out before anything ran.
    """

    id: str
    stage: str
    options: Mapping[str, Any] = field(default_factory=dict)
    _: KW_ONLY
    needs: Mapping[str, Need] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    plugins: tuple[plugins.Plugin, ...] = ()
    derived: Mapping[str, Fact] = field(default_factory=dict)
    apart: tuple[Path, ...] = ()
    checks: tuple[Check, ...] = ()
    not_checked: Mapping[str, str] = field(default_factory=dict)
    preload: tuple[str, ...] = ()
    cached: bool = True
    exclusive: bool = False
    partial: bool = False
    resumable: bool = False
    only_if: tuple[Fact, ...] = ()
    route: str = ""
    otherwise: Step | None = None
    passed_over: tuple[Attempt, ...] = ()

    @property
    def upstream(self) -> set[str]:
        """Identifiers of the steps that must be finished first."""
        facts = (*self.derived.values(), *self.only_if)
        direct = {need.step for need in self.needs.values()} | {fact.step for fact in facts}
        return direct.union(need.step for check in self.checks for need in check.needs.values())


PARITY = Need("data", "parity")
"""The samples on which converted models are compared with their source."""


def model_file(format: str) -> str:
    """Name of the model file in the folder of every step that makes one."""
    return f"model.{format}"


def splits(
    data: Data,
    folder: Path,
    parity: Parity,
    *,
    task: str,
    seed: int,
    apart: tuple[Path, ...] = (),
    preload: tuple[str, ...] = (),
    tokenizer: Path | None = None,
) -> Step:
    """The training and evaluation samples, checked and stored as columns.

    Args:
        data: Where they come from.
        folder: The project's folder.
        parity: How many of them converted models are compared on.
        task: What the model does.
        seed: Seed of everything random.
        apart: Files in the project's folder that are no part of its code.
        preload: Framework of the model, which helps a factory whose file also builds the model.
        tokenizer: That of the model's own folder, for texts that name no other.
    """
    options: dict[str, Any] = {"task": task, "seed": seed, "classes": list(data.classes), "parity_samples": parity.samples}
    if data.factory:
        options["factory"] = data.factory
        files = {PROJECT: folder} | {f"depends on {path}": folder / path for path in data.depends}
        return Step("data", "toolkit.samples.splits:run", options, files=files, apart=apart, preload=preload)
    given = {"train": data.train, "eval": data.eval}
    files = {role: folder / path for role, path in given.items() if path is not None}
    options["reading"] = data.reading()
    named = folder / data.tokenizer if data.tokenizer else tokenizer
    if data.text and named is not None and named.is_dir():
        files["tokenizer"] = named
    elif data.text:
        options["tokenizer"] = data.tokenizer
    return Step("data", "toolkit.samples.splits:run", options, files=files)


def calibration(
    recipe: Recipe,
    *,
    samples: int | None,
    seed: int,
    origin: Need | Path,
    evaluation: Need | Path | None = None,
    reference: Need | Path | None = None,
) -> Step:
    """The calibration samples: from the training split, or from a file of the user's.

    Args:
        recipe: How they are chosen.
        samples: How many; the recipe's number where it is ``None``.
        seed: Seed of the choice.
        origin: Where they come from.
        evaluation: Samples that accuracy is measured on: none of them may be among those of ``origin``.
        reference: Samples that are known to be prepared as the model wants them; those of the evaluation stand in for them.
    """
    options = {
        "samples": samples or recipe.samples,
        "min_samples": recipe.min_samples,
        "selection": recipe.selection,
        "value_range": recipe.value_range,
        "seed": seed,
    } | ({"allow_noise": True} if recipe.allow_noise else {})
    needs, files = wire("samples", origin)
    for role, given in (("evaluation", evaluation), ("reference", reference)):
        if given is not None:
            more = wire(role, given)
            needs, files = {**needs, **more[0]}, {**files, **more[1]}
    return Step("calibration", "toolkit.samples.calibration:run", options, needs=needs, files=files)


def finetune(settings: Finetune, model: Model, folder: Path, *, seed: int, classes: tuple[str, ...], apart: tuple[Path, ...]) -> Step:
    """The trained weights.

    Raises:
        ConfigError: A setting is not there for models of this framework.
    """
    if model.framework == "keras":
        keras_stage.check(settings)
    files = {PROJECT: folder} | ({"weights": folder / model.weights} if model.weights else {})
    options = {**settings.model_dump(mode="json"), "factory": model.factory, "seed": seed, "outputs": list(model.outputs)}
    # Named classes ask for exactly as many outputs; without names the labels tell how many there are at least.
    derived = {} if classes else {"classes": Fact("data", "classes")}
    if classes:
        options["classes"] = list(classes)
    return Step(
        "finetune",
        TRAINERS[model.framework],
        options,
        needs={"data": Need("data", "train")},
        files=files,
        plugins=(plugins.get("sources", model.framework), *_engines(model.framework)),
        derived=derived,
        apart=apart,
        resumable=True,
    )


def _engines(framework: str) -> tuple[plugins.Plugin, ...]:
    """What computes for Keras, which has no arithmetic of its own: its version decides the weights too."""
    return (plugins.get("runtimes", "tensorflow"),) if framework == "keras" else ()


def inspection(model: Path, format: str) -> Step:
    """What a model file contains, and which scheme its bytes have."""
    module, looker = _looks_into(format)
    return Step("inspect", f"{module}:describe", {"format": format}, files={"model": model}, plugins=(looker,))


def audit(format: str, expect: str | None) -> Check:
    """The file's bytes must be what its label says: ``expect``, or what the file ``label.json`` beside it calls it."""
    module, looker = _looks_into(format)
    return Check("audit", f"{module}:run", model_file(format), {"format": format, "expect": expect}, plugins=(looker,))


def _looks_into(format: str) -> tuple[str, plugins.Plugin]:
    """The module and the plugin that look into a file: a reader, or the runtime where a format has none."""
    reader = plugins.find_reader(format)
    return ("toolkit.audit.stage", reader) if reader else ("toolkit.audit.unread", plugins.runtime_for(format))


def in_layout(layout: str | None) -> dict[str, Any]:
    """The option of a stage that feeds samples to a model of another layout than theirs."""
    return {"layout": layout} if layout else {}


def wire(role: str, given: Need | Path) -> tuple[dict[str, Need], dict[str, Path]]:
    """A step's needs or files for one role, by where it comes from."""
    return ({role: given}, {}) if isinstance(given, Need) else ({}, {role: given})
