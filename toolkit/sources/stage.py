"""The stage at the entrance: a live model or a finished file becomes a captured program with recorded outputs.

It writes ``model.<format>`` and, as the reference that every later file is held against, ``expected/inputs/<name>.npy``
and ``expected/outputs/<name>.npy`` (``[n x ...]``).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import dataset, intake, plugins
from toolkit.artifact import Signature, TensorSpec
from toolkit.columns import check_columns, one_sample
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected
from toolkit.factory import load_factory
from toolkit.job import Facts, Job

PARITY_SAMPLES = 64


def run(job: Job) -> Facts:
    """Captures a model built by the user's factory, or takes a model file as it is.

    Args:
        job: With option ``file``: inputs ``model`` and ``data``, options ``format`` and ``runtime``. Otherwise: inputs
            ``project``, ``data`` and perhaps ``weights`` (``.safetensors``), options ``factory`` and perhaps
            ``outputs``. ``data`` is a folder or file of samples; option ``samples`` says how many of them are recorded.

    Returns:
        ``format``, ``signature``, ``output`` (name of the first output in the source's own order, which later formats need not
        keep; ``None`` for a file with several outputs of which none was named), ``made_by`` and ``versions``.

    Raises:
        ConfigError: The factory or the runtime does not exist, or no source takes what the factory returns.
        InputRejected: The weights, the file or the samples do not fit the model.
        MissingExtra: The framework is not installed.
        StageFailed: The user's code raises, or the framework cannot capture the model.
    """
    samples = _samples(job)
    facts = _take_file(job, samples) if job.options.get("file") else _capture(job, samples)
    samples.write(job.out / "expected" / "inputs")
    return facts


def _samples(job: Job) -> Dataset:
    data = dataset.load(job.inputs["data"])
    first = data.take(slice(0, int(job.options.get("samples", PARITY_SAMPLES))))
    return Dataset(first.columns, None, first.where)  # labels are answers, not inputs


def _capture(job: Job, samples: Dataset) -> Facts:
    model = load_factory(job.inputs["project"], job.options["factory"])()
    source = _source_for(model)
    plugins.require(source)
    job.progress(0, 2, f"{source.framework} model built")
    model = _prepare(source, model, job.inputs.get("weights"))
    out = job.out / f"model.{source.format}"
    expected = source.capture(model, samples.columns, out, outputs=tuple(job.options.get("outputs") or ()))
    job.progress(2, 2, f"{len(samples)} samples recorded")
    _record(expected, job.out)
    signature = Signature(inputs=_specs(samples.columns), outputs=_specs(expected))
    return _facts(source.format, signature, source)


def _source_for(model: Any) -> Any:
    sources = plugins.discover("sources")
    for source in sources.values():
        if source.accepts(model):
            return source
    raise ConfigError(
        f"the factory returned a {type(model).__module__}.{type(model).__qualname__}, which no source captures; installed: {', '.join(sources)}",
        where="factory",
        hint="return the model itself, for example a torch.nn.Module",
    )


def _prepare(source: Any, model: Any, weights: Path | None) -> Any:
    """Loads weights and switches to inference, for sources whose framework has such a thing (``prepare`` is optional)."""
    if hasattr(source, "prepare"):
        return source.prepare(model, weights)
    if weights is not None:
        raise ConfigError(f"source {source.name!r} cannot load {weights.name}", where="weights", hint="load the weights in the factory")
    return model


def _take_file(job: Job, samples: Dataset) -> Facts:
    model, runtime = job.inputs["model"], plugins.get("runtimes", job.options["runtime"])
    plugins.require(runtime)
    format = intake.check_model(model, job.options.get("format"))
    _whole(model, format)
    out = job.out / f"model.{format}"
    shutil.copyfile(model, out)
    session = runtime.open(out, threads=1)
    check_columns(samples, session.signature)
    rows = []
    for row in range(len(samples)):
        rows.append(session.run(one_sample(samples, row, session.signature)))
        job.progress(row + 1, len(samples), "recording outputs")
    expected = {spec.name: np.concatenate([row[spec.name] for row in rows]) for spec in session.signature.outputs}
    _record(expected, job.out)
    inputs = {spec.name: one_sample(samples, 0, session.signature)[spec.name] for spec in session.signature.inputs}
    signature = Signature(inputs=_specs(inputs), outputs=_specs(expected))
    return {**_facts(format, signature, runtime), "output": _scores_of(signature, job.options.get("outputs") or ()), "made_by": "file"}


def _scores_of(signature: Signature, named: Sequence[str]) -> str | None:
    """Returns the output of a file that holds the class scores: as named, or its only one.

    Some formats sort outputs by name, so that the first of several says nothing.
    """
    names = [spec.name for spec in signature.outputs]
    if named and named[0] not in names:
        hint = "name one of the outputs found in model.outputs"
        raise InputRejected(f"the model has no output {named[0]!r}; found {', '.join(names)}", where="model.outputs", hint=hint)
    if named:
        return named[0]
    return names[0] if len(names) == 1 else None


def _whole(model: Path, format: str) -> None:
    reader = plugins.find_reader(format)
    if reader and not plugins.missing_modules(reader) and reader.read(model).details.get("external_data") == "yes":
        hint = "save it as one file: onnx.save(onnx.load(path), other_path)"
        raise InputRejected("keeps its weights in another file, which would be left behind", where=model.name, hint=hint)


def _record(expected: dict[str, np.ndarray], out: Path) -> None:
    if not expected:
        raise InputRejected("the model has no outputs", where="outputs", hint="return at least one tensor")
    for name in expected:
        if not name or Path(name).name != name or "\\" in name:
            raise InputRejected(f"output name {name!r} cannot be a file name", where="outputs", hint="rename that output in the model")
    Dataset(expected, None, "outputs").write(out / "expected" / "outputs")


def _specs(columns: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=name, dtype=str(column.dtype), shape=(1, *column.shape[1:])) for name, column in columns.items())


def _facts(format: str, signature: Signature, plugin: Any) -> Facts:
    return {
        "format": format,
        "signature": signature.model_dump(mode="json"),
        "output": signature.outputs[0].name,
        "made_by": plugin.name,
        "versions": plugins.versions(plugin),
    }
