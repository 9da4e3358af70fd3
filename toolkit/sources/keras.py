"""Keras: captures a ``keras.Model`` as a ``.keras`` file for one sample, with named inputs and outputs.

On the torch backend a Keras model is a ``torch.nn.Module`` as well. Sources are asked in the order of their names, so this one
gets it; its file can be loaded on any backend afterwards.
"""

from __future__ import annotations

import inspect
import io
import json
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import intake_keras, keras_models, keras_weights
from toolkit.errors import InputRejected, StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Arrays, Source
from toolkit.sources import naming, recording

_LONG_AGO = (1980, 1, 1, 0, 0, 0)
_CALLED_WITH = {"tensorflow": "give a tf.function that calls it", "jax": "give a JAX function that calls it", "torch": "wrap it in a torch.nn.Module"}


class KerasSource:
    """Captures ``keras.Model``."""

    name = "keras"
    version = 2
    format = "keras"
    framework = "keras"
    modules: tuple[str, ...] = ("keras",)
    distributions: tuple[str, ...] = ("keras",)
    extra = "edgekit[tensorflow]"

    def accepts(self, model: object) -> bool:
        """Whether ``model`` is a ``keras.Model``; never imports Keras, because a live model has done so already."""
        models = getattr(sys.modules.get("keras"), "Model", None)
        return isinstance(models, type) and isinstance(model, models)

    def build(self, model: Any, examples: Arrays) -> None:
        """Calls a model on one sample where it has no weights yet, so that :meth:`prepare` can load them."""
        if not model.built:
            keras = keras_models.use()
            _call(model, model, {name: keras.ops.convert_to_tensor(column[:1]) for name, column in examples.items()})

    def prepare(self, model: Any, weights: Path | None) -> Any:
        """Loads ``weights`` (``.safetensors``, as fine-tuning writes them) strictly. Inference mode is said with each call.

        Raises:
            InputRejected: The weights do not fit the model.
        """
        if weights is not None:
            keras_weights.load(model, weights)
        return model

    def capture(self, model: Any, examples: Arrays, out: Path, *, outputs: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        """Writes the model to ``out`` and returns the live model's outputs, computed one sample at a time in inference mode.

        Examples called like the model's inputs go by name, others by position in the examples' order. Outputs are named by
        ``outputs``, else by the keys of a returned dictionary or by the output layers; where names are given that the model
        knows, they choose some of its outputs. A model of a class of the user's own is written as the layers and operations that
        its ``call`` passes. Nothing of how it was compiled is kept, and the bytes depend on the model alone.

        Args:
            model: The live model.
            examples: Inputs by name, ``[n x ...]``.
            out: The ``.keras`` file to write.
            outputs: Names of the outputs, in order.

        Returns:
            Outputs by name, ``[n x ...]``.

        Raises:
            InputRejected: The model needs code of the user's own, is not deterministic, names or element types do not fit, or an
                output has not the batch first.
            StageFailed: The model raises on the examples, or cannot be saved.
        """
        keras = keras_models.use()
        recording.check_examples(examples)
        naming.check_chosen(outputs)
        captured = _captured(model, examples, outputs, keras)
        names = tuple(captured.output)
        expected = _live_outputs(model, examples, names, outputs, keras)
        _write(captured, out, keras)
        return {name: expected[name] for name in (outputs or expected) if name in names}

    def input_names(self, model: Any) -> tuple[str, ...]:
        """Returns the names of the inputs in order: the input layers', or the parameters of a call of the user's own."""
        if getattr(model, "inputs", None):
            return tuple(spec.name for spec in keras_models.signature(model).inputs)
        return naming.positional(_takes(model))


SOURCE: Source = KerasSource()


def _captured(model: Any, examples: Arrays, outputs: tuple[str, ...], keras: Any) -> Any:
    """Wraps a model into a functional one for one sample, whose inputs and outputs are dictionaries."""
    if isinstance(model, keras.Sequential) and not model.built:
        model.build((None, *next(iter(examples.values())).shape[1:]))
    inputs = {name: keras.Input(batch_shape=(1, *column.shape[1:]), dtype=str(column.dtype), name=name) for name, column in examples.items()}
    # Called as a layer, a model of the user's own class would be one opaque node; its call shows the layers inside.
    own = type(model).__module__.partition(".")[0] != "keras"
    found = _call(model.call if own else model, model, inputs)
    named = _named(model, found, outputs, keras)
    return keras.Model(inputs, named, name="captured")


def _call(function: Any, model: Any, inputs: Mapping[str, Any]) -> Any:
    """Calls a model, or its ``call``, with inputs by name."""
    structure, arguments = _arguments(model, inputs)
    try:
        with keras_models.quiet():
            return function(*structure, **arguments)
    except CODE_ERRORS as error:
        where = f"call on {recording.described(inputs)}"
        raise StageFailed(f"the model raised {first_line(error)}", where=where, hint="give samples the model accepts") from error


def _arguments(model: Any, inputs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Returns positional and keyword arguments for a model's call."""
    if getattr(model, "inputs", None):
        return [keras_models.pack(model, _in_order(model, inputs))], {"training": False}
    extra = {"training": False} if "training" in inspect.signature(model.call).parameters else {}
    named = naming.by_keyword(_takes(model), tuple(inputs), called="call", where=f"{type(model).__name__}.call")
    return ([], {**inputs, **extra}) if named else (list(inputs.values()), extra)


def _takes(model: Any) -> list[inspect.Parameter]:
    return [item for name, item in inspect.signature(model.call).parameters.items() if name not in ("training", "mask")]


def _in_order(model: Any, inputs: Mapping[str, Any]) -> list[Any]:
    """Returns the inputs in the model's order: by name where all names are known, else as they are given."""
    specs = keras_models.signature(model).inputs
    names = [spec.name for spec in specs]
    where = f"{model.name}'s inputs"
    # A name that the model knows, beside one that it does not, means the order is not the user's: guessing would swap inputs silently.
    swapped = [name for place, name in enumerate(inputs) if name in names and names.index(name) != place]
    if len(inputs) != len(names) or (swapped and set(inputs) != set(names)):
        raise InputRejected(
            f"inputs are named {list(inputs)}, the model takes {names}", where=where, hint="name the examples like the model's inputs"
        )
    ordered = [inputs[name] for name in names] if set(inputs) == set(names) else list(inputs.values())
    for spec, value in zip(specs, ordered, strict=True):
        given, wanted = np.dtype(str(value.dtype)), np.dtype(spec.dtype)
        if given != wanted and not (given.kind in "iu" and wanted.kind in "iu"):
            raise InputRejected(
                f"input {spec.name!r} is {given}, the model takes {wanted}", where=where, hint=f"convert it with .astype({spec.dtype!r})"
            )
    return ordered


def _named(model: Any, found: Any, names: tuple[str, ...], keras: Any) -> dict[str, Any]:
    """Gives names to what a model returned, in the order in which it returned it."""
    made = naming.name_outputs(_parts(model, found, keras), names)
    for name, value in made.items():
        if not hasattr(value, "shape"):
            hint = "return tensors, or choose outputs by name"
            raise InputRejected(f"output {name!r} is a {type(value).__name__}, not a tensor", where="outputs", hint=hint)
    recording.check_batch({name: value.shape for name, value in made.items()})
    return made


def _parts(model: Any, found: Any, keras: Any) -> dict[str, Any]:
    """Returns outputs by the model's own names: the keys of a dictionary, or the names of the layers they come from."""
    if isinstance(found, Mapping):
        return naming.parts(found)
    flat = keras.tree.flatten(found)
    known = [spec.name for spec in keras_models.signature(model).outputs] if getattr(model, "inputs", None) else []
    return dict(zip(known, flat, strict=True)) if len(known) == len(flat) else naming.parts(flat)


def _live_outputs(model: Any, examples: Arrays, wanted: tuple[str, ...], outputs: tuple[str, ...], keras: Any) -> dict[str, np.ndarray]:
    def run(sample: Arrays) -> dict[str, np.ndarray]:
        found = _named(model, _call(model, model, sample), outputs, keras)
        return {name: np.asarray(keras.ops.convert_to_numpy(value)) for name, value in found.items()}

    samples = recording.samples(examples)
    with _inference(keras):
        again, rows = run(samples[0]), [run(sample) for sample in samples]
    joined = recording.joined(again, rows)
    return {name: joined[name] for name in wanted}


def _inference(keras: Any) -> AbstractContextManager[Any]:
    """PyTorch alone records for training whatever runs outside of such a block."""
    if keras.backend.backend() != "torch":
        return nullcontext()
    import torch

    return torch.no_grad()


def _write(captured: Any, out: Path, keras: Any) -> None:
    """Saves a model with no trace of when and where, after making sure that another process could load it."""
    with tempfile.TemporaryDirectory(prefix="edgekit-keras-") as scratch:
        saved = Path(scratch) / "model.keras"
        try:
            with keras_models.quiet():
                captured.save(saved)
        except (*CODE_ERRORS, NotImplementedError) as error:
            hint = "give every layer of your own a get_config, or use Keras' own layers"
            raise StageFailed(f"Keras cannot save the model: {first_line(error)}", where=captured.name, hint=hint) from error
        with zipfile.ZipFile(saved) as archive:
            members = {name: archive.read(name) for name in sorted(archive.namelist())}
    config = json.loads(members["config.json"])
    _tidy(config, {})
    _refuse_foreign(config, keras)
    members["config.json"] = json.dumps(config).encode()
    members["metadata.json"] = json.dumps({"keras_version": keras.__version__}).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, _LONG_AGO), data)
    out.write_bytes(buffer.getvalue())
    keras_models.load(out)


def _refuse_foreign(config: Any, keras: Any) -> None:
    for what, reason in intake_keras.foreign_parts(config):
        instead = _CALLED_WITH[keras.backend.backend()]
        raise InputRejected(
            f"{what} {reason}, and conversion happens in another process", where="model", hint=f"use Keras' own layers and keras.ops, or {instead}"
        )


def _tidy(node: Any, seen: dict[int, int]) -> None:
    """Drops how models were compiled, and numbers the objects that layers share, which are saved with their memory address."""
    if isinstance(node, list):
        for part in node:
            _tidy(part, seen)
    elif isinstance(node, dict):
        if "class_name" in node:
            node.pop("compile_config", None)
        if "shared_object_id" in node:
            node["shared_object_id"] = seen.setdefault(node["shared_object_id"], len(seen) + 1)
        for part in node.values():
            _tidy(part, seen)
