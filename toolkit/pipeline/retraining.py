"""The last rung of the repair ladder: quantization-aware training, which runs only where nothing else held the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from toolkit.config import Project
from toolkit.pipeline.origins import TRAINED
from toolkit.pipeline.steps import Check, Fact, Need, Step, model_file
from toolkit.training import Finetune

QAT = "qat"
_AGAIN = ("finetune", "source", "convert", "via", "quantize")
_LEARNING_RATE = 0.1
_EPOCHS = 0.25
_OF_OTHERS = ("lora_rank", "lora_alpha", "lora_targets", "blocks", "patience")


def last_rung(project: Project, chain: Sequence[Step]) -> list[Step]:
    """The steps that train, capture, convert and quantize again, and those that choose between both files.

    Args:
        project: The project.
        chain: All steps up to quantization.

    Returns:
        The steps; the last ones, ``choose:...``, stand for those that repaired a file. None where nothing is repaired, or the model is not
        trained here by PyTorch.
    """
    repaired = [step for step in chain if step.options.get("max_drop") is not None]
    settings = project.finetune
    if not repaired or settings is None or not _possible(project):
        return []
    needed = _behind(chain, repaired)
    names = {step.id: f"{step.id}:{QAT}" for step in chain if step.id in needed and step.id.split(":")[0] in _AGAIN}
    again = [_renamed(step, names) for step in chain if step.id in names]
    unheld = tuple(Fact(step.id, "unheld") for step in repaired)
    again = [_trained(step, settings, unheld) if step.id == names["finetune"] else step for step in again]
    twins = {names[step.id]: step.needs["model"] for step in repaired}
    again = [replace(step, needs={**step.needs, "twin": twins[step.id]}) if step.id in twins else step for step in again]
    return [*again, *(_choice(step, names[step.id]) for step in repaired)]


def chosen(id: str, last: Sequence[Step]) -> str:
    """Identifier of the step that stands for one that repairs; any other's own."""
    return next((step.id for step in last if step.id == _choosing(id)), id)


def _choosing(id: str) -> str:
    return id.replace("quantize:", "choose:", 1)


def _possible(project: Project) -> bool:
    """Whether a project's model can be trained on: it is trained here, by PyTorch, and not as int8 already."""
    settings = project.finetune
    return settings is not None and settings.strategy != QAT and project.model.framework == "torch" and QAT in project.quantize.rungs


def _behind(chain: Sequence[Step], ends: Sequence[Step]) -> set[str]:
    """Everything that some steps are made from, and themselves."""
    known = {step.id: step for step in chain}
    found, waiting = set[str](), [step.id for step in ends]
    while waiting:
        id = waiting.pop()
        if id not in found and id in known:
            found.add(id)
            waiting += known[id].upstream
    return found


def _renamed(step: Step, names: Mapping[str, str]) -> Step:
    """The same step, made from the steps of other names."""

    def needs(given: Mapping[str, Need]) -> dict[str, Need]:
        return {role: Need(names.get(need.step, need.step), need.path) for role, need in given.items()}

    def check(given: Check) -> Check:
        return replace(given, needs=needs(given.needs))

    return replace(
        step,
        id=names.get(step.id, step.id),
        needs=needs(step.needs),
        derived={name: Fact(names.get(fact.step, fact.step), fact.name) for name, fact in step.derived.items()},
        checks=tuple(map(check, step.checks)),
        otherwise=_renamed(step.otherwise, names) if step.otherwise else None,
    )


def _trained(step: Step, settings: Finetune, unheld: tuple[Fact, ...]) -> Step:
    """Training that goes on from the trained weights."""
    defaults = {name: Finetune.model_fields[name].default for name in _OF_OTHERS}
    changed = {
        **defaults,
        "strategy": QAT,
        "learning_rate": settings.learning_rate * _LEARNING_RATE,
        "epochs": max(2, round(settings.epochs * _EPOCHS)),
        "teacher": settings.teacher or "start",
    }
    again = Finetune.model_validate({**settings.model_dump(), **changed}).model_dump(mode="json")
    options = {**step.options, **again} | ({"weights": None} if "weights" in step.options else {})
    files = {role: path for role, path in step.files.items() if role != "weights"}
    return replace(step, options=options, files=files, needs={**step.needs, "weights": TRAINED}, only_if=unheld)


def _choice(step: Step, again: str) -> Step:
    """Takes the better one of two files; the one that there is where training was not called for, or failed."""
    format = str(step.options["format"])
    return Step(
        _choosing(step.id),
        "toolkit.quantization.choice:run",
        {"format": format, "model": model_file(format)},
        needs={"ladder": Need(step.id), QAT: Need(again)},
        plugins=step.plugins[:1],
        checks=step.checks,
        partial=True,
    )
