"""Determinants, running products, and writing into a cache."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from toolkit.convert.tfl.graph import Graph, Tensor
from toolkit.convert.tfl.lower import Call, operator
from toolkit.convert.tfl.operators.comparison import select
from toolkit.convert.tfl.operators.elementwise import floating, restored, widened
from toolkit.convert.tfl.program import FREE, Unsupported

_MOST_ROWS = 5  # with each more there are more than twice as many products


@operator("Det", limits="matrices of at most five rows")
def _det(call: Call) -> Tensor:
    """Laplace's expansion along the rows; minors of the same columns are computed once."""
    graph, value = call.graph, floating(call.x(0))
    size = value.shape[-1]
    if not 1 <= size <= _MOST_ROWS:
        raise Unsupported(f"is of matrices of more than {_MOST_ROWS} rows")
    flat = graph.reshape(value, (FREE if FREE in value.shape else int(np.prod(value.shape[:-2])), size, size))

    @cache
    def minor(columns: tuple[int, ...]) -> Tensor:
        row = size - len(columns)
        cells = [graph.reshape(graph.slice(flat, (0, row, column), (flat.shape[0], 1, 1)), (flat.shape[0],)) for column in columns]
        made = cells[0]
        for place, cell in enumerate(cells if len(columns) > 1 else []):
            rest = graph.binary("MUL", cell, minor(tuple(one for one in columns if one != columns[place])))
            made = rest if place == 0 else graph.binary("SUB" if place % 2 else "ADD", made, rest)
        return made

    return graph.reshape(minor(tuple(range(size))), call.shape())


@operator("CumProd", limits="a known axis whose size is not free")
def _cumulative_product(call: Call) -> Tensor:
    """After step ``k`` each number is the product of the ``2 ** k`` up to it."""
    graph, value = call.graph, widened(call.graph, call.x(0))
    axis = int(call.constant(1).reshape(-1)[0]) % value.rank
    (count,) = call.known(value.shape[axis : axis + 1], "the axis that it goes along")
    before, after = value.shape[:axis], value.shape[axis + 1 :]
    flat = graph.reshape(value, (FREE if FREE in before else int(np.prod(before)), count, _product(after)))
    back = bool(call.attribute("reverse", 0))
    if call.attribute("exclusive", 0):
        flat = _shifted(graph, flat, 1, back=back)
    step = 1
    while step < count:
        flat = graph.binary("MUL", flat, _shifted(graph, flat, step, back=back))
        step *= 2
    return restored(graph, graph.reshape(flat, value.shape), call.result().dtype)


def _product(sizes: Sequence[int]) -> int:
    if FREE in sizes:
        raise Unsupported("has a free axis behind the one that it goes along")
    return int(np.prod(sizes))


def _shifted(graph: Graph, value: Tensor, step: int, *, back: bool) -> Tensor:
    """Moves numbers along the middle axis; ones take their places."""
    padded = graph.pad(value, [(0, 0), (0, step) if back else (step, 0), (0, 0)], 1)
    return graph.slice(padded, (0, step if back else 0, 0), value.shape)


@operator("TensorScatter", limits="sizes that are not free")
def _tensor_scatter(call: Call) -> Tensor:
    """Takes for each place of the cache what is written there, if anything is."""
    graph, past, update = call.graph, call.x(0), call.x(1)
    rank = past.rank
    axis = call.attribute("axis", -2) % rank
    order = [0, axis, *(one for one in range(1, rank) if one != axis)]
    batch, size = call.known((past.shape[0], past.shape[axis]), "a size of the cache")
    count, mode = update.shape[axis], call.attribute("mode", "linear")
    places = graph.constant(np.arange(size, dtype=np.int32)[None])
    if call.has(2):
        places = graph.binary("SUB", places, graph.reshape(graph.cast(call.x(2), np.int32), (batch, 1)))
    else:
        places = graph.constant(np.repeat(np.arange(size, dtype=np.int32)[None], batch, 0))
    if mode == "circular":
        places = graph.binary("FLOOR_MOD", places, graph.constant(np.int32(size)))
    low, high = graph.constant(np.int32(0)), graph.constant(np.int32(count - 1))
    inside = graph.binary("MINIMUM", graph.binary("MAXIMUM", places, low), high)
    written = graph.reshape(graph.binary("EQUAL", places, inside, np.bool_), (batch, size, 1))
    old, new = (_rows(graph, one, order) for one in (past, update))
    picked = graph.add("GATHER", [new, inside], (batch, size, new.shape[2]), axis=1, batchDims=1)
    made = graph.reshape(select(graph, written, picked, old), [past.shape[one] for one in order])
    return graph.transpose(made, np.argsort(order).tolist())


def _rows(graph: Graph, value: Tensor, order: Sequence[int]) -> Tensor:
    moved = graph.transpose(value, order)
    return graph.reshape(moved, (*moved.shape[:2], int(np.prod(moved.shape[2:]))))
