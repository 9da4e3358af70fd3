"""One cell of the table, in a process of its own: ``python -m benchmarks.coverage.child SIDE MODEL FORMAT FOLDER``.

``ours`` is ``toolkit.export`` on the live model. The other sides are one bare library call each, as its documentation shows it. Every
side writes ``model.<format>``, ``cell.json`` with how long the conversion took, and what the live model computes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Convert = Callable[[Any, dict[str, np.ndarray], Path], None]


def main(side: str, name: str, format: str, folder: Path) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from benchmarks.coverage.models import models

    model, inputs = models()[name].build()
    out = folder / f"model.{format}"
    np.savez(folder / "inputs.npz", **inputs)
    np.savez(folder / "outputs.npz", *_live(model, inputs, name.split(":")[0]))
    started = time.perf_counter()
    facts = _ours(model, inputs, format, out, folder) if side == "ours" else _bare(side, model, inputs, out)
    facts["seconds"] = time.perf_counter() - started
    (folder / "cell.json").write_text(json.dumps(facts), encoding="utf-8")


def _ours(model: Any, inputs: dict[str, np.ndarray], format: str, out: Path, folder: Path) -> dict[str, Any]:
    import toolkit
    from toolkit.errors import ToolkitError
    from toolkit.store import Store

    try:
        made = toolkit.export(model, inputs, format=format, output=out, store=Store(folder / "cache"))
    except ToolkitError as error:
        return {"error": {**error.to_dict(), "exit_code": error.exit_code}}
    evidence = made.manifest.evidence
    parity = evidence.get("checks", {}).get("parity", {}).get("outputs", {})
    return {
        "route": made.manifest.made_by,
        "attempts": evidence.get("attempts", []),
        "sqnr_db": min((one["sqnr_db"] for one in parity.values()), default=None),
    }


def _live(model: Any, inputs: dict[str, np.ndarray], collection: str) -> list[np.ndarray]:
    """Returns what the live model computes, one sample at a time: every output ``[n x ...]``, in the model's own order."""
    rows = []
    for sample in range(len(next(iter(inputs.values())))):
        given = {name: values[sample : sample + 1] for name, values in inputs.items()}
        if collection == "jax":
            found = model(*given.values())
        elif collection == "keras":
            found = model(given if len(given) > 1 else next(iter(given.values())), training=False)
        else:
            found = _run_torch(model, given)
        rows.append([np.asarray(value) for value in (found if isinstance(found, list | tuple) else [found])])
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def _run_torch(model: Any, given: dict[str, np.ndarray]) -> Any:
    import torch

    args, kwargs = _arguments(model, given)
    with torch.no_grad():
        return model(*args, **kwargs).numpy()


def _bare(side: str, model: Any, inputs: dict[str, np.ndarray], out: Path) -> dict[str, Any]:
    BARE[side](model, {name: values[:1] for name, values in inputs.items()}, out)
    return {"route": side}


def _tensors(inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(values) for name, values in inputs.items()}


def _torch_onnx(model: Any, inputs: dict[str, np.ndarray], out: Path) -> None:
    import torch

    args, kwargs = _arguments(model, inputs)
    torch.onnx.export(model, args, str(out), kwargs=kwargs, dynamo=True, external_data=False, verbose=False)


def _torch_litert(model: Any, inputs: dict[str, np.ndarray], out: Path) -> None:
    import litert_torch

    args, kwargs = _arguments(model, inputs)
    litert_torch.convert(model, args, kwargs).export(str(out))


def _torch_executorch(model: Any, inputs: dict[str, np.ndarray], out: Path) -> None:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    args, kwargs = _arguments(model, inputs)
    program = torch.export.export(model, args, kwargs)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    out.write_bytes(lowered.buffer)


def _torch_openvino(model: Any, inputs: dict[str, np.ndarray], out: Path) -> None:
    import openvino

    args, kwargs = _arguments(model, inputs)
    converted = openvino.convert_model(model, example_input=kwargs or args, input=[tuple(one.shape) for one in (*args, *kwargs.values())])
    out.mkdir()
    openvino.save_model(converted, str(out / "model.xml"), compress_to_fp16=False)


def _arguments(model: Any, inputs: dict[str, np.ndarray]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    import inspect

    tensors = _tensors(inputs)
    named = any(item.kind is item.VAR_KEYWORD for item in inspect.signature(model.forward).parameters.values())
    return ((), tensors) if named else (tuple(tensors.values()), {})


def _keras_litert(model: Any, inputs: dict[str, np.ndarray], out: Path) -> None:
    import tensorflow as tf

    out.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())


def _keras_onnx(model: Any, inputs: dict[str, np.ndarray], out: Path) -> None:
    model.export(str(out), format="onnx", verbose=False)


def _keras_openvino(model: Any, inputs: dict[str, np.ndarray], out: Path) -> None:
    import openvino

    out.mkdir()
    openvino.save_model(openvino.convert_model(model), str(out / "model.xml"), compress_to_fp16=False)


def _jax_onnx(model: Any, inputs: dict[str, np.ndarray], out: Path) -> None:
    import jax
    import jax2onnx
    import onnx

    shapes = [jax.ShapeDtypeStruct(values.shape, values.dtype) for values in inputs.values()]
    onnx.save(jax2onnx.to_onnx(model, shapes), str(out))


def _jax_litert(model: Any, inputs: dict[str, np.ndarray], out: Path) -> None:
    import tensorflow as tf
    from jax.experimental import jax2tf

    function = tf.function(jax2tf.convert(model), autograph=False, input_signature=[tf.TensorSpec(v.shape, v.dtype) for v in inputs.values()])
    out.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], function).convert())


BARE: dict[str, Convert] = {
    "torch.onnx.export": _torch_onnx,
    "litert_torch.convert": _torch_litert,
    "executorch": _torch_executorch,
    "openvino.convert_model": _torch_openvino,
    "TFLiteConverter.from_keras_model": _keras_litert,
    "keras.Model.export": _keras_onnx,
    "openvino.convert_model (keras)": _keras_openvino,
    "jax2onnx.to_onnx": _jax_onnx,
    "jax2tf and TFLiteConverter": _jax_litert,
}
PEERS = {
    ("torch", "onnx"): "torch.onnx.export",
    ("torch", "tflite"): "litert_torch.convert",
    ("torch", "pte"): "executorch",
    ("torch", "openvino"): "openvino.convert_model",
    ("keras", "tflite"): "TFLiteConverter.from_keras_model",
    ("keras", "onnx"): "keras.Model.export",
    ("keras", "openvino"): "openvino.convert_model (keras)",
    ("jax", "onnx"): "jax2onnx.to_onnx",
    ("jax", "tflite"): "jax2tf and TFLiteConverter",
}
"""The single call that a user of each library would make, by framework and format."""


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
