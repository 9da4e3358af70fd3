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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compiler.memory import measured

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
        facts = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    (folder / f"{step}.json").write_text(json.dumps(facts), encoding="utf-8")


def _export(name: str, folder: Path) -> dict[str, Any]:
    import onnx

    from benchmarks.coverage.child import BARE

    model, inputs = _built(name)
    found = [_computed(model, {name: values[row : row + 1] for name, values in inputs.items()}) for row in range(len(next(iter(inputs.values()))))]
    file = folder / "model.onnx"
    facts = measured(lambda: BARE["torch.onnx.export"](model, _first(inputs), file))
    graph = onnx.load(str(file), load_external_data=False).graph
    # The file names inputs by keyword, or as the model's function does, but keeps their order.
    given = [value.name for value in graph.input]
    columns = {value.name: np.concatenate(column) for value, column in zip(graph.output, zip(*found, strict=True), strict=True)}
    np.savez(folder / "inputs.npz", **(inputs if set(given) == set(inputs) else dict(zip(given, inputs.values(), strict=True))))
    np.savez(folder / "outputs.npz", **columns)
    return {**facts, "onnx_mb": file.stat().st_size / 1e6}


def _ours(_: str, folder: Path) -> dict[str, Any]:
    return _compiled(folder, folder / "ours.tflite", None)


def _ours_last(_: str, folder: Path) -> dict[str, Any]:
    return _compiled(folder, folder / "ours_last.tflite", "channels_last")


def _compiled(folder: Path, out: Path, layout: str | None) -> dict[str, Any]:
    from toolkit.convert.onnx_litert import OnnxLiteRT

    signature = _signature(folder)
    return measured(lambda: OnnxLiteRT().convert(folder / "model.onnx", out, signature, layout=layout))


def _litert_torch(name: str, folder: Path) -> dict[str, Any]:
    from benchmarks.coverage.child import BARE

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

    from benchmarks.coverage.child import _arguments

    args, kwargs = _arguments(model, inputs)
    with torch.no_grad():
        found = model(*args, **kwargs)
    return [one.numpy() for one in (found if isinstance(found, tuple | list) else [found])]


def _signature(folder: Path) -> Any:
    """The signature of the exported file, from its samples: reading it from the file would leave the file in memory."""
    from toolkit.artifact import Signature, TensorSpec

    sides = []
    for file in ("inputs.npz", "outputs.npz"):
        with np.load(folder / file) as stored:
            sides.append(tuple(TensorSpec(name=name, dtype=stored[name].dtype.name, shape=(1, *stored[name].shape[1:])) for name in stored))
    return Signature(inputs=sides[0], outputs=sides[1])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
