"""Tiny models of every format, all of them the same function, so that a test can compare any two or check against NumPy.

They compute ``logits = tanh(x @ WEIGHTS + BIAS)`` for ``x [batch x 4] float32`` -> ``logits [batch x 3] float32``. Each
builder writes one file and returns its path; ``reference`` computes the same with NumPy. None needs a converter: the ONNX
and TFLite files are put together from their parts in milliseconds, and only ``tiny_pt2`` imports PyTorch (seconds, the
first time in a process).
"""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

WEIGHTS = np.random.default_rng(7).normal(size=(4, 3)).astype(np.float32)
BIAS = np.array([0.1, -0.2, 0.3], dtype=np.float32)


def samples(n: int, seed: int = 0) -> np.ndarray:
    """Returns inputs ``[n x 4] float32``."""
    return np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)


def reference(x: np.ndarray) -> np.ndarray:
    """Returns what every tiny model gives for ``x``: ``[n x 3]``, computed in float64."""
    return np.tanh(x.astype(np.float64) @ WEIGHTS + BIAS).astype(np.float32)


def tiny_onnx(path: Path, batch: int | str = 1, weights: np.ndarray = WEIGHTS) -> Path:
    """Writes the model as ONNX; a string as ``batch`` makes the first axis free."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weights", "bias"], ["sums"], name="gemm"), helper.make_node("Tanh", ["sums"], ["logits"], name="tanh")],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(BIAS, "bias")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def tiny_tflite(path: Path, batch: int = 1, signature: bool = True) -> Path:
    """Writes the model as TFLite, with the signature ``serving_default`` or without any; ``batch`` -1 makes the first axis free."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator, FullyConnectedOptionsT

    tensors = [("x_0", [batch, 4], None), ("w", [3, 4], WEIGHTS.T), ("b", [3], BIAS), ("sums", [batch, 3], None), ("y_0", [batch, 3], None)]
    operators = [(BuiltinOperator.FULLY_CONNECTED, [0, 1, 2], [3], FullyConnectedOptionsT()), (BuiltinOperator.TANH, [3], [4], None)]
    return _write_tflite(path, tensors, operators, ("x", 0), ("logits", 4), signature)


def tiny_ort(path: Path, batch: int | str = 1) -> Path:
    """Writes the model in ONNX Runtime's own format, by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnx_file = tiny_onnx(path.with_suffix(".onnx"), batch)
    onnxruntime.InferenceSession(str(onnx_file), options, providers=["CPUExecutionProvider"])
    onnx_file.unlink()
    return path


def tiny_pte(path: Path) -> Path:
    """Writes the model as an ExecuTorch program whose constant methods name ``x`` and ``logits``."""
    return Path(shutil.copyfile(_lowered(), path))


def wide_onnx(path: Path, elements: int) -> Path:
    """Writes a model ``x [batch x 1]`` -> ``logits [batch x 1]`` that sums ``elements`` floats of working memory per sample."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Expand", ["x", "size"], ["wide"]), helper.make_node("ReduceSum", ["wide", "axis"], ["logits"], keepdims=1)],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(np.array([1, elements]), "size"), numpy_helper.from_array(np.array([1]), "axis")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def wide_tflite(path: Path, elements: int) -> Path:
    """Writes the same as :func:`wide_onnx` as TFLite."""
    from ai_edge_litert.schema_py_generated import BroadcastToOptionsT, BuiltinOperator, ReducerOptionsT

    size, axis = np.array([1, elements], np.int32), np.array([1], np.int32)
    tensors = [("x", [1, 1], None), ("size", [2], size), ("wide", [1, elements], None), ("axis", [1], axis), ("logits", [1, 1], None)]
    operators = [
        (BuiltinOperator.BROADCAST_TO, [0, 1], [2], BroadcastToOptionsT()),
        (BuiltinOperator.SUM, [2, 3], [4], ReducerOptionsT(keepDims=True)),
    ]
    return _write_tflite(path, tensors, operators, ("x", 0), ("logits", 4))


def _write_tflite(path, tensors, operators, entry, exit, signature=True) -> Path:
    """Packs a one-subgraph file from ``(name, shape, constant)`` tensors and ``(code, inputs, outputs, options)`` operators."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    kinds = {np.dtype(np.float32): schema.TensorType.FLOAT32, np.dtype(np.int32): schema.TensorType.INT32}
    buffers = [schema.BufferT()]

    def tensor(name, shape, constant):
        if constant is not None:
            buffers.append(schema.BufferT(data=np.frombuffer(np.ascontiguousarray(constant).tobytes(), np.uint8)))
        return schema.TensorT(
            name=name,
            shape=[max(size, 1) for size in shape],
            shapeSignature=shape if -1 in shape else None,
            type=kinds[np.dtype(np.float32) if constant is None else constant.dtype],
            buffer=0 if constant is None else len(buffers) - 1,
        )

    def operator(index, inputs, outputs, options):
        kind = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T")) if options else schema.BuiltinOptions.NONE
        return schema.OperatorT(opcodeIndex=index, inputs=inputs, outputs=outputs, builtinOptions=options, builtinOptionsType=kind)

    serving = schema.SignatureDefT(
        inputs=[schema.TensorMapT(name=entry[0], tensorIndex=entry[1])],
        outputs=[schema.TensorMapT(name=exit[0], tensorIndex=exit[1])],
        signatureKey="serving_default",
    )
    graph = schema.SubGraphT(
        tensors=[tensor(*one) for one in tensors],
        inputs=[entry[1]],
        outputs=[exit[1]],
        operators=[operator(index, *one[1:]) for index, one in enumerate(operators)],
        name="main",
    )
    codes = [schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=min(code, 127), version=2 if code == 130 else 1) for code, *_ in operators]
    model = schema.ModelT(version=3, operatorCodes=codes, subgraphs=[graph], buffers=buffers, signatureDefs=[serving] if signature else None)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def tiny_pt2(path: Path, batch: int = 1) -> Path:
    """Writes the model as an exported PyTorch program with the keyword input ``x`` and the named output ``logits``."""
    return Path(shutil.copyfile(_exported(batch), path))


@cache
def _exported(batch: int) -> Path:
    """Exports once per process; the copy is kept beside the other temporary files until the process ends."""
    import torch

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 3)
            self.linear.weight.data = torch.from_numpy(WEIGHTS.T.copy())
            self.linear.bias.data = torch.from_numpy(BIAS.copy())

        def forward(self, *, x):
            return {"logits": torch.tanh(self.linear(x))}

    path = Path(_folder().name) / f"tiny_{batch}.pt2"
    torch.export.save(torch.export.export(Tiny().eval(), (), kwargs={"x": torch.zeros(batch, 4)}), path)
    return path


@cache
def _lowered() -> Path:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    names = {"get_input_names": ["x"], "get_output_names": ["logits"]}
    lowered = to_edge_transform_and_lower(torch.export.load(_exported(1)), partitioner=[XnnpackPartitioner()], constant_methods=names)
    path = Path(_folder().name) / "tiny.pte"
    path.write_bytes(lowered.to_executorch().buffer)
    return path


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tiny-models-", ignore_cleanup_errors=True)
