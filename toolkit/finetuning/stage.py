"""Stage: adapts the project's model to the training split and writes the weights of the best epoch.

The evaluation split is never opened here: the epoch is chosen on a tenth of the training split. On the CPU the same seed
and number of threads give the same bytes.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.dataset import Dataset, load
from toolkit.errors import ConfigError, InputRejected, SetupError, StageFailed
from toolkit.factory import CODE_ERRORS, first_line, load_factory
from toolkit.finetuning.checkpoint import Checkpoint
from toolkit.finetuning.loop import Epoch, Step, Trainer, best, hold_out
from toolkit.job import Facts, Job
from toolkit.mistakes import nearest
from toolkit.training import Finetune
from toolkit.weights import load_weights, save_weights

if TYPE_CHECKING:
    import torch

WEIGHTS = "weights.safetensors"
TRAINING = "training.json"


def run(job: Job) -> Facts:
    """Fine-tunes and writes ``weights.safetensors`` and ``training.json``.

    Args:
        job: Inputs are ``project`` (folder of the factory), ``data`` (folder of the training split) and optionally ``weights``
            (``.safetensors`` to start from). Options are the fields of :class:`toolkit.config.Finetune`, ``factory``
            (``module:function``), ``seed``, ``classes`` (names: the model must have as many outputs; or a
            number: at least as many) and perhaps ``outputs`` (names of the model's outputs; the first is trained).

    Returns:
        ``epochs``, ``best_epoch``, ``validation_accuracy`` (``value`` and ``n``), ``device``, ``why`` it was taken, ``threads``,
        ``parameters``, ``trainable`` (both counts) and ``seconds``.

    Raises:
        ConfigError: The factory does not exist, or a freeze pattern matches nothing.
        InputRejected: Starting weights, data and model do not fit each other.
        SetupError: The device that was asked for is not there.
        StageFailed: The factory or the model raises, or the loss becomes NaN.
    """
    options = job.options
    settings = Finetune(**{name: options[name] for name in Finetune.model_fields if name in options})
    seed = int(options.get("seed", 0))
    device, why = choose_device(settings.device)
    data = load(job.inputs["data"])
    if data.label is None:
        raise InputRejected("has no column 'label'", where=data.where, hint="add the class index of every sample")
    started = time.perf_counter()
    with _reproducible(seed, settings.threads, device):
        model = _build(job)
        keep_eval = freeze(model, settings.freeze)
        model.to(device)
        logits = _caller(model, list(data.columns), device, tuple(options.get("outputs") or ()))
        _check_logits(model, logits, data.take(slice(0, 2)), 1 + int(data.label.max()), options.get("classes"))
        rows, held = hold_out(data.label, seed)
        checkpoint = Checkpoint(job.kept) if job.kept else None
        history = Trainer(model, logits, settings, keep_eval, device, job.progress, checkpoint).run(data, rows, held, seed)
        save_weights(model, job.out / WEIGHTS)
    _write_history(history, len(rows), len(held), job.out / TRAINING)
    chosen = best(history)
    return {
        "epochs": settings.epochs,
        "best_epoch": chosen,
        "validation_accuracy": {"value": history[chosen - 1].validation_accuracy, "n": len(held)},
        "device": device,
        "why": why,
        "threads": settings.threads,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trainable": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "seconds": round(time.perf_counter() - started, 3),
    }


def choose_device(asked: str) -> tuple[str, str]:
    """Returns the device to train on and the reason.

    Raises:
        SetupError: It was asked for by name and is not there.
    """
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked != "auto":
        if not present[asked]:
            raise SetupError(f"PyTorch finds no {asked} device here", where="finetune.device", hint='set it to "auto" or "cpu"')
        return asked, f"finetune.device asks for {asked}"
    device = next(name for name, there in present.items() if there)
    return device, "no GPU was found" if device == "cpu" else f"auto takes the GPU that PyTorch finds ({device})"


def freeze(model: torch.nn.Module, patterns: Sequence[str]) -> list[torch.nn.Module]:
    """Stops parameters from being trained.

    Args:
        model: The model, changed in place.
        patterns: Glob patterns of parameter names, such as ``backbone.*``.

    Returns:
        Batch norm layers that are frozen altogether: their statistics must not move either.

    Raises:
        ConfigError: A pattern matches no parameter, or nothing is left to train.
    """
    # Batch norm without scale and bias has only statistics, and those can be named too.
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    statistics = [f"{name}.running_mean" for name, module in _batch_norms(model) if not list(module.parameters(recurse=False))]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names + statistics):
            raise ConfigError(f"pattern {pattern!r} matches no parameter", where="finetune.freeze", hint=nearest(pattern, names))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if _matches(name, patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("every parameter is frozen", where="finetune.freeze", hint="leave at least the head to train, or drop [finetune]")
    return [module for name, module in _batch_norms(model) if _frozen(name, module, patterns)]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _batch_norms(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    import torch

    return [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]


def _frozen(name: str, module: torch.nn.Module, patterns: Sequence[str]) -> bool:
    parameters = list(module.parameters(recurse=False))
    return not any(one.requires_grad for one in parameters) if parameters else _matches(f"{name}.running_mean", patterns)


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


def _caller(model: torch.nn.Module, columns: Sequence[str], device: str, outputs: Sequence[str]) -> Step:
    """Returns the function that feeds a batch to the model: by keyword when forward knows the columns' names, else in their order."""
    import torch

    by_keyword = set(columns) <= set(inspect.signature(model.forward).parameters)

    def logits(batch: Dataset) -> torch.Tensor:
        inputs = {name: torch.from_numpy(np.array(batch.columns[name])).to(device) for name in columns}
        return _logits(model(**inputs) if by_keyword else model(*inputs.values()), outputs)

    return logits


def _logits(found: Any, outputs: Sequence[str]) -> torch.Tensor:
    """Takes the logits from what a model returns: the first of the named outputs, so that what is trained is what is measured."""
    import torch

    if isinstance(found, torch.Tensor):
        return found
    if isinstance(found, Mapping) and outputs and outputs[0] in found:
        return found[outputs[0]]
    if hasattr(found, "logits"):
        return found.logits
    return next(value for value in found.values() if value is not None) if isinstance(found, Mapping) else found[0]


def _check_logits(model: torch.nn.Module, logits: Step, sample: Dataset, labels: int, classes: Any) -> None:
    """Runs the model on a few samples, so that a misfit is told before training instead of as a framework's riddle."""
    import torch

    inputs = ", ".join(f"{name} {list(column.shape)} {column.dtype}" for name, column in sample.columns.items())
    model.eval()
    try:
        with torch.no_grad():
            shape = list(logits(sample).shape)
    except CODE_ERRORS as error:
        raise StageFailed(f"the model raised {first_line(error)}", where=f"forward on {inputs}", hint="give samples the model accepts") from error
    least = max(labels, classes if isinstance(classes, int) else 0)
    named = 0 if isinstance(classes, int) else len(classes or ())
    if len(shape) != 2 or shape[0] != len(sample) or shape[1] < least or shape[1] != (named or shape[1]):
        expected = f"[{len(sample)}, {named or f'{least} or more'}]"
        found = f"logits of {len(sample)} samples have shape {shape}, expected {expected}"
        raise InputRejected(found, where=type(model).__name__, hint="give the model one output per class")


@contextmanager
def _reproducible(seed: int, threads: int, device: str) -> Iterator[None]:
    """Makes what happens inside repeatable, and leaves the process as it was."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with a fixed workspace
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    # On a GPU some layers have no deterministic kernel; training goes on and the log says which.
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=before[2])


def _write_history(history: Sequence[Epoch], trained: int, held: int, file: Path) -> None:
    epochs = [dataclasses.asdict(one) for one in history]
    document = {"schema": 1, "n_train": trained, "n_validation": held, "best_epoch": best(history), "epochs": epochs}
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
