"""Makes one transpose, or none, of reshapes and transposes that follow each other.

What they move is followed in parts of axes: a transpose orders axes, a reshape only draws their borders anew. In the end the parts stand in
some order, whatever happened in between; a channel shuffle between two changes of layout, for one, is a single transpose.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from toolkit.convert.tfl.graph import Graph, Operator, Shape, Tensor, makers_of, readers_of

_MOVERS = {"RESHAPE", "TRANSPOSE"}
_MOST_AXES = 6  # that kernels and delegates transpose


def simplify(graph: Graph) -> bool:
    """Replaces chains that can be shorter, in place; returns whether there was one."""
    makers, readers = makers_of(graph), readers_of(graph)
    movers = {id(one.inputs[0]) for one in graph.operators if one.kind in _MOVERS}
    for operator in graph.operators:
        ends = operator.kind in _MOVERS and (id(operator.outputs[0]) not in movers or readers[id(operator.outputs[0])] > 1)
        chain = _chain(operator, makers, readers) if ends else []
        while sum(one.kind == "TRANSPOSE" for one in chain) > 0 and len(chain) > 1:
            made = _shorter(graph, chain)
            if made is not None:
                place = graph.operators.index(chain[-1])
                graph.operators[place : place + 1] = made
                graph.operators = [one for one in graph.operators if one not in chain[:-1]]
                return True
            chain = chain[1:]  # perhaps what is left can be
    return False


def _chain(last: Operator, makers: dict[int, Operator], readers: dict[int, int]) -> list[Operator]:
    """Returns the movers up to one, each of which is read by the next alone."""
    found = [last]
    while (before := makers.get(id(found[0].inputs[0]))) is not None and before.kind in _MOVERS and readers[id(before.outputs[0])] == 1:
        found.insert(0, before)
    return found


@dataclass
class _Parts:
    """The parts that axes are made of, each by a number: their sizes, their order at first, and the axes that they make up by now."""

    sizes: dict[int, int] = field(default_factory=dict)
    first: list[int] = field(default_factory=list)
    axes: list[list[int]] = field(default_factory=list)

    @classmethod
    def of(cls, shape: Shape) -> _Parts:
        made = cls()
        for number, size in enumerate(shape):
            made.axes.append([number] if size != 1 else [])
            if size != 1:
                made.sizes[number] = size
                made.first.append(number)
        return made

    def transpose(self, order: np.ndarray) -> None:
        self.axes = [self.axes[axis] for axis in order]

    def reshape(self, shape: Shape) -> bool:
        """Draws the borders anew; returns whether parts could be split so that each is in one axis."""
        left = [part for axis in self.axes for part in axis]
        drawn: list[list[int]] = []
        for size in shape:
            axis: list[int] = []
            while size > 1:
                if not left:
                    return False
                if size % self.sizes[left[0]]:
                    if self.sizes[left[0]] % size:
                        return False
                    left[0:1] = self._split(left[0], size)
                size //= self.sizes[left[0]]
                axis.append(left.pop(0))
            drawn.append(axis)
        self.axes = drawn
        return not left

    def _split(self, part: int, outer: int) -> list[int]:
        """Makes two parts of one."""
        inner = max(self.sizes) + 1
        self.sizes[inner], self.sizes[part] = self.sizes[part] // outer, outer
        self.first.insert(self.first.index(part) + 1, inner)
        for axis in self.axes:
            if part in axis:
                axis.insert(axis.index(part) + 1, inner)
        return [part, inner]

    def groups(self) -> list[list[int]]:
        """Returns the parts in their last order, those together that were neighbours at first."""
        found: list[list[int]] = []
        place = {part: number for number, part in enumerate(self.first)}
        for part in (part for axis in self.axes for part in axis):
            if found and place[part] == place[found[-1][-1]] + 1:
                found[-1].append(part)
            else:
                found.append([part])
        return found


def _shorter(graph: Graph, chain: list[Operator]) -> list[Operator] | None:
    """Returns operators that do what a chain does; ``None`` where it is as short as it can be."""
    source, result = chain[0].inputs[0], chain[-1].outputs[0]
    if source is None or any(size < 1 for one in chain for size in (*source.shape, *one.outputs[0].shape)):
        return None
    parts = _Parts.of(source.shape)
    for one in chain:
        given = one.inputs[1]
        if one.kind == "RESHAPE":
            if not parts.reshape(one.outputs[0].shape):
                return None
        elif given is not None and given.data is not None:
            parts.transpose(given.data)
    groups = parts.groups()
    by_place = sorted(groups, key=lambda group: parts.first.index(group[0]))
    order = [by_place.index(group) for group in groups]
    moved = order != sorted(order)
    if len(order) > _MOST_AXES:
        return None
    shape = tuple(int(np.prod([parts.sizes[part] for part in group])) for group in by_place)
    turned = tuple(shape[axis] for axis in order)
    made: list[Operator] = []
    if moved:
        value = source if shape == source.shape else _reshape(graph, made, source, Tensor(source.name, shape, source.dtype), chain[0])
        value = _transpose(graph, made, value, order, result if turned == result.shape else Tensor(result.name, turned, result.dtype), chain[-1])
    else:
        value = source
    if value is not result:
        _reshape(graph, made, value, result, chain[-1])
    return made if _cost(made) < _cost(chain) else None


def _cost(operators: list[Operator]) -> tuple[int, int]:
    return sum(one.kind == "TRANSPOSE" for one in operators), len(operators)


def _reshape(graph: Graph, made: list[Operator], value: Tensor, result: Tensor, like: Operator) -> Tensor:
    result.quantization = value.quantization
    made.append(Operator("RESHAPE", [value, graph.integers(result.shape)], [result], {"newShape": list(result.shape)}, origin=like.origin))
    return result


def _transpose(graph: Graph, made: list[Operator], value: Tensor, order: list[int], result: Tensor, like: Operator) -> Tensor:
    result.quantization = value.quantization
    made.append(Operator("TRANSPOSE", [value, graph.integers(order)], [result], origin=like.origin))
    return result
