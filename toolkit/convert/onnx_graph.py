"""Builds ONNX graphs node by node: constants are computed where they can be, broadcasts and transposes put off until they are needed.

A transpose that is put off moves behind operators that work on every number alone, and meets its inverse at the next convolution:
so a model of channels last gets one at its beginning and one at its end instead of two around each convolution.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Larger results are left to the runtime: a file should not grow by what is quickly computed.
_MOST_FOLDED = 1 << 20


@dataclass(frozen=True)
class Tensor:
    """A value of an ONNX graph.

    Attributes:
        name: Its name; empty for a constant that no node has used yet.
        shape: Its sizes.
        dtype: Its element type.
        constant: Its content where that is known.
        base: The tensor that it is a transpose of, where that is put off; its name is then empty.
        order: For each axis, that of ``base``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    constant: np.ndarray | None = None
    base: Tensor | None = None
    order: tuple[int, ...] = ()


@dataclass
class Shared:
    """What a graph shares with the graphs inside its nodes.

    Attributes:
        initializers: The constants that nodes use, by name.
        used: The names that are taken, and how often.
        layer: Path of the layer that is being converted.
        means: For the sum of a window, by its name, the mean that it was made from and the window's size.
        rectified: For the result of a Relu, by its name, what it was made from.
        shifted: For the sum of a tensor and a constant, by its name, the two.
        shapes: The sizes of what nodes make, by name.
    """

    initializers: dict[str, Any] = field(default_factory=dict)
    used: Counter[str] = field(default_factory=Counter)
    layer: str = ""
    means: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    rectified: dict[str, Tensor] = field(default_factory=dict)
    shifted: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


class Graph:
    """A graph that is being built.

    Attributes:
        nodes: Its nodes, in order.
        values: Tensors by what they stand for in the program that is being converted.
        shared: See :class:`Shared`.
    """

    def __init__(self, outer: Graph | None = None) -> None:
        self.nodes: list[Any] = []
        self.values: dict[Any, Tensor] = dict(outer.values) if outer else {}
        self.shared: Shared = outer.shared if outer else Shared()
        self._transposed: dict[tuple[str, tuple[int, ...]], str] = dict(outer._transposed) if outer else {}

    def new_name(self, stem: str) -> str:
        """Returns a name that nothing has yet: after the layer that is being converted, ``Net/stem/Conv_2``."""
        stem = name = f"{self.shared.layer}/{stem}" if self.shared.layer else stem
        while self.shared.used[name]:
            self.shared.used[stem] += 1
            name = f"{stem}_{self.shared.used[stem]}"
        self.shared.used[name] += 1
        return name

    def constant(self, array: Any, dtype: Any = None) -> Tensor:
        """Returns a constant; it becomes part of the file when a node uses it."""
        content = np.asarray(array, dtype)
        return Tensor("", content.shape, content.dtype, content)

    def integers(self, *numbers: int) -> Tensor:
        """Returns a constant ``[n] int64``, as shapes, axes and sizes are given."""
        return self.constant(np.array(numbers, np.int64))

    def name(self, tensor: Tensor) -> str:
        """Returns the name of a tensor for a node's input."""
        if tensor.base is not None:
            return self._name_of_transpose(tensor.base, tensor)
        if tensor.name or tensor.constant is None:
            return tensor.name
        from onnx import numpy_helper

        content = np.array(tensor.constant, order="C")
        kind = f"{content.dtype}{list(content.shape)}"
        name = f"constant_{hashlib.sha256(kind.encode() + content.tobytes()).hexdigest()[:16]}"
        if name not in self.shared.initializers:
            self.shared.initializers[name] = numpy_helper.from_array(content, name)
        return name

    def _name_of_transpose(self, base: Tensor, tensor: Tensor) -> str:
        key = (self.name(base), tensor.order)
        if key not in self._transposed:
            self._transposed[key] = self.add("Transpose", [base], tensor.shape, tensor.dtype, perm=list(tensor.order)).name
        return self._transposed[key]

    def add(self, operator: str, inputs: Sequence[Tensor], shape: Sequence[int], dtype: Any, **attributes: Any) -> Tensor:
        """Adds a node of one output and returns that."""
        return self.add_many(operator, inputs, [(shape, dtype)], **attributes)[0]

    def add_many(self, operator: str, inputs: Sequence[Tensor], outputs: Sequence[tuple[Sequence[int], Any]], **attributes: Any) -> list[Tensor]:
        """Adds a node and returns its outputs, given their shapes and element types."""
        from onnx import helper

        made = [Tensor(self.new_name(operator), tuple(map(int, shape)), np.dtype(dtype)) for shape, dtype in outputs]
        self.shared.shapes.update((tensor.name, tensor.shape) for tensor in made)
        names = [self.name(tensor) for tensor in inputs]
        self.nodes.append(helper.make_node(operator, names, [tensor.name for tensor in made], name=made[0].name, **attributes))
        return made

    def elementwise(self, operator: str, inputs: Sequence[Tensor], dtype: Any, fold: Callable[..., Any] | None = None, **attributes: Any) -> Tensor:
        """Adds an operator that broadcasts as NumPy does, or computes it with ``fold`` where all inputs are constants."""
        shape = np.broadcast_shapes(*(tensor.shape for tensor in inputs))
        known = [tensor.constant for tensor in inputs if tensor.constant is not None]
        if fold is not None and len(known) == len(inputs) and np.prod(shape) <= _MOST_FOLDED:
            with np.errstate(all="ignore"):
                return self.constant(np.asarray(fold(*known)).astype(dtype))
        order = next((tensor.order for tensor in inputs if tensor.order), ())
        if len(order) == len(shape) and all(self._can_move(tensor, order, shape) for tensor in inputs):
            inverse = np.argsort(order).tolist()
            moved = [self.transpose(self._of_rank(tensor, len(order)), inverse) for tensor in inputs]
            return self.transpose(self.add(operator, moved, [shape[axis] for axis in inverse], dtype, **attributes), order)
        return self.add(operator, inputs, shape, dtype, **attributes)

    def _can_move(self, tensor: Tensor, order: tuple[int, ...], shape: tuple[int, ...]) -> bool:
        """Whether it costs little to have a tensor in the order of another one: it is so, is constant, or is to be repeated."""
        return tensor.order == order or tensor.constant is not None or (not tensor.order and tensor.shape != shape)

    def _of_rank(self, tensor: Tensor, rank: int) -> Tensor:
        return self.reshape(tensor, (*([1] * (rank - len(tensor.shape))), *tensor.shape))

    def cast(self, tensor: Tensor, dtype: Any) -> Tensor:
        """Converts the element type."""
        from onnx import helper

        wanted = np.dtype(dtype)
        if tensor.dtype == wanted:
            return tensor
        return self.elementwise("Cast", [tensor], wanted, lambda value: value.astype(wanted), to=helper.np_dtype_to_tensor_dtype(wanted))

    def reshape(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """Gives a tensor another shape of as many elements."""
        wanted = tuple(map(int, shape))
        if tensor.shape == wanted:
            return tensor
        if tensor.constant is not None:
            return self.constant(tensor.constant.reshape(wanted))
        return self.add("Reshape", [tensor, self.integers(*wanted)], wanted, tensor.dtype)

    def transpose(self, tensor: Tensor, order: Sequence[int]) -> Tensor:
        """Reorders the axes: for each axis of the result, which one of ``tensor`` it is."""
        if list(order) == list(range(len(order))):
            return tensor
        if tensor.constant is not None:
            return self.constant(tensor.constant.transpose(order))
        shape = tuple(tensor.shape[axis] for axis in order)
        if tensor.base is None:
            return Tensor("", shape, tensor.dtype, None, tensor, tuple(order))
        return self.transpose(tensor.base, [tensor.order[axis] for axis in order])

    def expand(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """Repeats a tensor along the axes where it has size 1, to a whole shape."""
        wanted = tuple(map(int, shape))
        if tensor.shape == wanted:
            return tensor
        if tensor.constant is not None and np.prod(wanted) <= _MOST_FOLDED:
            return self.constant(np.broadcast_to(tensor.constant, wanted))
        return self.add("Expand", [tensor, self.integers(*wanted)], wanted, tensor.dtype)

    def clip(self, tensor: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Limits a tensor to an interval, given as scalars."""
        if tensor.base is not None:
            return self.transpose(self.clip(tensor.base, low, high), tensor.order)
        return self.add("Clip", [tensor, low, high], tensor.shape, tensor.dtype)

    def slice(self, tensor: Tensor, starts: Sequence[int], ends: Sequence[int], steps: Sequence[int]) -> Tensor:
        """Cuts a tensor along all axes; with step -1 an axis is turned around, whatever its start and end."""
        if tensor.base is not None:
            places = np.argsort(tensor.order).tolist()
            numbers_of_base = [[listed[place] for place in places] for listed in (starts, ends, steps)]
            return self.transpose(self.slice(tensor.base, *numbers_of_base), tensor.order)
        cuts = [slice(None, None, -1) if step < 0 else slice(start, end, step) for start, end, step in zip(starts, ends, steps, strict=True)]
        axes = [axis for axis, cut in enumerate(cuts) if cut != slice(0, tensor.shape[axis], 1)]
        shape = np.empty(tensor.shape, np.bool_)[tuple(cuts)].shape
        if not axes:
            return tensor
        if tensor.constant is not None:
            return self.constant(tensor.constant[tuple(cuts)])
        first = [-1 if steps[axis] < 0 else starts[axis] for axis in axes]
        last = [np.iinfo(np.int64).min if steps[axis] < 0 else ends[axis] for axis in axes]
        numbers = [self.integers(*first), self.integers(*last), self.integers(*axes), self.integers(*(steps[axis] for axis in axes))]
        return self.add("Slice", [tensor, *numbers], shape, tensor.dtype)

    def finish(self, inputs: Sequence[tuple[str, Tensor]], outputs: Sequence[tuple[str, Tensor]], name: str) -> Any:
        """Returns the ``GraphProto``, its inputs and outputs under the given names; constants go into the outermost one."""
        from onnx import helper

        def describe(name: str, tensor: Tensor) -> Any:
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(tensor.dtype), list(tensor.shape))

        ends = [helper.make_node("Identity", [self.name(tensor)], [name], name=self.new_name("output")) for name, tensor in outputs]
        nodes = needed([*self.nodes, *ends], {name for name, _ in outputs})
        return helper.make_graph(nodes, name, [describe(*one) for one in inputs], [describe(*one) for one in outputs])


def reads(node: Any) -> set[str]:
    """Returns the names that a node reads, those that graphs inside of it read included."""
    inner = {name for attribute in node.attribute if attribute.HasField("g") for one in attribute.g.node for name in reads(one)}
    return {*node.input, *inner}


def needed(nodes: list[Any], outputs: set[str]) -> list[Any]:
    """Leaves out the nodes whose results nothing reads."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted |= reads(node)
    return kept[::-1]
