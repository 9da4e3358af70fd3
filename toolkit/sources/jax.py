"""JAX: captures a function with ``jax.export`` as a ``.jax`` program for one sample, its parameters closed over.

It takes ``jax.jit``-ted functions, bound Flax linen modules, Flax nnx and Equinox modules, and pairs ``(function, parameters)``.
An Equinox module is called as its layers are made for, on one sample without a batch axis; all others get a batch of one.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import jax_programs
from toolkit.errors import InputRejected, StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Arrays, Source
from toolkit.sources import naming, recording

_WIDE = {"float64": "float32", "int64": "int32", "uint64": "uint32", "complex128": "complex64"}


class JaxSource:
    """Captures JAX functions and the modules of Flax and Equinox."""

    name = "jax"
    version = 2
    format = "jax"
    framework = "jax"
    modules: tuple[str, ...] = ("jax",)
    distributions: tuple[str, ...] = ("jax", "jaxlib")
    extra = "edgekit[jax]"
    preload = jax_programs.PRELOAD

    def accepts(self, model: object) -> bool:
        """Whether ``model`` is one of the kinds this module's first lines name; never imports JAX, a live object has done so."""
        return "jax" in sys.modules and _kind(model) != ""

    def prepare(self, model: Any, weights: Path | None) -> Any:
        """Puts nnx and Equinox modules in inference mode; other kinds have no mode of their own.

        Raises:
            InputRejected: There is a weights file: parameters of JAX come with the model.
        """
        if weights is not None:
            raise InputRejected("JAX models cannot take a weights file", where=weights.name, hint="load the parameters in the factory")
        if _kind(model) == "nnx":
            model.eval()
        if _kind(model) == "equinox":
            return sys.modules["equinox"].nn.inference_mode(model)
        return model

    def capture(self, model: Any, examples: Arrays, out: Path, *, outputs: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        """Writes the program to ``out`` and returns the live model's outputs, computed one sample at a time.

        Inputs are passed by keyword when the function has parameters of all the examples' names, otherwise by position in
        the examples' order. Outputs are named by ``outputs``, else by the keys of a returned dict, else ``output_0`` and
        so on; where the model returns a dict, ``outputs`` may also choose some of its keys. 64-bit inputs become 32-bit ones
        unless ``jax_enable_x64`` is set, as everywhere in JAX.

        Args:
            model: The live object, in inference mode.
            examples: Inputs by name, ``[n x ...]``.
            out: The ``.jax`` file to write.
            outputs: Names of the outputs, in order.

        Returns:
            Outputs by name, ``[n x ...]``.

        Raises:
            InputRejected: The module is not bound or in training mode, the model is not deterministic, names or dtypes do not
                fit, or an output is not an array with the batch first.
            StageFailed: The model raises on the examples, or ``jax.export`` cannot capture it.
        """
        import jax

        _check_mode(model)
        naming.check_chosen(outputs)
        recording.check_examples(examples)
        for name, column in examples.items():
            _check_width(name, column)
        with jax.default_device(jax.devices("cpu")[0]):
            samples = _samples(examples)
            named = _Named(_function(model), tuple(examples), outputs)
            expected = _live_outputs(named, samples)
            jax_programs.save(_export(named, samples[0]), out)
        return expected

    def input_names(self, model: Any) -> tuple[str, ...]:
        """Returns the names of the inputs that may be given by position, in order."""
        return naming.positional(_parameters(_function(model)))


SOURCE: Source = JaxSource()


def _kind(model: object) -> str:
    """Returns what a model is: ``linen``, ``nnx``, ``equinox``, ``jit`` or ``pair``; empty for anything else."""
    for kind, module in (("linen", "flax.linen"), ("nnx", "flax.nnx"), ("equinox", "equinox")):
        known = getattr(sys.modules.get(module), "Module", None)
        if known is not None and isinstance(model, known):
            return kind
    if isinstance(model, tuple) and len(model) == 2 and callable(model[0]) and _arrays(model[1]):
        return "pair"
    jitted = callable(model) and not isinstance(model, type) and isinstance(model, sys.modules["jax"].stages.Wrapped)
    return "jit" if jitted else ""


def _arrays(tree: object) -> bool:
    jax = sys.modules["jax"]
    return any(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in jax.tree_util.tree_leaves(tree))


def _check_mode(model: Any) -> None:
    kind, where = _kind(model), type(model).__name__
    if kind == "linen" and model.scope is None:
        raise InputRejected("the module has no parameters: it is not bound", where=where, hint="give module.bind(variables)")
    if kind == "nnx":
        graph = sys.modules["flax.nnx"].iter_graph(model)
        training = [".".join(map(str, path)) for path, node in graph if _trains(node)]
        if training:
            raise InputRejected(f"the model is in training mode (first: {training[0] or 'the model'})", where=where, hint="call model.eval() first")
    if kind == "equinox":
        leaves = sys.modules["jax"].tree_util.tree_flatten_with_path(model, is_leaf=lambda part: getattr(part, "inference", None) is False)[0]
        training = [sys.modules["jax"].tree_util.keystr(path) for path, part in leaves if getattr(part, "inference", None) is False]
        if training:
            hint = "call equinox.nn.inference_mode(model) first"
            raise InputRejected(f"the model is in training mode (first: {training[0]})", where=where, hint=hint)


def _trains(node: Any) -> bool:
    return getattr(node, "deterministic", None) is False or getattr(node, "use_running_average", None) is False


def _check_width(name: str, column: np.ndarray) -> None:
    """JAX cuts 64-bit numbers down without a word, whatever their values."""
    import jax

    narrow = _WIDE.get(column.dtype.name)
    if narrow is None or jax.config.jax_enable_x64:
        return
    if column.dtype.kind not in "iu":
        hint = f"give {narrow}, or set jax_enable_x64 before the model is built"
        raise InputRejected(f"input {name!r} is {column.dtype}, which JAX would cut down to {narrow}", where="examples", hint=hint)
    limits = np.iinfo(narrow)
    if column.size and (column.min() < limits.min or column.max() > limits.max):
        hint = "set jax_enable_x64 before the model is built"
        raise InputRejected(f"input {name!r} has {column.dtype} values that do not fit {narrow}, JAX's integer", where="examples", hint=hint)


def _function(model: Any) -> Callable[..., Any]:
    """Returns the function of the inputs alone."""
    kind = _kind(model)
    if kind == "equinox":
        return _sample_by_sample(model)
    if kind != "pair":
        return model
    import jax

    # NumPy's arrays, as files of weights give them, cannot be indexed by what JAX traces.
    function, parameters = model[0], jax.tree_util.tree_map(lambda leaf: jax.numpy.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, model[1])
    # The first parameter is the parameters' place; the signature of what is left is the inputs'.
    takes = list(_parameters(function))

    def call(*inputs: Any, **named: Any) -> Any:
        return function(parameters, *inputs, **named)

    call.__signature__ = inspect.Signature(takes[1:] if takes else [])  # type: ignore[attr-defined]
    return call


def _sample_by_sample(model: Any) -> Callable[..., Any]:
    import jax

    def call(*inputs: Any, **named: Any) -> Any:
        return jax.vmap(lambda inputs, named: model(*inputs, **named))(inputs, named)

    # Equinox layers take a key for randomness, which inference leaves out.
    takes = [item for item in _parameters(model) if item.name != "key"]
    call.__signature__ = inspect.Signature(takes)  # type: ignore[attr-defined]
    return call


def _parameters(function: Any) -> Iterable[inspect.Parameter]:
    try:
        return inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise InputRejected(
            f"the function's parameters are unknown: {first_line(error)}", where=str(function), hint="wrap it in a function of named parameters"
        ) from error


class _Named:
    """A model that takes arrays by position, in the examples' order, and returns a tuple.

    Attributes:
        inputs: Names of the arrays it takes.
        outputs: Names of those it returns, in the model's own order, which a traced dict would lose; known after the first trace.
    """

    def __init__(self, function: Callable[..., Any], inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        self._function, self.inputs, self._chosen = function, inputs, outputs
        self._by_keyword = naming.by_keyword(_known(function), inputs, called="the function", where=_title(function))
        self.outputs: tuple[str, ...] = ()

    def program(self, *arrays: Any) -> tuple[Any, ...]:
        values = dict(zip(self.inputs, arrays, strict=True))
        result = self._function(**values) if self._by_keyword else self._function(*arrays)
        found = naming.named_outputs(result, self._chosen, is_tensor=_is_array, noun="array")
        recording.check_batch({name: value.shape for name, value in found.items()})
        self.outputs = tuple(found)
        return tuple(found.values())


def _known(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Returns the parameters that names can be held against.

    What takes anything by position and by name, as ``nnx.Sequential`` does, hands it on to a function whose names nobody knows.
    """
    takes = list(_parameters(function))
    open = any(item.kind is item.VAR_POSITIONAL for item in takes)
    return [item for item in takes if not (open and item.kind is item.VAR_KEYWORD)]


def _title(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _samples(examples: Arrays) -> list[dict[str, Any]]:
    import jax

    narrow = {name: jax.dtypes.canonicalize_dtype(column.dtype) for name, column in examples.items()}
    return [{name: value.astype(narrow[name], copy=False) for name, value in sample.items()} for sample in recording.samples(examples)]


def _live_outputs(named: _Named, samples: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    import jax

    function = jax.jit(named.program)
    again = _run(named, function, samples[0])
    rows = [_run(named, function, sample) for sample in samples]
    return recording.joined(again, rows)


def _run(named: _Named, function: Callable[..., Any], sample: dict[str, Any]) -> dict[str, np.ndarray]:
    with _blamed("the model raised", f"call on {recording.described(sample)}", "give samples the model accepts"):
        found = function(*sample.values())
        return {name: np.asarray(value) for name, value in zip(named.outputs, found, strict=True)}


def _export(named: _Named, sample: dict[str, Any]) -> jax_programs.Program:
    import jax
    from jax import export

    shapes = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in sample.values()]
    with _blamed("jax.export cannot capture the model:", "jax.export", "leave callbacks into Python out of the model"), _without_paths():
        exported = export.export(jax.jit(named.program), platforms=(jax_programs.PLATFORM,))(*shapes)
    return jax_programs.Program(exported, named.inputs, named.outputs)


@contextmanager
def _blamed(what: str, where: str, hint: str) -> Iterator[None]:
    """Turns what the user's code raises into one sentence."""
    flax = getattr(sys.modules.get("flax.errors"), "FlaxError", RuntimeError)
    try:
        yield
    except (*CODE_ERRORS, flax) as error:
        raise StageFailed(f"{what} {first_line(error)}", where=where, hint=hint) from error


@contextmanager
def _without_paths() -> Iterator[None]:
    """Leaves the user's source paths out of the program, which then is the same wherever it is captured; layers' names stay."""
    import jax

    before = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)
