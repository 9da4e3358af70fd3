"""Chooses where the channels are: behind the batch, as ONNX has them, or last, as TFLite's convolutions want them.

Each operator says what it needs. What needs nothing in particular takes part in a choice: the fewest bytes shall be transposed. With
two layouts that is a minimum cut of the graph whose nodes are operators and values and whose edges are transposes, which a maximum
flow finds exactly (Ford and Fulkerson, Flows in Networks, 1962; for labellings: Greig, Porteous and Seheult, Exact Maximum A Posteriori
Estimation for Binary Images, 1989).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Layout = Literal["first", "last"]
_MOST = 1 << 30
_OPERATOR_BYTES = 1024  # what could be moved in the time that it takes to start an operator


@dataclass(frozen=True)
class Demand:
    """What one operator needs.

    Attributes:
        layout: The layout that it works in; ``None`` where it can work in both.
        inputs: Names of its inputs that have the layout; all others have their channels first.
        outputs: Names of its outputs that have the layout.
        moves: Whether it takes one layout and gives the other for nothing, as a transpose to channels last does: inputs are in
            ``layout``, outputs in the other one.
    """

    layout: Layout | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    moves: bool = False


def other(layout: Layout) -> Layout:
    """Returns the other of the two layouts."""
    return "last" if layout == "first" else "first"


def last_order(rank: int) -> tuple[int, ...]:
    """Returns the order of ONNX's axes when the channels are last."""
    return (0, *range(2, rank), 1)


def can_be_last(shape: Sequence[int]) -> bool:
    """Whether a value has channels at all: at least three axes."""
    return 3 <= len(shape) <= 5


def cost(shape: Sequence[int], size_bytes: int) -> int:
    """Bytes that are moved when a value changes its layout, and what one more operator costs.

    Where only axes of size 1 change places nothing is transposed, but there is an operator that says so.
    """
    channels, spatial = abs(shape[1]), int(np.prod([abs(size) for size in shape[2:]]))
    moved = 0 if channels == 1 or spatial == 1 else size_bytes * int(np.prod([abs(size) for size in shape]))
    return _OPERATOR_BYTES + moved


def assign(demands: Sequence[Demand], fixed: Mapping[str, Layout], costs: Mapping[str, int]) -> list[Layout]:
    """Returns a layout for each operator.

    Args:
        demands: What the operators need, in order.
        fixed: Layouts of values that are given: inputs and outputs of the model.
        costs: For every value that has channels, what a transpose of it costs; a constant is left out, as it is transposed here.
    """
    free = [number for number, demand in enumerate(demands) if demand.layout is None]
    if not free:
        return [demand.layout or "first" for demand in demands]
    flow = _Flow(len(demands), list(costs))
    for number, demand in enumerate(demands):
        if demand.layout is not None:
            flow.fix(number, demand.layout)
        for name in demand.inputs:
            flow.read(number, name, costs.get(name, 0))
        for name in demand.outputs:
            flow.write(number, name, moved=demand.moves)
    for name, layout in fixed.items():
        flow.give(name, layout, costs.get(name, 0))
    last = flow.cut()
    return [demand.layout or ("last" if last[number] else "first") for number, demand in enumerate(demands)]


class _Flow:
    """The graph whose minimum cut is the assignment: what stays with the source has its channels last."""

    def __init__(self, operators: int, values: Sequence[str]) -> None:
        self._made = {name: operators + place for place, name in enumerate(values)}
        self._count = operators + len(values)
        self._edges: dict[tuple[int, int], int] = {}
        self._extra: dict[tuple[str, bool], int] = {}
        self._source, self._sink = self._new(), self._new()

    def fix(self, node: int, layout: Layout) -> None:
        """Puts a node on one side for good."""
        self._edge(*((self._source, node) if layout == "last" else (node, self._sink)), _MOST)

    def write(self, operator: int, name: str, *, moved: bool) -> None:
        """An output has its operator's layout, or, of one that moves, the other; movers have a fixed layout, so both ways are fixed."""
        if name not in self._made:
            return
        node = self._made[name]
        if moved:
            side = (self._source, operator) in self._edges
            self.fix(node, "first" if side else "last")
        else:
            self._edge(operator, node, _MOST)
            self._edge(node, operator, _MOST)

    def read(self, operator: int, name: str, cost: int) -> None:
        """A value that is read in another layout than it has is transposed once, for all of its readers."""
        if name not in self._made or not cost:
            return
        value = self._made[name]
        self._edge(value, self._copy(name, True, cost), 0)
        self._edge(self._copy(name, True, cost), operator, _MOST)
        self._edge(operator, self._copy(name, False, cost), _MOST)

    def give(self, name: str, layout: Layout, cost: int) -> None:
        """Fixes the layout that a value of the model itself has, or shall have."""
        if name not in self._made:
            return
        node = self._new()
        self.fix(node, layout)
        self._edge(node, self._made[name], cost or _MOST)
        self._edge(self._made[name], node, cost or _MOST)

    def _copy(self, name: str, forwards: bool, cost: int) -> int:
        """The value as its readers of the other layout see it: cutting it off costs one transpose, however many they are."""
        key = (name, forwards)
        if key not in self._extra:
            self._extra[key] = self._new()
            value, copy = self._made[name], self._extra[key]
            self._edge(*((value, copy) if forwards else (copy, value)), cost)
        return self._extra[key]

    def _new(self) -> int:
        self._count += 1
        return self._count - 1

    def _edge(self, start: int, end: int, capacity: int) -> None:
        known = self._edges.get((start, end), 0)
        self._edges[start, end] = min(_MOST, known + capacity)

    def cut(self) -> np.ndarray:
        """Returns for each node whether it is on the source's side of a minimum cut.

        Of several the one with the most nodes there: beside a convolution, what may have either layout can be folded into its weights.
        """
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import breadth_first_order, maximum_flow

        pairs = np.array([pair for pair, capacity in self._edges.items() if capacity], np.int64).reshape(-1, 2)
        capacities = np.array([capacity for capacity in self._edges.values() if capacity], np.int64)
        # Capacities are 32-bit numbers: thousands of bytes are as good as bytes to choose by.
        scaled = np.where(capacities >= _MOST, _MOST, np.clip(capacities // _unit(capacities), 1, _MOST >> 8)).astype(np.int32)
        graph = csr_array((scaled, (pairs[:, 0], pairs[:, 1])), shape=(self._count, self._count))
        flow = maximum_flow(graph, self._source, self._sink).flow
        left = graph - flow
        left.data = np.maximum(left.data, 0)
        left.eliminate_zeros()
        reaching = breadth_first_order(left.T.tocsr(), self._sink, return_predecessors=False)
        found = np.ones(self._count, bool)
        found[reaching] = False
        return found


def _unit(capacities: np.ndarray) -> int:
    """What one unit of flow stands for, so that the sum of all transposes fits into 30 bits."""
    total = int(capacities[capacities < _MOST].sum())
    return max(1, total >> 22)
