"""Reads and writes the weights of Keras models as ``.safetensors``: strict when reading, the same bytes for the same weights when writing.

A weight is called by its path in the model. Keras numbers the layers that nobody named through the whole process, ``dense_7``, so that the
same model is built with other names each time; here they are numbered through the model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import InputRejected
from toolkit.factory import CODE_ERRORS, first_line

SUFFIX = ".safetensors"
_LISTED = 10


def by_name(model: Any) -> dict[str, Any]:
    """Returns the weights of a model, which must be built, by name, in the model's order; statistics of norms are among them.

    Raises:
        InputRejected: It is not built, so that it has none yet.
    """
    if not model.built:
        raise InputRejected("the model has no weights before it is built", where=model.name, hint="give it a keras.Input of the samples' shape")
    names, seen = _numbered(model), Counter[str]()
    found = {}
    for weight in model.weights:
        path = "/".join(names.get(part, part) for part in weight.path.split("/"))
        seen[path] += 1
        found[path if seen[path] == 1 else f"{path}#{seen[path]}"] = weight
    return found


def save(model: Any, file: Path) -> None:
    """Writes the weights of a model."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(_values(weight)) for name, weight in by_name(model).items()}, file)


def load(model: Any, file: Path, afresh: Callable[[str], bool] = lambda _: False) -> list[dict[str, Any]]:
    """Loads weights into a freshly built model.

    Args:
        model: The model, changed in place.
        file: A ``.safetensors`` file, as :func:`save` writes it.
        afresh: Says by a weight's name whether its shape may differ, so that it keeps the numbers it was built with.

    Returns:
        What was not taken from the file: ``name``, ``file`` and ``model``, the shapes there.

    Raises:
        InputRejected: The file is damaged, or a weight is missing, unknown, of another shape or element type, or not finite.
    """
    found, expected = _read(file), by_name(model)
    specs = {name: _spec(_values(weight)) for name, weight in expected.items()}
    replaced = [name for name in specs if name in found and found[name].shape != tuple(expected[name].shape) and afresh(name)]
    _compare(
        {name: _spec(array) for name, array in found.items() if name not in replaced}, {n: s for n, s in specs.items() if n not in replaced}, file
    )
    broken = [name for name, array in found.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    if broken:
        raise InputRejected(f"weight {broken[0]} has NaN or Inf ({len(broken)} such weights)", where=str(file), hint="start from weights that work")
    for name, weight in expected.items():
        if name not in replaced:
            weight.assign(found[name])
    return [{"name": name, "file": list(found[name].shape), "model": list(expected[name].shape)} for name in replaced]


def _numbered(model: Any) -> dict[str, str]:
    """Says for each layer that was not given a name which one it would have, were the model built in a process of its own."""
    counts, found = Counter[str](), {}
    for layer in model._flatten_layers():
        base = re.sub(r"_\d+$", "", layer.name)
        if layer.name not in found and base.replace("_", "") == type(layer).__name__.replace("_", "").lower():
            found[layer.name] = f"{base}_{counts[base]}" if counts[base] else base
            counts[base] += 1
    return found


def _read(file: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found: dict[str, np.ndarray] = load_file(file)
    except (SafetensorError, *CODE_ERRORS) as error:
        hint = "load other kinds of weights in the factory, with model.load_weights(...)"
        raise InputRejected(f"is not a readable safetensors file: {first_line(error)}", where=str(file), hint=hint) from error
    return found


def _compare(found: Mapping[str, str], expected: Mapping[str, str], file: Path) -> None:
    problems = [f"{name}: file {found.get(name, 'has none')}, model {spec}" for name, spec in expected.items() if found.get(name) != spec]
    problems += [f"{name}: file {spec}, not in the model" for name, spec in found.items() if name not in expected]
    if problems:
        shown = "; ".join(problems[:_LISTED]) + (f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else "")
        hint = "build the model that these weights were saved from"
        raise InputRejected(f"{len(problems)} weights do not fit the model: {shown}", where=str(file), hint=hint)


def _values(weight: Any) -> np.ndarray:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(weight))


def _spec(array: np.ndarray) -> str:
    return f"[{' x '.join(map(str, array.shape))}] {array.dtype}"
