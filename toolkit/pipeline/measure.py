"""``toolkit.evaluate``, ``toolkit.benchmark`` and ``toolkit.check``: one model file, measured and judged on one target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from toolkit import environment, plugins, resources
from toolkit.artifact import Artifact
from toolkit.columns import random_samples
from toolkit.config import Metrics, Target, Task, Timing, check_metrics, make_budgets
from toolkit.errors import ConfigError
from toolkit.evidence import Benchmark, Evaluation, Report
from toolkit.limits import WITH_TWIN, Budgets, check_against
from toolkit.mistakes import explain, nearest
from toolkit.pipeline import baseline as baselines
from toolkit.pipeline import measuring, slower
from toolkit.pipeline.execute import Result
from toolkit.pipeline.listener import Listener
from toolkit.pipeline.rows import accuracy_records, benchmark_notes, curve_records, machine_records, make_row, read_outcomes, refuse_unmeasured
from toolkit.pipeline.single import Samples, on_disk, open_model, run_steps, runtime_of
from toolkit.pipeline.steps import Need, Step
from toolkit.store import Store

Model = Artifact | str | Path


def evaluate(
    artifact: Model,
    data: Samples,
    *,
    target: str | Target = "desktop-ort",
    reference: Model | None = None,
    task: Task = "image-classification",
    output: str | None = None,
    classes: Sequence[str] = (),
    metrics: Metrics | Mapping[str, Any] | None = None,
    store: Store | None = None,
    listener: Listener | None = None,
) -> Evaluation:
    """Measures a task's metrics on the target's runtime, and their paired changes against a reference on the same samples.

    Args:
        artifact: The model file.
        data: Held-out samples by input name, with the answers as ``label``; or a path to them.
        target: A shipped target's name, a path to a ``.toml`` file, or a target.
        reference: A model of any executable format to compare with, usually the float source.
        task: What the model does.
        output: Name of the output that answers; needed when that cannot be told from the file.
        classes: Names of the classes, by index; the symbols for speech recognition.
        metrics: Which metric is the primary one, and which class is the positive one; see :class:`toolkit.config.Metrics`.
        store: Where stage outputs are kept; the user's cache by default.
        listener: Who hears about progress.

    Returns:
        Every metric with its interval, the changes, what happened to each class, and the label flips.

    Raises:
        ConfigError: An unknown target, or one whose runtime does not execute this format.
        InputRejected: The model or the samples must not be used.
        MissingExtra: The runtime is not installed.
        StageError: The runtime failed, or ran out of the target's memory.
    """
    question = _question(task, output, classes, metrics, Budgets())
    opened, _ = open_model(artifact, store)
    place = _target(target)
    with on_disk(data) as samples:
        result = run_steps(_evaluation_steps(opened, samples, place, reference, question, store), store, listener)["evaluate"]
    return Evaluation(
        artifact=opened.path.name,
        runtime=place.runtime,
        target=place.name,
        stand_in=place.stand_in,
        cached=result.cached,
        left_out=result.facts["left_out"],
        **accuracy_records(result.facts),
    )


def benchmark(
    artifact: Model,
    *,
    target: str | Target = "desktop-ort",
    baseline: Model | None = None,
    data: Samples | None = None,
    seconds: float = 1.0,
    batches: Sequence[int] = (),
    threads: Sequence[int] = (),
    store: Store | None = None,
    listener: Listener | None = None,
) -> Benchmark:
    """Times one inference at a time, interleaved with a baseline of the same format; measures cold start, memory and the roofline.

    Args:
        artifact: The model file.
        target: A shipped target's name, a path to a ``.toml`` file, or a target.
        baseline: The model that the ratio is taken against, usually the float twin.
        data: Samples to feed; random ones by default.
        seconds: Timed seconds for each model.
        batches: Batch sizes of a throughput curve; none is drawn when this and ``threads`` are empty.
        threads: Thread counts of the curve; the target's by default.
        store: Where stage outputs are kept; latencies never are.
        listener: Who hears about progress.

    Raises:
        ConfigError: An unknown target, or one whose runtime does not execute this format.
        InputRejected: A model or the samples must not be used.
        MissingExtra: The runtime is not installed.
        StageError: The runtime failed.
    """
    opened, contents = open_model(artifact, store)
    place = _target(target)
    for name, values in (("batches", batches), ("threads", threads)):
        if any(not isinstance(value, int) or value < 1 for value in values):
            raise ConfigError(f"expected whole numbers from 1, found {list(values)}", where=name, hint="for example 1, 2, 4")
    with on_disk(data if data is not None else random_samples(contents.signature)) as samples:
        chain = _machine_steps(opened, samples, place, _opened_baseline(baseline, place, store), seconds, processes=5)
        if batches or threads:
            chain.append(
                measuring.curve("curve", opened.path, samples, runtime_of(place, opened), place, Timing(seconds=seconds), batches or (1,), threads)
            )
        results = run_steps(chain, store, listener)
    curve = results["curve"].facts if "curve" in results else {}
    notes = benchmark_notes(_ROLES.candidate, results["benchmark"].facts, results["coldstart"].facts, curve)
    measured = _machine(place, results)
    why = slower.explain(opened.path, measured["latency_ms"], place, store) if _is_quantized(opened) else None
    record = {"curve": curve_records(curve), "notes": notes, "slower": why, **measured}
    return Benchmark(artifact=opened.path.name, runtime=place.runtime, target=place.name, **record)


def check(
    artifact: Model,
    data: Samples,
    *,
    target: str | Target = "desktop-ort",
    reference: Model | None = None,
    budgets: Budgets | Mapping[str, Any] | None = None,
    task: Task = "image-classification",
    output: str | None = None,
    classes: Sequence[str] = (),
    metrics: Metrics | Mapping[str, Any] | None = None,
    seconds: float = 1.0,
    baseline: str | Path | None = None,
    store: Store | None = None,
    listener: Listener | None = None,
) -> Report:
    """Evaluates, times and judges one model file.

    Args:
        artifact: The model file.
        data: Held-out samples with ``label``, or a path to them.
        target: A shipped target's name, a path to a ``.toml`` file, or a target.
        reference: The float source; ``max_drop`` is judged against it, and the ratios when its format is the same.
        budgets: Limits, as :class:`toolkit.Budgets` or a dictionary; the target's own apply where these say nothing.
        task: What the model does.
        output: Name of the output that answers; needed when that cannot be told from the file.
        classes: Names of the classes, by index; the symbols for speech recognition.
        metrics: Which metric is the primary one, and which class is the positive one; see :class:`toolkit.config.Metrics`.
        seconds: Timed seconds.
        baseline: A committed baseline file that the evidence is held against too.
        store: Where stage outputs are kept; the user's cache by default.
        listener: Who hears about progress.

    Returns:
        A report with one row.

    Raises:
        ToolkitError: As :func:`evaluate` and :func:`benchmark`.
    """
    own = budgets if isinstance(budgets, Budgets) else make_budgets(dict(budgets or {}))
    question = _question(task, output, classes, metrics, own)
    committed = baselines.load(Path(baseline)) if baseline is not None else None
    opened, _ = open_model(artifact, store)
    place = _target(target)
    twin = open_model(reference, store)[0] if reference is not None else None
    same_format = twin is not None and twin.format == opened.format
    _comparable(own, opened, twin)
    limits = own.over(place.budgets)
    check_against(limits, memory_mb=place.memory_mb, where="budgets")
    if committed is not None:
        baselines.check_recorded(committed, opened.path.name, place.name, str(baseline))
    with on_disk(data) as samples:
        timing = _machine_steps(opened, samples, place, twin if same_format else None, seconds, processes=measuring.COLD_PROCESSES)
        results = run_steps([*_evaluation_steps(opened, samples, place, reference, question, store), *timing], store, listener)
    refuse_unmeasured(limits, results["evaluate"].facts)
    measured = _machine(place, results)
    why = slower.explain(opened.path, measured.get("latency_ms"), place, store) if _is_quantized(opened) else None
    row = make_row(
        opened.path.name,
        opened.format,
        opened.scheme,
        place,
        limits,
        size_bytes=opened.size_bytes,
        float_size_bytes=twin.size_bytes if twin and same_format else None,
        own_twin=opened.scheme == "float32" and reference is None,
        measured={**accuracy_records(results["evaluate"].facts), **measured, "slower": why},
        cached=results["evaluate"].cached,
    )
    report = Report(
        schema=2,
        project=opened.manifest.name,
        verdict=row.verdict,
        source=_reference_evaluation(twin, results),
        rows=(row,),
        stages=tuple(result.record for result in results.values()),
        environment=environment.describe(),
    )
    right = read_outcomes(results["evaluate"].folder)
    return baselines.hold(report, {} if right is None else {(row.artifact, row.target): right}, committed, whole=False) if committed else report


@dataclass(frozen=True)
class _Question:
    """What is asked of a model's outputs."""

    task: Task
    output: str | None
    classes: tuple[str, ...]
    metrics: Metrics


@dataclass(frozen=True)
class _Roles:
    """Names of the two models in a timing step; free of what a file may be called."""

    candidate: str = "candidate"
    baseline: str = "baseline"


_ROLES = _Roles()


def _question(task: Task, output: str | None, classes: Sequence[str], metrics: Metrics | Mapping[str, Any] | None, budgets: Budgets) -> _Question:
    if task not in get_args(Task):
        raise ConfigError(f"unknown task {task!r}", where="task", hint=nearest(str(task), list(get_args(Task))))
    try:
        wanted = metrics if isinstance(metrics, Metrics) else Metrics.model_validate(dict(metrics or {}))
        check_metrics(task, wanted, budgets)
    except ValidationError as error:
        raise explain(Metrics, error, "metrics") from error
    except ValueError as error:
        raise ConfigError(str(error), where="metrics", hint="see docs/configuration.md") from error
    return _Question(task, output, tuple(classes), wanted)


def _target(target: str | Target) -> Target:
    return target if isinstance(target, Target) else resources.load_target(target)


def _opened_baseline(baseline: Model | None, target: Target, store: Store | None) -> Artifact | None:
    if baseline is None:
        return None
    opened, _ = open_model(baseline, store)
    runtime_of(target, opened)
    return opened


def _is_quantized(opened: Artifact) -> bool:
    """A float model that is slower than another one has no operators to blame."""
    return opened.scheme != "float32"


def _comparable(budgets: Budgets, opened: Artifact, twin: Artifact | None) -> None:
    """A ratio compares files of one format."""
    for name in WITH_TWIN:
        if getattr(budgets, name) and twin is not None and twin.format != opened.format:
            message = f"{name} compares files of one format; the model is {opened.format}, the reference {twin.format}"
            raise ConfigError(message, where=str(twin.path), hint=f"give the float {opened.format} file as the reference")


def _evaluation_steps(
    opened: Artifact, samples: Path, target: Target, reference: Model | None, question: _Question, store: Store | None
) -> list[Step]:
    """The reference first, on the runtime of its own format, then the candidate on the target's."""
    runtime = runtime_of(target, opened)
    shared: dict[str, Any] = {"task": question.task, "classes": question.classes, "metrics": question.metrics}
    chain = []
    if reference is not None:
        other, _ = open_model(reference, store)
        own = plugins.runtime_for(other.format)
        output = question.output or other.manifest.evidence.get("output")
        chain.append(
            measuring.evaluate("evaluate:reference", other.path, samples, own, threads=1, memory_mb=None, reference=None, output=output, **shared)
        )
    chain.append(
        measuring.evaluate(
            "evaluate",
            opened.path,
            samples,
            runtime,
            threads=target.threads,
            memory_mb=target.memory_mb,
            reference=Need("evaluate:reference") if reference is not None else None,
            output=question.output or opened.manifest.evidence.get("output"),
            **shared,
        )
    )
    return chain


def _machine_steps(opened: Artifact, samples: Path, target: Target, baseline: Artifact | None, seconds: float, *, processes: int) -> list[Step]:
    if not isinstance(seconds, int | float) or not seconds > 0:
        raise ConfigError(f"expected a positive number, found {seconds!r}", where="seconds", hint="give the time to measure each model for")
    runtime = runtime_of(target, opened)
    candidate: dict[str, Need | Path] = {_ROLES.candidate: opened.path}
    models = {**candidate, **({_ROLES.baseline: baseline.path} if baseline else {})}
    timing = Timing(seconds=float(seconds))
    return [
        measuring.benchmark("benchmark", models, samples, runtime, target, timing, baseline=_ROLES.baseline if baseline else None),
        measuring.roofline("roofline", candidate, opened.format, target),
        measuring.cold("coldstart", candidate, samples, runtime, target, processes=processes),
    ]


def _machine(target: Target, results: Mapping[str, Result]) -> dict[str, Any]:
    """What was measured of the candidate on this machine."""
    timed, cold, roofline = (results[step].facts for step in ("benchmark", "coldstart", "roofline"))
    return machine_records(_ROLES.candidate, timed, cold, roofline, target.stand_in)


def _reference_evaluation(twin: Artifact | None, results: Mapping[str, Result]) -> Evaluation | None:
    if twin is None:
        return None
    result = results["evaluate:reference"]
    runtime = plugins.runtime_for(twin.format).name
    return Evaluation(artifact=twin.path.name, runtime=runtime, target="source", cached=result.cached, **accuracy_records(result.facts))
