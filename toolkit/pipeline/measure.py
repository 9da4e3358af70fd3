"""``toolkit.evaluate``, ``toolkit.benchmark`` and ``toolkit.check``: one model file, measured and judged on one target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from toolkit import environment, plugins, resources
from toolkit.artifact import Artifact
from toolkit.checks import budgets as budget_checks
from toolkit.config import Budgets, Target, Task, make_budgets, nearest
from toolkit.errors import ConfigError
from toolkit.evidence import Benchmark, Change, Evaluation, Latency, Metric, Report, Row
from toolkit.pipeline import steps
from toolkit.pipeline.execute import Result
from toolkit.pipeline.listener import Listener
from toolkit.pipeline.single import Samples, on_disk, open_model, random_samples, run_steps, runtime_of
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
    store: Store | None = None,
    listener: Listener | None = None,
) -> Evaluation:
    """Measures accuracy on the target's runtime, and the paired change against a reference on the same samples.

    Args:
        artifact: The model file.
        data: Held-out samples by input name, with ``label`` ``[n] int``; or a path to them.
        target: A shipped target's name, a path to a ``.toml`` file, or a target.
        reference: A model of any executable format to compare with, usually the float source.
        task: What the model does.
        output: Name of the output that holds the class scores; needed when that cannot be told from the file.
        store: Where stage outputs are kept; the user's cache by default.
        listener: Who hears about progress.

    Returns:
        Accuracy with its interval, sample count, and the change when there is a reference.

    Raises:
        ConfigError: An unknown target, or one whose runtime does not execute this format.
        InputRejected: The model or the samples must not be used.
        MissingExtra: The runtime is not installed.
        StageError: The runtime failed, or ran out of the target's memory.
    """
    opened, _ = open_model(artifact, store)
    place = _target(target)
    with on_disk(data) as samples:
        chain = _evaluation_steps(opened, samples, place, reference, task, output, store)
        return _evaluation(opened, place, run_steps(chain, store, listener)["evaluate"])


def benchmark(
    artifact: Model,
    *,
    target: str | Target = "desktop-ort",
    baseline: Model | None = None,
    data: Samples | None = None,
    seconds: float = 1.0,
    store: Store | None = None,
    listener: Listener | None = None,
) -> Benchmark:
    """Times one inference at a time, interleaved with a baseline of the same format.

    Args:
        artifact: The model file.
        target: A shipped target's name, a path to a ``.toml`` file, or a target.
        baseline: The model that the ratio is taken against, usually the float twin.
        data: Samples to feed; random ones by default.
        seconds: Timed seconds for each model.
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
    with on_disk(data if data is not None else random_samples(contents.signature)) as samples:
        step = _benchmark_step(opened, samples, place, _opened_baseline(baseline, place, store), seconds)
        return _benchmark(opened, place, run_steps([step], store, listener)[step.id])


def check(
    artifact: Model,
    data: Samples,
    *,
    target: str | Target = "desktop-ort",
    reference: Model | None = None,
    budgets: Budgets | Mapping[str, Any] | None = None,
    task: Task = "image-classification",
    output: str | None = None,
    seconds: float = 1.0,
    store: Store | None = None,
    listener: Listener | None = None,
) -> Report:
    """Evaluates, times and judges one model file.

    Args:
        artifact: The model file.
        data: Held-out samples with ``label``, or a path to them.
        target: A shipped target's name, a path to a ``.toml`` file, or a target.
        reference: The float source; ``max_drop`` is judged against it, and the size ratio when its format is the same.
        budgets: Limits, as :class:`toolkit.Budgets` or a dictionary; the target's own apply where these say nothing.
        task: What the model does.
        output: Name of the output that holds the class scores; needed when that cannot be told from the file.
        seconds: Timed seconds.
        store: Where stage outputs are kept; the user's cache by default.
        listener: Who hears about progress.

    Returns:
        A report with one row.

    Raises:
        ToolkitError: As :func:`evaluate` and :func:`benchmark`.
    """
    own = budgets if isinstance(budgets, Budgets) else make_budgets(dict(budgets or {}))
    opened, _ = open_model(artifact, store)
    place = _target(target)
    twin = open_model(reference, store)[0] if reference is not None else None
    same_format = twin is not None and twin.format == opened.format
    if twin and own.max_size_ratio and not same_format:
        message = f"max_size_ratio compares files of one format; the model is {opened.format}, the reference {twin.format}"
        raise ConfigError(message, where=str(twin.path), hint=f"give the float {opened.format} file as the reference")
    with on_disk(data) as samples:
        timing = _benchmark_step(opened, samples, place, twin if same_format else None, seconds)
        results = run_steps([*_evaluation_steps(opened, samples, place, reference, task, output, store), timing], store, listener)
    evaluation = _evaluation(opened, place, results["evaluate"])
    latency = _benchmark(opened, place, results[timing.id]).latency_ms
    findings = budget_checks.judge(
        own.over(place.budgets),
        size_bytes=opened.size_bytes,
        float_size_bytes=twin.size_bytes if twin and same_format else None,
        metric=evaluation.metric,
        change=evaluation.change,
        latency=latency,
        scheme=opened.scheme,
    )
    verdict, reason = budget_checks.row_verdict(findings)
    row = Row(
        artifact=opened.path.name,
        format=opened.format,
        scheme=opened.scheme,
        runtime=place.runtime,
        target=place.name,
        stand_in=place.stand_in,
        size_bytes=opened.size_bytes,
        metric=evaluation.metric,
        change=evaluation.change,
        latency_ms=latency,
        cached=results["evaluate"].cached,
        verdict=verdict,
        reason=reason,
        findings=findings,
    )
    return Report(
        schema=1,
        project=opened.manifest.name,
        verdict=verdict,
        source=_reference_evaluation(twin, results),
        rows=(row,),
        stages=tuple(result.record for result in results.values()),
        environment=environment.describe(),
    )


@dataclass(frozen=True)
class _Roles:
    """Names of the two models in a timing step; free of what a file may be called."""

    candidate: str = "candidate"
    baseline: str = "baseline"


_ROLES = _Roles()


def _target(target: str | Target) -> Target:
    return target if isinstance(target, Target) else resources.load_target(target)


def _opened_baseline(baseline: Model | None, target: Target, store: Store | None) -> Artifact | None:
    if baseline is None:
        return None
    opened, _ = open_model(baseline, store)
    runtime_of(target, opened)
    return opened


def _evaluation_steps(
    opened: Artifact, samples: Path, target: Target, reference: Model | None, task: Task, output: str | None, store: Store | None
) -> list[Step]:
    """The reference first, on the runtime of its own format, then the candidate on the target's."""
    if task not in get_args(Task):
        raise ConfigError(f"unknown task {task!r}", where="task", hint=nearest(str(task), list(get_args(Task))))
    runtime = runtime_of(target, opened)
    chain = []
    if reference is not None:
        other, _ = open_model(reference, store)
        own = plugins.runtime_for(other.format)
        chain.append(
            steps.evaluate(
                "evaluate:reference",
                other.path,
                samples,
                own,
                threads=1,
                memory_mb=None,
                task=task,
                reference=None,
                output=output or other.manifest.evidence.get("output"),
            )
        )
    chain.append(
        steps.evaluate(
            "evaluate",
            opened.path,
            samples,
            runtime,
            threads=target.threads,
            memory_mb=target.memory_mb,
            task=task,
            reference=Need("evaluate:reference") if reference is not None else None,
            output=output or opened.manifest.evidence.get("output"),
        )
    )
    return chain


def _benchmark_step(opened: Artifact, samples: Path, target: Target, baseline: Artifact | None, seconds: float) -> Step:
    if not isinstance(seconds, int | float) or not seconds > 0:
        raise ConfigError(f"expected a positive number, found {seconds!r}", where="seconds", hint="give the time to measure each model for")
    models: dict[str, Need | Path] = {_ROLES.candidate: opened.path}
    if baseline:
        models[_ROLES.baseline] = baseline.path
    return steps.benchmark(
        "benchmark",
        models,
        samples,
        runtime_of(target, opened),
        threads=target.threads,
        seconds=seconds,
        baseline=_ROLES.baseline if baseline else None,
        stand_in=target.stand_in,
    )


def _evaluation(opened: Artifact, target: Target, result: Result) -> Evaluation:
    change = result.facts.get("change")
    return Evaluation(
        artifact=opened.path.name,
        runtime=target.runtime,
        target=target.name,
        metric=Metric.model_validate(result.facts["metric"]),
        change=Change.model_validate(change) if change else None,
        stand_in=target.stand_in,
        cached=result.cached,
    )


def _reference_evaluation(twin: Artifact | None, results: dict[str, Result]) -> Evaluation | None:
    if twin is None:
        return None
    result = results["evaluate:reference"]
    runtime = plugins.runtime_for(twin.format).name
    metric = Metric.model_validate(result.facts["metric"])
    return Evaluation(artifact=twin.path.name, runtime=runtime, target="source", metric=metric, cached=result.cached)


def _benchmark(opened: Artifact, target: Target, result: Result) -> Benchmark:
    latency = Latency.model_validate(result.facts[_ROLES.candidate])
    return Benchmark(artifact=opened.path.name, runtime=target.runtime, target=target.name, latency_ms=latency)
