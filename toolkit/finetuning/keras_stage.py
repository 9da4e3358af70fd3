"""Stage: adapts a Keras model to the training split, on TensorFlow, and writes the weights of the best epoch.

It does for Keras what :mod:`toolkit.finetuning.stage` does for PyTorch, from the same table ``[finetune]`` and with the same files and facts.
"""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import numpy as np

from toolkit import keras_models, keras_weights
from toolkit.dataset import Dataset, hold_out, load
from toolkit.errors import ConfigError, InputRejected, SetupError
from toolkit.factory import load_factory
from toolkit.finetuning import curves, keras_parts
from toolkit.finetuning.keras_checkpoint import KerasCheckpoint
from toolkit.finetuning.keras_loop import KerasTrainer
from toolkit.finetuning.keras_parts import KerasCaller
from toolkit.finetuning.loop import best
from toolkit.job import Facts, Job
from toolkit.training import Finetune

WEIGHTS = "weights.safetensors"
TRAINING = "training.json"
_NO_PICTURES = 'no pictures of the curves without matplotlib: pip install "edgekit[finetune]"'
_LAYERS = "put layers such as keras.layers.RandomFlip and RandomRotation at the model's beginning: they do nothing after training"
# What the training of Keras models does not know: key, values that ask for nothing, and what to do instead.
_UNKNOWN: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("augment", ((),), _LAYERS),
    ("mixup", (0.0,), "leave it out"),
    ("cutmix", (0.0,), "leave it out"),
    ("layer_decay", (1.0,), 'leave it out; strategy = "gradual" is another way to spare the first layers'),
    ("teacher", (None,), "leave it out"),
    ("strategy", ("full", "head", "last", "gradual"), 'take "full", "head", "last" or "gradual"'),
    ("precision", ("auto", "float32"), "leave it out; the factory may set a keras.dtype_policies policy"),
    ("compile", ("auto", "never"), "leave it out; a step is a graph of TensorFlow in any case"),
    ("device", ("auto", "cpu", "cuda"), 'set it to "auto"'),
)


def check(settings: Finetune) -> None:
    """Makes sure that the settings ask for nothing that is known for PyTorch alone; needs no Keras.

    Raises:
        ConfigError: They do.
    """
    for key, known, hint in _UNKNOWN:
        value = getattr(settings, key)
        if value not in known:
            shown = json.dumps(value) if not isinstance(value, tuple) else json.dumps(list(value))
            raise ConfigError(f"{key} = {shown} is not there for models of Keras", where=f"finetune.{key}", hint=hint)


def run(job: Job) -> Facts:
    """Fine-tunes and writes ``weights.safetensors`` and ``training.json``. On the CPU the same seed gives the same bytes.

    Args:
        job: Inputs are ``project`` (folder of the factory), ``data`` (folder of the training split) and perhaps ``weights`` (``.safetensors``
            to start from; a head for another number of classes starts afresh). Options are the fields of
            :class:`toolkit.training.Finetune`, ``factory`` (``module:function``), ``seed``, ``classes`` (names: the model must have as
            many outputs; or a number: at least as many) and perhaps ``outputs`` (names of the model's outputs; the first is trained).

    Returns:
        The facts of :class:`toolkit.finetuning.fitting.Fitted`, ``outputs`` (``logits`` or ``probabilities``: what the model gives),
        ``replaced`` (weights that started afresh) and ``pictures`` (names of the files that show the run).

    Raises:
        ConfigError: The factory does not exist or gives no Keras model, a setting is for PyTorch alone, or a freeze pattern matches nothing.
        InputRejected: Starting weights, data and model do not fit each other.
        MissingExtra: Keras or TensorFlow is not installed.
        SetupError: The device that was asked for is not there, or Keras runs on another backend.
        StageFailed: The factory or the model raises, or the loss becomes NaN.
    """
    started, options = time.perf_counter(), job.options
    settings = Finetune(**{name: options[name] for name in Finetune.model_fields if name in options})
    check(settings)
    if int(options.get("processes", 1)) > 1:
        raise ConfigError("several processes train models of PyTorch alone", where="processes", hint="start edgekit without torchrun")
    data, seed, notes = load(job.inputs["data"]), int(options.get("seed", 0)), list[str]()
    if data.label is None:
        raise InputRejected("has no column 'label'", where=data.where, hint="add the class index of every sample")
    keras = keras_models.use("tensorflow")
    device, why = _choose_device(settings.device)
    _make_reproducible(seed, settings.threads, device, notes)
    caller, classes, replaced = _build(job, data, keras)
    model = caller.model
    trainer = KerasTrainer(caller, settings, classes, job.progress, KerasCheckpoint(job.kept) if job.kept else None)
    rows, held = hold_out(data.label, seed)
    history = trainer.run(data, rows, held, seed)
    confusion, chosen = trainer.confusion(data, held), best(history)
    keras_weights.save(model, job.out / WEIGHTS)
    named = options.get("classes")
    names = [str(index) for index in range(classes)] if named is None or isinstance(named, int) else list(named)
    document = {
        "schema": 1,
        "n_train": len(rows),
        "n_validation": len(held),
        "best_epoch": chosen,
        "classes": names,
        "confusion": confusion.tolist(),
        "epochs": [dataclasses.asdict(one) for one in history],
    }
    (job.out / TRAINING).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    pictures = curves.draw(history, chosen, confusion, names, job.out)
    return {
        "epochs": settings.epochs,
        "best_epoch": chosen,
        "validation_accuracy": {"value": history[chosen - 1].validation_accuracy, "n": len(held)},
        "device": device,
        "why": why,
        "precision": str(keras.config.dtype_policy().name),
        "processes": 1,
        "threads": settings.threads,
        "parameters": model.count_params(),
        "trainable": trainer.trainable,
        "samples_per_second": round(trainer.pace.samples_per_second, 1),
        "seconds": round(time.perf_counter() - started, 3),
        "outputs": "probabilities" if caller.probabilities else "logits",
        "replaced": replaced,
        "pictures": pictures,
        "notes": notes + ([] if pictures else [_NO_PICTURES]),
    }


def _build(job: Job, data: Dataset, keras: Any) -> tuple[KerasCaller, int, list[dict[str, Any]]]:
    """Builds the model, holds it against the samples, and loads what it starts from; returns also how many outputs it has."""
    options, label = job.options, np.asarray(data.label)
    model = load_factory(job.inputs["project"], options["factory"])()
    if not isinstance(model, keras.Model):
        found = f"{type(model).__module__}.{type(model).__qualname__}"
        told = f"the factory returned a {found}, which is no model of keras"
        raise ConfigError(told, where="factory", hint="return the model itself, or say its framework: model.framework")
    caller = KerasCaller(model, list(data.columns), tuple(options.get("outputs") or ()))
    classes = keras_parts.check_scores(caller, data, 1 + int(label.max()), options.get("classes"))
    if "weights" not in job.inputs:
        return caller, classes, []
    last = keras_parts.blocks(model)[-1:]
    head = {name for name, one in keras_weights.by_name(model).items() if any(one is other for block in last for other in block.parameters)}
    return caller, classes, keras_weights.load(model, job.inputs["weights"], lambda name: name in head)


def _choose_device(asked: str) -> tuple[str, str]:
    """Returns the device to train on and the reason; TensorFlow takes a GPU by itself where it sees one."""
    import tensorflow as tf

    there = bool(tf.config.list_physical_devices("GPU"))
    if asked == "cuda" and not there:
        raise SetupError("TensorFlow finds no GPU here", where="finetune.device", hint='set it to "auto" or "cpu"')
    if asked == "cpu":
        tf.config.set_visible_devices([], "GPU")
    if asked != "auto":
        return asked, f"finetune.device asks for {asked}"
    return ("cuda", "auto takes the GPU that TensorFlow finds") if there else ("cpu", "no GPU was found")


def _make_reproducible(seed: int, threads: int, device: str, notes: list[str]) -> None:
    """Seeds everything and fixes the threads; some layers have no deterministic kernel on a GPU, where training must go on."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed % 2**32)
    if device == "cpu":
        tf.config.experimental.enable_op_determinism()
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:  # TensorFlow has begun to compute in this process, with the threads it had then
        found = tf.config.threading.get_intra_op_parallelism_threads() or "all"
        if found != threads:
            notes.append(f"TensorFlow was already running in this process, with {found} threads of an operation instead of {threads}")
