"""Steps that quantize: the samples that repairs are chosen on, and the files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit import plugins
from toolkit.config import AUTO, Project, Recipe, Target
from toolkit.errors import NoRoute
from toolkit.pipeline.steps import Fact, Need, Step, audit, in_layout, wire

AUTO_AMONG = ("static_wi8_ai8", "dynamic_wi8")
"""What ``auto`` chooses among."""


@dataclass(frozen=True)
class Repair:
    """What a quantized file is chosen and repaired on.

    Attributes:
        search: The samples.
        runtime: What runs the files.
        threads: Threads of one inference.
        task: What the model does.
        output: Name of the output that answers; the first one where it is ``None``.
        max_drop: Largest loss of right answers; ``None`` where there is no budget, and only ``auto`` repairs.
        rungs: What may be tried.
    """

    search: Need | Path
    runtime: plugins.Runtime
    threads: int
    task: str
    output: str | Fact | None = None
    max_drop: float | None = None
    rungs: tuple[str, ...] = ()

    def options(self) -> dict[str, Any]:
        """What of it decides the output, as plain values."""
        said: dict[str, Any] = {"runtime": self.runtime.name, "threads": self.threads, "task": self.task, "rungs": list(self.rungs)}
        if self.max_drop is not None:
            said["max_drop"] = self.max_drop
        return said | ({"output": self.output} if isinstance(self.output, str) else {})


def search(samples: int, *, seed: int, origin: Need | Path, calibration: Need | None, trained: bool) -> Step:
    """The samples that repairs are chosen on; ``trained`` says that a model was trained on ``origin``, but for what training holds out."""
    needs, files = wire("samples", origin)
    if calibration:
        needs["calibration"] = calibration
    return Step("search", "toolkit.samples.search:run", {"samples": samples, "seed": seed, "trained": trained}, needs=needs, files=files)


def quantize(
    model: Need | Path,
    format: str,
    scheme: str,
    recipe: Recipe,
    calibration: Need | None,
    *,
    layout: str | None = None,
    repair: Repair | None = None,
    among: tuple[str, ...] = AUTO_AMONG,
    program: tuple[str, Need] | None = None,
    statistics: Path | None = None,
) -> Step:
    """A quantized model, published only if its bytes are what its label says.

    Args:
        model: The float file.
        format: Its format.
        scheme: The scheme; ``auto`` chooses one.
        recipe: How ranges are found.
        calibration: The samples that they come from; left alone where nothing needs them.
        layout: The model's, where the samples have another.
        repair: What the file is repaired on.
        among: Schemes that ``auto`` chooses among.
        program: Format of the captured program that the model comes from, and the program.
        statistics: File of its activations' statistics, which are collected otherwise.

    Raises:
        NoRoute: Nothing makes one of the schemes for this format, or from what there is.
    """
    schemes = among if scheme == AUTO else (scheme,)
    makers = {one: plugins.quantizer(format, one) for one in schemes}
    options: dict[str, Any] = {"format": format, "scheme": scheme, "method": recipe.method, "per_channel": recipe.per_channel}
    options |= {} if scheme == AUTO else {"quantizer": makers[scheme].name}
    options |= in_layout(layout) | ({"among": list(among)} if scheme == AUTO else {}) | (repair.options() if repair else {})
    needs, files = wire("model", model)
    files = files | ({"statistics": statistics} if statistics else {})
    if calibration and (repair or calibrated(format, scheme, among)):
        needs["calibration"] = calibration
    if repair:
        of_search = wire("search", repair.search)
        needs, files = {**needs, **of_search[0]}, {**files, **of_search[1]}
    needs |= _program(format, makers.values(), program)
    reader = plugins.find_reader(format)
    used = (*makers.values(), *((reader,) if reader else ()), *((repair.runtime,) if repair else ()))
    return Step(
        f"quantize:{format}:{scheme}",
        "toolkit.quantization.stage:run",
        options,
        needs=needs,
        files=files,
        derived={"output": repair.output} if repair and isinstance(repair.output, Fact) else {},
        plugins=tuple({one.name: one for one in used}.values()),
        checks=(audit(format, None if scheme == AUTO else scheme),),
        exclusive=scheme == AUTO and repair is not None,  # it chooses by time, too
        resumable=True,
    )


def _program(format: str, makers: Iterable[plugins.Quantizer], program: tuple[str, Need] | None) -> dict[str, Need]:
    """The captured program, where a quantizer starts from that and not from the model."""
    wanted = {source for maker in makers if (source := getattr(maker, "source", ""))}
    if not wanted:
        return {}
    if program is None or {program[0]} != wanted:
        message = f"{format} files are quantized from the .{min(wanted)} program that they come from, and there is none"
        raise NoRoute(message, hint="quantize in a project whose model is captured as one: edgekit run")
    return {"program": program[1]}


def calibrated(format: str, scheme: str, among: tuple[str, ...] = AUTO_AMONG) -> bool:
    """Whether a file of a scheme may need calibration samples.

    Raises:
        NoRoute: Nothing makes the scheme for this format.
    """
    return any(one in plugins.quantizer(format, one).needs_calibration for one in (among if scheme == AUTO else (scheme,)))


def runs(target: Target, scheme: str) -> bool:
    """Whether a target runs files of a scheme; ``auto`` where it runs any that may be chosen."""
    return scheme in target.schemes or (scheme == AUTO and bool(among([target])))


def among(targets: Sequence[Target]) -> tuple[str, ...]:
    """What ``auto`` may choose: schemes that all targets run."""
    return tuple(scheme for scheme in AUTO_AMONG if all(scheme in target.schemes for target in targets))


def repair(project: Project, targets: Sequence[Target], format: str, scheme: str, among: tuple[str, ...], output: Fact) -> Repair | None:
    """What a file is repaired or chosen on: its first target's runtime, and the tightest of its targets' budgets.

    Args:
        project: The project.
        targets: The targets that run the file.
        format: Its format.
        scheme: Its scheme.
        among: What ``auto`` may choose.
        output: Name of the output that answers.

    Returns:
        Nothing where there is no budget, no choice, or no samples.
    """
    limits = [limit for target in targets if (limit := project.budgets.over(target.budgets).max_drop) is not None]
    repaired = bool(limits) and project.quantize.repair
    if not (repaired or scheme == AUTO) or not (project.quantize.search or _has_train(project, calibrated(format, scheme, among))):
        return None
    return Repair(
        Need("search", "search"),
        plugins.get("runtimes", targets[0].runtime),
        targets[0].threads,
        project.task,
        output,
        min(limits) if repaired else None,
        project.quantize.rungs if project.quantize.repair else (),
    )


def searches(project: Project, folder: Path, calibration: Need | None) -> list[Step]:
    """What chooses the search samples."""
    own = project.quantize.search
    origin = folder / own if own else Need("data", "train")
    trained = own is None and project.finetune is not None
    return [search(project.quantize.search_samples, seed=project.seed, origin=origin, calibration=calibration, trained=trained)]


def _has_train(project: Project, calibrated: bool) -> bool:
    """Whether there is a training split; a factory's is only counted on where calibration needs it anyway."""
    return project.data.train is not None or (project.data.factory is not None and (calibrated or project.finetune is not None))
