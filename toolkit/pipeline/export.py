"""``toolkit.export``: a model in, a checked file of another format out."""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import plugins
from toolkit.artifact import Artifact, Signature, TensorSpec
from toolkit.config import Parity, load_project
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected, NoRoute
from toolkit.pipeline import deliver, steps
from toolkit.pipeline.execute import Result
from toolkit.pipeline.listener import Listener
from toolkit.pipeline.plan import FLOAT, make_plan
from toolkit.pipeline.single import (
    Samples,
    as_array,
    as_dataset,
    check_bytes,
    check_name,
    on_disk,
    open_model,
    output_path,
    random_samples,
    run_steps,
)
from toolkit.pipeline.steps import Fact, Need, Step, model_file
from toolkit.store import Store, digest_file


def export(
    model: Any,
    example_inputs: Any = None,
    *,
    format: str,
    output: str | Path | None = None,
    name: str | None = None,
    output_names: Sequence[str] = (),
    route: str | None = None,
    min_sqnr_db: float = 60.0,
    store: Store | None = None,
    listener: Listener | None = None,
) -> Artifact:
    """Converts a model, and publishes the file only if it computes what the model computes.

    Args:
        model: A live model (``torch.nn.Module`` in evaluation mode), a program file (``.pt2``), or a project folder.
        example_inputs: Real samples, by input name or in the order of the model's parameters, samples along the first
            axis (``[n x ...]``); a path to ``.npz`` or a folder of ``.npy`` files is taken too. Parity is measured on the
            first 64. Needed for a live model; a file without them is compared on random inputs, and the manifest says so.
        format: ``onnx``, ``tflite``, or a plugin's.
        output: File to write; ``<name>.float32.<format>`` in the current folder by default.
        name: The model's name; taken from the file or the class by default.
        output_names: Names for a live model's outputs, in order.
        route: Name of the route to take; the first installed one by default.
        min_sqnr_db: Lowest signal-to-noise ratio against the source, in dB.
        store: Where stage outputs are kept; the user's cache by default.
        listener: Who hears about progress.

    Returns:
        The delivered file with its manifest.

    Raises:
        ConfigError: The arguments do not fit together.
        InputRejected: The file or the samples must not be used, or the model is in training mode.
        MissingExtra: The route's framework is not installed.
        NoRoute: Nothing converts this model to ``format``.
        ParityFailed: The converted file computes something else.
        StageError: The framework failed.
    """
    check_name(name)
    if not math.isfinite(min_sqnr_db):
        raise ConfigError(
            f"expected a number of dB, found {min_sqnr_db}", where="min_sqnr_db", hint="float routes measure 100 dB and more; 60 is usual"
        )
    wanted = _Wanted(format, output, name, route, Parity(min_sqnr_db=min_sqnr_db), store, listener)
    if not isinstance(model, str | Path):
        return _from_object(model, example_inputs, tuple(output_names), wanted)
    path = Path(model)
    return _from_project(path, wanted) if path.is_dir() or path.suffix == ".toml" else _from_file(path, example_inputs, wanted)


@dataclass(frozen=True)
class _Wanted:
    """What every kind of source is asked for."""

    format: str
    output: str | Path | None
    name: str | None
    route: str | None
    parity: Parity
    store: Store | None
    listener: Listener | None

    def path(self, name: str, source: Path | None = None) -> Path:
        return output_path(self.output, name, FLOAT, self.format, source)

    def deliver(self, made: Result, out: Path, name: str, parent_sha256: str, **evidence: Any) -> Artifact:
        return deliver.deliver_model(made, out, name=name, format=self.format, scheme=FLOAT, parent_sha256=parent_sha256, evidence=evidence)


def _from_project(project: Path, wanted: _Wanted) -> Artifact:
    """Runs a project's steps up to the conversion."""
    plan = make_plan(*load_project(project))
    candidate = next((c for c in plan.candidates if (c.format, c.scheme) == (wanted.format, FLOAT)), None)
    if candidate is None:
        known = ", ".join(sorted({c.format for c in plan.candidates}))
        raise ConfigError(f"the project's targets run {known}, not {wanted.format}", where=str(project), hint="add a target that does")
    name = plan.project.name
    out = wanted.path(name)
    timeout_seconds = plan.project.timing.stage_timeout_seconds
    results = run_steps(ancestors(plan.steps, candidate.step), wanted.store, wanted.listener, timeout_seconds=timeout_seconds)
    parent = deliver.parent_digest(candidate, results, {"source": plan.source_format})
    return wanted.deliver(results[candidate.step], out, name, parent, output=results["source"].facts["output"])


def ancestors(planned: Sequence[Step], last: str) -> list[Step]:
    """The steps that one step needs, itself included, in order."""
    needed = {last}
    for step in reversed(planned):
        if step.id in needed:
            needed |= step.upstream
    return [step for step in planned if step.id in needed]


def _from_file(file: Path, samples: Samples | None, wanted: _Wanted) -> Artifact:
    """Records what a program file computes, and converts it."""
    source_format = check_bytes(file)
    route = _route(source_format, wanted.format, wanted.route)
    name = wanted.name or file.name.split(".")[0]
    out = wanted.path(name, file)
    given = samples if samples is not None else random_samples(open_model(file, wanted.store)[1].signature)
    with on_disk(given) as path:
        source = steps.source_from_file(file, source_format, wanted.parity, path)
        program = Need("source", model_file(source_format))
        convert = steps.convert(program, route, Fact("source", "signature"), Need("source", "expected"), wanted.parity)
        results = run_steps([source, convert], wanted.store, wanted.listener)
    evidence = {"output": results["source"].facts["output"], "parity_inputs": "real samples" if samples is not None else "random"}
    return wanted.deliver(results[convert.id], out, name, digest_file(file), **evidence)


def _from_object(model: Any, examples: Any, output_names: tuple[str, ...], wanted: _Wanted) -> Artifact:
    """Captures a live object here, as it cannot cross to another process; everything after that goes by files."""
    source = _source(model)
    plugins.require(source)
    route = _route(source.format, wanted.format, wanted.route)
    samples = _named(model, examples).take(slice(0, wanted.parity.samples))
    _check_finite(samples)
    name = wanted.name or type(model).__name__
    out = wanted.path(name)
    with tempfile.TemporaryDirectory(prefix="edgekit-capture-") as scratch:
        program = Path(scratch) / model_file(source.format)
        expected = source.capture(model, samples.columns, program, outputs=output_names)
        samples.write(Path(scratch) / "expected" / "inputs")
        Dataset(expected, None, "outputs").write(Path(scratch) / "expected" / "outputs")
        signature = Signature(inputs=_specs(samples.columns), outputs=_specs(expected))
        convert = steps.convert(program, route, signature, Path(scratch) / "expected", wanted.parity)
        made = run_steps([convert], wanted.store, wanted.listener)[convert.id]
        return wanted.deliver(made, out, name, digest_file(program), output=next(iter(expected)))


def _source(model: Any) -> plugins.Source:
    found: plugins.Source | None = next((source for source in plugins.discover("sources").values() if source.accepts(model)), None)
    if found is None:
        known = ", ".join(source.framework for source in plugins.discover("sources").values())
        raise ConfigError(f"cannot capture a {type(model).__module__}.{type(model).__name__}", hint=f"give a model of: {known}; or a model file")
    return found


def _route(source: str, format: str, name: str | None) -> plugins.Route:
    """The named route, else the first one whose framework is installed."""
    routes = plugins.routes(source, format)
    if name is None:
        return routes[0]
    for route in routes:
        if route.name == name:
            return route
    raise NoRoute(f"route {name!r} does not convert {source} to {format}; known: {', '.join(route.name for route in routes)}")


def _named(model: Any, examples: Any) -> Dataset:
    """Names positional examples after the parameters of the model's forward function."""
    if examples is None:
        raise ConfigError("a live model needs example inputs", hint="pass real samples, for example {'image': array [n x c x h x w]}")
    if isinstance(examples, Mapping | Dataset):
        samples = as_dataset(examples)
        return Dataset(samples.columns, None, samples.where)
    given = examples if isinstance(examples, tuple | list) else (examples,)
    parameters = inspect.signature(getattr(model, "forward", model)).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)]
    if len(names) < len(given):
        names = [f"input_{index}" for index in range(len(given))]
    return as_dataset({name: as_array(value) for name, value in zip(names, given, strict=False)})


def _check_finite(samples: Dataset) -> None:
    for name, column in samples.columns.items():
        for row in range(len(samples)):
            if column.dtype.kind == "f" and not np.isfinite(column[row]).all():
                raise InputRejected(f"input {name!r} has NaN or Inf in sample {row}", where=samples.where, hint="mend or remove that sample")


def _specs(columns: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=name, dtype=str(column.dtype), shape=(1, *column.shape[1:])) for name, column in columns.items())
