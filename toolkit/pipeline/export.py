"""``toolkit.export``: a model in, a checked file of another format out."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from toolkit import modelfile, plugins
from toolkit.artifact import Artifact, Signature, TensorSpec
from toolkit.config import PROJECT_FILE, Conversion, Parity, load_project
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected
from toolkit.mistakes import explain
from toolkit.pipeline import deliver, origins
from toolkit.pipeline.conversion import AUTO, Program, convert, of_source
from toolkit.pipeline.execute import Result, preload
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
    read_manifest,
    run_steps,
)
from toolkit.pipeline.steps import Step, model_file
from toolkit.sources import variants
from toolkit.store import Store
from toolkit.worker import Workers

_REAL = (FLOAT, "float16")
_ROUNDED_SQNR_DB = 20.0
_QUANTIZING = (b"DequantizeLinear", b"QLinear", b"MatMulInteger", b"ConvInteger")


def export(
    model: Any,
    example_inputs: Any = None,
    *,
    format: str,
    output: str | Path | None = None,
    name: str | None = None,
    output_names: Sequence[str] = (),
    weights: str | Path | None = None,
    task: str | None = None,
    route: str = AUTO,
    opset: int | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    layout: str | None = None,
    batch_sizes: Sequence[int] = (),
    rewrites: Sequence[str] = (),
    clean_up: bool = True,
    min_sqnr_db: float | None = None,
    store: Store | None = None,
    listener: Listener | None = None,
) -> Artifact:
    """Converts a model, and publishes the file only if it computes what the model computes.

    Args:
        model: A live model of PyTorch, Keras, TensorFlow or JAX, in inference mode; a model of a collection by its name, such as
            ``torchvision:mobilenet_v2``; a folder that transformers saved; a model file or SavedModel folder; or a project folder.
        example_inputs: Real samples, by input name or in the order of the model's parameters, samples along the first
            axis (``[n x ...]``); a path to ``.npz`` or a folder of ``.npy`` files is taken too. Parity is measured on the
            first 64. Needed for a live model; a file without them is compared on random inputs, a named model on inputs that its
            collection makes up, and the manifest says so.
        format: ``onnx``, ``tflite``, or another that :func:`toolkit.doctor` lists routes to.
        output: File to write; ``<name>.float32.<format>`` in the current folder by default.
        name: The model's name; taken from the file or the class by default.
        output_names: Names for the model's outputs, in order.
        weights: Weights of a named model: the collection's own name for them, such as ``DEFAULT``, or a ``.safetensors`` file.
        task: What a named model shall do, where its name leaves that open.
        route: Name of the only route to take; ``auto`` tries all that lead to the format, the most trusted first, and takes the first
            whose file computes what the source computes.
        opset: ONNX operator set.
        dynamic: Sizes that stay free, by input and axis: ``{"input_ids": {0: "batch<=8", 1: "16<=sequence<=128"}}``; bounds may be left
            out.
        layout: ``channels_last`` gives four-dimensional image inputs as ``[n x h x w x c]``.
        batch_sizes: Batch sizes that one file shall take, each as a signature of its own.
        rewrites: Names of the rewrites that may be applied to what the target cannot execute.
        clean_up: Whether the graph is simplified where that changes no output.
        min_sqnr_db: Lowest signal-to-noise ratio against the source, in dB; 60 by default, 20 for a source that computes with integers,
            which runtimes round differently.
        store: Where stage outputs are kept; the user's cache by default.
        listener: Who hears about progress.

    Returns:
        The delivered file with its manifest, whose evidence says which routes were tried.

    Raises:
        ConfigError: The arguments do not fit together.
        InputRejected: The file or the samples must not be used, or the model is in training mode.
        MissingExtra: The route's framework is not installed.
        NoRoute: Nothing converts this model to ``format``, or every route's preflight found operators that it lacks.
        ParityFailed: The converted file computes something else.
        StageError: The routes failed; the message has a line for each.
    """
    check_name(name)
    options = {"route": route, "opset": opset, "dynamic": dynamic or {}, "layout": layout, "rewrites": rewrites, "clean_up": clean_up}
    conversion = _conversion(**options, batch_sizes=batch_sizes)
    by_name = origins.find_named(str(model)) if isinstance(model, str | Path) else None
    if not by_name and (weights is not None or task is not None):
        hint = "name a model like torchvision:mobilenet_v2, or leave them out"
        raise ConfigError("weights and task go with the name of a collection's model", where="weights" if weights is not None else "task", hint=hint)
    with Workers() as workers:
        wanted = _Wanted(format, output, name, tuple(output_names), conversion, _parity(min_sqnr_db, FLOAT), min_sqnr_db, store, listener, workers)
        if by_name:
            return _from_name(replace(by_name, weights=origins.weights_of(weights), task=task), example_inputs, wanted)
        return _from_path(Path(model), example_inputs, wanted) if isinstance(model, str | Path) else _from_object(model, example_inputs, wanted)


def _from_path(path: Path, example_inputs: Any, wanted: _Wanted) -> Artifact:
    is_project = path.suffix == ".toml" or (path.is_dir() and (path / PROJECT_FILE).exists())
    if not path.exists() and path.parts and ":" in path.parts[0] and not path.drive:
        origins.named(str(path), Path())  # which says what is wrong with it
    if path.is_dir() and not is_project and not plugins.format_of(path):
        known = ", ".join(modelfile.FOLDERS)
        hint = f"give a model file, a project with {PROJECT_FILE}, a folder that transformers saved, or a model that is a folder: {known}"
        raise ConfigError("holds no model and no project", where=str(path), hint=hint)
    return _from_project(path, wanted) if is_project else _from_file(path, example_inputs, wanted)


@dataclass(frozen=True)
class _Wanted:
    """What every kind of source is asked for."""

    format: str
    output: str | Path | None
    name: str | None
    output_names: tuple[str, ...]
    conversion: Conversion
    parity: Parity
    min_sqnr_db: float | None
    store: Store | None
    listener: Listener | None
    workers: Workers

    def path(self, name: str, source: Path | None = None, scheme: str = FLOAT) -> Path:
        return output_path(self.output, name, scheme, self.format, source)

    def convert(self, program: Program) -> tuple[Step, ...]:
        return convert(program, self.format, self.conversion, self.parity)

    def run(self, steps: list[Step]) -> dict[str, Result]:
        return run_steps(steps, self.store, self.listener, workers=self.workers)

    def deliver(
        self, made: Mapping[str, Result], steps: Sequence[Step], out: Path, name: str, parent_sha256: str, scheme: str = FLOAT, **evidence: Any
    ) -> Artifact:
        *before, last = (made[step.id] for step in steps)
        if before:
            evidence["via"] = [one.facts["made_by"] for one in before]
        return deliver.deliver_model(last, out, name=name, format=self.format, scheme=scheme, parent_sha256=parent_sha256, evidence=evidence)


def _conversion(**options: Any) -> Conversion:
    try:
        return Conversion(**options)
    except ValidationError as error:
        raise explain(Conversion, error, "export") from error


def _parity(min_sqnr_db: float | None, scheme: str) -> Parity:
    if min_sqnr_db is None:
        return Parity() if scheme in _REAL else Parity(min_sqnr_db=_ROUNDED_SQNR_DB)
    if not math.isfinite(min_sqnr_db):
        hint = "float routes measure 100 dB and more; 60 is usual"
        raise ConfigError(f"expected a number of dB, found {min_sqnr_db}", where="min_sqnr_db", hint=hint)
    return Parity(min_sqnr_db=min_sqnr_db)


def _from_project(project: Path, wanted: _Wanted) -> Artifact:
    """Runs a project's steps up to the conversion, which its own ``[convert]`` table describes where nothing else is asked for."""
    settings, folder = load_project(project)
    if wanted.conversion != Conversion():
        given = wanted.conversion.model_dump(exclude_defaults=True)
        settings = settings.model_copy(update={"convert": settings.convert.model_copy(update=given)})
    plan = make_plan(settings, folder)
    candidate = next((c for c in plan.candidates if (c.format, c.scheme) == (wanted.format, FLOAT)), None)
    if candidate is None:
        known = ", ".join(sorted({c.format for c in plan.candidates}))
        raise ConfigError(f"the project's targets run {known}, not {wanted.format}", where=str(project), hint="add a target that does")
    name = plan.project.name
    out = wanted.path(name)
    timeout_seconds = plan.project.timing.stage_timeout_seconds
    results = run_steps(ancestors(plan.steps, candidate.step), wanted.store, wanted.listener, timeout_seconds=timeout_seconds, workers=wanted.workers)
    parent = deliver.parent_digest(candidate, results, {"source": plan.source_format})
    last = [step for step in plan.steps if step.id == candidate.step]
    return wanted.deliver(results, last, out, name, parent, **deliver.source_evidence(results["source"].facts))


def ancestors(planned: Sequence[Step], last: str) -> list[Step]:
    """The steps that one step needs, itself included, in order."""
    needed = {last}
    for step in reversed(planned):
        if step.id in needed:
            needed |= step.upstream
    return [step for step in planned if step.id in needed]


def _from_name(model: origins.Named, samples: Samples | None, wanted: _Wanted) -> Artifact:
    """Has a collection build the model in a process of its own, captures it there, and converts it."""
    name = wanted.name or model.title
    out = wanted.path(name)
    origins.check_dynamic(model.source, wanted.conversion)
    format = model.source.format
    converting = wanted.convert(of_source(format))
    with on_disk(samples) if samples is not None else nullcontext() as path:
        made = wanted.run([origins.from_name(model, wanted.parity, wanted.conversion, path, wanted.output_names), *converting])
    source = made["source"]
    assert source.folder is not None
    evidence = {**deliver.source_evidence(source.facts), "parity_inputs": "made-up samples" if samples is None else "real samples"}
    return wanted.deliver(made, converting, out, name, modelfile.sha256(source.folder / model_file(format)), **evidence)


def _from_file(file: Path, samples: Samples | None, wanted: _Wanted) -> Artifact:
    """Records what a model file computes, and converts it."""
    source_format = check_bytes(file)
    scheme = _scheme(file, source_format, wanted.store)
    wanted = replace(wanted, parity=_parity(wanted.min_sqnr_db, scheme))
    converting = wanted.convert(replace(of_source(source_format), scheme=scheme))
    name = wanted.name or file.resolve().name.split(".")[0]
    out = wanted.path(name, file, scheme)
    with on_disk(samples) if samples is not None else nullcontext() as path:
        source = origins.from_file(file, source_format, wanted.parity, wanted.conversion, path, wanted.output_names, scheme=scheme)
        results = wanted.run([source, *converting])
    evidence = {**deliver.source_evidence(results["source"].facts), "parity_inputs": "real samples" if samples is not None else "random"}
    return wanted.deliver(results, converting, out, name, modelfile.sha256(file), scheme, **evidence)


def _scheme(file: Path, format: str, store: Store | None) -> str:
    """What a file's numbers are: by its manifest, or, where an ONNX file names operators that quantize, by what is read back from it."""
    manifest = read_manifest(file)
    if manifest is not None and manifest.scheme != "unknown":
        return manifest.scheme
    return open_model(file, store)[0].scheme if format == "onnx" and modelfile.mentions(file, _QUANTIZING) else FLOAT


def _from_object(model: Any, examples: Any, wanted: _Wanted) -> Artifact:
    """Captures a live object here, as it cannot cross to another process; everything after that goes by files."""
    source = _source(model)
    plugins.require(source)
    samples = _named(source, model, examples).take(slice(0, wanted.parity.samples))
    _check_finite(samples)
    origins.check_dynamic(source, wanted.conversion)
    first, *_ = wanted.convert(of_source(source.format))  # what leads nowhere is not captured
    name = wanted.name or type(model).__name__
    out = wanted.path(name)
    with tempfile.TemporaryDirectory(prefix="edgekit-capture-") as scratch:
        wanted.workers.prepare(preload(first))  # a framework takes as long to import as a model to capture
        program = _capture(source, model, samples, Path(scratch), wanted)
        converting = wanted.convert(program)
        made = wanted.run(list(converting))
        assert isinstance(program.file, Path) and isinstance(program.signature, Signature)
        digest, output = modelfile.sha256(program.file), program.signature.outputs[0].name
        told = {**_notes(source, model), **variants.facts(wanted.conversion.dynamic)}
        return wanted.deliver(made, converting, out, name, digest, output=output, **told)


def _notes(source: Any, model: Any) -> dict[str, list[str]]:
    notes = list(source.notes(model)) if hasattr(source, "notes") else []
    return {"notes": notes} if notes else {}


def _capture(source: Any, model: Any, samples: Dataset, folder: Path, wanted: _Wanted) -> Program:
    """Writes the program, and beside it what the live model computes: on the samples, and at other sizes where sizes stay free."""
    file, expected = folder / model_file(source.format), folder / "expected"
    dynamic: dict[str, Any] = wanted.conversion.dynamic
    variants.check(dynamic, samples.columns)
    free = {"dynamic": dynamic} if dynamic else {}
    outputs = source.capture(model, samples.columns, file, outputs=wanted.output_names, **free)
    samples.write(expected / "inputs")
    Dataset(outputs, None, "outputs").write(expected / "outputs")
    if not dynamic:
        return Program(source.format, file, Signature(inputs=_specs(samples.columns), outputs=_specs(outputs)), expected)
    runner = source.runner(model, file, samples.columns, outputs=wanted.output_names)
    return Program(source.format, file, variants.record(runner, samples.columns, outputs, dynamic, expected), expected)


def _source(model: Any) -> plugins.Source:
    found: plugins.Source | None = next((source for source in plugins.discover("sources").values() if source.accepts(model)), None)
    if found is None:
        known = ", ".join(dict.fromkeys(source.framework for source in plugins.discover("sources").values()))
        raise ConfigError(f"cannot capture a {type(model).__module__}.{type(model).__name__}", hint=f"give a model of: {known}; or a model file")
    return found


def _named(source: plugins.Source, model: Any, examples: Any) -> Dataset:
    """Names positional examples as the source knows the model's inputs."""
    if examples is None:
        raise ConfigError("a live model needs example inputs", hint="pass real samples, for example {'image': array [n x c x h x w]}")
    if isinstance(examples, Mapping | Dataset):
        samples = as_dataset(examples)
        return Dataset(samples.columns, None, samples.where)
    given = examples if isinstance(examples, tuple | list) else (examples,)
    names = list(source.input_names(model)) if hasattr(source, "input_names") else []
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
