"""Stage: adapts the project's model to the training split and writes the weights of the best epoch.

The evaluation split is never opened here: the epoch is chosen on a tenth of the training split. On the CPU the same seed
and number of threads give the same bytes.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from toolkit.dataset import Dataset, load
from toolkit.errors import ConfigError, InputRejected, SetupError
from toolkit.factory import load_factory
from toolkit.finetuning import curves, distillation, precision, processes, variation
from toolkit.finetuning.calling import Caller, check_logits
from toolkit.finetuning.checkpoint import Checkpoint
from toolkit.finetuning.loop import Epoch, Trainer, best
from toolkit.finetuning.recipe import hold_out
from toolkit.job import Facts, Job
from toolkit.mistakes import nearest
from toolkit.training import Finetune
from toolkit.weights import load_weights, save_weights

if TYPE_CHECKING:
    import torch

WEIGHTS = "weights.safetensors"
TRAINING = "training.json"
_CPU_STEPS = 4


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
    team = processes.join(device)
    with _reproducible(seed, settings.threads, device):
        model = _build(job)
        keep_eval = freeze(model, settings.freeze)
        place = team.device or device
        model.to(place)
        caller = Caller(model, list(data.columns), place, tuple(options.get("outputs") or ()))
        sample, named = data.take(slice(0, 2)), options.get("classes")
        classes = check_logits(caller, sample, 1 + int(data.label.max()), named)
        trainer = Trainer(caller, settings, keep_eval, job.progress, _checkpoint(job, team), processes=team)
        _equip(trainer, sample, classes, job.inputs["project"])
        rows, held = hold_out(data.label, seed)
        history = trainer.run(data, rows, held, seed)
        confusion = trainer.confusion(data, held, classes)
        pace = _pace(trainer, data, rows, held)
        save_weights(model, job.out / WEIGHTS)
    chosen, names = best(history), list(named) if isinstance(named, list | tuple) else [str(index) for index in range(classes)]
    _write_history(history, len(rows), len(held), confusion, names, job.out / TRAINING)
    pictures = curves.draw(history, chosen, confusion, names, job.out)
    return {
        "epochs": settings.epochs,
        "best_epoch": chosen,
        "validation_accuracy": {"value": history[chosen - 1].validation_accuracy, "n": len(held)},
        "device": device,
        "why": why,
        "precision": trainer.precision.name,
        "processes": team.count,
        "threads": settings.threads,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trainable": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        **pace,
        "seconds": round(time.perf_counter() - started, 3),
        "pictures": pictures,
        "notes": [*caller.notes, *([] if pictures else ['no pictures of the curves without matplotlib: pip install "edgekit[finetune]"'])],
    }


def _checkpoint(job: Job, team: processes.Alone | processes.Together) -> Checkpoint | None:
    """Several processes would each stand elsewhere when one of them is ended, so that they keep none."""
    return Checkpoint(job.kept) if job.kept and team.count == 1 else None


def _equip(trainer: Trainer, sample: Dataset, classes: int, project: Path) -> None:
    """Gives a trainer what the settings ask for beyond the plain loop."""
    settings, caller = trainer.settings, trainer.caller
    variation.check(caller.tensors(sample), settings)
    trainer.precision = precision.choose(settings.precision, caller.device.partition(":")[0])
    if settings.teacher:
        trainer.teacher = distillation.teacher_of(settings.teacher, caller, project, settings.teacher_weight, settings.temperature)
        distillation.check_alike(trainer.teacher, caller.tensors(sample), classes)
    if settings.strategy == "qat":
        from toolkit.finetuning.rounding import Rounding

        trainer.rounding = Rounding(caller.model)
    elif settings.compile == "always" or (settings.compile == "auto" and caller.device.startswith("cuda")):
        caller.compile(required=settings.compile == "always")


def _pace(trainer: Trainer, data: Dataset, rows: np.ndarray, held: np.ndarray) -> Facts:
    """How fast training went, and how fast it would be on the CPU of this machine, where it was on a GPU."""
    pace = {"samples_per_second": round(trainer.samples_per_second, 1)}
    if trainer.caller.device == "cpu":
        return pace
    settings = trainer.settings.model_copy(update={"epochs": 1, "average": None, "strategy": "full"})
    twin = Caller(copy.deepcopy(trainer.caller.model).cpu(), trainer.caller.columns, "cpu", trainer.caller.outputs)
    other = Trainer(twin, settings, trainer.keep_eval)
    other.run(data, rows[: _CPU_STEPS * settings.batch_size], held[:1], 0)
    return {**pace, "cpu_samples_per_second": round(other.samples_per_second, 1)}


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


def _write_history(history: Sequence[Epoch], trained: int, held: int, confusion: np.ndarray, names: Sequence[str], file: Path) -> None:
    epochs = [dataclasses.asdict(one) for one in history]
    document = {
        "schema": 1,
        "n_train": trained,
        "n_validation": held,
        "best_epoch": best(history),
        "classes": list(names),
        "confusion": confusion.tolist(),
        "epochs": epochs,
    }
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
