"""From a project to the steps that answer it. Pure: nothing is run and nothing is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit import display, intake, plugins, resources
from toolkit.config import PROJECT_FILE, Conversion, Project, Recipe, Target
from toolkit.errors import ConfigError, InputRejected
from toolkit.limits import check_against
from toolkit.pipeline import conversion, measuring, origins, quantizing, retraining, steps
from toolkit.pipeline.steps import Fact, Need, Step, model_file

FLOAT = "float32"
# The class scores are the source's first output, by name; every format is asked for that one.
SCORES = Fact("source", "output")


@dataclass(frozen=True)
class Candidate:
    """A model file that the plan makes.

    Attributes:
        file: Name of the delivered file.
        format: Its format.
        scheme: Its number format.
        step: The step that makes it.
        parent: The step that makes the file it is made from; empty for the source.
        twin: File name of the float model of the same format.
        layout: Its layout where the samples have another; ``None`` where it takes them as they are.
    """

    file: str
    format: str
    scheme: str
    step: str
    parent: str
    twin: str
    layout: str | None = None

    @property
    def model(self) -> Need:
        """The model file in its step's folder."""
        return Need(self.step, model_file(self.format))


@dataclass(frozen=True)
class RowPlan:
    """One candidate on one target, and the steps that measure it."""

    candidate: Candidate
    target: Target
    evaluate: str
    benchmark: str
    cold: str
    roofline: str


@dataclass(frozen=True)
class Plan:
    """Everything that a run will do.

    Attributes:
        project: The project.
        folder: Its folder.
        steps: In an order that respects their needs.
        candidates: The model files it makes.
        rows: What will be judged.
        source_format: Format of the source program.
    """

    project: Project
    folder: Path
    steps: tuple[Step, ...]
    candidates: tuple[Candidate, ...]
    rows: tuple[RowPlan, ...]
    source_format: str

    def lines(self) -> list[tuple[str, str, str]]:
        """Lists step, what it does, and what it needs."""
        return [(step.id, _purpose(step), ", ".join(sorted(step.upstream)) or "-") for step in self.steps]

    def __str__(self) -> str:
        width = max(len(step.id) for step in self.steps)
        body = [f"  {id:{width}}  {what}" for id, what, _ in self.lines()]
        made = [f"  {row.candidate.file} on {row.target.name} ({row.target.runtime}, {row.target.stand_in})" for row in self.rows]
        return "\n".join([f"{self.project.name}: {len(self.steps)} steps", *body, f"{len(made)} rows to judge", *made])

    def _repr_html_(self) -> str:
        return display.table_html(f"{self.project.name}: plan", ("step", "what", "needs"), self.lines())


@dataclass(frozen=True)
class _Demand:
    """What one target asks for."""

    target: Target
    format: str
    schemes: tuple[str, ...]


def make_plan(project: Project, folder: Path) -> Plan:
    """Plans a project.

    Args:
        project: What the user wants.
        folder: Where the project's files are.

    Raises:
        ConfigError: An unknown target or recipe, or a scheme that none of the targets executes.
        NoRoute: No installed plugin converts or quantizes as asked.
        InputRejected: The project's model file must not be read.
    """
    _all_there(project, folder)
    source_format = _source_format(project, folder)
    demands = [_demand(project, resources.load_target(name, folder), source_format) for name in project.targets]
    _nothing_forgotten(project, demands)
    _sensible(project, demands)
    recipe = _recipe(project, folder)
    candidates = _candidates(project, demands, source_format)
    quantized = [candidate for candidate in candidates.values() if candidate.scheme != FLOAT]
    preload = plugins.preload(origins.source_of(project.model.framework)) if project.model.factory else ()
    chain = [steps.splits(project.data, folder, project.parity, **_of_samples(project, folder), apart=_apart(project, folder), preload=preload)]
    calibrated = recipe is not None and any(quantizing.calibrated(c.format, c.scheme, _among(demands, c.format)) for c in quantized)
    if recipe and calibrated:
        chain.append(
            steps.calibration(
                recipe, samples=project.calibration.samples, seed=project.seed, origin=Need("data", "train"), evaluation=Need("data", "eval")
            )
        )
    chain += _source(project, folder, source_format)
    chain += _conversions(project, list(candidates.values()), source_format)
    if recipe:
        chain += _quantizations(project, folder, demands, candidates, recipe, calibrated)
        last = retraining.last_rung(project, chain)
        chain += last
        candidates = {name: replace(one, step=retraining.chosen(one.step, last)) for name, one in candidates.items()}
    chain.append(_source_evaluation(project, source_format))
    evaluations, rows = _evaluations(project, demands, candidates)
    on_this_machine = _measurements(project, rows, candidates)
    return Plan(project, folder, (*chain, *evaluations, *on_this_machine), tuple(candidates.values()), rows, source_format)


def _of_samples(project: Project, folder: Path) -> dict[str, Any]:
    """What the samples are read with, beside their own table."""
    named = origins.named(project.model.name, folder) if project.model.name else None
    return {"task": project.task, "seed": project.seed, "tokenizer": named.folder if named else None}


def _all_there(project: Project, folder: Path) -> None:
    data, model = project.data, project.model
    named = [("data.train", data.train), ("data.eval", data.eval), ("model.file", model.file), ("quantize.search", project.quantize.search)]
    if model.weights and (not model.name or model.weights.suffix):  # a collection has names for its weights
        named.append(("model.weights", model.weights))
    for key, path in [*named, *(("data.depends", path) for path in data.depends)]:
        if path is not None and not (folder / path).exists():
            raise InputRejected(f"does not exist; {key} of {PROJECT_FILE} names it", where=str(folder / path), hint="make the file, or mend the path")


def _source_format(project: Project, folder: Path) -> str:
    if project.model.file:
        file = folder / project.model.file
        return intake.check_model(file, plugins.format_of(file))
    if project.model.name:
        return origins.named(project.model.name, folder).source.format
    return origins.source_of(project.model.framework).format


def _demand(project: Project, target: Target, source_format: str) -> _Demand:
    """The format and schemes that a target is to run; the source's own format when its runtime takes it."""
    formats = plugins.get("runtimes", target.runtime).formats
    format = source_format if source_format in formats else formats[0]
    return _Demand(target, format, tuple(scheme for scheme in project.schemes if quantizing.runs(target, scheme)))


def _quantizations(
    project: Project, folder: Path, demands: list[_Demand], candidates: dict[str, Candidate], recipe: Recipe, calibrated: bool
) -> list[Step]:
    """What chooses the search samples, where something is repaired, and what quantizes."""
    origin = Need("calibration", "calibration") if calibrated else None
    source = _source_format(project, folder)
    program = (source, Need("source", model_file(source)))
    made, repairs = [], []
    for one in candidates.values():
        if one.scheme != FLOAT:
            targets = [demand.target for demand in demands if demand.format == one.format and one.scheme in demand.schemes]
            among = _among(demands, one.format)
            repair = quantizing.repair(project, targets, one.format, one.scheme, among, SCORES)
            model, layout = candidates[one.twin].model, one.layout
            made.append(
                quantizing.quantize(model, one.format, one.scheme, recipe, origin, layout=layout, repair=repair, among=among, program=program)
            )
            repairs += [repair] if repair else []
    return [*(quantizing.searches(project, folder, origin) if repairs else []), *made]


def _among(demands: list[_Demand], format: str) -> tuple[str, ...]:
    return quantizing.among([demand.target for demand in demands if demand.format == format])


def _nothing_forgotten(project: Project, demands: list[_Demand]) -> None:
    for demand in demands:
        if not demand.schemes:
            target = demand.target
            message = f"target {target.name!r} runs none of the project's schemes ({', '.join(project.schemes)})"
            raise ConfigError(message, hint=f"it runs {', '.join(target.schemes)}; add one of them, or remove the target")
    for scheme in project.schemes:
        if not any(scheme in demand.schemes for demand in demands):
            offered = "; ".join(f"{demand.target.name}: {', '.join(demand.target.schemes)}" for demand in demands)
            raise ConfigError(f"none of the targets runs scheme {scheme!r}", hint=f"they run {offered}")


def _sensible(project: Project, demands: list[_Demand]) -> None:
    """Budgets that a target makes impossible to miss or to hold are refused."""
    for target in (demand.target for demand in demands):
        limits = project.budgets.over(target.budgets)
        check_against(limits, memory_mb=target.memory_mb, timeout_seconds=project.timing.stage_timeout_seconds, where=f"budgets on {target.name}")


def _recipe(project: Project, folder: Path) -> Recipe | None:
    """The calibration recipe: the one named, else the one called like the task."""
    if all(scheme == FLOAT for scheme in project.schemes):
        return None
    recipe = resources.load_recipe(project.calibration.recipe or project.task, folder)
    if recipe.task != project.task:
        raise ConfigError(f"recipe {recipe.name!r} is for {recipe.task}, the project's task is {project.task}", hint="choose another recipe")
    return recipe


def _candidates(project: Project, demands: list[_Demand], source_format: str) -> dict[str, Candidate]:
    """Every model file that some target needs, by file name; a float twin before what is made from it."""
    found: dict[str, Candidate] = {}
    formats = sorted({demand.format for demand in demands})
    layouts = _wanted(project, formats, source_format)
    for format in formats:
        step = "source" if format == source_format else f"convert:{format}"
        twin = f"{project.name}.{FLOAT}.{format}"
        layout = layouts[format].layout if format in layouts else None
        found[twin] = Candidate(twin, format, FLOAT, step, "" if step == "source" else "source", twin, layout)
        schemes = [scheme for demand in demands if demand.format == format for scheme in demand.schemes]
        for scheme in dict.fromkeys(schemes):
            file = f"{project.name}.{scheme}.{format}"
            found.setdefault(file, Candidate(file, format, scheme, f"quantize:{format}:{scheme}", step, twin, layout))
    return found


def _source(project: Project, folder: Path, source_format: str) -> list[Step]:
    model, wanted = project.model, project.convert
    if model.file:
        return [origins.from_file(folder / model.file, source_format, project.parity, wanted, steps.PARITY, model.outputs)]
    if model.name:
        named = replace(origins.named(model.name, folder), weights=origins.weights_of(model.weights, folder), task=model.task or project.task)
        if not project.finetune:
            return [origins.from_name(named, project.parity, wanted, steps.PARITY, model.outputs)]
        tuned = origins.Tuned(project.data.classes)
        train = origins.train_by_name(project.finetune, named, tuned, folder, seed=project.seed, outputs=model.outputs, apart=_apart(project, folder))
        return [train, origins.from_name(named, project.parity, wanted, steps.PARITY, model.outputs, tuned=tuned)]
    apart = _apart(project, folder)
    source = origins.from_factory(model, folder, project.parity, wanted, tuned=project.finetune is not None, apart=apart)
    if not project.finetune:
        return [source]
    return [steps.finetune(project.finetune, model, folder, seed=project.seed, classes=project.data.classes, apart=apart), source]


def _apart(project: Project, folder: Path) -> tuple[Path, ...]:
    """What the project names as data or weights: the steps that read it follow it, the others need not."""
    named = (project.data.train, project.data.eval, *project.data.depends, project.model.weights, project.model.file)
    model = origins.named(project.model.name, folder) if project.model.name else None
    saved = (model.folder,) if model and model.folder else ()
    return (*(folder / path for path in named if path is not None), *saved)


def _conversions(project: Project, candidates: list[Candidate], source_format: str) -> list[Step]:
    formats = [candidate.format for candidate in candidates if candidate.step.startswith("convert:")]
    wanted = _wanted(project, formats, source_format)
    program = conversion.of_source(source_format)
    found = [step for format in formats for step in conversion.convert(program, format, wanted[format], project.parity)]
    return list({step.id: step for step in found}.values())  # ways to several formats may share their first part


def _wanted(project: Project, formats: list[str], source_format: str) -> dict[str, Conversion]:
    """What the project asks of the conversion to each format; its source's own format is not converted."""
    return conversion.fitting(source_format, project.convert, [format for format in formats if format != source_format])


def _source_evaluation(project: Project, source_format: str) -> Step:
    return measuring.evaluate(
        "evaluate:source",
        Need("source", model_file(source_format)),
        Need("data", "eval"),
        plugins.runtime_for(source_format),
        threads=1,
        memory_mb=None,
        task=project.task,
        reference=None,
        output=SCORES,
        classes=project.data.classes,
        metrics=project.metrics,
    )


def _evaluations(project: Project, demands: list[_Demand], candidates: dict[str, Candidate]) -> tuple[list[Step], tuple[RowPlan, ...]]:
    """One evaluation for each model and way of running it; targets that run it alike share it."""
    found: dict[str, Step] = {}
    rows = []
    for demand in demands:
        target = demand.target
        runtime = plugins.get("runtimes", target.runtime)
        place = f"{demand.format}@{target.runtime}-t{target.threads}" + "".join(f"-c{cpu}" for cpu in target.cpus)
        setting = f"{target.runtime}-t{target.threads}" + (f"-m{target.memory_mb}" if target.memory_mb else "")
        for scheme in demand.schemes:
            candidate = candidates[f"{project.name}.{scheme}.{demand.format}"]
            id = f"evaluate:{candidate.format}:{scheme}@{setting}"
            found[id] = measuring.evaluate(
                id,
                candidate.model,
                Need("data", "eval"),
                runtime,
                threads=target.threads,
                memory_mb=target.memory_mb,
                task=project.task,
                reference=Need("evaluate:source"),
                output=SCORES,
                classes=project.data.classes,
                metrics=project.metrics,
                layout=candidate.layout,
            )
            rows.append(RowPlan(candidate, target, id, f"benchmark:{place}", f"coldstart:{demand.format}@{setting}", f"roofline:{place}"))
    return list(found.values()), tuple(rows)


def _measurements(project: Project, rows: tuple[RowPlan, ...], candidates: dict[str, Candidate]) -> list[Step]:
    """Latency, cold start and roofline: each once for all models that a machine setting has in common."""
    found = []
    for id in dict.fromkeys(row.benchmark for row in rows):
        together = [row for row in rows if row.benchmark == id]
        twin = candidates[together[0].candidate.twin]
        models = {twin.file: twin.model, **_models(together)}
        target = together[0].target
        runtime = plugins.get("runtimes", target.runtime)
        timed = (models, Need("data", "eval"), runtime, target, project.timing)
        found.append(measuring.benchmark(id, *timed, baseline=twin.file, layout=twin.layout))
        found.append(measuring.roofline(together[0].roofline, _models(together), twin.format, target))
    for id in dict.fromkeys(row.cold for row in rows):
        together = [row for row in rows if row.cold == id]
        target = together[0].target
        runtime, layout = plugins.get("runtimes", target.runtime), together[0].candidate.layout
        found.append(measuring.cold(id, _models(together), Need("data", "eval"), runtime, target, layout=layout))
    return found


def _models(rows: list[RowPlan]) -> dict[str, Need | Path]:
    return {row.candidate.file: row.candidate.model for row in rows}


_PURPOSES = {
    "data": "check and store the samples",
    "calibration": "choose calibration samples from the training split",
    "search": "choose samples to repair on, apart from those of the verdict",
    "finetune": "train the model",
    "source": "capture the model with its outputs on real samples",
    "convert": "convert, and compare with the source",
    "via": "convert on the way to another format, and compare with the source",
    "quantize": "quantize, and read the bytes back",
    "choose": "take the better file: repaired, or trained for int8",
    "evaluate": "run the held-out samples",
    "benchmark": "time one inference, interleaved with the float twin",
    "coldstart": "load and run once in fresh processes: time and memory",
    "roofline": "measure what this CPU could do at best",
}


def _purpose(step: Step) -> str:
    return _PURPOSES[step.id.split(":")[0]]
