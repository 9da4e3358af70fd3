"""StableHLO to ONNX: loops and branches, whose blocks become graphs inside of a node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from toolkit.convert.onnx_graph import Graph, Tensor
from toolkit.convert.stablehlo_values import whole

# Converts a block of operations into a graph and returns what its last operation gives back.
Walk = Callable[[Graph, Any], list[Tensor]]


def loop(walk: Walk, graph: Graph, operation: Any) -> list[Tensor]:
    """Makes a Loop whose body ends with the condition for the next turn."""
    from onnx import helper

    condition, body = (region.blocks[0] for region in operation.regions)
    start = [whole(graph, value) for value in operation.operands]
    for argument, tensor in zip(condition.arguments, start, strict=True):
        graph.values[argument] = tensor
    first = walk(graph, condition)[0]
    inner = Graph(graph)
    turn = Tensor(graph.new_name("turn"), (), np.dtype(np.int64))
    goes = Tensor(graph.new_name("goes"), (), np.dtype(np.bool_))
    carried = [Tensor(graph.new_name("carried"), tensor.shape, tensor.dtype) for tensor in start]
    inner.values.update(zip(body.arguments, carried, strict=True))
    after = walk(inner, body)
    inner.values.update(zip(condition.arguments, after, strict=True))
    again = walk(inner, condition)[0]
    inputs = [(tensor.name, tensor) for tensor in (turn, goes, *carried)]
    outputs = [(graph.new_name("next"), tensor) for tensor in (again, *after)]
    proto = inner.finish(inputs, outputs, "body")
    made = [Tensor(graph.new_name("Loop"), tensor.shape, tensor.dtype) for tensor in start]
    names = ["", graph.name(first), *map(graph.name, start)]
    graph.nodes.append(helper.make_node("Loop", names, [tensor.name for tensor in made], name=made[0].name, body=proto))
    return made


def choice(walk: Walk, graph: Graph, operation: Any) -> list[Tensor]:
    """Makes an If for each branch but the last, which takes every other number."""
    index = graph.values[operation.operands[0]]
    branches = [region.blocks[0] for region in operation.regions]
    if operation.name == "stablehlo.if":
        return _branch(walk, graph, index, branches, operation)
    return _numbered(walk, graph, index, branches, operation, 0)


def _numbered(walk: Walk, graph: Graph, index: Tensor, branches: list[Any], operation: Any, number: int) -> list[Tensor]:
    if number == len(branches) - 1:
        return walk(graph, branches[number])
    hit = graph.elementwise("Equal", [index, graph.constant(number, index.dtype)], np.bool_)
    this, rest = Graph(graph), Graph(graph)
    return _if(graph, hit, (this, walk(this, branches[number])), (rest, _numbered(walk, rest, index, branches, operation, number + 1)))


def _branch(walk: Walk, graph: Graph, index: Tensor, branches: list[Any], operation: Any) -> list[Tensor]:
    yes, no = Graph(graph), Graph(graph)
    return _if(graph, index, (yes, walk(yes, branches[0])), (no, walk(no, branches[1])))


def _if(graph: Graph, hit: Tensor, yes: tuple[Graph, list[Tensor]], no: tuple[Graph, list[Tensor]]) -> list[Tensor]:
    from onnx import helper

    sides = [inner.finish([], [(graph.new_name("branch"), tensor) for tensor in found], "branch") for inner, found in (yes, no)]
    made = [Tensor(graph.new_name("If"), tensor.shape, tensor.dtype) for tensor in yes[1]]
    names = [tensor.name for tensor in made]
    graph.nodes.append(helper.make_node("If", [graph.name(hit)], names, name=names[0], then_branch=sides[0], else_branch=sides[1]))
    return made
