"""A Keras model as training sees it: how a batch gets in and logits out, its blocks, and what of them is frozen."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from toolkit import keras_models, keras_weights
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected, StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.finetuning.blocks import Block
from toolkit.mistakes import nearest

_PROBED = 8
_ONE = 1e-3  # half precision adds probabilities up to one no better
_LEAST = 1e-38


@dataclass
class KerasCaller:
    """Feeds a Keras model: by name where it knows the columns' names, else in their order.

    Attributes:
        model: The model.
        columns: Names of the columns it takes.
        outputs: Names of its outputs; the first has the class scores.
        probabilities: Whether it gives probabilities instead of logits.
    """

    model: Any
    columns: Sequence[str]
    outputs: tuple[str, ...] = ()
    probabilities: bool = field(default=False, init=False)

    def tensors(self, batch: Dataset) -> dict[str, Any]:
        """Returns a batch's columns as tensors."""
        import tensorflow as tf

        return {name: tf.convert_to_tensor(np.asarray(batch.columns[name])) for name in self.columns}

    def scores(self, inputs: Mapping[str, Any], *, learning: bool) -> Any:
        """Returns what the model itself gives, ``[n x c]``: logits or probabilities."""
        if getattr(self.model, "inputs", None):
            names = [spec.name for spec in keras_models.signature(self.model).inputs]
            values = [inputs[name] for name in names] if set(names) == set(inputs) else list(inputs.values())
            return self._first(self.model(keras_models.pack(self.model, values), training=learning))
        known = inspect.signature(self.model.call).parameters
        extra = {"training": learning} if "training" in known else {}
        return self._first(self.model(**inputs, **extra) if set(inputs) <= set(known) else self.model(*inputs.values(), **extra))

    def logits(self, inputs: Mapping[str, Any], *, learning: bool) -> Any:
        """Returns logits ``[n x c] float32`` in a graph; where the model ends in a softmax, what goes into it."""
        import tensorflow as tf

        found = self.scores(inputs, learning=learning)
        if self.probabilities and found.op.type == "Softmax":
            return tf.cast(found.op.inputs[0], tf.float32)
        found = tf.cast(found, tf.float32)
        return tf.math.log(tf.maximum(found, _LEAST)) if self.probabilities else found

    def _first(self, found: Any) -> Any:
        """Takes the class scores from what a model returns: the first of the named outputs."""
        if isinstance(found, Mapping):
            return found[self.outputs[0]] if self.outputs and self.outputs[0] in found else next(iter(found.values()))
        if not isinstance(found, list | tuple):
            return found
        names = [spec.name for spec in keras_models.signature(self.model).outputs] if getattr(self.model, "inputs", None) else []
        return found[names.index(self.outputs[0])] if self.outputs and self.outputs[0] in names else found[0]


def check_scores(caller: KerasCaller, data: Dataset, labels: int, classes: Any) -> int:
    """Runs the model on a few samples, which also builds it, so that a misfit is told before training; notes whether it gives probabilities.

    Args:
        caller: The model.
        data: The samples.
        labels: How many classes the labels have at least.
        classes: Names of the classes, of which there must be as many as outputs; or how many there are at least.

    Returns:
        How many outputs a sample has.

    Raises:
        StageFailed: The model does not take the samples.
        InputRejected: It does not give one output for each class.
    """
    sample = data.take(slice(0, _PROBED))
    inputs = ", ".join(f"{name} {list(column.shape)} {column.dtype}" for name, column in sample.columns.items())
    try:
        with keras_models.quiet():
            found = np.asarray(caller.scores(caller.tensors(sample), learning=False), np.float64)
    except CODE_ERRORS as error:
        raise StageFailed(f"the model raised {first_line(error)}", where=f"call on {inputs}", hint="give samples the model accepts") from error
    least = max(labels, classes if isinstance(classes, int) else 0)
    named = 0 if isinstance(classes, int) else len(classes or ())
    shape = list(found.shape)
    if len(shape) != 2 or shape[0] != len(sample) or shape[1] < least or shape[1] != (named or shape[1]):
        told = f"scores of {len(sample)} samples have shape {shape}, expected [{len(sample)}, {named or f'{least} or more'}]"
        raise InputRejected(told, where=type(caller.model).__name__, hint="give the model one output per class")
    # Numbers tell it for any way in which a softmax was built: as a layer, an activation, an operation, or inside a nested model.
    caller.probabilities = bool((found >= 0).all() and np.abs(found.sum(axis=1) - 1).max() < _ONE)
    return int(shape[1])


def blocks(model: Any) -> list[Block]:
    """Takes a model apart into its layers with weights that are trained, in their order; models inside of it are taken apart too.

    The last block is the head. A weight that several layers share is the first one's, and layers that the factory froze are no blocks.
    """
    found: list[Block] = []
    seen: set[int] = set()
    for layer in _layers(model):
        fresh = tuple(one for one in layer.trainable_variables if id(one) not in seen)
        seen.update(map(id, fresh))
        if fresh:
            found.append(Block(layer.name, fresh))
    rest = tuple(one for one in model.trainable_variables if id(one) not in seen)
    return [Block("", rest), *found] if rest else found


def freeze(model: Any, patterns: Sequence[str]) -> list[Any]:
    """Returns the weights that may be trained: those that neither the model nor a pattern keeps as they are.

    Args:
        model: The model, which is built. Batch norms without a scale and a shift of their own, whose statistics are named, are frozen.
        patterns: Glob patterns of weights' names, such as ``backbone/*``.

    Raises:
        ConfigError: A pattern matches nothing, or nothing is left to train.
    """
    names = keras_weights.by_name(model)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"pattern {pattern!r} matches no weight", where="finetune.freeze", hint=nearest(pattern, list(names)))
    kept = {id(one) for name, one in names.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    left = [one for one in model.trainable_variables if id(one) not in kept]
    if not left:
        raise ConfigError("every weight is frozen", where="finetune.freeze", hint="leave at least the head to train, or drop [finetune]")
    for layer in _norms(model):
        if not layer.trainable_variables and id(layer.moving_mean) in kept:
            layer.trainable = False
    return left


def norms(model: Any) -> list[tuple[Any, set[int]]]:
    """Returns the batch norms that have weights to learn, with the ``id`` of each of these."""
    return [(layer, set(map(id, layer.trainable_variables))) for layer in _norms(model) if layer.trainable_variables]


def settle(found: Sequence[tuple[Any, set[int]]], learning: Sequence[Any]) -> None:
    """Lets the statistics of batch norms move only where some of their own weights learn; Keras runs the others as after training.

    Args:
        found: What :func:`norms` returned before anything was frozen.
        learning: The weights that learn.
    """
    chosen = set(map(id, learning))
    for layer, own in found:
        layer.trainable = bool(own & chosen)


def _norms(model: Any) -> list[Any]:
    import keras

    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]


def _layers(model: Any) -> Iterator[Any]:
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer
