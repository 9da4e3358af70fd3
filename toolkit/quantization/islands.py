"""Which operators are worth integers: an operator among float ones would only be rounded, and cost two conversions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Operator:
    """What decides about an operator.

    Attributes:
        reads: The activations that it reads; shapes, bounds and weights are none.
        writes: What it computes.
        able: Whether the runtime has a fast integer kernel for it.
        core: Whether it is a layer: those are what integers are for, and always take part.
        float_out: Whether its kernel reads integers and gives float.
        activation: Whether it is an activation function, which may stay float between operators that do not.
    """

    reads: frozenset[str]
    writes: tuple[str, ...]
    able: bool
    core: bool = False
    float_out: bool = False
    activation: bool = False


def join(operators: Sequence[Operator], *, constants: Collection[str], inputs: Collection[str]) -> list[bool]:
    """Decides for every operator whether it computes in integers.

    A layer does. Another one does if all that it reads is there as integers, because an operator that takes part made it, a layer reads it
    too, it enters the graph, or a float activation among integers made it for such operators only; and if somebody who takes part reads its
    result.

    Args:
        operators: All operators of a graph.
        constants: Names of stored tensors.
        inputs: Names of the graph's inputs.
    """
    taking_part = [one.able or one.core for one in operators]
    read_by_layers = {name for one in operators if one.core for name in one.reads}
    readers = _readers(operators)
    outer = read_by_layers | set(constants) | set(inputs)
    while True:
        there = outer | _made(operators, taking_part)
        there |= {
            name for one in operators if one.activation and one.reads <= there for name in one.writes if _all(readers.get(name, ()), taking_part)
        }
        left = [
            number
            for number, one in enumerate(operators)
            if taking_part[number]
            and not one.core
            and not (one.reads <= there and any(taking_part[reader] for name in one.writes for reader in readers.get(name, ())))
        ]
        if not left:
            return taking_part
        for number in left:
            taking_part[number] = False


def _made(operators: Sequence[Operator], taking_part: Sequence[bool]) -> set[str]:
    """What operators that take part compute as integers."""
    return {name for one, joined in zip(operators, taking_part, strict=True) if joined and not one.float_out for name in one.writes}


def _all(readers: Sequence[int], taking_part: Sequence[bool]) -> bool:
    return bool(readers) and all(taking_part[reader] for reader in readers)


def _readers(operators: Sequence[Operator]) -> Mapping[str, list[int]]:
    found: dict[str, list[int]] = {}
    for number, one in enumerate(operators):
        for name in one.reads:
            found.setdefault(name, []).append(number)
    return found
