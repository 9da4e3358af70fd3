"""A whole project: plan, run, judge, report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit import environment, modelfile
from toolkit.artifact import Artifact, Frozen
from toolkit.checks.baseline import Baseline
from toolkit.config import load_project
from toolkit.errors import EXIT_CHECK_FAILED, EXIT_INCONCLUSIVE, EXIT_PASS, from_dict
from toolkit.evidence import Evaluation, Report, Row, Training, Verdict, worst
from toolkit.pipeline import baseline as baselines
from toolkit.pipeline import companions, deliver, slower
from toolkit.pipeline.execute import Result, execute
from toolkit.pipeline.listener import Listener
from toolkit.pipeline.plan import Candidate, Plan, RowPlan, make_plan
from toolkit.pipeline.rows import Outcomes, accuracy_records, machine_records, made_lines, make_row, read_outcomes, refuse_unmeasured
from toolkit.pipeline.steps import model_file
from toolkit.report import html, json, junit, markdown, sarif
from toolkit.store import Store

OUTPUT = "edgekit-out"


class Run(Frozen):
    """What a run found and made.

    Attributes:
        report: All evidence and verdicts.
        artifacts: The delivered model files.
        folder: Where models and reports are.
    """

    report: Report
    artifacts: tuple[Artifact, ...]
    folder: Path

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all rows."""
        return self.report.verdict

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def run(
    project: str | Path,
    *,
    output: str | Path | None = None,
    store: Store | None = None,
    listener: Listener | None = None,
    jobs: int | None = None,
    baseline: str | Path | None = None,
) -> Run:
    """Takes a project from training to a checked bundle.

    Args:
        project: Folder with an ``edgekit.toml``, or the file itself.
        output: Folder for models and reports; ``edgekit-out`` in the project's folder by default.
        store: Where stage outputs are kept; the user's cache by default.
        listener: Who hears about progress.
        jobs: How many steps may run side by side.
        baseline: A committed baseline file that the evidence is held against too.

    Returns:
        The report and the delivered files. A failed budget, or a stage that failed for some of the targets, is a row
        in the report, not an exception.

    Raises:
        ConfigError: The project, a target or a recipe is wrong.
        InputRejected: The samples or the model file must not be used.
        SetupError: An extra is missing, or the cache or the output folder cannot be used.
        StageError: Training or capturing failed, so that nothing could be judged.
    """
    plan = plan_project(project)
    folder = Path(output) if output else plan.folder / OUTPUT
    deliver.check_output(folder, plan.folder)
    committed = baselines.load(Path(baseline)) if baseline is not None else None
    results = _execute(plan, store, listener, jobs)
    report = _held(make_report(plan, results, store), plan, results, committed)
    artifacts = _deliver(plan, results, folder)
    companions.copy(results, folder)
    write_reports(report, folder)
    return Run(report=report, artifacts=artifacts, folder=folder)


def check_project(
    project: str | Path,
    *,
    store: Store | None = None,
    listener: Listener | None = None,
    jobs: int | None = None,
    baseline: str | Path | None = None,
) -> Report:
    """Holds a project's evidence against its budgets and its baseline, without delivering any file.

    What was computed before comes from the store; latency is measured anew.

    Args:
        project: Folder with an ``edgekit.toml``, or the file itself.
        store: Where stage outputs are kept; the user's cache by default.
        listener: Who hears about progress.
        jobs: How many steps may run side by side.
        baseline: A committed baseline file that the evidence is held against too.

    Raises:
        ToolkitError: As :func:`run`.
    """
    plan = plan_project(project)
    committed = baselines.load(Path(baseline)) if baseline is not None else None
    results = _execute(plan, store, listener, jobs)
    return _held(make_report(plan, results, store), plan, results, committed)


def evidence_of(
    project: str | Path, *, store: Store | None = None, listener: Listener | None = None, jobs: int | None = None
) -> tuple[Report, Outcomes]:
    """Returns a project's report without any baseline, and which samples each row got right.

    Raises:
        ToolkitError: As :func:`run`.
    """
    plan = plan_project(project)
    results = _execute(plan, store, listener, jobs)
    return make_report(plan, results, store), _outcomes(plan, results)


def plan_project(project: str | Path) -> Plan:
    """Plans a project without running anything.

    Args:
        project: Folder with an ``edgekit.toml``, or the file itself.

    Raises:
        ConfigError: The project, a target or a recipe is wrong.
        NoRoute: No installed plugin converts or quantizes as asked.
        InputRejected: The project's model file must not be read.
    """
    return make_plan(*load_project(Path(project)))


def exit_code(report: Report, *, strict: bool = False) -> int:
    """Turns a report into the command line's exit code.

    Args:
        report: The report.
        strict: Whether *inconclusive* is an error.
    """
    failed = [record.error for record in report.stages if record.error and record.status == "failed"]
    if failed:
        return from_dict(failed[0]).exit_code
    if report.verdict is Verdict.FAIL:
        return EXIT_CHECK_FAILED
    return EXIT_INCONCLUSIVE if strict and report.verdict is Verdict.INCONCLUSIVE else EXIT_PASS


def make_report(plan: Plan, results: Mapping[str, Result], store: Store | None = None) -> Report:
    """Judges every row of a plan; a file that was slower than its float twin is profiled once more."""
    rows = tuple(_row(plan, row, results, store) for row in plan.rows)
    return Report(
        schema=2,
        project=plan.project.name,
        verdict=worst(row.verdict for row in rows),
        source=_source(plan, results),
        training=Training.of(results["finetune"].facts) if "finetune" in results and results["finetune"].ok else None,
        notes=tuple(results["source"].facts.get("notes", ())),
        rows=rows,
        stages=tuple(result.record for result in results.values()),
        environment=environment.describe(),
    )


def _held(report: Report, plan: Plan, results: Mapping[str, Result], committed: Baseline | None) -> Report:
    return baselines.hold(report, _outcomes(plan, results), committed) if committed else report


def _outcomes(plan: Plan, results: Mapping[str, Result]) -> Outcomes:
    found = {(row.candidate.file, row.target.name): read_outcomes(results[row.evaluate].folder) for row in plan.rows}
    return {row: right for row, right in found.items() if right is not None}


def _execute(plan: Plan, store: Store | None, listener: Listener | None, jobs: int | None) -> dict[str, Result]:
    timeout_seconds = plan.project.timing.stage_timeout_seconds
    results = execute(plan.steps, store or Store(), listener=listener, timeout_seconds=timeout_seconds, jobs=jobs)
    _raise_if_nothing_came_out(plan, results)
    return results


def _raise_if_nothing_came_out(plan: Plan, results: Mapping[str, Result]) -> None:
    """A failure that leaves no row to judge is an error of the whole run."""
    if any(results[row.evaluate].ok for row in plan.rows):
        return
    shared = [
        results[id].error for id in ("data", "finetune", "source", "evaluate:source") if id in results and results[id].record.status == "failed"
    ]
    for error in shared:
        if error:
            raise error


def _row(plan: Plan, row: RowPlan, results: Mapping[str, Result], store: Store | None) -> Row:
    candidate, target = row.candidate, row.target
    made, evaluated = results[candidate.step], results[row.evaluate]
    timed, cold, roofline = results[row.benchmark], results[row.cold], results[row.roofline]
    limits = plan.project.budgets.over(target.budgets)
    refuse_unmeasured(limits, evaluated.facts)
    machine = machine_records(candidate.file, timed.facts, cold.facts, roofline.facts, target.stand_in)
    is_own_twin = candidate.file == candidate.twin
    latency, model = machine.get("latency_ms"), made.folder / model_file(candidate.format) if made.folder else None
    why = slower.explain(model, latency, target, store) if model and not is_own_twin else None
    return make_row(
        candidate.file,
        candidate.format,
        made.facts.get("scheme", candidate.scheme),
        target,
        limits,
        size_bytes=_size_bytes(made, candidate.format),
        float_size_bytes=_twin_size_bytes(plan, row, results),
        measured={**accuracy_records(evaluated.facts), **machine, "slower": why, "made": made_lines(made.facts)},
        own_twin=is_own_twin,
        cached=_all_cached(plan, row.evaluate, results),
        error=made.error or evaluated.error or timed.error or cold.error or roofline.error,
    )


def _size_bytes(made: Result, format: str) -> int | None:
    return modelfile.size_bytes(made.folder / model_file(format)) if made.folder else None


def _twin_size_bytes(plan: Plan, row: RowPlan, results: Mapping[str, Result]) -> int | None:
    twin = next(candidate for candidate in plan.candidates if candidate.file == row.candidate.twin)
    return _size_bytes(results[twin.step], twin.format)


def _all_cached(plan: Plan, step: str, results: Mapping[str, Result]) -> bool:
    """Whether a step and everything before it came from the store; what nothing called for does not count."""
    if results[step].record.status == "unneeded":
        return True
    upstream = next(planned for planned in plan.steps if planned.id == step).upstream
    return results[step].cached and all(_all_cached(plan, id, results) for id in upstream)


def _source(plan: Plan, results: Mapping[str, Result]) -> Evaluation | None:
    result = results["evaluate:source"]
    if not result.ok:
        return None
    return Evaluation(
        artifact=f"{plan.project.name} (source, {plan.source_format})",
        runtime=str(next(step for step in plan.steps if step.id == "evaluate:source").options["runtime"]),
        target="source",
        cached=result.cached,
        **accuracy_records(result.facts),
    )


def _deliver(plan: Plan, results: Mapping[str, Result], folder: Path) -> tuple[Artifact, ...]:
    """Copies what was made, and removes models that an earlier run delivered and this one did not make."""
    names = [candidate.file for candidate in plan.candidates if results[candidate.step].ok]
    for name in deliver.mark_output(folder, plan.project.name, names):
        deliver.remove(folder / "models" / name)
    formats = {candidate.step: candidate.format for candidate in plan.candidates} | {"source": plan.source_format}
    delivered = []
    for candidate in plan.candidates:
        made = results[candidate.step]
        if made.folder:
            artifact = deliver.deliver_model(
                made,
                folder / "models" / candidate.file,
                name=plan.project.name,
                format=candidate.format,
                scheme=made.facts.get("scheme", candidate.scheme),
                parent_sha256=deliver.parent_digest(candidate, results, formats),
                evidence={**deliver.source_evidence(results["source"].facts), **_calibration_facts(plan, candidate, results)},
            )
            delivered.append(artifact)
    return tuple(delivered)


def _calibration_facts(plan: Plan, candidate: Candidate, results: Mapping[str, Result]) -> dict[str, Any]:
    """Which samples a candidate was calibrated with."""
    needs = next(step for step in plan.steps if step.id == candidate.step).needs
    return {"calibration_samples": results["calibration"].facts} if "calibration" in needs else {}


def write_reports(report: Report, folder: Path) -> None:
    """Writes the report in every form; ``report.json`` last, as programs wait for it.

    A new folder is marked as filled by Edgekit, so that a report inside a project does not change what the next run computes.

    Raises:
        SetupError: The folder cannot be written.
    """
    deliver.mark_new(folder)
    for name, renderer in _FORMS.items():
        deliver.write_text(folder / name, renderer(report))


_FORMS = {
    "report.md": markdown.render,
    "report.html": html.render,
    "report.sarif": sarif.render,
    "junit.xml": junit.render,
    "report.json": json.render,
}
