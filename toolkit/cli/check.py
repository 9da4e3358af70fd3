"""``edgekit check``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toolkit.cli.common import Format, FormatOption, JobsOption, TaskName, VerboseOption, emit, progress
from toolkit.cli.evaluate import ClassesOption, PositiveOption, PrimaryOption, ReferenceOption, ScoresOption, chosen, read_classes
from toolkit.cli.run import BaselineOption, NoBaselineOption, StrictOption, committed_baseline, refuse_both

if TYPE_CHECKING:
    from toolkit.evidence import Report

_WITH_REFERENCE = ("max_drop", "max_size_ratio", "max_latency_ratio", "min_speedup")


SubjectArgument = Annotated[
    Path, typer.Argument(help="A project, or a model file (then with --data and --target).", show_default="the current folder")
]
DataOption = Annotated[Path | None, typer.Option("--data", "-d", help="Held-out samples with labels, for a model file.", show_default=False)]
TargetOption = Annotated[str | None, typer.Option("--target", "-t", help="A target's name or .toml file, for a model file.", show_default=False)]
MinAccuracyOption = Annotated[str | None, typer.Option("--min-accuracy", help="0.95 or 95%.", show_default=False)]
MaxDropOption = Annotated[str | None, typer.Option("--max-drop", help="Against --reference: 1pp or 0.01.", show_default=False)]
MaxSizeOption = Annotated[int | None, typer.Option("--max-size-bytes", help="Largest model file.", show_default=False)]
MaxSizeRatioOption = Annotated[float | None, typer.Option("--max-size-ratio", help="Against a --reference of the same format.", show_default=False)]
MaxP90Option = Annotated[float | None, typer.Option("--max-latency-p90-ms", help="Largest p90 of one inference, in ms.", show_default=False)]
MaxRatioOption = Annotated[
    float | None, typer.Option("--max-latency-ratio", help="Largest median over that of a --reference of the same format.", show_default=False)
]
MinSpeedupOption = Annotated[
    float | None, typer.Option("--min-speedup", help="Smallest median of a --reference of the same format over this one's.", show_default=False)
]
MaxMemoryOption = Annotated[
    float | None, typer.Option("--max-peak-memory-mb", help="Largest private memory of a fresh process, in MB.", show_default=False)
]
MetricOption = Annotated[
    list[str] | None,
    typer.Option("--metric", help="A limit of one metric, repeatable: roc_auc:min=0.9, macro_f1:max_drop=1pp.", show_default=False),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder for report.md, .html, .json, .sarif and junit.xml.", show_default=False)
]
SecondsOption = Annotated[float | None, typer.Option("--seconds", min=0.05, help="Timed seconds for each model.", show_default="1")]
OneTaskOption = Annotated[TaskName | None, typer.Option("--task", help="What a model file does.", show_default=TaskName.image_classification.value)]


def check(
    subject: SubjectArgument = Path(),
    data: DataOption = None,
    target: TargetOption = None,
    reference: ReferenceOption = None,
    min_accuracy: MinAccuracyOption = None,
    max_drop: MaxDropOption = None,
    max_size_bytes: MaxSizeOption = None,
    max_size_ratio: MaxSizeRatioOption = None,
    max_latency_p90_ms: MaxP90Option = None,
    max_latency_ratio: MaxRatioOption = None,
    min_speedup: MinSpeedupOption = None,
    max_peak_memory_mb: MaxMemoryOption = None,
    metric: MetricOption = None,
    baseline: BaselineOption = None,
    no_baseline: NoBaselineOption = False,
    output: OutputOption = None,
    task: OneTaskOption = None,
    scores: ScoresOption = None,
    classes: ClassesOption = None,
    primary: PrimaryOption = None,
    positive: PositiveOption = None,
    seconds: SecondsOption = None,
    strict: StrictOption = False,
    jobs: JobsOption = None,
    format: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> int:
    """Hold a project or a model file against budgets.

    A project is also held against its committed baseline, when it has one. Exit 0 pass, 1 fail, 6 inconclusive under --strict.
    """
    from toolkit import exit_code, write_reports
    from toolkit.pipeline.deliver import check_writable
    from toolkit.report import text

    given = {
        "min_accuracy": min_accuracy,
        "max_drop": max_drop,
        "max_size_bytes": max_size_bytes,
        "max_size_ratio": max_size_ratio,
        "max_latency_p90_ms": max_latency_p90_ms,
        "max_latency_ratio": max_latency_ratio,
        "min_speedup": min_speedup,
        "max_peak_memory_mb": max_peak_memory_mb,
        "metrics": _metric_limits(metric) if metric else None,
    }
    wanted = {name: value for name, value in given.items() if value is not None}
    refuse_both(baseline, no_baseline=no_baseline)
    if output is not None:
        check_writable(output)
    if subject.is_dir() or subject.suffix in ("", ".toml"):
        for_models: dict[str, object] = {
            "--data": data,
            "--target": target,
            "--reference": reference,
            "--task": task,
            "--scores": scores,
            "budgets": wanted or None,
        }
        for_models |= {"--classes": classes, "--primary": primary, "--positive": positive, "--seconds": seconds}
        report = _project(subject, for_models, committed_baseline(subject, baseline, no_baseline=no_baseline), jobs)
    else:
        question = {
            "task": (task or TaskName.image_classification).value,
            "output": scores,
            "classes": read_classes(classes),
            "metrics": chosen(primary, positive),
            "seconds": seconds or 1.0,
        }
        report = _model(subject, wanted, data, target, reference, baseline, question)
    if output is not None:
        write_reports(report, output)
    emit(report, lambda out: text.render(report, out))
    return exit_code(report, strict=strict)


def _project(subject: Path, for_models: Mapping[str, object], baseline: Path | None, jobs: int | None) -> Report:
    from toolkit import check_project
    from toolkit.errors import ConfigError

    if stray := [name for name, value in for_models.items() if value is not None]:
        raise ConfigError(f"{', '.join(stray)} go with a model file; a project says these itself", hint="write them into edgekit.toml")
    with progress() as listener:
        return check_project(subject, baseline=baseline, listener=listener, jobs=jobs)


def _model(
    subject: Path,
    wanted: Mapping[str, Any],
    data: Path | None,
    target: str | None,
    reference: Path | None,
    baseline: Path | None,
    question: Mapping[str, Any],
) -> Report:
    from toolkit import check as check_model
    from toolkit import inspect as read
    from toolkit.config import make_budgets
    from toolkit.errors import ConfigError

    budgets = make_budgets(dict(wanted))
    with progress() as listener:
        try:
            data, target = _complete(subject, wanted, data, target, reference, baseline)
        except ConfigError:
            read(subject)  # a damaged file is the first thing to tell, whatever else is missing
            raise
        return check_model(subject, data, target=target, reference=reference, budgets=budgets, baseline=baseline, listener=listener, **question)


def _metric_limits(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Reads ``roc_auc:min=0.9`` and its like."""
    from toolkit.errors import ConfigError
    from toolkit.limits import NUMBER_PATTERN

    limits: dict[str, dict[str, Any]] = {}
    for word in words:
        parts = re.fullmatch(r"\s*(\w+)\s*:\s*(\w+)\s*=\s*(.+?)\s*", word)
        if parts is None:
            raise ConfigError(f"--metric {word!r} is not NAME:KEY=VALUE", where="check", hint="for example: --metric roc_auc:min=0.9")
        name, key, value = parts.groups()
        if key in limits.setdefault(name, {}):
            raise ConfigError(f"--metric gives {name}:{key} twice", where="check", hint="give one limit")
        limits[name][key] = float(value) if re.fullmatch(NUMBER_PATTERN, value) else value
    return limits


def _complete(
    subject: Path, wanted: Mapping[str, Any], data: Path | None, target: str | None, reference: Path | None, baseline: Path | None
) -> tuple[Path, str]:
    """A check without a budget would pass whatever it is given, and a budget without its reference is never judged."""
    from toolkit.errors import ConfigError
    from toolkit.limits import Budgets
    from toolkit.resources import load_target

    if data is None or target is None:
        raise ConfigError("a model file needs --data and --target", where=str(subject), hint="or give a project folder")
    if not wanted and baseline is None and load_target(target).budgets == Budgets():
        raise ConfigError(
            "there is no budget to hold it against", where="check", hint="give at least one budget, or a target that has some; or --baseline"
        )
    compared = [f"--{name.replace('_', '-')}" for name in _WITH_REFERENCE if name in wanted]
    compared += [f"--metric {name}:{key}" for name, limits in wanted.get("metrics", {}).items() for key in limits if key in ("max_drop", "max_rise")]
    if compared and reference is None:
        raise ConfigError(f"{compared[0]} needs --reference", where="check", hint="give the float source as --reference")
    return data, target
