"""The model of :mod:`tests.models` as a SavedModel, put together byte by byte: TensorFlow takes no part."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests import models

_FLOAT = 1


def tiny_savedmodel(path: Path, batch: int = 1, extra: bytes = b"") -> Path:
    """Writes the folder; ``batch`` -1 makes the first axis free, ``extra`` is appended to the graph."""
    wide, narrow = (batch, 4), (batch, 3)
    of_type = entry("T", number(6, _FLOAT))
    graph = [
        node("input", "Placeholder", (), entry("dtype", number(6, _FLOAT)), entry("shape", field(7, shape(wide)))),
        constant("weights", models.WEIGHTS),
        constant("bias", models.BIAS),
        node("product", "MatMul", ("input", "weights"), of_type),
        node("sums", "BiasAdd", ("product", "bias:0"), of_type),
        node("tanh", "Tanh", ("sums",), of_type),
    ]
    signature = tensor_info(1, "x", "input:0", wide) + tensor_info(2, "logits", "tanh:0", narrow) + field(3, b"tensorflow/serving/predict")
    meta = field(1, field(4, b"serve") + field(5, b"2.19.0")) + field(2, b"".join(graph) + extra) + field(5, pair("serving_default", signature))
    path.mkdir()
    (path / "saved_model.pb").write_bytes(number(1, 1) + field(2, meta))
    return path


def field(place: int, content: bytes) -> bytes:
    """Encodes a field of bytes."""
    return varint(place << 3 | 2) + varint(len(content)) + content


def number(place: int, value: int) -> bytes:
    """Encodes a field of a whole number."""
    return varint(place << 3) + varint(value % (1 << 64))


def varint(value: int) -> bytes:
    """Encodes a whole number, seven bits at a time, the last ones first."""
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


def pair(key: str, value: bytes) -> bytes:
    """Encodes an entry of a map."""
    return field(1, key.encode()) + field(2, value)


def entry(name: str, value: bytes) -> bytes:
    """Encodes an attribute of a node."""
    return field(5, pair(name, value))


def node(name: str, kind: str, inputs: tuple[str, ...], *attributes: bytes) -> bytes:
    """Encodes a node of a graph."""
    return field(1, field(1, name.encode()) + field(2, kind.encode()) + b"".join(field(3, one.encode()) for one in inputs) + b"".join(attributes))


def constant(name: str, value: np.ndarray) -> bytes:
    """Encodes a node that holds a stored tensor."""
    tensor = number(1, _FLOAT) + field(2, shape(value.shape)) + field(4, value.tobytes())
    return node(name, "Const", (), entry("dtype", number(6, _FLOAT)), entry("value", field(8, tensor)))


def shape(sizes: tuple[int, ...]) -> bytes:
    """Encodes sizes, -1 for a free one."""
    return b"".join(field(2, number(1, size)) for size in sizes)


def tensor_info(place: int, name: str, tensor: str, sizes: tuple[int, ...]) -> bytes:
    """Encodes an input (1) or output (2) of a signature."""
    return field(place, pair(name, field(1, tensor.encode()) + number(2, _FLOAT) + field(3, shape(sizes))))
