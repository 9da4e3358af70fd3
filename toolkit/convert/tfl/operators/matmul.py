"""Matrix products."""

from __future__ import annotations

import numpy as np

from toolkit.convert.tfl.facts import FLOATS
from toolkit.convert.tfl.graph import Graph, Tensor
from toolkit.convert.tfl.lower import Call, operator
from toolkit.convert.tfl.program import FREE


@operator("Gemm", dtypes=FLOATS)
def _gemm(call: Call) -> Tensor:
    graph, left = call.graph, call.x(0)
    if call.attribute("transA", 0):
        left = graph.transpose(left, (1, 0))
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    if not call.is_constant(1):
        right = call.x(1) if call.attribute("transB", 0) else graph.transpose(call.x(1), (1, 0))
    else:
        weight = call.constant(1).astype(np.float32) if call.attribute("transB", 0) else call.constant(1).astype(np.float32).T
        right = graph.constant(weight * np.float32(alpha) if alpha != 1 else weight)
    bias = _bias(call, right.shape[0], beta) if call.is_constant(1) or alpha == 1 else None
    made = fully_connected(graph, left, right, bias)
    if alpha != 1 and not call.is_constant(1):
        made = graph.binary("MUL", made, graph.constant(np.float32(alpha)))
    if call.has(2) and bias is None:
        added = call.x(2) if beta == 1 else graph.binary("MUL", call.x(2), graph.constant(np.float32(beta)))
        made = graph.binary("ADD", made, added)
    return made


def _bias(call: Call, outputs: int, beta: float) -> np.ndarray | None:
    """What is added to every row alike, where it is known."""
    if not call.is_constant(2) or call.constant(2).size not in (1, outputs) or any(size != 1 for size in call.constant(2).shape[:-1]):
        return None
    return np.ascontiguousarray(np.broadcast_to(call.constant(2).astype(np.float32).reshape(-1) * np.float32(beta), (outputs,)))


def fully_connected(graph: Graph, left: Tensor, weight: Tensor, bias: np.ndarray | None) -> Tensor:
    """Adds ``left @ weight.T + bias`` of ``[... x inputs]`` and ``[outputs x inputs]``; leading axes are kept."""
    shape = (*left.shape[:-1], weight.shape[0])
    given = None if bias is None else graph.constant(np.ascontiguousarray(bias))
    return graph.add("FULLY_CONNECTED", [left, weight, given], shape, keepNumDims=len(shape) > 2)


@operator("MatMul", dtypes=FLOATS)
def _matmul(call: Call) -> Tensor:
    graph, left, right = call.graph, call.x(0), call.x(1)
    if call.is_constant(1) and right.rank == 2 and left.rank >= 2:
        return fully_connected(graph, left, graph.transpose(right, (1, 0)), None)
    wanted = call.shape()
    if left.rank == 1:
        left = graph.reshape(left, (1, *left.shape))
    if right.rank == 1:
        right = graph.reshape(right, (*right.shape, 1))
    rank = max(left.rank, right.rank)
    if min(left.rank, right.rank) > 2 or rank <= 2:
        left, right = (graph.reshape(one, (1,) * (rank - one.rank) + one.shape) for one in (left, right))
    batch = np.broadcast_shapes(*(tuple(abs(size) for size in one.shape[:-2]) for one in (left, right)))
    free = FREE in left.shape[:-2] or FREE in right.shape[:-2]
    shape = (*((FREE, *batch[1:]) if free else batch), left.shape[-2], right.shape[-1])
    if rank == 2:
        return graph.reshape(fully_connected(graph, left, graph.transpose(right, (1, 0)), None), wanted)
    return graph.reshape(graph.add("BATCH_MATMUL", [left, right], shape, adjX=False, adjY=False), wanted)
