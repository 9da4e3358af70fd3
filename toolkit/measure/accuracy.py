"""Stage: how right a model is, and how that differs from a reference on the same samples.

Outputs are streamed: each batch is reduced at once to one record per sample, which is written to disk, so that memory is the same
for any number of samples. What a record holds, and what figures follow, is the task's business; see :mod:`toolkit.measure.tasks`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from toolkit import dataset, plugins
from toolkit.artifact import Signature
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected, StageFailed
from toolkit.figures import Flip, Flips
from toolkit.job import FACTS, Facts, Job, read_facts
from toolkit.measure.feed import Feed, fit, open_session, room
from toolkit.measure.memory import memory_cap, preload
from toolkit.measure.tasks import prepare
from toolkit.measure.tasks.interface import Answer, Question, Task
from toolkit.metrics import TASKS
from toolkit.plugins import Session

OUTCOMES = "outcomes.npy"
_OF_VALUES = ("expected_calibration_error", "perplexity")
FLIPS = "flips.json"
LISTED_FLIPS = 20
LISTED_CLASSES = 1000
DIGEST_SAMPLES = 64
BUFFER_BYTES = 16 << 20
OnProgress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    """Swallows progress when nobody listens."""


def run(job: Job) -> Facts:
    """Measures every metric of a task and writes what a later run needs to compare with this one.

    Inputs: ``model``, ``data`` (folder of a data set with labels), and optionally ``reference`` (folder of an earlier run of this
    stage on the same data). Options: ``runtime``, ``threads``, ``memory_bytes`` (or ``None``), ``task``, and optionally ``output``
    (name of the output to judge, see :func:`scores_output`), ``classes`` (their number, or their names) and ``metrics``
    (``primary``, ``positive`` and ``specificity``; see :class:`toolkit.config.Metrics`).

    Writes a record per sample: ``scores.npy`` ``[n x classes] float32`` for a classification, else ``records.npy``. For a
    classification also ``outcomes.npy`` ``[n] uint8`` (1 is right), and with a reference ``flips.json``, all label flips.

    Returns:
        ``metrics`` and ``changes`` (the primary metric first; no changes without a reference), ``metric`` and ``change`` (the
        first of them, or ``None``), ``classes`` (largest loss first, at most 1,000), ``flips`` (or ``None``), all as in
        :mod:`toolkit.figures`; ``n``, ``agreement`` (share of samples on which model and reference pick the same class, or ``None``),
        ``memory_cap`` (see :func:`toolkit.measure.memory.memory_cap`) and ``samples_digest`` (see :func:`samples_digest`).

    Raises:
        ConfigError: The task or its primary metric cannot be measured, or an option does not fit.
        InputRejected: Labels, task and model do not fit each other, which of the model's outputs is meant cannot be told, or the
            reference was measured on other samples.
        StageFailed: The model gave a value that is not a number.
        StageOutOfMemory: The model needs more memory than the cap.
    """
    data = dataset.load(job.inputs["data"])
    task = prepare(_question(job, data.where), data)
    runtime = plugins.get("runtimes", job.options["runtime"])
    plugins.require(runtime)
    preload(runtime)
    with memory_cap(job.options.get("memory_bytes")) as cap:
        session = open_session(runtime, job.inputs["model"], job.options["threads"])
        progress: OnProgress = lambda done, total: job.progress(done, total, "")  # noqa: E731
        record(session, data.laid_out(job.options.get("layout")), task, job.out / task.file, progress, output=job.options.get("output"))
    digest = samples_digest(data)
    records = np.load(job.out / task.file, mmap_mode="r", allow_pickle=False)
    reference = _read_reference(job.inputs["reference"], task.file, records.shape, digest) if "reference" in job.inputs else None
    answer = task.answer(records, reference)
    spec = next(spec for spec in session.signature.outputs if spec.name == scores_output(session.signature, job.options.get("output"), task.axes))
    if np.dtype(spec.dtype).kind in "iu":
        answer = _of_integers(answer, f"output {spec.name!r} holds quantized {spec.dtype}, whose scale these figures would need", data.where)
    if answer.outcomes is not None:
        np.save(job.out / OUTCOMES, answer.outcomes.astype(np.uint8), allow_pickle=False)
    if answer.flips is not None:
        (job.out / FLIPS).write_text(json.dumps([flip.model_dump() for flip in answer.flips]), encoding="utf-8")
    return {**_facts(answer, len(data)), "n": len(data), "memory_cap": cap, "samples_digest": digest}


def _question(job: Job, data: str) -> Question:
    options, wanted = job.options, job.options.get("metrics") or {}
    if options["task"] not in TASKS:
        raise ConfigError(f"cannot measure task {options['task']!r}; known: {', '.join(TASKS)}")
    classes = options.get("classes")
    names = () if isinstance(classes, int) else tuple(classes or ())
    return Question(
        task=options["task"],
        names=names,
        count=classes if isinstance(classes, int) else len(names) or None,
        primary=wanted.get("primary"),
        positive=wanted.get("positive"),
        specificity=float(wanted.get("specificity", 0.95)),
        model=str(job.inputs["model"]),
        data=data,
    )


def _of_integers(answer: Answer, why: str, where: str) -> Answer:
    """Leaves out what depends on the scores' real values: integers of another scale rank alike, but are no probabilities."""
    primary = answer.measured[0][0].name
    if primary in _OF_VALUES:
        raise InputRejected(f"{primary} cannot be measured: {why}", where=where, hint="export the file with float outputs")
    dropped = [metric.name for metric, _ in answer.measured if metric.name in _OF_VALUES]
    kept = [(metric, change) for metric, change in answer.measured if metric.name not in _OF_VALUES]
    return replace(answer, measured=kept, left_out={**answer.left_out, **dict.fromkeys(dropped, why)})


def _facts(answer: Answer, n: int) -> Facts:
    metrics = [metric.model_dump(mode="json") for metric, _ in answer.measured]
    changes = [change.model_dump(mode="json") for _, change in answer.measured if change]
    return {
        "metric": metrics[0],
        "change": changes[0] if changes else None,
        "metrics": metrics,
        "changes": changes,
        "classes": [one.model_dump(mode="json") for one in answer.classes[:LISTED_CLASSES]],
        "flips": _flips(answer.flips, n),
        "agreement": answer.agreement,
        "left_out": dict(answer.left_out),
    }


def _flips(flips: tuple[Flip, ...] | None, n: int) -> Facts | None:
    return None if flips is None else Flips(count=len(flips), n=n, listed=flips[:LISTED_FLIPS]).model_dump(mode="json")


def record(session: Session, data: Dataset, task: Task, file: Path, on_progress: OnProgress = _silent, *, output: str | None = None) -> None:
    """Runs a model on every sample and writes the task's records, ``[n x ...]``, while they come.

    Args:
        session: The loaded model.
        data: The samples; columns are named like the model's inputs.
        task: Says what to keep of an output.
        file: The ``.npy`` file to write.
        on_progress: Called now and then with the samples done and their total.
        output: Name of the output to judge; see :func:`scores_output`.

    Raises:
        InputRejected: The columns do not fit the model, or its outputs do not fit task and labels.
        StageFailed: An output is not a number.
    """
    name = scores_output(session.signature, output, task.axes)
    # Maps of scores are large: 32 texts of 128 tokens with a vocabulary of 150,000 would take more than 2 GB.
    feed = fit(data, session.signature, room(session) if len(task.axes) == 1 else 1)
    with file.open("wb") as stream:
        for start, found in _outputs(session, feed, name, task.axes):
            if not start:
                task.check(found.shape[1:])
            rows = np.ascontiguousarray(task.reduce(start, found))
            if not start:
                header = {"descr": np.lib.format.dtype_to_descr(rows.dtype), "fortran_order": False, "shape": (len(data), *rows.shape[1:])}
                np.lib.format.write_array_header_1_0(stream, header)
            stream.write(rows.data)
            on_progress(start + len(found), len(data))


def predict(session: Session, data: Dataset, on_progress: OnProgress = _silent, *, output: str | None = None) -> np.ndarray:
    """Returns a model's class scores for every sample, in memory.

    Args:
        session: The loaded model.
        data: The samples; columns are named like the model's inputs.
        on_progress: Called now and then with the samples done and their total.
        output: Name of the output to read; see :func:`scores_output`.

    Returns:
        Scores ``[n x classes] float32``.

    Raises:
        InputRejected: The columns do not fit the model, it has no such output, several could be meant, or the output is not
            ``[batch x classes]``.
        StageFailed: A score is not a number.
    """
    feed = fit(data, session.signature, room(session))
    name = scores_output(session.signature, output)
    scores = np.empty((0, 0), np.float32)
    for start, found in _outputs(session, feed, name, ("classes",)):
        if not start:
            scores = np.empty((len(data), found.shape[1]), np.float32)
        scores[start : start + len(found)] = found
        on_progress(start + len(found), len(data))
    return scores


def _outputs(session: Session, feed: Feed, output: str, axes: tuple[str, ...]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields ``(first sample, outputs [k x ...] float32)``; the array is used again for the next ones.

    Samples are fed in batches of the model's own size, 32 when that is free. Many batches go into one call where the runtime
    takes them: a model that takes microseconds must not wait for its measuring. What is to be checked is checked on many together.
    """
    run_all, buffer = getattr(session, "run_all", partial(_run_each, session)), np.empty(0, np.float32)
    for start, stop, columns in feed.blocks():
        batches = {name: column.reshape(-1, feed.batch, *column.shape[1:]) for name, column in columns.items()}
        count = len(next(iter(batches.values())))
        if not start:
            first = session.run({name: column[0] for name, column in batches.items()})[output]
            buffer = np.empty((_buffered(first, count, feed.batch, output, axes), *first.shape), np.float32)
        for offset in range(0, count, len(buffer)):
            block = buffer[: count - offset]
            run_all({name: column[offset : offset + len(block)] for name, column in batches.items()}, output, block)
            sample = start + offset * feed.batch
            found = block.reshape(-1, *block.shape[2:])[: stop - sample]
            _refuse_nan(found, sample, output)
            yield sample, found


def _run_each(session: Session, batches: Mapping[str, np.ndarray], output: str, into: np.ndarray) -> None:
    """Runs every batch by a call of its own; see :class:`toolkit.plugins.BulkSession`."""
    inputs: dict[str, np.ndarray] = {}
    for number, rows in enumerate(zip(*batches.values(), strict=True)):
        inputs.update(zip(batches, rows, strict=True))
        into[number] = session.run(inputs)[output]


def _buffered(first: np.ndarray, batches: int, batch: int, output: str, axes: tuple[str, ...]) -> int:
    """Returns how many batches of outputs to hold at a time."""
    if first.ndim != 1 + len(axes) or first.shape[0] != batch:
        shape = " x ".join(map(str, first.shape))
        raise InputRejected(
            f"output {output!r} is [{shape}], expected [{' x '.join([str(batch), *axes])}]", hint="measure the output that holds the class scores"
        )
    return max(1, min(batches, BUFFER_BYTES // max(1, 4 * first.size)))


def scores_output(signature: Signature, wanted: str | None, axes: tuple[str, ...] = ("classes",)) -> str:
    """Returns the name of the output that holds the class scores: the one named, the only one, or the only one with such axes.

    Their order does not tell: runtimes sort outputs differently, so that the first one of a file may be the last of its source.

    Args:
        signature: The model's inputs and outputs.
        wanted: The output's name, when it is known.
        axes: Axes of one sample's scores.

    Raises:
        InputRejected: There is no output of the wanted name, or several could be meant.
    """
    found = ", ".join(map(str, signature.outputs)) or "none"
    if wanted is not None:
        if all(spec.name != wanted for spec in signature.outputs):
            raise InputRejected(f"the model has no output {wanted!r}; found {found}", where="output", hint="name one of the outputs found")
        return wanted
    likely = [spec.name for spec in signature.outputs if len(signature.outputs) == 1 or len(spec.shape) == 1 + len(axes)]
    if len(likely) != 1:
        message = f"{len(likely)} of {len(signature.outputs)} outputs could be the class scores, expected one; found {found}"
        raise InputRejected(message, where="output", hint="name the class scores with the option output")
    return likely[0]


def _refuse_nan(found: np.ndarray, start: int, output: str) -> None:
    if np.isnan(found.min(initial=0.0)):
        sample = start + int(np.isnan(found.reshape(len(found), -1)).any(axis=1).argmax())
        raise StageFailed(f"output {output!r} is not a number for sample {sample}", hint="check that sample, and the model's weights")


def samples_digest(data: Dataset) -> str:
    """Returns a SHA-256 by which a baseline knows an evaluation split again.

    It is taken over all labels, the number of samples, names, shapes and element types of the columns, and the bytes of up to 64
    samples that are spread evenly over the split: reading all of a large one would take as long as measuring it.
    """
    columns = dict(sorted(data.columns.items()))
    header = {"n": len(data), "columns": [[name, list(column.shape[1:]), column.dtype.str] for name, column in columns.items()]}
    digest = hashlib.sha256(json.dumps(header).encode())
    if data.label is not None:
        digest.update(f"{data.label.dtype.str} {data.label.shape}".encode())
        for _, rows in dataset.pieces(data.label):
            digest.update(np.ascontiguousarray(rows).tobytes())
    rows = np.unique(np.linspace(0, len(data) - 1, DIGEST_SAMPLES).round().astype(int))
    for column in columns.values():
        for row in rows.tolist():
            digest.update(np.ascontiguousarray(column[row]).tobytes())
            dataset.release(column)
    return digest.hexdigest()


def _read_reference(folder: Path, name: str, shape: tuple[int, ...], digest: str) -> np.ndarray:
    """Reads the records of an earlier run, which must be of the same task and the same samples."""
    file = folder / name
    try:
        records = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputRejected(f"is not a readable .npy file: {error}", where=str(file), hint="evaluate the reference again") from error
    if records.shape != shape:
        raise InputRejected(
            f"has {file.stem} {list(records.shape)}, expected {list(shape)}", where=str(file), hint="evaluate the reference on the same samples"
        )
    measured_on = read_facts(folder).get("samples_digest") if (folder / FACTS).exists() else None
    if measured_on is None:
        raise InputRejected("does not say on which samples it was measured", where=str(folder), hint="evaluate the reference again")
    if measured_on != digest:
        raise InputRejected("was measured on other samples", where=str(folder), hint="evaluate the reference on the same samples")
    return records
