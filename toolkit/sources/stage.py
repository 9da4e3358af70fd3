"""The stage at the entrance: a live model, a collection's or a finished file becomes a captured program with recorded outputs.

It writes ``model.<format>`` and, as the reference that every later file is held against, ``expected/inputs/<name>.npy``
and ``expected/outputs/<name>.npy`` (``[n x ...]``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import dataset, intake, modelfile, plugins
from toolkit.artifact import Signature, TensorSpec
from toolkit.columns import check_columns, check_named_like, one_sample, random_samples
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected, ToolkitError
from toolkit.factory import load_factory
from toolkit.job import Facts, Job
from toolkit.mistakes import nearest
from toolkit.sources import variants

PARITY_SAMPLES = 64


def run(job: Job) -> Facts:
    """Captures a model that the user's factory or a collection builds, or takes a model file as it is.

    Args:
        job: With option ``file``: inputs ``model`` and perhaps ``data`` (random samples otherwise), options ``format`` and ``runtime``.
            With option ``collection``: options ``model`` (its name there; after an input ``model``, a folder, only its part),
            ``weights``, ``task`` and perhaps ``classes``, inputs ``data`` where there are samples, ``weights`` where they are a file, and
            ``tuned`` (``.safetensors``) after a training for these classes. Otherwise: inputs
            ``project``, ``data`` and perhaps ``weights`` (``.safetensors``), options ``factory`` and perhaps ``framework``. ``data``
            is a folder or file of samples. All kinds: options ``samples``, how many of them are recorded, and perhaps ``outputs`` and
            ``dynamic``.

    Returns:
        ``format``, ``signature``, ``output`` (name of the first output in the source's own order, which later formats need not
        keep; ``None`` for a file with several outputs of which none was named), ``made_by`` and ``versions``; with bounds of free
        sizes ``bounds`` (least and largest by name); for a live model ``notes`` (what its user should know of it, a sentence each); for
        a collection also ``examples`` (``given`` or ``made up``), ``task`` and ``labels``.

    Raises:
        ConfigError: The factory, the collection, its model or the runtime does not exist, no source takes what the factory returns,
            or the source cannot leave sizes free.
        InputRejected: The weights, the file or the samples do not fit the model.
        MissingExtra: The framework is not installed.
        SetupError: A collection's weights are not on this machine.
        StageFailed: The user's code raises, or the framework cannot capture the model.
    """
    if job.options.get("collection"):
        return _take_name(job)
    return _take_file(job) if job.options.get("file") else _take_factory(job, _samples(job))


def _samples(job: Job) -> Dataset:
    data = dataset.load(job.inputs["data"])
    first = data.take(slice(0, int(job.options.get("samples", PARITY_SAMPLES))))
    return Dataset(first.columns, None, first.where)  # labels are answers, not inputs


def _take_factory(job: Job, samples: Dataset) -> Facts:
    model = load_factory(job.inputs["project"], job.options["factory"])()
    source = _source_for(model, job.options.get("framework"))
    plugins.require(source)
    job.progress(0, 2, f"{source.framework} model built")
    if "weights" in job.inputs and hasattr(source, "build"):
        source.build(model, samples.columns)
    model = _prepare(source, model, job.inputs.get("weights"))
    return _capture(job, source, model, samples, tuple(job.options.get("outputs") or ()))


def _take_name(job: Job) -> Facts:
    collection, built = plugins.get("collections", job.options["collection"]), plugins.build(job.inputs, job.options)
    job.progress(0, 2, f"{collection.name} model built")
    source = _source_of(collection.framework)
    made_up = "data" not in job.inputs
    samples = Dataset(built.examples, None, "examples") if made_up else _samples(job)
    check_named_like(samples, built.examples)
    outputs = tuple(job.options.get("outputs") or built.outputs)
    facts = _capture(job, source, _prepare(source, built.model, job.inputs.get("tuned")), samples, outputs)
    if made_up:
        _check_varied(job.out / "expected" / "outputs", f"{job.inputs.get('model', '')}{job.options.get('model') or ''}")
    notes = [*built.notes, *facts["notes"]]
    given = {"examples": "made up" if made_up else "given", "task": built.task, "labels": list(built.labels), "notes": notes}
    return {**facts, **given, "versions": {**plugins.versions(collection), **facts["versions"]}}


def _capture(job: Job, source: Any, model: Any, samples: Dataset, outputs: tuple[str, ...]) -> Facts:
    """Captures a live model; free sizes are handed on only when they are asked for."""
    dynamic = variants.numbered(job.options.get("dynamic") or {})
    variants.check_source(source, dynamic)
    variants.check(dynamic, samples.columns)
    out = job.out / f"model.{source.format}"
    expected = source.capture(model, samples.columns, out, outputs=outputs, **({"dynamic": dynamic} if dynamic else {}))
    job.progress(2, 2, f"{len(samples)} samples recorded")
    _record(samples, expected, job.out)
    signature = Signature(inputs=_specs(samples.columns), outputs=_specs(expected))
    if dynamic:
        run = source.runner(model, out, samples.columns, outputs=outputs)
        signature = variants.record(run, samples.columns, expected, dynamic, job.out / "expected")
    notes = source.notes(model) if hasattr(source, "notes") else ()
    return {**_facts(source.format, signature, source), **variants.facts(dynamic), "notes": list(notes)}


def _source_for(model: Any, framework: str | None) -> Any:
    """Returns the source that takes what a factory returned: the named framework's, or any."""
    sources = list(plugins.discover("sources").values()) if framework is None else [_source_of(framework)]
    for source in sources:
        if not plugins.missing_modules(source) and source.accepts(model):
            return source
    found = f"{type(model).__module__}.{type(model).__qualname__}"
    if framework is None:
        what = f"the factory returned a {found}, which no source captures; installed: {', '.join(source.name for source in sources)}"
        raise ConfigError(what, where="factory", hint="return the model itself, for example a torch.nn.Module")
    plugins.require(sources[0])
    what = f"the factory returned a {found}, which is no model of {framework}"
    raise ConfigError(what, where="factory", hint="return the model itself, or say its framework: model.framework")


def _source_of(framework: str) -> Any:
    sources = list(plugins.discover("sources").values())
    for source in sources:
        if source.framework == framework:
            return source
    known = [source.framework for source in sources]
    raise ConfigError(f"no source captures models of {framework!r}", where="model.framework", hint=nearest(framework, known))


def _prepare(source: Any, model: Any, weights: Path | None) -> Any:
    """Loads weights and switches to inference, for sources whose framework has such a thing (``prepare`` is optional)."""
    if hasattr(source, "prepare"):
        return source.prepare(model, weights)
    if weights is not None:
        raise ConfigError(f"source {source.name!r} cannot load {weights.name}", where="weights", hint="load the weights in the factory")
    return model


def _check_varied(outputs: Path, model: str) -> None:
    """Examples whose outputs are all alike would show nothing about a converted file."""
    recorded = dataset.load(outputs).columns
    if all(len(column) > 1 and not np.ptp(column.astype(np.float64), axis=0).any() for column in recorded.values()):
        hint = "give samples of your own, or trained weights"
        raise InputRejected("all made up examples have the same outputs, so that they show nothing", where=model or "examples", hint=hint)


def _take_file(job: Job) -> Facts:
    given = _samples(job) if "data" in job.inputs else None
    model, runtime = job.inputs["model"], plugins.get("runtimes", job.options["runtime"])
    plugins.require(runtime)
    format = intake.check_model(model, job.options.get("format"))
    out = job.out / f"model.{format}"
    modelfile.copy(model, out)
    with _named_as(model, out):
        session = _open(runtime, out, given)
        samples = random_samples(session.signature) if given is None else given
        check_columns(samples, session.signature)
    columns = {spec.name: samples.columns[spec.name].astype(np.dtype(spec.dtype)) for spec in session.signature.inputs}
    expected = _run_one_by_one(job, session, samples)
    _record(samples, expected, job.out, model.name)
    first = {name: column[:1] for name, column in columns.items()}
    signature = Signature(inputs=_specs(first), outputs=_specs(expected))
    output = _scores_of(signature, job.options.get("outputs") or ())
    if dynamic := variants.numbered(job.options.get("dynamic") or {}):
        _check_free(session.signature, variants.axes(dynamic))
        signature = variants.record(session.run, columns, expected, dynamic, job.out / "expected")
    return {**_facts(format, signature, runtime), **variants.facts(dynamic), "output": output, "made_by": "file"}


@contextmanager
def _named_as(model: Path, copy: Path) -> Iterator[None]:
    """What is wrong with the copy is wrong with the user's file, which is the one that they know."""
    try:
        yield
    except ToolkitError as error:
        error.where = error.where.replace(str(copy), str(model)).replace(copy.name, model.name)
        raise


def _open(runtime: Any, model: Path, samples: Dataset | None) -> Any:
    """Opens a file; a runtime of a format that does not say what it takes has ``open_with``, which learns it from samples."""
    if samples is not None and hasattr(runtime, "open_with"):
        return runtime.open_with(model, threads=1, examples={name: column[:1] for name, column in samples.columns.items()})
    return runtime.open(model, threads=1)


def _run_one_by_one(job: Job, session: Any, samples: Dataset) -> dict[str, np.ndarray]:
    rows = []
    for row in range(len(samples)):
        rows.append(session.run(one_sample(samples, row, session.signature)))
        job.progress(row + 1, len(samples), "recording outputs")
    return {spec.name: np.concatenate([row[spec.name] for row in rows]) for spec in session.signature.outputs}


def _check_free(signature: Signature, dynamic: Mapping[str, Mapping[int, str]]) -> None:
    """Makes sure that a file leaves free what shall be free; a size that it has fixed can no longer be freed."""
    shapes = {spec.name: spec.shape for spec in signature.inputs}
    for name, axes in dynamic.items():
        if name not in shapes:
            raise ConfigError(f"there is no input {name!r}", where="convert.dynamic", hint=nearest(name, list(shapes)))
        for axis in axes:
            if axis >= len(shapes[name]):
                hint = "axis 0 is the batch, 1 the first axis of a sample"
                raise ConfigError(f"input {name!r} has {len(shapes[name])} axes, found axis {axis}", where="convert.dynamic", hint=hint)
            if not isinstance(shapes[name][axis], str):
                fixed = f"axis {axis} of {name!r} is not free in the file: [{' x '.join(map(str, shapes[name]))}]"
                raise ConfigError(fixed, where="convert.dynamic", hint="export the file with that size free, or leave it fixed")


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


def _record(samples: Dataset, expected: dict[str, np.ndarray], out: Path, where: str = "model") -> None:
    if not expected:
        raise InputRejected("the model has no outputs", where="outputs", hint="return at least one tensor")
    for name in expected:
        if not name or Path(name).name != name or "\\" in name:
            raise InputRejected(f"output name {name!r} cannot be a file name", where="outputs", hint="rename that output in the model")
    for name, column in expected.items():
        rows = np.isnan(column).reshape(len(column), -1).any(axis=1) if column.dtype.kind == "f" else np.zeros(1, bool)
        if rows.any():
            what = f"the model itself gives NaN: output {name!r}, {rows.sum()} of {len(rows)} samples, first sample {rows.argmax()}"
            raise InputRejected(what, where=where, hint="look for NaN in the model's weights, or give samples like those it was trained on")
    Dataset(expected, None, "outputs").write(out / "expected" / "outputs")
    samples.write(out / "expected" / "inputs")


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
