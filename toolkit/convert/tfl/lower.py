"""Lowers a typed ONNX graph to TFLite, operator by operator; each family of operators registers its functions here.

A function gets a :class:`Call` and returns the outputs as tensors in the layout that was chosen for its node. Integers of 64 bits are
carried in 32, floating point numbers of any width in 32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toolkit.convert.tfl import layout as layouts
from toolkit.convert.tfl import patterns
from toolkit.convert.tfl.facts import EVERY, Facts
from toolkit.convert.tfl.graph import Graph, Tensor
from toolkit.convert.tfl.layout import Demand, Layout
from toolkit.convert.tfl.program import FREE, Node, Program, Type, Unsupported

Lowering = Callable[["Call"], "Tensor | Sequence[Tensor | None]"]
Rule = Callable[[Node, Program], Demand]
# How values are computed that TFLite has no, or too few, kernels for.
_CARRIED = {
    **dict.fromkeys(("int64", "int16", "int8", "int4", "int2", "uint16", "uint8", "uint4"), "int32"),
    **dict.fromkeys(("float16", "bfloat16", "float64"), "float32"),
}
# Those of them that there are kernels of CAST for alone, and what is carried alike.
_ALIKE = {"bfloat16": "float16", "int4": "int8", "int2": "int8", "uint4": "uint8"}
# What an output is given in as the source declares it.
_GIVEN = ("int8", "uint8", "int16", "uint16", "float16", "bfloat16", "int4", "uint4", "int2")


# What moves values without looking at them may move quantized ones.
_MOVING = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Concat", "MaxPool"}
_UNSIGNED_SHIFT = 128


@dataclass(frozen=True)
class Entry:
    """How one operator is lowered."""

    function: Lowering
    rule: Rule
    facts: Facts


REGISTRY: dict[str, Entry] = {}
"""Every operator that can be lowered, by its kind; see :class:`toolkit.convert.tfl.program.Node`."""


def carried(dtype: Any) -> np.dtype[Any]:
    """Returns the element type that values of one are computed in."""
    dtype = np.dtype(dtype)
    return np.dtype(_CARRIED.get(dtype.name, dtype))


def channels_first(node: Node, program: Program) -> Demand:
    """The rule of operators that work on ONNX's order of axes."""
    return Demand("first", _channelled(node.inputs, program), _channelled(node.outputs, program))


def channels_last(node: Node, program: Program) -> Demand:
    """The rule of operators whose kernel wants the channels of the first input last, and gives its first output so."""
    return Demand("last", _channelled(node.inputs[:1], program), _channelled(node.outputs[:1], program))


def either(node: Node, program: Program) -> Demand:
    """The rule of operators that work in any order of axes, as long as all tensors of the output's rank have the same."""
    rank = len(program.types[node.outputs[0]].shape)
    names = [name for name in _channelled(node.inputs, program) if len(program.types[name].shape) == rank]
    outputs = _channelled(node.outputs, program)
    return Demand(None if outputs and names else "first", tuple(names), outputs)


def _channelled(names: Sequence[str], program: Program) -> tuple[str, ...]:
    found = [name for name in names if name in program.types and layouts.can_be_last(program.types[name].shape)]
    return tuple(dict.fromkeys(found))


def operator(
    *kinds: str, rule: Rule = channels_first, dtypes: frozenset[str] = EVERY, typed: int = 0, since: int = 1, limits: str = ""
) -> Callable[[Lowering], Lowering]:
    """Registers a function for operators, with the rule of their layout and what :class:`Facts` says of them.

    It is not called for inputs of other types than ``dtypes``: those are refused.
    """

    def register(function: Lowering) -> Lowering:
        for kind in kinds:
            if kind in REGISTRY:
                raise ValueError(f"{kind} is registered twice")
            REGISTRY[kind] = Entry(function, rule, Facts(dtypes, typed, since, limits))
        return function

    return register


class Call:
    """One operator with its values.

    Attributes:
        graph: The graph that is being built.
        node: The operator.
        program: The graph that it is from.
        layout: The layout that was chosen for it.
        values: What its inputs are.
    """

    def __init__(self, graph: Graph, node: Node, program: Program, demand: Demand, layout: Layout, values: Values) -> None:
        self.graph, self.node, self.program, self.layout, self.values = graph, node, program, layout, values
        self._demand = demand

    def has(self, place: int) -> bool:
        """Whether an optional input is given."""
        return place < len(self.node.inputs) and bool(self.node.inputs[place])

    def x(self, place: int) -> Tensor:
        """An input in the layout of the node, or, of one that has no part in that, in ONNX's; in the type that it is computed in."""
        value = self.stored(place)
        if value.quantization is not None and self.node.kind in _MOVING:
            return value
        return _integers(self.graph, value, self.type(place).dtype)

    def stored(self, place: int) -> Tensor:
        """The same in the type that it is stored in."""
        name = self.node.inputs[place]
        return self.values.get(name, self.layout if self._takes_part(name) else "first")

    def _takes_part(self, name: str) -> bool:
        return name in self._demand.inputs

    def xs(self) -> list[Tensor]:
        """All inputs, those of fewer axes than the output reshaped so that they can be broadcast in the node's layout."""
        rank = len(self.result().shape)
        return [self.spread(self.x(place), rank, given=self._takes_part(self.node.inputs[place])) for place in range(len(self.node.inputs))]

    def spread(self, value: Tensor, rank: int, *, given: bool = False) -> Tensor:
        """Returns a tensor in ONNX's order so that it can be broadcast to the node's tensors of some rank."""
        if given or self.layout == "first" or value.size == 1:
            return value
        full = self.graph.reshape(value, (1,) * (rank - value.rank) + value.shape)
        return self.graph.transpose(full, layouts.last_order(rank))

    def type(self, place: int) -> Type:
        """Type of an input, in ONNX's order of axes."""
        return self.program.type(self.node.inputs[place])

    def result(self, place: int = 0) -> Type:
        """Type of an output, in ONNX's order of axes."""
        return self.program.types[self.node.outputs[place]]

    def shape(self, place: int = 0) -> tuple[int, ...]:
        """Sizes of an output in the node's order of axes."""
        return self.ordered(self.result(place).shape)

    def ordered(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Brings something that ONNX has for each axis into the node's order of axes."""
        return tuple(sizes[axis] for axis in self.order(len(sizes)))

    def order(self, rank: int) -> tuple[int, ...]:
        """For each axis of a tensor in the node's layout, ONNX's."""
        return layouts.last_order(rank) if self.layout == "last" and 3 <= rank <= 5 else tuple(range(rank))

    def axis(self, axis: int, rank: int) -> int:
        """Where an axis of ONNX's is in the node's layout; it may be counted from the end."""
        return self.order(rank).index(axis % rank)

    def constant(self, place: int) -> np.ndarray:
        """Content of an input that must be known.

        Raises:
            Unsupported: It depends on the inputs.
        """
        name = self.node.inputs[place]
        if name not in self.program.constants:
            raise Unsupported(f"its input {place} ({name}) depends on the data")
        return self.program.constants[name]

    def is_constant(self, place: int) -> bool:
        """Whether an input is known."""
        return self.has(place) and self.node.inputs[place] in self.program.constants

    def numbers(self, place: int, attribute: str, default: Any = None) -> Any:
        """Whole numbers that newer operator sets take as an input and older ones as an attribute."""
        if self.has(place):
            return [int(value) for value in self.constant(place).reshape(-1)]
        return self.attribute(attribute, default)

    def number(self, place: int, attribute: str, default: Any = None) -> Any:
        """A number of that kind."""
        return self.constant(place).reshape(-1)[0].item() if self.has(place) else self.attribute(attribute, default)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.node.attributes.get(name, default)

    def known(self, sizes: Sequence[int], what: str) -> tuple[int, ...]:
        """Returns sizes that must not be free.

        Raises:
            Unsupported: One is.
        """
        if FREE in sizes:
            raise Unsupported(f"{what} is free at run time")
        return tuple(sizes)


def _integers(graph: Graph, value: Tensor, declared: np.dtype[Any]) -> Tensor:
    """Returns a value in the type that it is computed in: of quantized ones the integers that ONNX means, unsigned ones stored as signed."""
    plain = graph.cast(value, carried(value.dtype))
    if value.quantization is None or declared != np.uint8 or value.dtype != np.int8:
        return plain
    return graph.binary("ADD", plain, graph.constant(_UNSIGNED_SHIFT, plain.dtype))


class Values:
    """What the values of a program are in the file, in one layout or both."""

    def __init__(self, graph: Graph, program: Program) -> None:
        self.graph, self.program = graph, program
        self._found: dict[tuple[str, Layout], Tensor] = {}

    def put(self, name: str, tensor: Tensor, layout: Layout) -> None:
        """Says what a value is."""
        self._found[name, layout if layouts.can_be_last(tensor.shape) else "first"] = tensor

    def get(self, name: str, layout: Layout) -> Tensor:
        """Returns a value in a layout; it is transposed once for all who ask."""
        shape = self.program.type(name).shape
        layout = layout if layouts.can_be_last(shape) else "first"
        if (name, layout) not in self._found:
            self._found[name, layout] = self._made(name, layout, len(shape))
        return self._found[name, layout]

    def _made(self, name: str, layout: Layout, rank: int) -> Tensor:
        if name in self.program.constants and (name, layouts.other(layout)) not in self._found:
            content = self.program.constants[name]
            ordered = content.transpose(layouts.last_order(rank)) if layout == "last" else content
            return self.graph.constant(ordered.astype(carried(content.dtype), copy=False), name=name)  # which makes it contiguous
        source = self._found[name, layouts.other(layout)]
        order = layouts.last_order(rank)
        return self.graph.transpose(source, order if layout == "last" else [order.index(axis) for axis in range(rank)])


def lower(program: Program, graph: Graph, given: Mapping[str, tuple[Tensor, Layout]], wanted: Mapping[str, Layout]) -> list[Tensor]:
    """Adds a program's operators to a graph and returns its outputs.

    What cannot be lowered is added to ``program.problems``; the graph is of no use then.

    Args:
        program: The graph.
        graph: Where the operators go.
        given: What the inputs are, and in which layout.
        wanted: Layouts of the outputs; first where none is named.
    """
    ends: dict[str, Layout] = {name: wanted.get(name, "first") for name in program.outputs}
    values = _lower_all(program, graph, given, ends)
    if any(name not in program.types and name not in program.constants for name in program.outputs):
        return []  # what makes it is among the problems
    return [_output(name, ends[name], program, graph, values) for name in program.outputs]


def lower_inside(program: Program, graph: Graph, given: Mapping[str, Tensor]) -> list[Tensor]:
    """Adds the operators of a graph inside an operator; its values have ONNX's order of axes and the types that they are computed in.

    Args:
        program: The graph inside.
        graph: Where the operators go: a graph of their own, or the one around.
        given: What its inputs are, and what it sees of the values around it.

    Raises:
        Unsupported: An operator inside cannot be lowered.
    """
    layer, origin = graph.layer, graph.origin
    firsts: dict[str, Layout] = dict.fromkeys(program.outputs, "first")
    values = _lower_all(program, graph, {name: (tensor, "first") for name, tensor in given.items()}, firsts)
    graph.layer, graph.origin = layer, origin
    for node, reason in program.problems:
        raise Unsupported(f"has {node.kind} ({node.name}) inside, which {reason}")
    return [values.get(name, "first") for name in program.outputs]


def _lower_all(program: Program, graph: Graph, given: Mapping[str, tuple[Tensor, Layout]], ends: Mapping[str, Layout]) -> Values:
    patterns.apply(program)
    values = Values(graph, program)
    for name, (tensor, layout) in given.items():
        values.put(name, tensor, layout)
    demands = [_demand(node, program) for node in program.nodes]
    fixed: dict[str, Layout] = {name: layout for name, (_, layout) in given.items()}
    chosen = layouts.assign(demands, {**fixed, **ends}, _costs(program))
    for node, demand, layout in zip(program.nodes, demands, chosen, strict=True):
        graph.layer, graph.origin = node.name, node
        _lower_one(node, demand, layout, program, graph, values)
    graph.layer, graph.origin = "", None
    return values


def _demand(node: Node, program: Program) -> Demand:
    if node.kind == "Identity":
        return either(node, program)
    return REGISTRY[node.kind].rule(node, program) if node.kind in REGISTRY else channels_first(node, program)


def _costs(program: Program) -> dict[str, int]:
    bytes_of = {name: carried(type.dtype).itemsize for name, type in program.types.items() if layouts.can_be_last(type.shape)}
    return {name: layouts.cost(program.types[name].shape, size) for name, size in bytes_of.items() if name not in program.constants}


def _lower_one(node: Node, demand: Demand, layout: Layout, program: Program, graph: Graph, values: Values) -> None:
    result: Layout = layouts.other(layout) if demand.moves else layout
    try:
        if node.kind == "Identity":
            found: Any = values.get(node.inputs[0], layout)
        elif node.kind not in REGISTRY:
            raise Unsupported("has no counterpart in TFLite")
        else:
            _allow(node, program)
            found = REGISTRY[node.kind].function(Call(graph, node, program, demand, layout, values))
    except Unsupported as error:
        program.problems.append((node, str(error)))
        ordered: dict[str, Layout] = {name: result if name in demand.outputs else "first" for name in node.outputs}
        found = [_placeholder(program.types[name], ordered[name]) if name else None for name in node.outputs]
    for name, tensor in zip(node.outputs, [found] if isinstance(found, Tensor) else found, strict=False):
        if name and tensor is not None:
            _check(node, name, tensor, program, result if name in demand.outputs else "first")
            values.put(name, tensor, result if name in demand.outputs else "first")


def _allow(node: Node, program: Program) -> None:
    """Refuses element types that no kernel has, which would be found at run time only."""
    facts = REGISTRY[node.kind].facts
    name = node.inputs[facts.typed] if facts.typed < len(node.inputs) else ""
    given = program.type(name).dtype.name if name else ""
    if name and _ALIKE.get(given, given) not in facts.dtypes:
        raise Unsupported(f"has no kernel for {program.type(name).dtype}")


def _placeholder(type: Type, layout: Layout) -> Tensor:
    """Stands for what could not be lowered, so that the operators after it can be looked at."""
    shape = type.shape
    ordered = tuple(shape[axis] for axis in layouts.last_order(len(shape))) if layout == "last" and layouts.can_be_last(shape) else shape
    return Tensor("placeholder", ordered, carried(type.dtype))


def _check(node: Node, name: str, tensor: Tensor, program: Program, layout: Layout) -> None:
    """Holds what a function made against ONNX's own inference: a mistake in here shall not become a wrong file."""
    wanted = _placeholder(program.types[name], layout)
    if tensor.shape != wanted.shape:
        raise AssertionError(f"{node.kind} ({node.name}) was lowered to {list(tensor.shape)} instead of {list(wanted.shape)}")


def _output(name: str, layout: Layout, program: Program, graph: Graph, values: Values) -> Tensor:
    tensor = values.get(name, layout)
    declared = program.type(name).dtype
    if tensor.quantization is not None and tensor.dtype == np.int8 and declared == np.uint8:
        tensor = graph.unary("QUANTIZE", tensor, np.uint8)
        meant = graph.operators[-1].inputs[0]
        assert meant is not None and meant.quantization is not None
        tensor.quantization = replace(meant.quantization, zero_point=meant.quantization.zero_point + _UNSIGNED_SHIFT)
    wanted = declared if declared.name in _GIVEN and tensor.dtype != declared else tensor.dtype
    made = graph.cast(tensor, wanted)
    if made in graph.inputs or made.data is not None or made in graph.outputs:
        made = graph.copy(made)
    graph.outputs.append(made)
    return made
