"""Stage: adapts the project's model to the training split and writes the weights of the best epoch.

The evaluation split is never opened here: the epoch is chosen on a tenth of the training split. On the CPU the same seed
and number of threads give the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from toolkit.dataset import load
from toolkit.errors import ConfigError
from toolkit.factory import load_factory
from toolkit.finetuning import curves
from toolkit.finetuning.fitting import Fitted, Run, fit
from toolkit.job import Facts, Job
from toolkit.training import Finetune
from toolkit.weights import load_weights, save_weights

if TYPE_CHECKING:
    import torch

WEIGHTS = "weights.safetensors"
TRAINING = "training.json"
_NO_PICTURES = 'no pictures of the curves without matplotlib: pip install "edgekit[finetune]"'


def run(job: Job) -> Facts:
    """Fine-tunes and writes ``weights.safetensors`` and ``training.json``.

    Args:
        job: Inputs are ``project`` (folder of the factory), ``data`` (folder of the training split) and optionally ``weights``
            (``.safetensors`` to start from). Options are the fields of :class:`toolkit.config.Finetune`, ``factory``
            (``module:function``), ``seed``, ``classes`` (names: the model must have as many outputs; or a
            number: at least as many) and perhaps ``outputs`` (names of the model's outputs; the first is trained).

    Returns:
        The facts of :class:`toolkit.finetuning.fitting.Fitted`, and ``pictures``: names of the files that show the run.

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
        project=job.inputs["project"],
        kept=job.kept,
        processes=int(options.get("processes", 1)),
        progress=job.progress,
    )
    fitted = fit(lambda: _build(job), load(job.inputs["data"]), asked)
    save_weights(fitted.model, job.out / WEIGHTS)
    document = history_of(fitted)
    (job.out / TRAINING).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    pictures = curves.draw(fitted.history, document["best_epoch"], fitted.confusion, fitted.names, job.out)
    notes = fitted.facts["notes"] + ([] if pictures else [_NO_PICTURES])
    return {**fitted.facts, "pictures": pictures, "notes": notes}


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


def _build(job: Job) -> torch.nn.Module:
    import torch

    spec = str(job.options["factory"])
    model = load_factory(job.inputs["project"], spec)()
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(
            f"returned a {type(model).__name__}, expected a torch.nn.Module", where=f"factory {spec}", hint="fine-tuning needs a PyTorch model"
        )
    if "weights" in job.inputs:
        load_weights(model, job.inputs["weights"])
    return model
