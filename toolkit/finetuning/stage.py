"""Stage: adapts the project's model to the training split and writes the weights of the best epoch.

The evaluation split is never opened here: the epoch is chosen on a tenth of the training split. On the CPU the same seed
and number of threads give the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from toolkit.dataset import load
from toolkit.finetuning import curves, models
from toolkit.finetuning.fitting import Fitted, Run, fit
from toolkit.job import Facts, Job
from toolkit.training import Finetune
from toolkit.weights import save_weights

WEIGHTS = "weights.safetensors"
TRAINING = "training.json"
_NO_PICTURES = 'no pictures of the curves without matplotlib: pip install "edgekit[finetune]"'


def run(job: Job) -> Facts:
    """Fine-tunes and writes ``weights.safetensors`` and ``training.json``.

    Args:
        job: Inputs are ``data`` (folder of the training split), perhaps ``project`` (folder of the factory, or of a teacher's) and
            ``weights`` (to start from). Options are the fields of :class:`toolkit.training.Finetune`, ``factory`` (``module:function``) or
            what :func:`toolkit.plugins.build` takes for a model of a collection, ``seed``, ``classes`` (names: the model must have as
            many outputs; or a number: at least as many) and perhaps ``outputs`` (names of the model's outputs; the first is trained).

    Returns:
        The facts of :class:`toolkit.finetuning.fitting.Fitted`, those of :func:`toolkit.finetuning.models.build`, and ``pictures``: names of
        the files that show the run.

    Raises:
        ConfigError: The factory does not exist, or a freeze pattern matches nothing.
        InputRejected: Starting weights, data and model do not fit each other.
        SetupError: The device that was asked for is not there.
        StageFailed: The factory or the model raises, or the loss becomes NaN.
    """
    options = job.options
    asked = Run(
        Finetune(**{name: options[name] for name in Finetune.model_fields if name in options}),
        seed=int(options.get("seed", 0)),
        classes=options.get("classes"),
        outputs=tuple(options.get("outputs") or ()),
        project=job.inputs.get("project", Path()),
        kept=job.kept,
        processes=int(options.get("processes", 1)),
        progress=job.progress,
    )
    start: Facts = {}

    def build() -> Any:
        model, found = models.build(job)
        start.update(found)
        return model

    fitted = fit(build, load(job.inputs["data"]), asked)
    save_weights(fitted.model, job.out / WEIGHTS)
    document = history_of(fitted)
    (job.out / TRAINING).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    pictures = curves.draw(fitted.history, document["best_epoch"], fitted.confusion, fitted.names, job.out)
    notes = start["notes"] + fitted.facts["notes"] + ([] if pictures else [_NO_PICTURES])
    return {**fitted.facts, "replaced": start["replaced"], "pictures": pictures, "notes": notes}


def history_of(fitted: Fitted) -> dict[str, Any]:
    """Returns what ``training.json`` has: every epoch, and what the best one takes each class for."""
    return {
        "schema": 1,
        "n_train": fitted.trained,
        "n_validation": fitted.held,
        "best_epoch": fitted.facts["best_epoch"],
        "classes": fitted.names,
        "confusion": fitted.confusion.tolist(),
        "epochs": [dataclasses.asdict(one) for one in fitted.history],
    }
