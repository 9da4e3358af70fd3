"""Fourier transforms as products with a known matrix: TFLite's own ``RFFT2D`` knows powers of two alone, and gives complex numbers."""

from __future__ import annotations

import numpy as np

from toolkit.convert.tfl.graph import Graph, Tensor
from toolkit.convert.tfl.lower import Call, operator
from toolkit.convert.tfl.operators.indexing import take
from toolkit.convert.tfl.operators.matmul import fully_connected
from toolkit.convert.tfl.program import FREE, TYPINGS, Node, Program, Type, Unsupported

_MOST_NUMBERS = 1 << 24  # of a matrix, which is written to the file


@operator("DFT", limits="a known length, at most 4096 or so")
def _dft(call: Call) -> Tensor:
    graph, value = call.graph, call.x(0)
    rank, newer = value.rank, call.node.version >= 20
    axis = int(call.number(2, "axis", -2) if newer else call.attribute("axis", 1)) % rank
    inverse, half = bool(call.attribute("inverse", 0)), bool(call.attribute("onesided", 0))
    count, parts = call.known((value.shape[axis], value.shape[-1]), "the axis that is transformed")
    given = call.shape()[axis], call.shape()[-1]
    length = int(call.constant(1).reshape(-1)[0]) if call.has(1) else given[0] if inverse else count
    if inverse and half:
        used = min(count, length // 2 + 1)
        matrix = _real_inverse(used, length)
    else:
        used = min(count, length)
        matrix = _matrix(used, length, parts, given[0], inverse=inverse)
    order = [*(one for one in range(rank - 1) if one != axis), axis, rank - 1]
    moved = graph.transpose(take(graph, value, range(used), axis), order)
    lead = moved.shape[:-2]
    rows = graph.reshape(moved, (FREE if FREE in lead else int(np.prod(lead)), used * parts))
    made = graph.reshape(_product(graph, rows, matrix), (*lead, *given))
    return graph.transpose(made, np.argsort(order).tolist())


def _stft_types(node: Node, program: Program) -> list[Type]:
    """Types an STFT, of which ONNX's own inference takes the whole spectrum where only half of it is given."""
    given = program.type(node.inputs[0])
    if FREE in given.shape[1:] or node.inputs[1] not in program.constants:
        raise Unsupported("has a signal or a step whose size is not known")
    step, length = int(program.constants[node.inputs[1]].reshape(-1)[0]), _frame_length(node, program)
    bins = length // 2 + 1 if node.attributes.get("onesided", 1) else length
    return [Type(given.dtype, (given.shape[0], 1 + (given.shape[1] - length) // step, bins, 2))]


def _frame_length(node: Node, program: Program) -> int:
    window, length = ([*node.inputs, "", ""][place] for place in (2, 3))
    if length and length not in program.constants:
        raise Unsupported("has a frame length that depends on the data")
    own = program.type(window).shape[0] if window else None
    given = int(program.constants[length].reshape(-1)[0]) if length else own
    if given is None or (own is not None and own != given):
        raise Unsupported("has a window that is not as long as its frames")
    return given


TYPINGS["STFT"] = _stft_types


@operator("STFT", limits="a known frame length and step")
def _stft(call: Call) -> Tensor:
    graph, value = call.graph, call.x(0)
    step = int(call.constant(1).reshape(-1)[0])
    size, parts = call.known(value.shape[1:], "the length of its signal")
    length = _frame_length(call.node, call.program)
    frames = 1 + (size - length) // step
    places = np.arange(frames)[:, None] * step + np.arange(length)
    picked = graph.add("GATHER", [value, graph.integers(places)], (value.shape[0], frames, length, parts), axis=1, batchDims=0)
    matrix = _matrix(length, length, parts, call.shape()[2], inverse=False)
    if call.is_constant(2):
        matrix = matrix * np.repeat(call.constant(2).astype(np.float64), parts)
    elif call.has(2):
        picked = graph.binary("MUL", picked, graph.reshape(call.x(2), (length, 1)))
    rows = graph.reshape(picked, (FREE if value.shape[0] == FREE else value.shape[0] * frames, length * parts))
    return graph.reshape(_product(graph, rows, matrix), call.shape())


def _product(graph: Graph, rows: Tensor, matrix: np.ndarray) -> Tensor:
    if rows.dtype != np.float32:
        raise Unsupported(f"transforms {rows.dtype}")
    return fully_connected(graph, rows, graph.constant(matrix.astype(np.float32)), None)


def _angles(inputs: int, outputs: int, length: int) -> np.ndarray:
    """Returns the angle of every output and input."""
    if 4 * inputs * outputs > _MOST_NUMBERS:
        raise Unsupported(f"transforms {length} numbers, whose matrix would be too large")
    return np.outer(np.arange(outputs), np.arange(inputs)) % length * (2 * np.pi / length)


def _matrix(inputs: int, length: int, parts: int, outputs: int, *, inverse: bool) -> np.ndarray:
    """Returns what real and imaginary parts, each pair side by side, are multiplied by to give those of the spectrum."""
    angles = _angles(inputs, outputs, length) * (1 if inverse else -1)
    cosine, sine = np.cos(angles), np.sin(angles)
    real, imaginary = np.stack([cosine, -sine], -1), np.stack([sine, cosine], -1)
    made = np.stack([real, imaginary], 1)[..., :parts]
    return made.reshape(outputs * 2, inputs * parts) / (length if inverse else 1)


def _real_inverse(inputs: int, length: int) -> np.ndarray:
    """Returns the same from half of a spectrum to real numbers: all of it but its ends stands for two."""
    angles = _angles(inputs, length, length)
    counts = np.where((np.arange(inputs) == 0) | (2 * np.arange(inputs) == length), 1, 2) / length
    return np.stack([np.cos(angles) * counts, -np.sin(angles) * counts], -1).reshape(length, inputs * 2)
