"""Operators that run graphs: If, Loop and Scan. What a graph sees of the values around it becomes one more input of the IF or WHILE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from toolkit.convert.tfl.graph import Graph, Tensor
from toolkit.convert.tfl.lower import Call, carried, lower_inside, operator
from toolkit.convert.tfl.program import FREE, TYPINGS, Inner, Node, Program, Type, Unsupported

_MOST_TURNS = 2**31 - 1
_INDEX, _TRUTH = Type(np.dtype(np.int64), ()), Type(np.dtype(np.bool_), ())


def _read(node: Node, name: str, types: Sequence[Type]) -> Program:
    """Reads a graph of a node; the node keeps it."""
    inner = node.attributes[name]
    assert isinstance(inner, Inner)
    found = inner.read(types)
    for problem, reason in found.problems:
        raise Unsupported(f"has {problem.kind} ({problem.name}) inside, which {reason}")
    node.attributes[name] = found
    return found


def _seen(program: Program) -> list[str]:
    """Names of what a graph sees of the values around it."""
    made = {name for node in program.nodes for name in node.outputs} | set(program.inputs)
    read = [name for node in program.nodes for name in (*node.inputs, *_seen_inside(node))]
    names = [name for name in (*read, *program.outputs) if name and name not in made and name not in program.constants]
    return list(dict.fromkeys(names))


def _seen_inside(node: Node) -> list[str]:
    return [name for value in node.attributes.values() if isinstance(value, Program) for name in _seen(value)]


def _if_types(node: Node, program: Program) -> list[Type]:
    condition = program.constants.get(node.inputs[0])
    if condition is not None:
        chosen = _read(node, "then_branch" if condition.reshape(-1)[0] else "else_branch", [])
        return [chosen.type(name) for name in chosen.outputs]
    branches = [_read(node, name, []) for name in ("then_branch", "else_branch")]
    yes, no = ([branch.type(name) for name in branch.outputs] for branch in branches)
    if yes != no:
        raise Unsupported("has branches whose results differ in their sizes or types")
    return yes


def _loop_types(node: Node, program: Program) -> list[Type]:
    states = [program.type(name) for name in node.inputs[2:]]
    body = _read(node, "body", [_INDEX, _TRUTH, *states])
    results = [body.type(name) for name in body.outputs[1:]]
    _check_states(states, results[: len(states)])
    collected = results[len(states) :]
    if not collected:
        return results
    turns = _turns(node, program)
    if turns is None or not _always(node, program, body):
        raise Unsupported("collects results of a number of turns that depends on the data")
    return [*states, *(Type(one.dtype, (turns, *one.shape)) for one in collected)]


def _check_states(before: Sequence[Type], after: Sequence[Type]) -> None:
    for old, new in zip(before, after, strict=True):
        if old != new:
            raise Unsupported(f"carries a value from turn to turn that changes from {list(old.shape)} {old.dtype} to {list(new.shape)} {new.dtype}")


def _turns(node: Node, program: Program) -> int | None:
    """The most turns of a Loop, where they are known."""
    if not node.inputs[0]:
        return _MOST_TURNS
    known = program.constants.get(node.inputs[0])
    return None if known is None else min(int(known.reshape(-1)[0]), _MOST_TURNS)


def _always(node: Node, program: Program, body: Program) -> bool:
    """Whether a Loop never ends early: its condition is true, and stays so."""
    if len(node.inputs) > 1 and node.inputs[1]:
        first = program.constants.get(node.inputs[1])
        if first is None or not first.reshape(-1)[0]:
            return False
    name = body.outputs[0]
    if name in body.constants:
        return bool(body.constants[name].reshape(-1)[0])
    sources = {one.outputs[0]: one.inputs[0] for one in body.nodes if one.kind == "Identity"}
    while name in sources:
        name = sources[name]
    return name == body.inputs[1]


def _scan_types(node: Node, program: Program) -> list[Type]:
    if node.version < 9:
        raise Unsupported("is of an operator set in which it had an axis of samples")
    count = node.attributes["num_scan_inputs"]
    states = [program.type(name) for name in node.inputs[:-count]]
    scanned = [program.type(name) for name in node.inputs[-count:]]
    axes = _axes(node, "scan_input_axes", [len(one.shape) for one in scanned])
    turns = scanned[0].shape[axes[0]]
    parts = [Type(one.dtype, (*one.shape[:axis], *one.shape[axis + 1 :])) for one, axis in zip(scanned, axes, strict=True)]
    body = _read(node, "body", [*states, *parts])
    results = [body.type(name) for name in body.outputs]
    _check_states(states, results[: len(states)])
    collected = results[len(states) :]
    made = []
    for one, axis in zip(collected, _axes(node, "scan_output_axes", [len(one.shape) + 1 for one in collected]), strict=True):
        made.append(Type(one.dtype, (*one.shape[:axis], turns, *one.shape[axis:])))
    return [*states, *made]


def _axes(node: Node, name: str, ranks: Sequence[int]) -> list[int]:
    return [axis % rank for axis, rank in zip(node.attributes.get(name) or [0] * len(ranks), ranks, strict=True)]


TYPINGS |= {"If": _if_types, "Loop": _loop_types, "Scan": _scan_types}


def _around(call: Call, names: Sequence[str]) -> dict[str, Tensor]:
    return {name: call.values.get(name, "first") for name in names}


def _single(graph: Graph, value: Tensor) -> Tensor:
    return graph.reshape(value, ())


def _outputs(graph: Graph, found: Sequence[Tensor], like: Sequence[Tensor]) -> None:
    """Sets a graph's outputs, each a tensor of its own."""
    for one, wanted in zip(found, like, strict=True):
        if one.quantization is not None:
            raise Unsupported("has quantized values inside")
        made = graph.cast(one, wanted.dtype)
        graph.outputs.append(graph.copy(made) if made.data is not None or made in graph.outputs or made in graph.inputs else made)


@operator("If", limits="results of the same sizes and types in both branches")
def _if(call: Call) -> list[Tensor]:
    graph, node = call.graph, call.node
    if call.is_constant(0):
        chosen: Program = node.attributes["then_branch" if call.constant(0).reshape(-1)[0] else "else_branch"]
        return lower_inside(chosen, graph, _around(call, _seen(chosen)))
    branches: list[Program] = [node.attributes[name] for name in ("then_branch", "else_branch")]
    names = list(dict.fromkeys(name for branch in branches for name in _seen(branch)))
    given = _around(call, names)
    results = [Tensor("", call.result(place).shape, carried(call.result(place).dtype)) for place in range(len(node.outputs))]
    made = []
    for branch, title in zip(branches, ("then", "else"), strict=True):
        inner = Graph(f"{node.name}/{title}")
        seen = {name: inner.input(name, one.shape, one.dtype) for name, one in given.items()}
        _outputs(inner, lower_inside(branch, inner, seen), results)
        made.append(inner)
    inputs = [_single(graph, call.x(0)), *given.values()]
    return graph.add_many("IF", inputs, [(one.shape, one.dtype) for one in results], made)


# What one turn does: of the graph, the number of the turn, the states and what is seen; returns the states and what is collected.
Turn = Callable[[Graph, Tensor, list[Tensor], dict[str, Tensor]], tuple[list[Tensor], list[Tensor]]]


def _repeat(
    call: Call,
    turns: Tensor,
    states: Sequence[Tensor],
    collected: Sequence[Type],
    seen: dict[str, Tensor],
    turn: Turn,
    *,
    condition: bool = False,
) -> list[Tensor]:
    """Adds a WHILE. Its state: the turn, how many there are, the states, what is collected, what is seen.

    With ``condition`` the first state is whether to go on.
    """
    graph, title = call.graph, call.node.name
    buffers = [_buffer(call, one) for one in collected]
    whole = [graph.constant(0, np.int32), turns, *states, *buffers, *seen.values()]
    test, body = Graph(f"{title}/condition"), Graph(f"{title}/body")
    test.layer = body.layer = title
    asked = [test.input(one.name, one.shape, one.dtype) for one in whole]
    more = test.add("LESS", asked[:2], (), np.bool_)
    test.outputs = [test.add("LOGICAL_AND", [more, asked[2]], ()) if condition else more]
    number, most, *rest = (body.input(one.name, one.shape, one.dtype) for one in whole)
    inner, kept, around = rest[: len(states)], rest[len(states) :][: len(buffers)], rest[len(states) + len(buffers) :]
    after, parts = turn(body, number, inner, dict(zip(seen, around, strict=True)))
    filled = [_put(body, buffer, part, number) for buffer, part in zip(kept, parts, strict=True)]
    _outputs(body, [body.binary("ADD", number, body.constant(1, np.int32)), most, *after, *filled, *around], whole)
    made = graph.add_many("WHILE", whole, [(one.shape, one.dtype) for one in whole], [test, body])
    return made[2 : 2 + len(states) + len(buffers)]


def _buffer(call: Call, type: Type) -> Tensor:
    """What results are collected in."""
    shape, dtype = call.known(type.shape, "the size of what it collects"), carried(type.dtype)
    if 0 in shape:
        raise Unsupported("collects results of no turn")
    if dtype == np.bool_:
        raise Unsupported("collects truth values")
    return call.graph.add("FILL", [call.graph.integers(shape), call.graph.constant(0, dtype)], shape, dtype)


def _put(graph: Graph, buffer: Tensor, part: Tensor, number: Tensor) -> Tensor:
    full = graph.reshape(part, (1, *part.shape))
    zero = graph.constant(0, np.int32)
    place = graph.add("PACK", [number, *[zero] * part.rank], (buffer.rank,), np.int32, valuesCount=buffer.rank, axis=0)
    return graph.add("DYNAMIC_UPDATE_SLICE", [buffer, graph.cast(full, buffer.dtype), place], buffer.shape)


@operator(
    "Loop",
    typed=2,
    limits="carried values keep their sizes and types; where results are collected, a known number of turns, no early end, no truth values",
)
def _loop(call: Call) -> list[Tensor]:
    graph, node = call.graph, call.node
    body: Program = node.attributes["body"]
    known = _turns(node, call.program)
    turns = graph.constant(known, np.int32) if known is not None else _single(graph, call.x(0))
    goes_on = _single(graph, call.x(1)) if call.has(1) else graph.constant(True)
    states = [call.x(place) for place in range(2, len(node.inputs))]

    def turn(inner: Graph, number: Tensor, before: list[Tensor], seen: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        given = dict(zip(body.inputs, [number, *before], strict=True))
        found = lower_inside(body, inner, given | seen)
        return [_single(inner, found[0]), *found[1 : len(before)]], found[len(before) :]

    collected = _collected(call, len(states))
    made = _repeat(call, turns, [goes_on, *states], collected, _around(call, _seen(body)), turn, condition=True)
    return made[1:]


def _collected(call: Call, states: int) -> list[Type]:
    """Types of what is collected, also of what nobody asked for, turns first."""
    body: Program = call.node.attributes["body"]
    extra = 1 if call.node.kind == "Loop" else 0
    turns = next((call.result(place).shape[0] for place in range(states, len(call.node.outputs)) if call.node.outputs[place]), 1)
    return [Type(body.type(name).dtype, (turns, *body.type(name).shape)) for name in body.outputs[states + extra :]]


@operator("Scan", since=9, limits="carried values keep their sizes and types; a known number of turns; no truth values are collected")
def _scan(call: Call) -> list[Tensor]:
    graph, node = call.graph, call.node
    body: Program = node.attributes["body"]
    count = node.attributes["num_scan_inputs"]
    split = len(node.inputs) - count
    states = [call.x(place) for place in range(split)]
    axes = _axes(node, "scan_input_axes", [len(call.type(place).shape) for place in range(split, len(node.inputs))])
    scanned = [_first(graph, call.x(split + place), axis) for place, axis in enumerate(axes)]
    turns = scanned[0].shape[0]
    if turns == FREE:
        raise Unsupported("goes over an axis whose size is free at run time")
    names = [f"scanned {place}" for place in range(count)]
    backwards = node.attributes.get("scan_input_directions") or [0] * count

    def turn(inner: Graph, number: Tensor, before: list[Tensor], seen: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        parts = [_element(inner, seen.pop(name), number, bool(back)) for name, back in zip(names, backwards, strict=True)]
        found = lower_inside(body, inner, dict(zip(body.inputs, [*before, *parts], strict=True)) | seen)
        return found[: len(before)], found[len(before) :]

    seen = dict(zip(names, scanned, strict=True)) | _around(call, _seen(body))
    collected = [Type(one.dtype, (turns, *one.shape[1:])) for one in _collected(call, split)]
    made = _repeat(call, graph.constant(turns, np.int32), states, collected, seen, turn)
    return [*made[:split], *_turned(call, made[split:])]


def _first(graph: Graph, value: Tensor, axis: int) -> Tensor:
    return graph.transpose(value, [axis, *(one for one in range(value.rank) if one != axis)])


def _element(graph: Graph, value: Tensor, number: Tensor, backwards: bool) -> Tensor:
    """Returns the element of a turn along the first axis."""
    if backwards:
        number = graph.binary("SUB", graph.constant(value.shape[0] - 1, np.int32), number)
    return graph.add("GATHER", [value, number], value.shape[1:], axis=0, batchDims=0)


def _turned(call: Call, collected: Sequence[Tensor]) -> list[Tensor]:
    """Brings what was collected in order, and its turns to their axis."""
    graph, node = call.graph, call.node
    axes = _axes(node, "scan_output_axes", [one.rank for one in collected])
    made: list[Any] = []
    for one, axis, back in zip(collected, axes, node.attributes.get("scan_output_directions") or [0] * len(collected), strict=True):
        ordered = graph.add("REVERSE_V2", [one, graph.integers([0])], one.shape) if back else one
        order = list(range(1, one.rank))
        made.append(graph.transpose(ordered, [*order[:axis], 0, *order[axis:]]))
    return made
