"""Recurrent layers. The input's part of all steps is one product; the steps themselves are a loop, a few steps to a turn.

A ``WHILE`` copies its state every turn, which costs as much as a small step: hence a few steps to a turn. TFLite's own kernels for
sequences are of no use here: they keep their state from one run of the file to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from toolkit.convert.tfl.graph import Graph, Tensor
from toolkit.convert.tfl.lower import Call, operator
from toolkit.convert.tfl.operators.convolution import joined
from toolkit.convert.tfl.program import Unsupported

_MOST_UNROLLED = 4
_TURN = 4  # steps
_LIMITS = "known sizes; of the activations Sigmoid, Tanh, Relu, LeakyRelu, HardSigmoid, Affine, ScaledTanh, and Elu with alpha 1"
Activation = Callable[[Graph, Tensor], Tensor]
# One step of a cell: of the graph, the constants and tensors that it reads, the input's part of the gates, and the states.
Step = Callable[[Graph, Sequence[Tensor], Tensor, Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Cell:
    """What one direction does, step by step.

    Attributes:
        step: Makes the next states of the last ones; the first is the output.
        read: What all steps read: weights, biases.
        gates: The input's part of the gates, ``[steps x batch x ...]``.
        states: Before the first step, each ``[batch x hidden]``.
        backwards: Whether the last element of the sequence comes first.
    """

    step: Step
    read: list[Tensor]
    gates: Tensor
    states: list[Tensor]
    backwards: bool


@operator("LSTM", limits=f"{_LIMITS}; no clip, no input_forget")
def _lstm(call: Call) -> list[Tensor | None]:
    return _layer(call, 4, ["Sigmoid", "Tanh", "Tanh"], _lstm_cell)


@operator("GRU", limits=_LIMITS)
def _gru(call: Call) -> list[Tensor | None]:
    return _layer(call, 3, ["Sigmoid", "Tanh"], _gru_cell)


@operator("RNN", limits=_LIMITS)
def _rnn(call: Call) -> list[Tensor | None]:
    return _layer(call, 1, ["Tanh"], _rnn_cell)


MakeCell = Callable[[Call, int, list[Activation], Tensor, Tensor, "Tensor | None"], "tuple[Step, list[Tensor], Tensor | None]"]


def _layer(call: Call, gates: int, defaults: list[str], make: MakeCell) -> list[Tensor | None]:
    graph, value, batched = call.graph, call.x(0), call.attribute("layout", 0)
    call.known(value.shape, "a size")
    if batched:
        value = graph.transpose(value, (1, 0, 2))
    steps, batch, _ = value.shape
    counted = _counted(call, steps, batch)
    directions = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[call.attribute("direction", "forward")]
    hidden = call.type(2).shape[2]
    flat = graph.reshape(value, (steps * batch, value.shape[2]))
    found = []
    for number, backwards in enumerate(directions):
        weight, recurrent = (_of_direction(call, place, number) for place in (1, 2))
        bias = _of_direction(call, 3, number) if call.has(3) else None
        step, read, parts = make(call, number, _activations(call, number, defaults), weight, recurrent, bias)
        product = graph.reshape(_linear(graph, flat, weight, parts), (steps, batch, gates * hidden))
        if counted is not None:
            step, product = _masked(step), joined(graph, [product, counted], 2)
        states = [_state(call, place, number, batch, hidden) for place in ((5, 6) if gates == 4 else (5,))]
        outputs, *last = _run(graph, Cell(step, read, product, states, backwards))
        found.append([outputs if counted is None else graph.binary("MUL", outputs, counted), *last])
    return [one if name else None for one, name in zip(_results(call, found, batched), call.node.outputs, strict=False)]


def _counted(call: Call, steps: int, batch: int) -> Tensor | None:
    """Returns ones for the steps that each sequence has and zeros after them, ``[steps x batch x 1]``; ``None`` where all are full."""
    if not call.has(4) or (call.is_constant(4) and np.all(call.constant(4) == steps)):
        return None
    graph, lengths = call.graph, call.graph.reshape(call.x(4), (1, batch, 1))
    numbers = graph.constant(np.arange(steps, dtype=np.int32).reshape(-1, 1, 1))
    return graph.cast(graph.binary("LESS", numbers, lengths, np.bool_), np.float32)


def _masked(step: Step) -> Step:
    """A step that changes nothing where the last element of the input's part is zero: that sequence is over, or, backwards, not begun."""

    def inner(graph: Graph, read: Sequence[Tensor], part: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
        gates, counts = _split(graph, part, [part.shape[1] - 1, 1])
        goes_on = graph.binary("GREATER", counts, _number(graph, 0.5), np.bool_)
        after = step(graph, read, gates, states)
        return [graph.add("SELECT_V2", [goes_on, new, old], new.shape, new.dtype) for new, old in zip(after, states, strict=True)]

    return inner


def _of_direction(call: Call, place: int, number: int) -> Tensor:
    """Returns one direction's part of an input that has one for each."""
    value = call.x(place)
    if value.data is not None:
        return call.graph.constant(np.ascontiguousarray(value.data[number], np.float32))
    part = call.graph.slice(value, [number, *[0] * (value.rank - 1)], (1, *value.shape[1:]))
    return call.graph.reshape(part, value.shape[1:])


def _state(call: Call, place: int, number: int, batch: int, hidden: int) -> Tensor:
    if not call.has(place):
        return call.graph.constant(np.zeros((batch, hidden), np.float32))
    value = call.x(place)
    if call.attribute("layout", 0):
        value = call.graph.transpose(value, (1, 0, 2))
    return call.graph.reshape(call.graph.slice(value, [number, 0, 0], (1, batch, hidden)), (batch, hidden))


def _results(call: Call, found: Sequence[Sequence[Tensor]], batched: bool) -> list[Tensor]:
    """Joins the directions: all outputs first, then each last state."""
    graph = call.graph
    made = []
    for place in range(len(found[0])):
        parts = [one[place] for one in found]
        axis = 1 if place == 0 else 0
        full = [graph.reshape(part, (*part.shape[:axis], 1, *part.shape[axis:])) for part in parts]
        whole = joined(graph, full, axis)
        if batched:
            whole = graph.transpose(whole, (2, 0, 1, 3) if place == 0 else (1, 0, 2))
        made.append(whole)
    return made


# What alpha and beta are where they are not given.
_PARAMETERS: dict[str, tuple[float, float | None]] = {
    "LeakyRelu": (0.01, None), "Elu": (1.0, None), "HardSigmoid": (0.2, 0.5), "Affine": (1.0, 0.0), "ThresholdedRelu": (1.0, None),
    "ScaledTanh": (1.0, 1.0),
}  # fmt: skip


def _activations(call: Call, number: int, defaults: list[str]) -> list[Activation]:
    """Returns the functions of one direction, which may be limited to a range before each."""
    names = call.attribute("activations") or defaults * 2
    alphas, betas = list(call.attribute("activation_alpha") or []), list(call.attribute("activation_beta") or [])
    if len(names) < len(defaults) * (number + 1):
        raise Unsupported(f"names {len(names)} activations")
    made: list[Activation] = []
    for name in names[: len(defaults) * (number + 1)]:
        alpha, beta = _PARAMETERS.get(name, (None, None))
        alpha = alphas.pop(0) if alpha is not None and alphas else alpha
        beta = betas.pop(0) if beta is not None and betas else beta
        made.append(partial(_activate, name=name, alpha=alpha, beta=beta, limit=call.attribute("clip", None)))
    return made[-len(defaults) :]


_PLAIN = {"Sigmoid": "LOGISTIC", "Tanh": "TANH", "Relu": "RELU"}


def _activate(graph: Graph, value: Tensor, name: str, alpha: float | None, beta: float | None, limit: float | None) -> Tensor:
    if limit:
        value = graph.binary("MINIMUM", graph.binary("MAXIMUM", value, _number(graph, -limit)), _number(graph, limit))
    if name in _PLAIN:
        return graph.unary(_PLAIN[name], value)
    if name == "LeakyRelu":
        return graph.unary("LEAKY_RELU", value, alpha=alpha)
    if name == "Elu" and alpha == 1:
        return graph.unary("ELU", value)
    if name in ("Affine", "HardSigmoid") and alpha is not None and beta is not None:
        line = graph.binary("ADD", graph.binary("MUL", value, _number(graph, alpha)), _number(graph, beta))
        return line if name == "Affine" else graph.binary("MINIMUM", graph.unary("RELU", line), _number(graph, 1))
    if name == "ScaledTanh" and alpha is not None and beta is not None:
        return graph.binary("MUL", graph.unary("TANH", graph.binary("MUL", value, _number(graph, beta))), _number(graph, alpha))
    raise Unsupported(f"has the activation {name}")


def _number(graph: Graph, number: float) -> Tensor:
    return graph.constant(np.float32(number))


def _slice(graph: Graph, value: Tensor, start: int, size: int) -> Tensor:
    """Returns a part of a vector, or rows of a matrix."""
    if value.data is not None:
        return graph.constant(np.ascontiguousarray(value.data[start : start + size]))
    return graph.slice(value, [start, *[0] * (value.rank - 1)], (size, *value.shape[1:]))


def _linear(graph: Graph, value: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return graph.add("FULLY_CONNECTED", [value, weight, bias], (value.shape[0], weight.shape[0]))


def _both_biases(graph: Graph, bias: Tensor | None, count: int) -> Tensor | None:
    """Adds the input's and the state's biases."""
    if bias is None:
        return None
    if bias.data is not None:
        return graph.constant(bias.data[:count] + bias.data[count:])
    return graph.binary("ADD", _slice(graph, bias, 0, count), _slice(graph, bias, count, count))


def _rnn_cell(
    call: Call, number: int, activations: list[Activation], weight: Tensor, recurrent: Tensor, bias: Tensor | None
) -> tuple[Step, list[Tensor], Tensor | None]:
    (activate,) = activations

    def step(graph: Graph, read: Sequence[Tensor], part: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
        return [activate(graph, graph.binary("ADD", part, _linear(graph, states[0], read[0])))]

    return step, [recurrent], _both_biases(call.graph, bias, recurrent.shape[0])


def _gru_cell(
    call: Call, number: int, activations: list[Activation], weight: Tensor, recurrent: Tensor, bias: Tensor | None
) -> tuple[Step, list[Tensor], Tensor | None]:
    """The gates are those of update, reset and the new state."""
    graph, hidden = call.graph, recurrent.shape[1]
    sigmoid, tanh = activations
    after = bool(call.attribute("linear_before_reset", 0))
    if not after:
        read = [_slice(graph, recurrent, 0, 2 * hidden), _slice(graph, recurrent, 2 * hidden, hidden)]
        parts = _both_biases(graph, bias, 3 * hidden)
    else:
        own = bias if bias is not None else graph.constant(np.zeros(6 * hidden, np.float32))
        read, parts = [recurrent, _slice(graph, own, 3 * hidden, 3 * hidden)], _slice(graph, own, 0, 3 * hidden)

    def step(graph: Graph, read: Sequence[Tensor], part: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
        state = states[0]
        given = _split(graph, part, [2 * hidden, hidden])
        if after:
            gates, new = _split(graph, _linear(graph, state, *read), [2 * hidden, hidden])
        else:
            gates = _linear(graph, state, read[0])
        update, reset = _split(graph, sigmoid(graph, graph.binary("ADD", given[0], gates)), [hidden, hidden])
        new = graph.binary("MUL", reset, new) if after else _linear(graph, graph.binary("MUL", reset, state), read[1])
        new = tanh(graph, graph.binary("ADD", given[1], new))
        moved = graph.binary("MUL", update, graph.binary("SUB", state, new))
        return [graph.binary("ADD", new, moved)]

    return step, read, parts


def _split(graph: Graph, value: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    inputs = [value, graph.integers(sizes), graph.constant(1, np.int32)]
    return graph.add_many("SPLIT_V", inputs, [((value.shape[0], size), value.dtype) for size in sizes], numSplits=len(sizes))


def _lstm_cell(
    call: Call, number: int, activations: list[Activation], weight: Tensor, recurrent: Tensor, bias: Tensor | None
) -> tuple[Step, list[Tensor], Tensor | None]:
    """The gates are those of input, output, forgetting and the new cell."""
    graph, hidden = call.graph, recurrent.shape[1]
    sigmoid, inner, outer = activations
    if call.attribute("input_forget", 0):
        raise Unsupported("couples the input's gate to that of forgetting")
    if call.attribute("clip", None):
        raise Unsupported("has a clip, which runtimes apply to different values")
    peephole = call.has(7)
    read = [recurrent]
    if peephole:
        weights = _of_direction(call, 7, number)
        read += [_slice(graph, weights, place * hidden, hidden) for place in range(3)]

    def step(graph: Graph, read: Sequence[Tensor], part: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
        state, cell = states
        gates = graph.binary("ADD", part, _linear(graph, state, read[0]))

        def seen(gate: Tensor, place: int, of: Tensor) -> Tensor:
            return graph.binary("ADD", gate, graph.binary("MUL", of, read[1 + place])) if peephole else gate

        into, out, kept, new = _split(graph, gates, [hidden] * 4)
        kept = graph.binary("MUL", sigmoid(graph, seen(kept, 2, cell)), cell)
        added = graph.binary("MUL", sigmoid(graph, seen(into, 0, cell)), inner(graph, new))
        cell = graph.binary("ADD", kept, added)
        return [graph.binary("MUL", sigmoid(graph, seen(out, 1, cell)), outer(graph, cell)), cell]

    return step, read, _both_biases(graph, bias, 4 * hidden)


def _run(graph: Graph, cell: Cell) -> list[Tensor]:
    """Runs all steps; returns all outputs ``[steps x batch x hidden]`` and the last states."""
    steps = cell.gates.shape[0]
    looped = steps // _TURN * _TURN if steps > _MOST_UNROLLED else 0
    states, outputs = list(cell.states), []
    if looped:
        made, *states = _loop(graph, cell, looped // _TURN)
        outputs.append(made)
    if steps > looped:
        rest = steps - looped
        part = graph.slice(cell.gates, [0 if cell.backwards else looped, 0, 0], (rest, *cell.gates.shape[1:]))
        made, states = _steps(graph, cell, cell.read, part, states)
        outputs.append(made)
    return [joined(graph, outputs[::-1] if cell.backwards else outputs, 0), *states]


def _steps(graph: Graph, cell: Cell, read: Sequence[Tensor], gates: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Adds some steps one after the other; returns their outputs, packed, and the states."""
    count, now = gates.shape[0], list(states)
    parts = graph.add_many("UNPACK", [gates], [(gates.shape[1:], gates.dtype)] * count, num=count, axis=0)
    outputs = []
    for part in parts[::-1] if cell.backwards else parts:
        now = cell.step(graph, read, part, now)
        outputs.append(now[0])
    ordered = outputs[::-1] if cell.backwards else outputs
    return graph.add("PACK", ordered, (count, *ordered[0].shape), valuesCount=count, axis=0), now


def _loop(graph: Graph, cell: Cell, turns: int) -> list[Tensor]:
    """Adds a loop over blocks of steps; returns their outputs and the last states."""
    batch, hidden = cell.states[0].shape
    first = cell.gates.shape[0] - _TURN if cell.backwards else 0
    shape = (turns * _TURN, batch, hidden)
    zeros = graph.add("FILL", [graph.integers(shape), _number(graph, 0)], shape, np.float32)
    variable = [one for one in cell.read if one.data is None]
    carried = [graph.constant(0, np.int32), zeros, *cell.states, cell.gates, *variable]
    condition, body = Graph(f"{graph.layer}/condition"), Graph(f"{graph.layer}/body")
    condition.layer = body.layer = graph.layer
    seen = [condition.input(one.name, one.shape, one.dtype) for one in carried]
    condition.outputs = [condition.add("LESS", [seen[0], condition.constant(turns, np.int32)], (), bool)]
    turn, outputs, *inner = (body.input(one.name, one.shape, one.dtype) for one in carried)
    states, (gates, *given) = inner[: len(cell.states)], inner[len(cell.states) :]
    reads = iter(given)
    read = [body.constant(one.data) if one.data is not None else next(reads) for one in cell.read]
    offset = body.binary("MUL", turn, body.constant(-_TURN if cell.backwards else _TURN, np.int32))
    place = _place(body, body.binary("ADD", offset, body.constant(first, np.int32)))
    block = body.add("SLICE", [gates, place, body.integers((_TURN, *gates.shape[1:]))], (_TURN, *gates.shape[1:]))
    made, states = _steps(body, cell, read, block, states)
    # Backwards, what does not fill a turn lies before all of these.
    kept = place if not cell.backwards else _place(body, body.binary("ADD", offset, body.constant((turns - 1) * _TURN, np.int32)))
    outputs = body.add("DYNAMIC_UPDATE_SLICE", [outputs, made, kept], outputs.shape)
    body.outputs = [body.binary("ADD", turn, body.constant(1, np.int32)), outputs, *states, gates, *given]
    shapes = [(one.shape, one.dtype) for one in carried]
    return graph.add_many("WHILE", carried, shapes, [condition, body])[1 : 2 + len(states)]


def _place(graph: Graph, first: Tensor) -> Tensor:
    zero = graph.constant(0, np.int32)
    return graph.add("PACK", [first, zero, zero], (3,), valuesCount=3, axis=0)
