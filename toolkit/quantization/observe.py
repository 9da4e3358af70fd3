"""One pass over calibration samples: a float model runs, and what its activations do is summed up."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from toolkit import modelfile, plugins
from toolkit.dataset import Dataset
from toolkit.errors import InputRejected, NoRoute
from toolkit.quantization import observe_onnx, observe_tflite
from toolkit.quantization.statistics import Seen, Statistics

Progress = Callable[[int, int, str], None]
_BATCH = 32
_SECONDS_BETWEEN_SAVES = 5.0


class Taps(Protocol):
    """A float model that tells what its tensors hold while it runs.

    Attributes:
        tensors: Names of the tensors that are observed.
    """

    tensors: tuple[str, ...]

    def run(self, batch: dict[str, np.ndarray]) -> dict[str, Seen]:
        """Runs some samples, ``[n x ...]`` by input."""


def observe(
    model: Path,
    samples: Dataset,
    *,
    tensors: Sequence[str] | None = None,
    histograms: bool = False,
    channels: Sequence[str] = (),
    progress: Progress | None = None,
    resume: Path | None = None,
) -> Statistics:
    """Collects statistics of a float model's activations, in memory that the number of samples does not change.

    Args:
        model: The float file.
        samples: Samples by input.
        tensors: Which activations; those that carry a scale in static int8 by default.
        histograms: Whether histograms are made, which all methods but ``min_max`` and ``moving_average`` need.
        channels: Activations of which every channel is looked at too.
        progress: Callback ``(done, total, note)``.
        resume: File that an interrupted pass is kept in; the next one goes on from it, to the same statistics.

    Raises:
        InputRejected: The model is damaged, has no such tensor, or does not take these samples.
        NoRoute: Nothing observes models of this format.
        StageFailed: The model cannot be run.
    """
    digest = modelfile.sha256(model)
    taps = _taps(model, samples, tensors, histograms, channels)
    pass_digest = _pass_digest(digest, samples, taps.tensors, histograms, channels) if resume else ""
    found = _begun(resume, pass_digest)
    total, saved = len(samples), time.monotonic()
    for start in range(found.samples, total, _BATCH):
        part = samples.take(slice(start, start + _BATCH))
        found.add(taps.run(dict(part.columns)), len(part))
        if progress:
            progress(found.samples, total, f"calibrating, {found.samples} of {total} samples")
        if resume and time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
            _save(found, resume)
            saved = time.monotonic()
    return Statistics(digest, found.samples, found.tensors)


def fetch(model: Path, samples: Dataset, tensors: Sequence[str], *, rows: int) -> dict[str, np.ndarray]:
    """Computes activations on the first samples.

    Args:
        model: The float file.
        samples: Samples by input.
        tensors: Names of activations.
        rows: How many samples to run.

    Returns:
        ``[rows x ...] float32`` by name.

    Raises:
        InputRejected: The model is damaged, has no such tensor, or does not take these samples.
        NoRoute: Nothing observes models of this format.
        StageFailed: The model cannot be run.
    """
    found: dict[str, np.ndarray] = _of(model).fetch(model, samples, tensors, rows=rows)
    return found


_FORMATS: dict[str, Any] = {"onnx": observe_onnx, "tflite": observe_tflite}


def _of(model: Path) -> Any:
    format = plugins.format_of(model)
    if format not in _FORMATS:
        raise NoRoute(f"nothing observes activations of {format} files", where=model.name, hint=f"known: {', '.join(_FORMATS)}")
    return _FORMATS[format]


def _taps(model: Path, samples: Dataset, tensors: Sequence[str] | None, histograms: bool, channels: Sequence[str]) -> Taps:
    found: Taps = _of(model).Taps(model, tensors, histograms, channels, inputs=tuple(samples.columns))
    return found


def _pass_digest(model_sha256: str, samples: Dataset, tensors: Sequence[str], histograms: bool, channels: Sequence[str]) -> str:
    """What an interrupted pass must have in common with the one that goes on from it; of the samples, how many and the first and last of them."""
    asked = [model_sha256, len(samples), tensors, histograms, sorted(channels), {name: str(column.dtype) for name, column in samples.columns.items()}]
    digest = hashlib.sha256(repr(asked).encode())
    for column in samples.columns.values():
        digest.update(np.ascontiguousarray(column[:1]).tobytes() + np.ascontiguousarray(column[-1:]).tobytes())
    return digest.hexdigest()


def _begun(resume: Path | None, pass_digest: str) -> Statistics:
    """What an interrupted pass left, under its own digest in the model's place; or nothing yet."""
    if resume and resume.exists():
        try:
            left = Statistics.read(resume)
        except InputRejected:  # another program wrote it
            return Statistics(pass_digest)
        if left.model_sha256 == pass_digest:
            return left
    return Statistics(pass_digest)


def _save(found: Statistics, resume: Path) -> None:
    partial = resume.with_suffix(".partial")
    found.write(partial)
    partial.replace(resume)
