"""One step of one model, in a process of its own: ``python -m benchmarks.compiler.child STEP MODEL FOLDER``.

``export`` writes ``model.onnx``, samples and what the live model computes from them. ``ours`` and ``ours_last`` convert that file, the
latter to inputs with the channels last, as onnx2tf makes them. ``litert_torch`` converts the live model. Each writes ``STEP.json``: what
the conversion took, once its libraries were imported, or why it failed.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compiler.memory import measured
from benchmarks.coverage.child import BARE, _arguments

IMPORTS = {
    "export": ("torch", "onnx", "torch.export._trace", "torch.onnx._internal.exporter._core", "torch.onnx._internal.exporter._torchlib.ops"),
    "ours": ("onnx.reference", "flatbuffers", "scipy.sparse.csgraph", "ai_edge_litert.schema_py_generated", "toolkit.convert.onnx_litert"),
    "litert_torch": ("torch", "torch.export._trace", "litert_torch"),
}
"""What each step works with; importing that is not counted, even where a library does so only when it converts."""


def main(step: str, name: str, folder: Path) -> None:
    for module in IMPORTS[step.partition("_last")[0]]:
        importlib.import_module(module)
    try:
        facts: dict[str, Any] = _STEPS[step](name, folder)
    except Exception as error:  # noqa: BLE001  whatever a library raises is the result
        traceback.print_exc()
        facts = {"error": _said(error)}
    (folder / f"{step}.json").write_text(json.dumps(facts), encoding="utf-8")


def _export(name: str, folder: Path) -> dict[str, Any]:
    model, inputs = _built(name)
    rows = [_computed(model, {name: values[row : row + 1] for name, values in inputs.items()}) for row in range(len(next(iter(inputs.values()))))]
    columns = [np.concatenate(column) for column in zip(*rows, strict=True)]
    file = folder / "model.onnx"
    try:
        facts: dict[str, Any] = dict(measured(lambda: BARE["torch.onnx.export"](model, _first(inputs), file)))
    except Exception as error:  # noqa: BLE001  the exporter raises whatever PyTorch raises
        note = f"exported by Edgekit, as PyTorch's own export fails: {_said(error)}"
        facts = {**measured(lambda: _export_by_us(model, inputs, columns, file)), "note": note}
    given, made = _names(file)
    # The file names inputs by keyword, or as the model's function does, but keeps their order.
    np.savez(folder / "inputs.npz", **(inputs if set(given) == set(inputs) else dict(zip(given, inputs.values(), strict=True))))
    np.savez(folder / "outputs.npz", **dict(zip(made, columns, strict=True)))
    return {**facts, "onnx_mb": file.stat().st_size / 1e6}


def _export_by_us(model: Any, inputs: dict[str, np.ndarray], columns: list[np.ndarray], file: Path) -> None:
    """Exports by way of a captured program, to which our route gives what PyTorch's own lacks."""
    import torch

    from toolkit.convert.torch_onnx import TorchOnnx

    args, kwargs = _arguments(model, _first(inputs))
    program = file.with_suffix(".pt2")
    torch.export.save(torch.export.export(model, args, kwargs), program)
    TorchOnnx().convert(program, file, _signature(inputs, {f"output_{number}": column for number, column in enumerate(columns)}))


def _names(file: Path) -> tuple[list[str], list[str]]:
    import onnx

    graph = onnx.load(str(file)).graph
    return [value.name for value in graph.input], [value.name for value in graph.output]


def _ours(_: str, folder: Path) -> dict[str, Any]:
    return _compiled(folder, folder / "ours.tflite", None)


def _ours_last(_: str, folder: Path) -> dict[str, Any]:
    return _compiled(folder, folder / "ours_last.tflite", "channels_last")


def _compiled(folder: Path, out: Path, layout: str | None) -> dict[str, Any]:
    from toolkit.convert.onnx_litert import OnnxLiteRT

    with np.load(folder / "inputs.npz") as inputs, np.load(folder / "outputs.npz") as outputs:
        signature = _signature(inputs, outputs)
    return measured(lambda: OnnxLiteRT().convert(folder / "model.onnx", out, signature, layout=layout))


def _litert_torch(name: str, folder: Path) -> dict[str, Any]:
    model, inputs = _built(name)
    return measured(lambda: BARE["litert_torch.convert"](model, _first(inputs), folder / "litert_torch.tflite"))


_STEPS: dict[str, Callable[[str, Path], dict[str, Any]]] = {
    "export": _export,
    "ours": _ours,
    "ours_last": _ours_last,
    "litert_torch": _litert_torch,
}


def _built(name: str) -> tuple[Any, dict[str, np.ndarray]]:
    from benchmarks.compiler.models import models

    return models()[name].build()


def _first(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values[:1] for name, values in inputs.items()}


def _computed(model: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Returns every output of the live model for one sample, in its order."""
    import torch

    args, kwargs = _arguments(model, inputs)
    with torch.no_grad():
        found = model(*args, **kwargs)
    return [one.numpy() for one in (found if isinstance(found, tuple | list) else [found])]


def _signature(inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> Any:
    """The signature of an exported file, from its samples: reading it from the file would leave the file in memory."""
    from toolkit.artifact import Signature, TensorSpec

    sides = [
        tuple(TensorSpec(name=name, dtype=side[name].dtype.name, shape=(1, *side[name].shape[1:])) for name in side) for side in (inputs, outputs)
    ]
    return Signature(inputs=sides[0], outputs=sides[1])


def _said(error: Exception) -> str:
    """What an exception says, in one line: PyTorch's exporter has advice and pages of where before it."""
    said = str(error).rpartition("## Exception summary")[2]
    return f"{type(error).__name__}: {' '.join(said.split())[:400]}"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
