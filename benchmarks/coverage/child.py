"""One model by one side, in a process of its own: ``python -m benchmarks.coverage.child SIDE MODEL FOLDER FORMAT ...``.

``ours`` is ``toolkit.export`` on the live model, once for each format. ``bare`` is one library call a format, as its documentation shows
it, each in a fork: what one library leaves behind in a process must not decide how the next one fares. TensorFlow and JAX have threads of
their own and cannot be forked; they get a process for each format. Both write what the live model
computes, and for each format ``FORMAT/model.FORMAT`` and ``FORMAT/cell.json`` with how long it took.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Convert = Callable[[Any, dict[str, np.ndarray], Path], None]
LIMIT_SECONDS = 900
FORKED = {"torch"}


def main(side: str, name: str, folder: Path, formats: list[str]) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from benchmarks.coverage.models import models

    wanted = models()[name]
    model, inputs = wanted.build()
    np.savez(folder / "inputs.npz", **inputs)
    np.savez(folder / "outputs.npz", *_live(model, inputs, name.split(":")[0]))
    start_seconds = _start_seconds(wanted.framework) if side == "ours" else 0.0
    for format in formats:
        (folder / format).mkdir()
        if side == "ours":
            _write(folder / format, {**_ours(model, inputs, format, folder / format), "start_seconds": start_seconds})
        elif wanted.framework in FORKED:
            _forked(_bare, PEERS[wanted.framework, format], model, inputs, format, folder / format)
        else:
            _bare(PEERS[wanted.framework, format], model, inputs, format, folder / format)


def _write(folder: Path, facts: dict[str, Any]) -> None:
    (folder / "cell.json").write_text(json.dumps(facts), encoding="utf-8")


def _forked(work: Callable[..., None], *arguments: Any) -> None:
    """Calls a function in a fork and writes how it died where it did."""
    folder: Path = arguments[-1]
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join(LIMIT_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        _write(folder, _error("timeout", f"not done after {LIMIT_SECONDS} s"))
    elif process.exitcode and not (folder / "cell.json").exists():
        _write(folder, _error("crash", f"ended by signal {-process.exitcode}" if process.exitcode < 0 else f"ended with {process.exitcode}"))


def _error(code: str, message: str, hint: str = "") -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "hint": hint}}


def _ours(model: Any, inputs: dict[str, np.ndarray], format: str, folder: Path) -> dict[str, Any]:
    import toolkit
    from toolkit.errors import ToolkitError
    from toolkit.store import Store

    clock = _Clock()
    try:
        made = toolkit.export(model, inputs, format=format, output=folder / f"model.{format}", store=Store(folder / "cache"), listener=clock)
    except ToolkitError as error:
        return {"error": {**error.to_dict(), "exit_code": error.exit_code}, **clock.facts()}
    evidence = made.manifest.evidence
    return {"route": made.manifest.made_by, "attempts": evidence.get("attempts", []), **clock.facts()}


class _Clock:
    """Listens to an export: when the file was there, and how long it took in all, with the checks that a bare call has not."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._converted: float | None = None

    def planned(self, steps: list[str]) -> None:
        pass

    def started(self, step: str) -> None:
        pass

    def progressed(self, step: str, done: int, total: int, note: str) -> None:
        if done == total and step.startswith("convert:"):
            self._converted = time.perf_counter() - self._started

    def finished(self, record: Any) -> None:
        pass

    def facts(self) -> dict[str, float | None]:
        return {"seconds": self._converted, "whole_seconds": time.perf_counter() - self._started}


def _start_seconds(framework: str) -> float:
    """How long a process takes to start and to import the framework, which the bare call finds imported."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", STARTS[framework]], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


STARTS = {"torch": "import torch, torch._dynamo", "keras": "import tensorflow, keras", "jax": "import jax"}


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


def _bare(call: str, model: Any, inputs: dict[str, np.ndarray], format: str, folder: Path) -> None:
    started = time.perf_counter()
    try:
        BARE[call](model, {name: values[:1] for name, values in inputs.items()}, folder / f"model.{format}")
    except Exception as error:  # noqa: BLE001  whatever a library raises is the result
        traceback.print_exc()
        _write(folder, _error("raised", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))
        return
    seconds = time.perf_counter() - started
    _write(folder, {"route": call, "seconds": seconds, "whole_seconds": seconds})


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

    args = tuple(_tensors(inputs).values())
    # Tracing knows no keywords but those that are written out.
    plain = _positional(model, tuple(inputs)) if _arguments(model, inputs)[1] else model
    converted = openvino.convert_model(plain, example_input=args, input=[tuple(one.shape) for one in args])
    out.mkdir()
    openvino.save_model(converted, str(out / "model.xml"), compress_to_fp16=False)


def _positional(model: Any, names: tuple[str, ...]) -> Any:
    import torch

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: Any) -> Any:
            return self.model(**dict(zip(names, values, strict=True)))

    return Positional().eval()


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

    function = tf.function(
        jax2tf.convert(lambda *given: model(*given)), autograph=False, input_signature=[tf.TensorSpec(v.shape, v.dtype) for v in inputs.values()]
    )
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
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
