"""TensorFlow: captures a function or module as a SavedModel for one sample, its variables as constants.

It takes ``tf.function``-s, concrete functions and ``tf.Module``-s that can be called. The program has the signature
``serving_default`` with the names of the examples and of the outputs, so that names survive every later conversion.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import savedmodels
from toolkit.errors import StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Arrays, Source
from toolkit.sources import naming, recording


class TensorFlowSource:
    """Captures TensorFlow functions and modules; Keras models have a source of their own."""

    name = "tensorflow"
    version = 2
    format = "savedmodel"
    framework = "tensorflow"
    modules: tuple[str, ...] = ("tensorflow",)
    distributions: tuple[str, ...] = ("tensorflow",)
    extra = "edgekit[tensorflow]"
    preload = savedmodels.PRELOAD

    def accepts(self, model: object) -> bool:
        """Whether ``model`` is a function or a module; never imports TensorFlow, because a live object has done so already."""
        tf = sys.modules.get("tensorflow")
        if tf is None or not hasattr(tf, "Module") or _is_keras(model):
            return False
        kinds = (tf.types.experimental.PolymorphicFunction, tf.types.experimental.ConcreteFunction)
        return isinstance(model, kinds) or (isinstance(model, tf.Module) and callable(model))

    def capture(self, model: Any, examples: Arrays, out: Path, *, outputs: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        """Writes the program to ``out`` and returns the live model's outputs, computed one sample at a time.

        Inputs are passed by keyword when the function has parameters of all the examples' names, otherwise by position in
        the examples' order. Outputs are named by ``outputs``, else by the keys of a returned dict, else ``output_0`` and
        so on; where the model returns a dict, ``outputs`` may also choose some of its keys.

        Args:
            model: The live object, in inference mode.
            examples: Inputs by name, ``[n x ...]``.
            out: The SavedModel folder to write.
            outputs: Names of the outputs, in order.

        Returns:
            Outputs by name, ``[n x ...]``.

        Raises:
            InputRejected: The model is not deterministic, keeps a state or lookup tables, names do not fit, or an output is not
                a tensor with the batch first.
            StageFailed: The model raises on the examples, or TensorFlow cannot trace or freeze it.
        """
        recording.check_examples(examples)
        naming.check_chosen(outputs)
        named = _named(model, tuple(examples), outputs)
        expected = _live_outputs(named, examples)
        function = _traced(named, {name: column[:1] for name, column in examples.items()})
        # TensorFlow sorts what it passes by name; the file keeps the order of the user's.
        frozen = savedmodels.freeze(function, sorted(examples), sorted(expected))
        inputs, made = ({name: places[name] for name in order} for places, order in ((frozen.inputs, examples), (frozen.outputs, expected)))
        savedmodels.write(savedmodels.Frozen(frozen.graph, inputs, made), out)
        return expected

    def input_names(self, model: Any) -> tuple[str, ...]:
        """Returns the names of the inputs that may be given by position, in order."""
        return naming.positional(_parameters(model))


SOURCE: Source = TensorFlowSource()


def _is_keras(model: object) -> bool:
    keras = sys.modules.get("keras")
    return keras is not None and hasattr(keras, "Layer") and isinstance(model, keras.Layer)


def _named(model: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Callable[..., dict[str, Any]]:
    """Wraps a model so that it takes ``inputs`` by keyword and returns a dict."""
    import tensorflow as tf

    by_keyword = naming.by_keyword(_parameters(model), inputs, called="the function", where=_title(model))

    def call(**values: Any) -> dict[str, Any]:
        result = model(**values) if by_keyword else model(*[values[name] for name in inputs])
        return naming.named_outputs(result, outputs, is_tensor=lambda value: isinstance(value, tf.Tensor))

    return call


def _parameters(model: Any) -> list[inspect.Parameter]:
    import tensorflow as tf

    kinds = (tf.types.experimental.PolymorphicFunction, tf.types.experimental.ConcreteFunction)
    function = model if isinstance(model, kinds) else model.__call__
    described = getattr(function, "function_type", None) or inspect.signature(function)
    return list(described.parameters.values())


def _title(model: Any) -> str:
    return str(getattr(model, "__name__", "") or type(model).__name__)


def _live_outputs(named: Callable[..., dict[str, Any]], examples: Arrays) -> dict[str, np.ndarray]:
    samples = recording.samples(examples)
    again = _run(named, samples[0])
    return recording.joined(again, [_run(named, sample) for sample in samples])


def _run(named: Callable[..., dict[str, Any]], sample: Arrays) -> dict[str, np.ndarray]:
    import tensorflow as tf

    try:
        result = named(**{name: tf.constant(value) for name, value in sample.items()})
    except (*CODE_ERRORS, tf.errors.OpError) as error:
        where = f"call on {recording.described(sample)}"
        raise StageFailed(f"the model raised {first_line(error)}", where=where, hint="give samples the model accepts") from error
    found = {name: np.array(value) for name, value in result.items()}
    recording.check_batch({name: value.shape for name, value in found.items()})
    return found


def _traced(named: Callable[..., dict[str, Any]], sample: Arrays) -> Any:
    import tensorflow as tf

    specs = {name: tf.TensorSpec(value.shape, value.dtype, name=name) for name, value in sample.items()}
    try:
        # Keyword arguments are flattened in the order of their names, whatever order they were given in.
        return tf.function(named).get_concrete_function(**{name: specs[name] for name in sorted(specs)})
    except (*CODE_ERRORS, tf.errors.OpError) as error:
        hint = "move Python code that depends on values into tf.cond and tf.where"
        raise StageFailed(f"TensorFlow cannot trace the model: {first_line(error)}", where="tf.function", hint=hint) from error
