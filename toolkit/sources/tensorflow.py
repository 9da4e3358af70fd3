"""TensorFlow: captures a function or module as a SavedModel for one sample, its variables as constants.

It takes ``tf.function``-s, concrete functions and ``tf.Module``-s that can be called. The program has the signature
``serving_default`` with the names of the examples and of the outputs, so that names survive every later conversion.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import savedmodels
from toolkit.errors import InputRejected, StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Arrays, Source

# Two runs of the same sample may differ by rounding when threads share a sum; random layers differ by far more.
_REPEAT_TOLERANCE = 1e-5


class TensorFlowSource:
    """Captures TensorFlow functions and modules; Keras models have a source of their own."""

    name = "tensorflow"
    version = 1
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
        _check_examples(examples, outputs)
        named = _named(model, tuple(examples), outputs)
        expected = _live_outputs(named, examples)
        function = _traced(named, {name: column[:1] for name, column in examples.items()})
        # TensorFlow sorts what it passes by name; the file keeps the order of the user's.
        frozen = savedmodels.freeze(function, sorted(examples), sorted(expected))
        inputs, made = ({name: places[name] for name in order} for places, order in ((frozen.inputs, examples), (frozen.outputs, expected)))
        savedmodels.write(savedmodels.Frozen(frozen.graph, inputs, made), out)
        return expected


SOURCE: Source = TensorFlowSource()


def _is_keras(model: object) -> bool:
    keras = sys.modules.get("keras")
    return keras is not None and hasattr(keras, "Layer") and isinstance(model, keras.Layer)


def _check_examples(examples: Arrays, outputs: tuple[str, ...]) -> None:
    for kind, names in (("input", examples), ("output", outputs)):
        for name in names:
            if not isinstance(name, str) or not name.isidentifier():
                raise InputRejected(f"{kind} name {name!r} is not a Python identifier", where=f"{kind}s", hint="use letters, digits and underscores")
    if len(set(outputs)) < len(outputs):
        raise InputRejected(f"output names {list(outputs)} repeat", where="outputs", hint="give every output its own name")
    lengths = {name: len(column) if column.ndim else 0 for name, column in examples.items()}
    if not lengths or min(lengths.values()) < 1 or len(set(lengths.values())) > 1:
        message = f"examples need at least one sample and equal lengths, found {lengths}"
        raise InputRejected(message, where="examples", hint="stack samples along the first axis")


def _named(model: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Callable[..., dict[str, Any]]:
    """Wraps a model so that it takes ``inputs`` by keyword and returns a dict."""
    by_keyword = _by_keyword(model, inputs)

    def call(**values: Any) -> dict[str, Any]:
        result = model(**values) if by_keyword else model(*[values[name] for name in inputs])
        return _name_outputs(result, outputs)

    return call


def _by_keyword(model: Any, inputs: tuple[str, ...]) -> bool:
    parameters = _parameters(model)
    positional = [item.name for item in parameters if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)]
    keywords = {item.name for item in parameters if item.kind in (item.KEYWORD_ONLY, item.POSITIONAL_OR_KEYWORD)}
    kinds = {item.kind for item in parameters}
    if set(inputs) <= keywords or (not positional and inspect.Parameter.VAR_KEYWORD in kinds):
        return True
    room = len(positional) >= len(inputs) or inspect.Parameter.VAR_POSITIONAL in kinds
    # A name that the function knows, at another place, means the order is not the user's: guessing would swap inputs silently.
    swapped = any(name in positional and positional.index(name) != place for place, name in enumerate(inputs))
    if not room or swapped:
        message = f"inputs are named {list(inputs)}, the function takes {positional or sorted(keywords)}"
        raise InputRejected(message, where=_title(model), hint="name the examples like the function's parameters")
    return False


def _parameters(model: Any) -> list[inspect.Parameter]:
    import tensorflow as tf

    kinds = (tf.types.experimental.PolymorphicFunction, tf.types.experimental.ConcreteFunction)
    function = model if isinstance(model, kinds) else model.__call__
    described = getattr(function, "function_type", None) or inspect.signature(function)
    return list(described.parameters.values())


def _title(model: Any) -> str:
    return str(getattr(model, "__name__", "") or type(model).__name__)


def _name_outputs(result: Any, names: tuple[str, ...]) -> dict[str, Any]:
    if isinstance(result, Mapping):
        found = {name: value for name, value in result.items() if value is not None}
        if names and set(names) <= set(found):
            return _tensors({name: found[name] for name in names})
        swapped = [name for place, name in enumerate(names) if name in found and list(found).index(name) != place]
        if swapped:
            message = f"the model returns {list(found)}, so {swapped[0]!r} of the names {list(names)} would be given to another output"
            raise InputRejected(message, where="outputs", hint="name outputs that the model returns, or rename all of them")
    else:
        parts = list(result) if isinstance(result, tuple | list) else [result]
        found = {f"output_{place}": value for place, value in enumerate(parts)}
    if names and len(names) != len(found):
        message = f"the model returns {len(found)} outputs {list(found)}, found {len(names)} names {list(names)}"
        raise InputRejected(message, where="outputs", hint="name every output")
    return _tensors(dict(zip(names, found.values(), strict=True)) if names else found)


def _tensors(found: dict[str, Any]) -> dict[str, Any]:
    import tensorflow as tf

    for name, value in found.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise InputRejected(f"output name {name!r} is not a Python identifier", where="outputs", hint="use letters, digits and underscores")
        if not isinstance(value, tf.Tensor):
            message = f"output {name!r} is a {type(value).__name__}, not a tensor"
            raise InputRejected(message, where="outputs", hint="return tensors, or choose outputs by name")
    return found


def _live_outputs(named: Callable[..., dict[str, Any]], examples: Arrays) -> dict[str, np.ndarray]:
    samples = list(_samples(examples))
    again = _run(named, samples[0])
    rows = [_run(named, sample) for sample in samples]
    for name, value in again.items():
        if not np.allclose(value, rows[0][name], rtol=0, atol=_REPEAT_TOLERANCE * _largest(value), equal_nan=True):
            message = f"output {name!r} differs when the same sample runs twice"
            raise InputRejected(message, where="model", hint="remove randomness and state from the inference path")
    return {name: np.concatenate([row[name] for row in rows]) for name in again}


def _samples(examples: Arrays) -> Iterator[dict[str, np.ndarray]]:
    for row in range(len(next(iter(examples.values())))):
        yield {name: np.array(column[row : row + 1]) for name, column in examples.items()}


def _largest(value: np.ndarray) -> float:
    finite = np.abs(value[np.isfinite(value)])
    return float(finite.max()) if finite.size else 0.0


def _run(named: Callable[..., dict[str, Any]], sample: Arrays) -> dict[str, np.ndarray]:
    import tensorflow as tf

    try:
        result = named(**{name: tf.constant(value) for name, value in sample.items()})
    except (*CODE_ERRORS, tf.errors.OpError) as error:
        shapes = ", ".join(f"{name} {list(value.shape)} {value.dtype}" for name, value in sample.items())
        raise StageFailed(f"the model raised {first_line(error)}", where=f"call on {shapes}", hint="give samples the model accepts") from error
    found = {name: np.array(value) for name, value in result.items()}
    for name, value in found.items():
        if value.ndim < 1 or value.shape[0] != 1:
            message = f"output {name!r} of one sample has shape {list(value.shape)}"
            raise InputRejected(message, where="outputs", hint="return the batch as first axis")
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
