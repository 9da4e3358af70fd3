"""Stage: how often a model is right, and how that differs from a reference on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from toolkit import dataset, plugins
from toolkit.artifact import Signature
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected, StageFailed
from toolkit.evidence import Change, Metric
from toolkit.job import Facts, Job
from toolkit.measure.feed import fit, open_session
from toolkit.measure.memory import memory_cap, preload
from toolkit.measure.statistics import paired_difference_interval, proportion_interval
from toolkit.plugins import Session

SCORES = "scores.npy"
TASKS = ("image-classification", "text-classification")
OnProgress = Callable[[int, int], None]


def run(job: Job) -> Facts:
    """Measures top-1 accuracy and writes the scores of every sample.

    Inputs: ``model``, ``data`` (folder of a data set with labels), and optionally ``reference`` (folder of an earlier
    run of this stage on the same data). Options: ``runtime``, ``threads``, ``memory_bytes`` (or ``None``), ``task``,
    and optionally ``output`` (name of the class scores, see :func:`predict`) and ``classes`` (their number, or their names:
    the model must give as many scores). Writes ``scores.npy`` ``[n x classes] float32``.

    Returns:
        ``metric`` and ``change`` (see :mod:`toolkit.evidence`), ``n``, ``agreement`` (share of samples on which model
        and reference pick the same class, or ``None``), and ``memory_cap`` (see :func:`toolkit.measure.memory.memory_cap`).

    Raises:
        InputRejected: The data have no labels or do not fit the model, the model does not give one score per class, or which of
            its outputs the scores are cannot be told.
        StageFailed: The model gave a score that is not a number.
        StageOutOfMemory: The model needs more memory than the cap.
    """
    if job.options["task"] not in TASKS:
        raise ConfigError(f"cannot measure task {job.options['task']!r}; known: {', '.join(TASKS)}")
    data = dataset.load(job.inputs["data"])
    label = _labels(data)
    runtime = plugins.get("runtimes", job.options["runtime"])
    plugins.require(runtime)
    preload(runtime)
    with memory_cap(job.options.get("memory_bytes")) as cap:
        session = open_session(runtime, job.inputs["model"], job.options["threads"])
        scores = predict(session, data, lambda done, total: job.progress(done, total, ""), output=job.options.get("output"))
    _check_classes(scores.shape[1], job.options.get("classes"), label, data.where, str(job.inputs["model"]))
    np.save(job.out / SCORES, scores, allow_pickle=False)
    reference = job.inputs.get("reference")
    comparison = _compare(scores, _read_scores(reference, scores.shape), label) if reference else {"change": None, "agreement": None}
    return {"metric": _metric(scores, label).model_dump(mode="json"), **comparison, "n": len(label), "memory_cap": cap}


def predict(session: Session, data: Dataset, on_progress: OnProgress = lambda done, total: None, *, output: str | None = None) -> np.ndarray:
    """Returns a model's class scores for every sample.

    The data set is streamed in batches of the model's own size, 32 when that is free. The loop does nothing else: a
    model that takes microseconds must not wait for its measuring.

    Args:
        session: The loaded model.
        data: The samples; columns are named like the model's inputs.
        on_progress: Called now and then with the samples done and their total.
        output: Name of the output to read. Without it, the model's only one, or the only one that is ``[batch x classes]``.

    Returns:
        Scores ``[n x classes] float32``.

    Raises:
        InputRejected: The columns do not fit the model, it has no such output, several could be meant, or the output is not
            ``[batch x classes]``.
        StageFailed: A score is not a number.
    """
    feed = fit(data, session.signature)
    run, batch = session.run, feed.batch
    scores, inputs = np.empty((0, 0), np.float32), dict[str, np.ndarray]()
    output = scores_output(session.signature, output)
    for start, stop, columns in feed.blocks():
        batches = [(name, column.reshape(-1, batch, *column.shape[1:])) for name, column in columns.items()]
        if not start:
            classes = _classes(run({name: column[0] for name, column in batches})[output], batch, output)
            scores = np.empty((len(data), classes), np.float32)
        block = np.empty((len(batches[0][1]), batch, classes), np.float32)
        for number in range(len(block)):
            for name, column in batches:
                inputs[name] = column[number]
            block[number] = run(inputs)[output]
        scores[start:stop] = block.reshape(-1, classes)[: stop - start]
        _refuse_nan(scores[start:stop], start, output)
        on_progress(stop, len(data))
    return scores


def scores_output(signature: Signature, wanted: str | None) -> str:
    """Returns the name of the output that holds the class scores.

    Their order does not tell: runtimes sort outputs differently, so that the first one of a file may be the last of its source.

    Raises:
        InputRejected: There is no output of the wanted name, or several could be meant.
    """
    found = ", ".join(map(str, signature.outputs)) or "none"
    if wanted is not None:
        if all(spec.name != wanted for spec in signature.outputs):
            raise InputRejected(f"the model has no output {wanted!r}; found {found}", where="output", hint="name one of the outputs found")
        return wanted
    likely = [spec.name for spec in signature.outputs if len(signature.outputs) == 1 or len(spec.shape) == 2]
    if len(likely) != 1:
        message = f"{len(likely)} of {len(signature.outputs)} outputs could be the class scores, expected one; found {found}"
        raise InputRejected(message, where="output", hint="name the class scores with the option output")
    return likely[0]


def _classes(found: np.ndarray, batch: int, output: str) -> int:
    if found.ndim != 2 or found.shape[0] != batch:
        shape = " x ".join(map(str, found.shape))
        raise InputRejected(f"output {output!r} is [{shape}], expected [{batch} x classes]", hint="measure the output that holds the class scores")
    return int(found.shape[1])


def _refuse_nan(scores: np.ndarray, start: int, output: str) -> None:
    bad = np.flatnonzero(np.isnan(scores).any(axis=1))
    if len(bad):
        raise StageFailed(f"output {output!r} is not a number for sample {start + int(bad[0])}", hint="check that sample, and the model's weights")


def _labels(data: Dataset) -> np.ndarray:
    if data.label is None:
        raise InputRejected("has no column 'label'", where=data.where, hint="add label.npy with one class index per sample")
    return data.label


def _check_classes(found: int, classes: int | Sequence[str] | None, label: np.ndarray, data: str, model: str) -> None:
    """Holds the number of scores against the expected number of classes, where one is given, and against the labels."""
    wanted = classes if isinstance(classes, int) else len(classes or ())
    if wanted and found != wanted:
        raise InputRejected(f"gives {found} scores per sample, expected {wanted}", where=model, hint="name as many classes as the model has scores")
    sample = int(label.argmax())
    if label[sample] >= found:
        raise InputRejected(
            f"label {label[sample]} of sample {sample} is beyond the {found} classes", where=data, hint="labels go from 0 to classes - 1"
        )


def _metric(scores: np.ndarray, label: np.ndarray) -> Metric:
    right = int(np.count_nonzero(scores.argmax(axis=1) == label))
    low, high = proportion_interval(right, len(label))
    return Metric(name="top1_accuracy", value=right / len(label), low=low, high=high, n=len(label))


def _compare(scores: np.ndarray, reference: np.ndarray, label: np.ndarray) -> Facts:
    """Returns the paired change against the reference, and how often both pick the same class."""
    picked, expected = scores.argmax(axis=1), reference.argmax(axis=1)
    now, before = picked == label, expected == label
    both, lost, gained = (int(np.count_nonzero(mask)) for mask in (now & before, ~now & before, now & ~before))
    value, low, high = paired_difference_interval(both, lost, gained, len(label) - both - lost - gained)
    change = Change(value=value, low=low, high=high, n=len(label), lost=lost, gained=gained)
    return {"change": change.model_dump(mode="json"), "agreement": float(np.mean(picked == expected))}


def _read_scores(folder: Path, shape: tuple[int, ...]) -> np.ndarray:
    file = folder / SCORES
    try:
        scores = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputRejected(f"is not a readable .npy file: {error}", where=str(file), hint="evaluate the reference again") from error
    if scores.shape != shape:
        raise InputRejected(
            f"has scores {list(scores.shape)}, expected {list(shape)}", where=str(file), hint="evaluate the reference on the same samples"
        )
    return scores
