"""Loads Keras models (``.keras``, ``.h5``) for everyone who needs one: the source, the routes and the runtime.

Keras takes its backend once per process, when it is first imported. So whoever needs a certain one asks here, before
anything else imports Keras. Files are looked at by :mod:`toolkit.intake` before Keras sees them, and custom code in them
is never run.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit import intake, jax_programs, pt2, savedmodels
from toolkit.artifact import Signature, TensorSpec
from toolkit.errors import InputRejected, MissingExtra, SetupError, StageFailed, StageOutOfMemory
from toolkit.factory import CODE_ERRORS, first_line

if TYPE_CHECKING:
    import torch

BACKENDS = ("tensorflow", "jax", "torch")
"""Backends in the order in which they are taken where any will do: the first is the one that Keras itself prefers."""

_TRACE_HINT = "replace layers whose code depends on values of their input"


def use(backend: str | None = None) -> Any:
    """Imports Keras.

    Args:
        backend: The backend it must run on; ``None`` for the one in use, else the first of ``BACKENDS`` that is installed.

    Returns:
        The module ``keras``.

    Raises:
        MissingExtra: Keras or every backend is missing.
        SetupError: Keras already runs on another backend in this process.
    """
    if "keras" not in sys.modules:
        _prepare(backend or _installed())
    import keras

    found = keras.backend.backend()
    if backend not in (None, found):
        raise SetupError(
            f"Keras runs on {found} in this process, and {backend} is needed",
            where="KERAS_BACKEND",
            hint="convert it in a process that has not imported keras yet; edgekit's own stages do that",
        )
    return keras


def load(path: Path, *, backend: str | None = None) -> Any:
    """Reads a ``.keras`` or ``.h5`` file as an uncompiled ``keras.Model``, after asking whether its bytes may be parsed.

    Args:
        path: The model file.
        backend: As for :func:`use`.

    Raises:
        InputRejected: The file is damaged, holds no model, or needs code that is not Keras' own.
        MissingExtra: As :func:`use`.
        SetupError: As :func:`use`.
        StageOutOfMemory: The process may not have the memory that the model needs.
    """
    intake.check_model(path, "h5" if path.suffix.lower() in (".h5", ".hdf5") else "keras")
    keras = use(backend)
    try:
        with quiet():
            model = keras.saving.load_model(path, custom_objects=_legacy(keras), compile=False, safe_mode=True)
    except MemoryError as error:
        raise StageOutOfMemory(f"loading the model ran out of memory: {first_line(error)}", where=path.name) from error
    except (*CODE_ERRORS, EOFError, zipfile.BadZipFile) as error:
        hint = "save it again with model.save(path) of the Keras that it was trained with"
        raise InputRejected(f"is not a model that Keras {keras.__version__} can load: {first_line(error)}", where=path.name, hint=hint) from error
    if not getattr(model, "inputs", None):
        raise InputRejected(
            "has no fixed inputs", where=path.name, hint="call the model on a sample before it is saved, or build it with keras.Input"
        )
    return model


def signature(model: Any) -> Signature:
    """Returns the inputs and outputs of a model for one sample: the first axis is 1, other free sizes keep a name."""
    return Signature(inputs=_specs(_structure(model, "input"), _input_name), outputs=_specs(_structure(model, "output"), _output_name))


def call(model: Any, named: Mapping[str, Any]) -> dict[str, Any]:
    """Runs a model in inference mode on inputs by name; symbolic ones extend its graph.

    Returns:
        The outputs by name.
    """
    import keras

    names = _names(_structure(model, "input"), _input_name)
    found = keras.tree.flatten(model(pack(model, [named[name] for name in names]), training=False))
    return dict(zip(_names(_structure(model, "output"), _output_name), found, strict=True))


def pack(model: Any, values: list[Any]) -> Any:
    """Puts one value for each input, in the order of :func:`signature`, into the structure that the model is called with."""
    import keras

    return keras.tree.pack_sequence_as(_structure(model, "input"), values)


def static(model: Any, wanted: Signature) -> Any:
    """Returns a functional model with exactly the inputs and outputs of a signature, as dictionaries.

    Converters write other, slower or unsupported operators for sizes that are free, and recurrent layers cannot be written
    at all. The layers are shared with ``model``, which is returned itself when it is so already.

    Args:
        model: The loaded model.
        wanted: Names, element types and sizes; a string is a size that stays free.

    Raises:
        InputRejected: The model has other inputs or outputs, or does not take these sizes.
    """
    import keras

    _check_names(model, wanted)
    if _is_static(model, wanted):
        return model
    inputs = {spec.name: keras.Input(batch_shape=_sizes(spec), dtype=spec.dtype, name=spec.name) for spec in wanted.inputs}
    try:
        with quiet():
            outputs = call(model, inputs)
            return keras.Model(inputs, {spec.name: outputs[spec.name] for spec in wanted.outputs}, name="model")
    except CODE_ERRORS as error:
        sizes = ", ".join(map(str, wanted.inputs))
        raise InputRejected(f"does not take {sizes}: {first_line(error)}", where=model.name, hint="give samples that the model accepts") from error


def concrete_function(model: Any, wanted: Signature) -> Any:
    """Returns a TensorFlow ``ConcreteFunction`` of a model in inference mode, with inputs and outputs by name.

    Needs the TensorFlow backend.

    Raises:
        StageFailed: The model cannot be traced.
    """
    specs = _tensor_specs(wanted)
    return _traced(lambda **named: call(model, named), model, **{spec.name: spec for spec in specs})


def frozen(source: Path, wanted: Signature) -> savedmodels.Frozen:
    """Loads a Keras file on the TensorFlow backend as one graph whose weights are constants.

    Raises:
        InputRejected: As :func:`load` and :func:`static`, or a layer keeps a state between calls.
        SetupError: As :func:`use`.
        StageFailed: TensorFlow cannot trace or freeze the model.
        StageOutOfMemory: As :func:`load`.
    """
    model = static(load(source, backend="tensorflow"), wanted)
    function = _traced(lambda *arrays: _in_order(model, arrays, wanted), model, *_tensor_specs(wanted))
    return savedmodels.freeze(function, [spec.name for spec in wanted.inputs], [spec.name for spec in wanted.outputs])


def _in_order(model: Any, values: Sequence[Any], wanted: Signature) -> tuple[Any, ...]:
    """Runs a model on inputs in the order of a signature, and returns its outputs in that order."""
    found = call(model, {spec.name: value for spec, value in zip(wanted.inputs, values, strict=True)})
    return tuple(found[spec.name] for spec in wanted.outputs)


def _tensor_specs(wanted: Signature) -> list[Any]:
    import tensorflow as tf

    return [tf.TensorSpec(_sizes(spec), spec.dtype, name=spec.name) for spec in wanted.inputs]


def _traced(function: Callable[..., Any], model: Any, *specs: Any, **named: Any) -> Any:
    import tensorflow as tf

    try:
        return tf.function(function, autograph=False).get_concrete_function(*specs, **named)
    except CODE_ERRORS as error:
        raise StageFailed(f"TensorFlow cannot trace the model: {first_line(error)}", where=model.name, hint=_TRACE_HINT) from error


def torch_program(model: Any, wanted: Signature) -> torch.export.ExportedProgram:
    """Captures a model with ``torch.export``; the program takes its inputs by keyword. Needs the torch backend.

    Raises:
        StageFailed: The model cannot be captured.
    """
    import torch

    names = [spec.name for spec in wanted.outputs]

    class Named(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **named: torch.Tensor) -> dict[str, torch.Tensor]:
            found = call(self.model, named)
            return {name: found[name] for name in names}  # in the signature's order, by which exporters go

    try:
        with torch.no_grad(), quiet():
            return torch.export.export(Named().eval(), (), kwargs=pt2.blank_inputs(wanted))
    except CODE_ERRORS as error:
        raise StageFailed(f"torch.export cannot capture the model: {first_line(error)}", where=model.name, hint=_TRACE_HINT) from error


def save_torch_program(source: Path, out: Path, wanted: Signature) -> Path:
    """Loads a Keras file on the torch backend and writes it as a ``.pt2`` program, which every route out of PyTorch reads.

    Returns:
        ``out``.

    Raises:
        InputRejected: As :func:`load` and :func:`static`.
        MissingExtra: As :func:`use`.
        SetupError: As :func:`use`.
        StageFailed: As :func:`torch_program`.
        StageOutOfMemory: As :func:`load`.
    """
    program = torch_program(static(load(source, backend="torch"), wanted), wanted)
    import torch

    buffer = io.BytesIO()  # a file's name would become part of the archive's bytes
    torch.export.save(program, buffer)
    out.write_bytes(buffer.getvalue())
    return out


def write_example(folder: Path, suffix: str, *, recurrent: bool = True) -> tuple[Path, Signature, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Writes a small model with two inputs, two outputs, convolutions and perhaps a recurrent layer, for ``tests/contract``.

    Returns:
        The file, its signature, inputs ``[4 x ...]`` and Keras' own outputs ``[4 x ...]``.
    """
    keras = use()
    layers = keras.layers
    keras.utils.set_random_seed(1)
    picture, tokens = keras.Input((8, 8, 2), name="picture"), keras.Input((5,), dtype="int32", name="tokens")
    seen = layers.ReLU(6)(layers.BatchNormalization()(layers.SeparableConv2D(4, 3, strides=2, padding="same")(picture)))
    words = layers.Embedding(20, 4)(tokens)
    read = layers.GRU(6)(words) if recurrent else layers.Flatten()(words)
    both = layers.Concatenate()([layers.GlobalAveragePooling2D()(seen), read])
    model = keras.Model([picture, tokens], [layers.Dense(3, name="scores")(both), layers.Dense(2, activation="tanh", name="extra")(both)])
    rng = np.random.default_rng(2)
    inputs = {"picture": rng.normal(size=(4, 8, 8, 2)).astype(np.float32), "tokens": rng.integers(0, 20, (4, 5)).astype(np.int32)}
    with quiet():
        model.save(folder / f"model.{suffix}")
        found = model.predict_on_batch(inputs)
    outputs = dict(zip(("scores", "extra"), map(np.asarray, found), strict=True))
    return folder / f"model.{suffix}", signature(model), inputs, outputs


def save_jax_program(source: Path, out: Path, wanted: Signature) -> Path:
    """Loads a Keras file on the JAX backend and writes it as a ``.jax`` program, which every route out of JAX reads.

    64-bit integers become 32-bit ones, as everywhere in JAX where nobody asks for more.

    Returns:
        ``out``.

    Raises:
        InputRejected: As :func:`load` and :func:`static`.
        MissingExtra: As :func:`use`.
        SetupError: As :func:`use`.
        StageFailed: JAX cannot trace the model.
        StageOutOfMemory: As :func:`load`.
    """
    model = static(load(source, backend="jax"), wanted)
    import jax
    from jax import export

    def run(*arrays: Any) -> tuple[Any, ...]:
        return _in_order(model, arrays, wanted)

    inputs, outputs = [spec.name for spec in wanted.inputs], [spec.name for spec in wanted.outputs]
    specs = [jax.ShapeDtypeStruct(_sizes(spec), jax.dtypes.canonicalize_dtype(spec.dtype)) for spec in wanted.inputs]
    try:
        exported = export.export(jax.jit(run), platforms=(jax_programs.PLATFORM,))(*specs)
    except CODE_ERRORS as error:
        raise StageFailed(f"JAX cannot trace the model: {first_line(error)}", where=model.name, hint=_TRACE_HINT) from error
    jax_programs.save(jax_programs.Program(exported, tuple(inputs), tuple(outputs)), out)
    return out


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps Keras' advice to developers out of our users' terminals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _prepare(backend: str) -> None:
    """Keras reads these when it is imported, TensorFlow when it is loaded."""
    os.environ["KERAS_BACKEND"] = backend
    if backend == "tensorflow":
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def _installed() -> str:
    for backend in BACKENDS:
        if find_spec(backend) is not None:
            return backend
    raise MissingExtra(f"Keras needs one of {', '.join(BACKENDS)}, and none is installed", hint='run: pip install "edgekit[tensorflow]"')


def _legacy(keras: Any) -> dict[str, type]:
    """Keras 2 wrote ``groups`` into the configuration of depthwise convolutions, which Keras 3 refuses although it means nothing."""

    class DepthwiseConv2D(keras.layers.DepthwiseConv2D):  # type: ignore[misc,name-defined]
        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Any:
            return keras.layers.DepthwiseConv2D.from_config({key: value for key, value in config.items() if key != "groups"})

    return {"DepthwiseConv2D": DepthwiseConv2D}


def _structure(model: Any, side: str) -> Any:
    """Returns a model's symbolic inputs or outputs, nested as it takes or gives them."""
    import keras

    if isinstance(model, keras.Sequential):  # it has one of each, and knows its structure only once it was called
        return getattr(model, f"{side}s")[0]
    return getattr(model, side)


def _is_static(model: Any, wanted: Signature) -> bool:
    inputs = _structure(model, "input")
    if not isinstance(inputs, dict) or not isinstance(_structure(model, "output"), dict):
        return False
    found = {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in inputs.items()}
    return found == {spec.name: (_sizes(spec), spec.dtype) for spec in wanted.inputs}


def _specs(tree: Any, name_of: Callable[[Any], str]) -> tuple[TensorSpec, ...]:
    import keras

    tensors = keras.tree.flatten(tree)
    return tuple(_spec(name, tensor) for name, tensor in zip(_names(tree, name_of), tensors, strict=True))


def _spec(name: str, tensor: Any) -> TensorSpec:
    sizes = tuple(f"d{axis}" if size is None else int(size) for axis, size in enumerate(tensor.shape))
    return TensorSpec(name=name, dtype=str(tensor.dtype), shape=(1, *sizes[1:]))


def _names(tree: Any, name_of: Callable[[Any], str]) -> list[str]:
    """Names of the tensors of a structure: a dictionary's own keys, else what ``name_of`` says, else their places."""
    import keras

    flat = keras.tree.flatten_with_path(tree)
    names = [path[-1] if path and isinstance(path[-1], str) else name_of(tensor) for path, tensor in flat]
    if len(set(names)) == len(names):
        return names
    return [f"output_{place}" for place in range(len(names))]


def _input_name(tensor: Any) -> str:
    return str(tensor.name)


def _output_name(tensor: Any) -> str:
    return str(tensor._keras_history.operation.name)  # as model.output_names, which Sequential has not


def _sizes(spec: TensorSpec) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in spec.shape)


def _check_names(model: Any, wanted: Signature) -> None:
    found = signature(model)
    for kind, have, want in (("inputs", found.inputs, wanted.inputs), ("outputs", found.outputs, wanted.outputs)):
        names, expected = sorted(spec.name for spec in have), sorted(spec.name for spec in want)
        if names != expected:
            raise InputRejected(f"has the {kind} {names}, expected {expected}", where=model.name, hint="name the samples like the model's inputs")
