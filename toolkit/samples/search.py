"""Stage: chooses the samples that quantization is repaired on: never those that the verdict comes from, nor those that gave the ranges."""

from __future__ import annotations

import numpy as np

from toolkit.dataset import Dataset, hold_out, load
from toolkit.job import Facts, Job
from toolkit.samples.calibration import choose

FEWEST = 16
ENOUGH = 64
"""Where training held out as many rows, none that it saw are added: the model is surer of those than of new ones."""


def run(job: Job) -> Facts:
    """Chooses rows and writes the folder ``search/``, with their labels.

    Args:
        job: Inputs ``samples`` (the training split, or samples of the user's own) and perhaps ``calibration``, whose rows are left out.
            Options: ``samples`` (how many to take), ``seed``, and ``trained``: whether a model was trained on these samples, so that the
            rows that training held out are taken, and others only where those are fewer than :data:`ENOUGH`.

    Returns:
        ``n``; ``held_out``, how many of them training never saw, ``None`` where nothing was trained; ``notes``.

    Raises:
        InputRejected: The samples are damaged.
    """
    data, seed, wanted = load(job.inputs["samples"]), int(job.options.get("seed", 0)), int(job.options["samples"])
    free, notes = _free(job, data)
    first = np.intersect1d(_held_out(data, seed), free) if job.options.get("trained") else free[:0]
    rest = np.setdiff1d(free, first)
    taken = min(len(first), wanted)
    wanted = max(taken, min(wanted, ENOUGH)) if taken else wanted
    label = data.label[rest] if _one_class_each(data) and data.label is not None else None
    rows = np.concatenate([first[choose(len(first), None, taken, seed)], rest[choose(len(rest), label, wanted - taken, seed)]])
    chosen = data.take(np.sort(rows))
    Dataset(chosen.columns, chosen.label, chosen.where).write(job.out / "search")
    if job.options.get("trained") and len(rows) > taken:
        notes.append(f"{len(rows) - taken} of {len(rows)} samples of the search were trained on, where a model loses less than on new ones")
    return {"n": len(rows), "held_out": taken if job.options.get("trained") else None, "notes": notes}


def _free(job: Job, data: Dataset) -> tuple[np.ndarray, list[str]]:
    """Rows that ranges were not computed from; all of them where too few would be left."""
    every = np.arange(len(data))
    if "calibration" not in job.inputs:
        return every, []
    used = set(load(job.inputs["calibration"]).digests())
    free = np.array([row for row, digest in enumerate(data.digests()) if digest not in used], np.int64)
    if len(free) >= FEWEST:
        return free, []
    return every, [f"calibration left {len(free)} samples: repairs are searched for on its own"]


def _held_out(data: Dataset, seed: int) -> np.ndarray:
    return hold_out(data.label, seed)[1] if _one_class_each(data) and data.label is not None else np.arange(0)


def _one_class_each(data: Dataset) -> bool:
    return data.label is not None and data.label.ndim == 1 and data.label.dtype.kind in "iu"
