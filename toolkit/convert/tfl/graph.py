"""TFLite graphs while they are being built: tensors, operators, and the few shapes of operators that everything is made of.

Operators, their options and their kernels' limits: https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Shape = tuple[int, ...]
# There are casts between these and float32 only.
_PACKED = frozenset({"int4", "uint4", "int2"})
# Kernels of operators on two tensors broadcast over this many axes; more are merged first.
_BROADCAST_RANK = 4
_SMALL_BYTES = 1024


@dataclass(frozen=True)
class Quantization:
    """How integers stand for real numbers: ``scale * (q - zero_point)``, per tensor or along one axis."""

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int = 0


@dataclass(eq=False)
class Tensor:
    """A tensor of the file.

    Attributes:
        name: Its name; the writer makes equal ones unique.
        shape: Its sizes; -1 for the free number of samples.
        dtype: Its element type.
        data: Its content, for a constant.
        quantization: How its integers are meant, where they stand for real numbers.
    """

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    data: np.ndarray | None = None
    quantization: Quantization | None = None

    @property
    def rank(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements it has, a free size taken for one."""
        return int(np.prod([abs(size) for size in self.shape], dtype=np.int64))


@dataclass(eq=False)
class Operator:
    """An operator of the file.

    Attributes:
        kind: Its name in the schema, as ``CONV_2D``.
        inputs: What it reads; ``None`` for an optional input that is left out.
        outputs: What it makes.
        options: The fields of its options' table.
        graphs: The graphs that it runs: of an ``IF`` its branches, of a ``WHILE`` its condition and its body.
        origin: The operator of the source that it is part of.
    """

    kind: str
    inputs: list[Tensor | None]
    outputs: list[Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    graphs: list[Graph] = field(default_factory=list)
    origin: Any = None


class Graph:
    """A graph that is being built.

    Attributes:
        name: Its name.
        inputs: What it takes.
        outputs: What it gives.
        operators: Its operators, in order.
        layer: The layer of the user's model that is being lowered; tensors are called after it.
        origin: The operator of the source that is being lowered.
    """

    def __init__(self, name: str = "main") -> None:
        self.name = name
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.operators: list[Operator] = []
        self.layer = ""
        self.origin: Any = None
        self._constants: dict[Any, Tensor] = {}

    def input(self, name: str, shape: Sequence[int], dtype: Any) -> Tensor:
        """Adds an input."""
        made = Tensor(name, tuple(shape), np.dtype(dtype))
        self.inputs.append(made)
        return made

    def constant(self, content: Any, dtype: Any = None, *, quantization: Quantization | None = None, name: str = "") -> Tensor:
        """Returns a constant tensor; small ones that are equal are one tensor."""
        array = np.asarray(content, dtype)  # a large one that is turned is so where it is written
        made = Tensor(name or "constant", array.shape, array.dtype, array, quantization)
        if array.nbytes > _SMALL_BYTES or quantization is not None:
            return made  # which ends with its last reader; the writer finds out which are equal
        return self._constants.setdefault((array.dtype.str, array.shape, array.tobytes()), made)

    def integers(self, numbers: Sequence[int] | np.ndarray) -> Tensor:
        """Returns a constant ``[n] int32``, as axes, sizes and paddings are given."""
        return self.constant(np.asarray(numbers, np.int32))

    def add(self, kind: str, inputs: Sequence[Tensor | None], shape: Sequence[int], dtype: Any = None, **options: Any) -> Tensor:
        """Adds an operator of one output and returns that; its element type is the first input's where none is given."""
        (made,) = self.add_many(kind, inputs, [(shape, dtype)], **options)
        return made

    def add_many(
        self, kind: str, inputs: Sequence[Tensor | None], outputs: Sequence[tuple[Sequence[int], Any]], graphs: Sequence[Graph] = (), **options: Any
    ) -> list[Tensor]:
        """Adds an operator; each output is a shape and an element type."""
        first = next((one for one in inputs if one is not None), None)
        made = []
        for shape, dtype in outputs:
            kept = first.dtype if dtype is None and first is not None else dtype
            made.append(Tensor(f"{self.layer}/{kind}" if self.layer else kind, tuple(int(size) for size in shape), np.dtype(kept)))
        self.operators.append(Operator(kind, list(inputs), made, options, list(graphs), self.origin))
        return made

    # What follows folds constants: what is known is computed here, so that no operator needs to ask.

    def reshape(self, value: Tensor, shape: Sequence[int]) -> Tensor:
        """Returns a tensor with other sizes; one of them may be free."""
        shape = tuple(int(size) for size in shape)
        if shape == value.shape:
            return value
        if value.data is not None:
            return self.constant(value.data.reshape(shape), quantization=value.quantization)
        made = self.add("RESHAPE", [value, self.integers(shape)], shape, newShape=list(shape))
        made.quantization = value.quantization
        return made

    def copy(self, value: Tensor) -> Tensor:
        """Returns a tensor of its own with the same content: an output may be neither an input, nor a constant, nor another output."""
        if value.data is not None and not value.size:  # a constant without elements is taken for none
            whole = self.constant(np.zeros([max(1, size) for size in value.shape], value.dtype))
            return self.slice(whole, [0] * value.rank, value.shape)
        made = self.add("RESHAPE", [value, self.integers(value.shape)], value.shape, newShape=list(value.shape))
        made.quantization = value.quantization
        return made

    def transpose(self, value: Tensor, order: Sequence[int]) -> Tensor:
        """Returns a tensor whose axis ``i`` is the given one's axis ``order[i]``."""
        order = [int(axis) for axis in order]
        if order == list(range(value.rank)):
            return value
        shape = tuple(value.shape[axis] for axis in order)
        if value.data is not None:
            return self.constant(value.data.transpose(order), quantization=value.quantization)
        moved = [axis for axis in order if value.shape[axis] != 1]
        if moved == sorted(moved):  # only axes of size 1 change places
            return self.reshape(value, shape)
        made = self.add("TRANSPOSE", [value, self.integers(order)], shape)
        made.quantization = value.quantization
        return made

    def cast(self, value: Tensor, dtype: Any) -> Tensor:
        """Returns a tensor of another element type; numbers are cut, not rounded."""
        dtype = np.dtype(dtype)
        if dtype == value.dtype:
            return value
        if value.data is not None:
            with np.errstate(invalid="ignore", over="ignore"):
                return self.constant(value.data.astype(dtype))
        if np.float32 not in (dtype, value.dtype) and not _PACKED.isdisjoint((dtype.name, value.dtype.name)):
            return self.cast(self.cast(value, np.float32), dtype)
        return self.add("CAST", [value], value.shape, dtype)

    def unary(self, kind: str, value: Tensor, dtype: Any = None, **options: Any) -> Tensor:
        """Adds an operator that works on every number alone."""
        return self.add(kind, [value], value.shape, dtype, **options)

    def binary(self, kind: str, left: Tensor, right: Tensor, dtype: Any = None, **options: Any) -> Tensor:
        """Adds an operator on two tensors, one of which may be broadcast to the other's sizes as NumPy does it."""
        shape = broadcast(left.shape, right.shape)
        if len(shape) <= _BROADCAST_RANK or left.shape == right.shape or 1 in (left.size, right.size):
            return self.add(kind, [self._flat_one(left), self._flat_one(right)], shape, dtype, **options)
        sizes = [padded(one.shape, len(shape)) for one in (left, right)]
        groups = merged_axes(sizes)
        low = [self._merged(one, size, groups) for one, size in zip((left, right), sizes, strict=True)]
        made = self.add(kind, low, broadcast(low[0].shape, low[1].shape), dtype, **options)
        return self.reshape(made, shape)

    def _merged(self, value: Tensor, sizes: Shape, groups: Sequence[Sequence[int]]) -> Tensor:
        return self.reshape(value, [int(np.prod([sizes[axis] for axis in group])) for group in groups])

    def _flat_one(self, value: Tensor) -> Tensor:
        """A constant of one element is broadcast fastest without axes."""
        return self.reshape(value, ()) if value.data is not None and value.size == 1 and value.quantization is None else value

    def slice(self, value: Tensor, starts: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Returns a block of a tensor."""
        if tuple(shape) == value.shape:
            return value
        sizes = [-1 if size == -1 else size for size in shape]
        return self.add("SLICE", [value, self.integers(starts), self.integers(sizes)], shape)

    def pad(self, value: Tensor, edges: Sequence[Sequence[int]], content: float = 0.0) -> Tensor:
        """Returns a tensor with a border of one value; ``edges`` has before and after for each axis."""
        if not np.any(edges):
            return value
        shape = [size if size < 0 else size + sum(edge) for size, edge in zip(value.shape, edges, strict=True)]
        border = self.integers(np.asarray(edges))
        if content == 0:
            return self.add("PAD", [value, border], shape)
        return self.add("PADV2", [value, border, self.constant(content, value.dtype)], shape)


def broadcast(*shapes: Shape) -> Shape:
    """Returns the shape that shapes are broadcast to; a free size wins over one."""
    rank = max(map(len, shapes))
    columns = zip(*(padded(shape, rank) for shape in shapes), strict=True)
    return tuple(next((size for size in column if size != 1), 1) for column in columns)


def padded(shape: Shape, rank: int) -> Shape:
    """Returns a shape with ones put before it."""
    return (1,) * (rank - len(shape)) + tuple(shape)


def merged_axes(shapes: Sequence[Shape]) -> list[list[int]]:
    """Groups neighbouring axes along which the same shapes are broadcast: a group can be one axis."""
    groups: list[list[int]] = []
    kinds: list[tuple[bool, ...]] = []
    for axis in range(len(shapes[0])):
        kind = tuple(shape[axis] == 1 for shape in shapes)
        if groups and (all(kind) or kind == kinds[-1]):
            groups[-1].append(axis)
        else:
            groups.append([axis])
            kinds.append(kind)
    return groups


def walk(graph: Graph) -> Iterator[Graph]:
    """Yields a graph and all graphs inside its operators."""
    yield graph
    for operator in graph.operators:
        for inner in operator.graphs:
            yield from walk(inner)


def names(graph: Graph) -> Counter[str]:
    """Counts the operators of a graph by kind."""
    return Counter(operator.kind for operator in graph.operators)


def readers_of(graph: Graph) -> Counter[int]:
    """Counts who reads each tensor, by its identity; the graph's outputs are read once more."""
    found = Counter(id(one) for operator in graph.operators for one in operator.inputs if one is not None)
    found.update(id(one) for one in graph.outputs)
    return found


def makers_of(graph: Graph) -> dict[int, Operator]:
    """Returns who makes each tensor, by its identity."""
    return {id(one): operator for operator in graph.operators for one in operator.outputs}
