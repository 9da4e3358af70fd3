"""How much memory a graph's computed tensors need: lifetimes in the order of the file, and offsets in one arena.

Nothing is executed: the order of the file is an order in which the graph can run, and the one in which TFLite does run it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

ALIGNMENT = 64


@dataclass(frozen=True)
class Life:
    """One tensor between its making and its last use.

    Attributes:
        size_bytes: Its size.
        first: Number of the step that makes it.
        last: Number of the last step that reads it; both ends count.
    """

    size_bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Step:
    """One operator: the names of the computed tensors that it reads and makes."""

    reads: Sequence[str]
    makes: Sequence[str]


def lives(steps: Sequence[Step], inputs: Iterable[str], outputs: Iterable[str], sizes: Mapping[str, int]) -> list[Life]:
    """Returns the lifetime of every tensor with a size.

    Args:
        steps: The operators in the order of the file.
        inputs: The model's inputs, which exist before the first step.
        outputs: The model's outputs, which outlive the last step.
        sizes: Size in bytes of each tensor that takes memory.
    """
    first: dict[str, int] = dict.fromkeys(inputs, 0)
    last: dict[str, int] = dict(first)
    for number, step in enumerate(steps):
        for name in step.makes:
            first.setdefault(name, number)
        for name in (*step.makes, *step.reads):
            last[name] = number
    last.update({name: len(steps) for name in outputs if name in first})
    return [Life(size, first[name], last[name]) for name, size in sizes.items() if name in first]


def arena_bytes(tensors: Iterable[Life]) -> int:
    """Returns the size of an arena in which no two living tensors overlap.

    Greedy by size with 64-byte alignment: Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference"
    (2020), arXiv:2001.03288, section 5.3. The largest tensors are placed first, each into the smallest gap between those
    that live with it, else behind them.
    """
    ordered = sorted((tensor for tensor in tensors if tensor.size_bytes), key=lambda tensor: (-tensor.size_bytes, tensor.first))
    first, last = (np.array([getattr(tensor, end) for tensor in ordered], np.int64) for end in ("first", "last"))
    starts, ends = np.zeros(len(ordered), np.int64), np.zeros(len(ordered), np.int64)
    for number, tensor in enumerate(ordered):
        together = np.flatnonzero((first[:number] <= tensor.last) & (tensor.first <= last[:number]))
        together = together[np.argsort(starts[together], kind="stable")]
        size = -(-tensor.size_bytes // ALIGNMENT) * ALIGNMENT
        starts[number] = _offset(zip(starts[together].tolist(), ends[together].tolist(), strict=True), size)
        ends[number] = starts[number] + size
    return int(ends.max(initial=0))


def _offset(neighbours: Iterable[tuple[int, int]], size: int) -> int:
    """The start of the smallest gap that is large enough; without one, the end of all."""
    best, smallest, reached = -1, -1, 0
    for start, end in neighbours:
        gap = start - reached
        if gap >= size and (smallest < 0 or gap < smallest):
            best, smallest = reached, gap
        reached = max(reached, end)
    return best if best >= 0 else reached
