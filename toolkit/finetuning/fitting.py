"""One training run, from a model and its samples to the weights of the best epoch."""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from toolkit.dataset import Dataset, hold_out
from toolkit.errors import ConfigError, InputRejected, SetupError
from toolkit.finetuning import distillation, lora, precision, processes, variation
from toolkit.finetuning.calling import Caller, check_logits
from toolkit.finetuning.checkpoint import Checkpoint
from toolkit.finetuning.loop import Epoch, Progress, Trainer, best
from toolkit.job import Facts
from toolkit.mistakes import nearest
from toolkit.training import Finetune

if TYPE_CHECKING:
    import torch

_CPU_STEPS = 4


@dataclass(frozen=True)
class Run:
    """What a training run is asked for.

    Attributes:
        settings: The table ``[finetune]``.
        seed: Seed of everything random.
        classes: Names of the classes, of which the model must have as many outputs; or a number: at least as many.
        outputs: Names of the model's outputs, in order; the first is trained.
        project: Folder of the project, which a teacher's factory is in.
        kept: Folder that outlives an interruption; ``None`` where nothing is kept.
        processes: How many processes train together, each of which runs this.
        progress: Callback ``(step, steps, note)``.
    """

    settings: Finetune
    seed: int = 0
    classes: Sequence[str] | int | None = None
    outputs: tuple[str, ...] = ()
    project: Path = field(default_factory=Path)
    kept: Path | None = None
    processes: int = 1
    progress: Progress = lambda *_: None


@dataclass(frozen=True)
class Fitted:
    """A trained model.

    Attributes:
        model: The model, with the weights of the best epoch.
        history: Every epoch.
        confusion: How often each class of the held-out rows was taken for which, ``[class x answer] int64``.
        names: Names of the classes.
        trained: How many rows it learned from.
        held: How many rows the epoch was chosen by.
        facts: ``epochs``, ``best_epoch``, ``validation_accuracy`` (``value`` and ``n``), ``device``, ``why`` it was taken, ``precision``,
            ``processes``, ``threads``, ``parameters``, ``trainable`` (both counts), ``samples_per_second``, on a GPU also
            ``cpu_samples_per_second``, ``seconds`` and ``notes``.
    """

    model: torch.nn.Module
    history: list[Epoch]
    confusion: np.ndarray
    names: list[str]
    trained: int
    held: int
    facts: Facts


def fit(build: Callable[[], torch.nn.Module], data: Dataset, asked: Run) -> Fitted:
    """Trains a model. On the CPU the same seed and number of threads give the same weights, bit for bit.

    Args:
        build: Makes the model; it is called once everything random is seeded.
        data: Samples with one class index each.
        asked: What is asked for.

    Raises:
        ConfigError: A setting does not fit the model or the samples.
        InputRejected: The samples have no labels, or model and samples do not fit each other.
        MissingExtra: Several processes were asked for, and accelerate is not installed.
        SetupError: The device that was asked for is not there.
        StageFailed: The model raises, or the loss becomes NaN.
    """
    started = time.perf_counter()
    settings, (device, why) = asked.settings, choose_device(asked.settings.device)
    if data.label is None:
        raise InputRejected("has no column 'label'", where=data.where, hint="add the class index of every sample")
    team = processes.join(device, asked.processes)
    place = team.device or device
    with _reproducible(asked.seed, settings.threads, device):
        model = build()
        keep_eval = freeze(model, settings.freeze)
        if settings.strategy == "lora":
            lora.attach(model, settings)
        model.to(place)
        caller, sample = Caller(model, list(data.columns), place, asked.outputs), data.take(slice(0, 2))
        classes = check_logits(caller, sample, 1 + int(data.label.max()), asked.classes)
        checkpoint = Checkpoint(asked.kept) if asked.kept and team.count == 1 else None  # of several processes, each would stand elsewhere
        trainer = Trainer(caller, settings, keep_eval, asked.progress, checkpoint, processes=team)
        _equip(trainer, sample, classes, asked.project)
        rows, held = hold_out(data.label, asked.seed)
        history = trainer.run(data, rows, held, asked.seed)
        confusion = trainer.confusion(data, held, classes)
        pace = _pace(trainer, data, rows, held)
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        if settings.strategy == "lora":
            lora.merge(model)
    chosen = best(history)
    facts = {
        "epochs": settings.epochs,
        "best_epoch": chosen,
        "validation_accuracy": {"value": history[chosen - 1].validation_accuracy, "n": len(held)},
        "device": device,
        "why": why,
        "precision": trainer.precision.name,
        "processes": team.count,
        "threads": settings.threads,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trainable": trainable,
        **pace,
        "seconds": round(time.perf_counter() - started, 3),
        "notes": list(caller.notes),
    }
    names = [str(index) for index in range(classes)] if asked.classes is None or isinstance(asked.classes, int) else list(asked.classes)
    return Fitted(model, history, confusion, names, len(rows), len(held), facts)


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


def _equip(trainer: Trainer, sample: Dataset, classes: int, project: Path) -> None:
    """Gives a trainer what the settings ask for beyond the plain loop."""
    settings, caller = trainer.settings, trainer.caller
    variation.check(caller.tensors(sample), settings)
    # bfloat16 has steps as coarse as those of int8, which the rounding is to learn by.
    asked = "float32" if settings.strategy == "qat" and settings.precision == "auto" else settings.precision
    trainer.precision = precision.choose(asked, caller.device.partition(":")[0])
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
    if trainer.caller.device.startswith("cpu"):
        return pace
    settings = trainer.settings.model_copy(update={"epochs": 1, "average": None, "strategy": "full"})
    twin = Caller(copy.deepcopy(trainer.caller.model).cpu(), trainer.caller.columns, "cpu", trainer.caller.outputs)
    other = Trainer(twin, settings, trainer.keep_eval)
    other.run(data, rows[: _CPU_STEPS * settings.batch_size], held[:1], 0)
    return {**pace, "cpu_samples_per_second": round(other.samples_per_second, 1)}


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
