"""Images taken at places that are computed at run time: each is made of the elements around it, which are gathered with their weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.convert.tfl.facts import FLOATS
from toolkit.convert.tfl.graph import Graph, Tensor
from toolkit.convert.tfl.lower import Call, channels_last, operator
from toolkit.convert.tfl.program import Unsupported

_CUBIC = -0.75
_MODES = {"bilinear": "linear", "bicubic": "cubic"}  # as they were called before they were for any number of axes


@dataclass(frozen=True)
class Neighbour:
    """For each place an element of one axis, and what it counts; all of it where no weight is given."""

    index: Tensor
    weight: Tensor | None


@operator("GridSample", rule=channels_last, dtypes=FLOATS, limits="known sizes")
def _grid_sample(call: Call) -> Tensor:
    graph, value, grid = call.graph, call.x(0), call.x(1)
    shape, places = call.known(value.shape, "the size of its image"), call.known(grid.shape, "the size of its grid")
    if value.dtype != np.float32:
        raise Unsupported(f"interpolates {call.type(0).dtype}")
    spatial = shape[1:-1]
    count = int(np.prod(places[:-1]))
    flat = graph.reshape(grid, (count, len(spatial)))
    axes = []
    for axis, size in enumerate(spatial):  # the last axis comes first in the grid
        column = graph.reshape(graph.slice(flat, (0, len(spatial) - 1 - axis), (count, 1)), (count,))
        axes.append(_neighbours(call, column, size))
    first = np.repeat(np.arange(shape[0]) * int(np.prod(spatial)), count // shape[0]).astype(np.int32)
    rows = graph.reshape(value, (shape[0] * int(np.prod(spatial)), shape[-1]))
    made: Tensor | None = None
    for chosen in itertools.product(*axes):
        part = _part(graph, rows, chosen, spatial, first)
        made = part if made is None else graph.binary("ADD", made, part)
    assert made is not None
    return graph.reshape(made, call.shape())


def _part(graph: Graph, rows: Tensor, chosen: Sequence[Neighbour], spatial: Sequence[int], first: np.ndarray) -> Tensor:
    """Gathers one neighbour of every place and multiplies it by its weight."""
    place, weight = graph.constant(first), None
    for number, one in enumerate(chosen):
        step = int(np.prod(spatial[number + 1 :]))
        place = graph.binary("ADD", graph.binary("MUL", one.index, graph.constant(np.int32(step))), place)
        if one.weight is not None:
            weight = one.weight if weight is None else graph.binary("MUL", weight, one.weight)
    picked = graph.add("GATHER", [rows, place], (place.shape[0], rows.shape[1]), axis=0, batchDims=0)
    return picked if weight is None else graph.binary("MUL", picked, graph.reshape(weight, (weight.shape[0], 1)))


def _neighbours(call: Call, column: Tensor, size: int) -> list[Neighbour]:
    """Returns what an axis contributes to each place: -1 is its one end, 1 the other."""
    graph, corners = call.graph, bool(call.attribute("align_corners", 0))
    mode = call.attribute("mode", "linear")
    mode = _MODES.get(mode, mode)
    half = (size - 1 if corners else size) / 2
    where = _linear(graph, column, half, (size - 1) / 2)
    if mode == "nearest":
        return [_neighbour(call, graph.unary("ROUND", where), None, size)]
    below = graph.unary("FLOOR", where)
    part = graph.binary("SUB", where, below)
    weights = _cubic(graph, part) if mode == "cubic" else {0: _linear(graph, part, -1, 1), 1: part}
    return [_neighbour(call, _linear(graph, below, 1, shift), weight, size) for shift, weight in weights.items()]


def _linear(graph: Graph, value: Tensor, factor: float, addend: float) -> Tensor:
    scaled = value if factor == 1 else graph.binary("MUL", value, graph.constant(np.float32(factor)))
    return scaled if addend == 0 else graph.binary("ADD", scaled, graph.constant(np.float32(addend)))


def _cubic(graph: Graph, part: Tensor) -> dict[int, Tensor]:
    """Keys, Cubic Convolution Interpolation for Digital Image Processing, 1981."""
    inner = [_CUBIC + 2, -(_CUBIC + 3), 0.0, 1.0]
    outer = [_CUBIC, -5 * _CUBIC, 8 * _CUBIC, -4 * _CUBIC]
    rest = _linear(graph, part, -1, 1)
    one, two = _linear(graph, part, 1, 1), _linear(graph, rest, 1, 1)
    return {shift: _polynomial(graph, at, numbers) for shift, at, numbers in ((-1, one, outer), (0, part, inner), (1, rest, inner), (2, two, outer))}


def _polynomial(graph: Graph, at: Tensor, numbers: Sequence[float]) -> Tensor:
    made = _linear(graph, at, numbers[0], numbers[1])
    for number in numbers[2:]:
        made = _linear(graph, graph.binary("MUL", made, at), 1, number)
    return made


def _neighbour(call: Call, where: Tensor, weight: Tensor | None, size: int) -> Neighbour:
    """Brings a place into the image; what is put there for one outside of it is nothing, the edge or the mirrored image."""
    graph, beyond = call.graph, call.attribute("padding_mode", "zeros")
    if beyond == "reflection":
        where = _reflected(graph, where, size, bool(call.attribute("align_corners", 0)))
    inside = graph.binary("MINIMUM", graph.binary("MAXIMUM", where, graph.constant(np.float32(0))), graph.constant(np.float32(size - 1)))
    if beyond == "zeros":
        counts = graph.cast(graph.binary("EQUAL", where, inside, np.bool_), np.float32)
        weight = counts if weight is None else graph.binary("MUL", weight, counts)
    return Neighbour(graph.cast(inside, np.int32), weight)


def _reflected(graph: Graph, where: Tensor, size: int, corners: bool) -> Tensor:
    """Mirrors at the middles of the outermost elements, or at their outer edges."""
    low, span = (0.0, size - 1) if corners else (-0.5, size)
    if span == 0:
        return where
    away = graph.binary("FLOOR_MOD", graph.unary("ABS", _linear(graph, where, 1, -low)), graph.constant(np.float32(2 * span)))
    turned = graph.unary("ABS", _linear(graph, away, 1, -float(span)))
    return _linear(graph, turned, -1, low + span)
