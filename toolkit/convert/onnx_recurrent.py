"""ONNX's recurrent operators, step by step. See :mod:`toolkit.convert.onnx_operators`.

Each step is written out, so that the graph has no loop: ExecuTorch has no kernel for a whole recurrent layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from toolkit.convert.onnx_operators import Call, Unsupported, named

Step = Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]
"""From one step's inputs ``[batch x features]`` and the states to the new states; the first of them is the output."""


@named("LSTM")
def _lstm(call: Call) -> Any:
    if call.has(7) or call.attribute("input_forget", 0):
        raise Unsupported("it has peepholes or coupled gates")
    _plain(call, ["Sigmoid", "Tanh", "Tanh"])

    def step_of(direction: int) -> Step:
        torch, (weight, recurrent, bias) = call.torch, _weights(call, direction)

        def step(x: Any, states: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden, cell = states
            i, o, f, c = torch.chunk(x @ weight.T + hidden @ recurrent.T + bias[0] + bias[1], 4, 1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(c)
            return torch.sigmoid(o) * torch.tanh(cell), cell

        return step

    return _unrolled(call, step_of, (5, 6))


@named("GRU")
def _gru(call: Call) -> Any:
    _plain(call, ["Sigmoid", "Tanh"])
    after = bool(call.attribute("linear_before_reset", 0))

    def step_of(direction: int) -> Step:
        torch, (weight, recurrent, bias) = call.torch, _weights(call, direction)

        def step(x: Any, states: tuple[Any, ...]) -> tuple[Any, ...]:
            (hidden,) = states
            size = hidden.shape[1]
            given = x @ weight.T + bias[0]
            kept = hidden @ recurrent[: 2 * size].T + bias[1][: 2 * size]
            update, reset = torch.chunk(torch.sigmoid(given[:, : 2 * size] + kept), 2, 1)
            own, own_bias = recurrent[2 * size :].T, bias[1][2 * size :]
            rest = reset * (hidden @ own + own_bias) if after else (reset * hidden) @ own + own_bias
            return ((1 - update) * torch.tanh(given[:, 2 * size :] + rest) + update * hidden,)

        return step

    return _unrolled(call, step_of, (5,))


@named("RNN")
def _rnn(call: Call) -> Any:
    _plain(call, ["Tanh"])

    def step_of(direction: int) -> Step:
        torch, (weight, recurrent, bias) = call.torch, _weights(call, direction)
        return lambda x, states: (torch.tanh(x @ weight.T + states[0] @ recurrent.T + bias[0] + bias[1]),)

    return _unrolled(call, step_of, (5,))


def _plain(call: Call, usual: list[str]) -> None:
    """Refuses what hardly any exporter writes."""
    found = [name.decode() if isinstance(name, bytes) else name for name in call.attribute("activations", [])]
    if any(name.lower() != usual[place % len(usual)].lower() for place, name in enumerate(found)):
        raise Unsupported(f"activations {', '.join(found)}")
    if call.attribute("clip") or call.attribute("layout", 0):
        raise Unsupported("it clips, or has the batch first")
    if call.has(4) and not (call.inputs[4] in call.constants and (call.constant(4) == call.tensor(0).shape[0]).all()):
        raise Unsupported("sequences end at different lengths")


def _weights(call: Call, direction: int) -> tuple[Any, Any, tuple[Any, Any]]:
    weight, recurrent = call.tensor(1)[direction], call.tensor(2)[direction]
    if not call.has(3):
        zero = call.torch.zeros(weight.shape[0])
        return weight, recurrent, (zero, zero)
    first, second = call.torch.chunk(call.tensor(3)[direction], 2)
    return weight, recurrent, (first, second)


def _unrolled(call: Call, step_of: Callable[[int], Step], initial: tuple[int, ...]) -> tuple[Any, ...]:
    """Runs both directions; returns ``Y [steps x directions x batch x hidden]`` and the last states ``[directions x batch x hidden]``."""
    torch, x, way = call.torch, call.tensor(0), call.attribute("direction", "forward")
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[way]
    size, outputs, last = call.attribute("hidden_size") or call.tensor(2).shape[-1], [], []
    for direction, reverse in enumerate(backwards):
        step = step_of(direction)
        states = tuple(call.tensor(place)[direction] if call.has(place) else torch.zeros(x.shape[1], size) for place in initial)
        found = []
        for number in reversed(range(x.shape[0])) if reverse else range(x.shape[0]):
            states = step(x[number], states)
            found.append(states[0])
        outputs.append(torch.stack(found[::-1] if reverse else found))
        last.append(states)
    return (torch.stack(outputs, 1), *(torch.stack(column) for column in zip(*last, strict=True)))
