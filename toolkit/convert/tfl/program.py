"""Reads an ONNX graph so that nothing is left to guess: every value has a type, and what does not depend on the inputs is computed.

ONNX's own type inference is asked node by node, with the constants that a node is given; where it knows nothing of an operator but
has its definition in terms of others, the definition takes the operator's place.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toolkit.convert.tfl import definitions
from toolkit.factory import CODE_ERRORS

FREE = -1
"""The size of an axis that is free at run time: that of the samples."""
_DOMAINS = ("", "ai.onnx")
# What is made while reading shall not be much larger than the file.
_MOST_FOLDED_BYTES = 1 << 24
_AXES = {"Unsqueeze", "Squeeze", "Transpose"}  # may move the free one
_IDENTITIES = {"Identity", "Dropout", "OptionalGetElement"}


class Unsupported(Exception):
    """A use of an operator that cannot be expressed in TFLite; the message says why."""


@dataclass(frozen=True)
class Type:
    """Element type and sizes of a value, in ONNX's order of axes; a free size is :data:`FREE`."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Quantized:
    """How integers stand for the numbers of a constant: ``scale * (q - zero_point)``, per tensor (axis ``None``) or along an axis."""

    dtype: np.dtype[Any]
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None

    def numbers(self, integers: np.ndarray) -> np.ndarray:
        """Returns what integers stand for."""
        shape = [1] * integers.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        wide = integers.astype(np.int64) - self.zero_point.astype(np.int64).reshape(shape)
        return (wide.astype(np.float32) * self.scale.astype(np.float32).reshape(shape)).astype(self.scale.dtype)


@dataclass(eq=False)
class Node:
    """One operator that depends on the inputs.

    Attributes:
        kind: Its name, with its domain before it unless that is ONNX's own: ``Conv``, ``com.microsoft.FusedConv``.
        version: The operator set in which it came to be what it is.
        name: Its name in the file, or that of its first output.
        inputs: Names of its inputs; empty for one that is left out.
        outputs: Names of its outputs; empty for one that nobody asked for.
        attributes: By name; tensors as arrays, graphs as :class:`Program`.
        scope: The layer of the user's model, where the exporter tells.
        given: Types of its inputs, as far as they were known when it was read.
    """

    kind: str
    version: int
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    scope: str = ""
    given: tuple[Type, ...] = ()

    @property
    def layer(self) -> str:
        """The layer of the user's model, else as far as the node's name tells: ``features.0.0`` of ``features.0.0/Conv``."""
        return self.scope or self.name.rpartition("/")[0] or self.name

    @property
    def place(self) -> str:
        """Where it is, for messages: its name, its layer, and what it is given."""
        types = " and ".join(f"{one.dtype} [{' x '.join('n' if size == FREE else str(size) for size in one.shape)}]" for one in self.given)
        return ", ".join(one for one in (self.name, self.scope and f"layer {self.scope}", types and f"of {types}") if one)


@dataclass(eq=False)
class Program:
    """A graph after reading.

    Attributes:
        inputs: Names of its inputs.
        outputs: Names of its outputs.
        nodes: Its operators, in order.
        types: Type of every value that is not constant.
        constants: Content of every constant value.
        quantized: How the integers were meant that a constant was made from, for those that a DequantizeLinear made.
        problems: What cannot be expressed, with the node it was found at; an operator after such a one is not looked at.
    """

    inputs: list[str]
    outputs: list[str]
    nodes: list[Node] = field(default_factory=list)
    types: dict[str, Type] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    quantized: dict[str, Quantized] = field(default_factory=dict)
    problems: list[tuple[Node, str]] = field(default_factory=list)

    def type(self, name: str) -> Type:
        """Returns the type of a value, constant or not."""
        if name in self.constants:
            return Type(self.constants[name].dtype, self.constants[name].shape)
        return self.types[name]


Typing = Callable[[Node, Program], Sequence[Type]]
TYPINGS: dict[str, Typing] = {}
"""Types of what ONNX's inference does not know: operators of other domains, and those that run graphs."""

Expansion = Callable[[Any, Mapping[str, np.ndarray]], list[Any]]
EXPANSIONS: dict[str, Expansion] = {}
"""Operators that are spelled out before anything else: functions of the node and the constants that return other nodes."""


def read(model: Any, inputs: Mapping[str, Type], lowered: Callable[[str], bool]) -> Program:
    """Reads a model.

    Args:
        model: The ``ModelProto``; left as it is.
        inputs: Types of its inputs, sizes fixed or :data:`FREE`.
        lowered: Whether an operator of a kind can be lowered as it is; one that cannot is replaced by its definition, where it has one.
    """
    import onnx

    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    opsets = {("" if one.domain in _DOMAINS else one.domain): one.version for one in model.opset_import}
    return _Reader(opsets, lowered, {}, {}).graph(model.graph, list(inputs.values()))


class _Reader:
    """Reads one graph and those inside it, which see the values around them."""

    def __init__(self, opsets: Mapping[str, int], lowered: Callable[[str], bool], types: dict[str, Type], constants: dict[str, np.ndarray]) -> None:
        self.opsets, self.lowered = opsets, lowered
        self.types, self.constants = dict(types), dict(constants)
        self.quantized: dict[str, Quantized] = {}
        self.made = 0

    def graph(self, graph: Any, types: Sequence[Type]) -> Program:
        from onnx import numpy_helper

        self.constants |= {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        names = [value.name for value in graph.input if value.name not in {tensor.name for tensor in graph.initializer}]
        self.types |= dict(zip(names, types, strict=True))
        self.program = Program(names, [value.name for value in graph.output], types=self.types, constants=self.constants, quantized=self.quantized)
        for proto in graph.node:
            self.node(proto)
        return self.program

    def node(self, proto: Any) -> None:
        """Folds a node, or takes it over with the types of what it makes."""
        if proto.op_type in _IDENTITIES and proto.domain in _DOMAINS and not any(proto.output[1:]) and not self.trains(proto):
            return self.rename(proto.input[0], proto.output[0])
        node = self.plain(proto)
        folded = self.folded(proto)
        if folded is not None:
            self.constants |= folded
            return None
        lost = [name for name in node.inputs if name and name not in self.types and name not in self.constants]
        if lost:  # most come after one that is reported already
            if not self.program.problems:
                self.program.problems.append((node, f"reads {lost[0]}, which nothing makes"))
            return None
        if not self.lowered(node.kind) and (definition := self.expanded(proto, node) or self.definition(proto)):
            for inner in definition:
                self.node(inner)
            return None
        try:
            self.attach_graphs(node)
            self.types |= self.typed(node, proto)
        except Unsupported as error:
            self.program.problems.append((node, str(error)))
            return None
        self.program.nodes.append(node)
        return None

    def trains(self, proto: Any) -> bool:
        """Whether a Dropout works as in training, or may do so."""
        mode = proto.input[2] if len(proto.input) > 2 else ""
        return bool(mode) and (mode not in self.constants or bool(self.constants[mode]))

    def rename(self, source: str, target: str) -> None:
        """Lets a second name stand for a value: lowering looks it up under both."""
        if source in self.constants:
            self.constants[target] = self.constants[source]
        elif source in self.types:
            self.types[target] = self.types[source]
            self.program.nodes.append(Node("Identity", 1, target, [source], [target], {}))

    def plain(self, proto: Any) -> Node:
        from onnx import AttributeProto, helper, numpy_helper

        attributes = {}
        for one in proto.attribute:
            value = helper.get_attribute_value(one)
            if one.type == AttributeProto.TENSOR:
                value = numpy_helper.to_array(value)
            elif one.type == AttributeProto.STRING:
                value = value.decode()
            elif one.type == AttributeProto.STRINGS:
                value = [text.decode() for text in value]
            attributes[one.name] = list(value) if one.type in (AttributeProto.INTS, AttributeProto.FLOATS) else value
        kind = proto.op_type if proto.domain in _DOMAINS else f"{proto.domain}.{proto.op_type}"
        schema = self.schema(proto)
        name = proto.name or next((one for one in proto.output if one), proto.op_type)
        version = schema.since_version if schema else 1
        given = tuple(self.program.type(one) for one in proto.input if one in self.types or one in self.constants)
        return Node(kind, version, name, list(proto.input), list(proto.output), attributes, _scope(proto), given)

    def schema(self, proto: Any) -> Any:
        from onnx import defs

        domain = "" if proto.domain in _DOMAINS else proto.domain
        try:
            return defs.get_schema(proto.op_type, self.opsets.get(domain, 1), domain)
        except defs.SchemaError:
            return None

    def folded(self, proto: Any) -> dict[str, np.ndarray] | None:
        """Computes what a node makes, where that does not depend on the inputs: some depend on a value's type or sizes alone."""
        plain = self.sizes(proto) if proto.op_type in ("Shape", "Size") else self.cast(proto)
        if plain is not None:
            return {proto.output[0]: plain}
        given = [name for name in proto.input if name]
        known = all(name in self.constants for name in given)
        # What the reference evaluator collects of single numbers in a Loop has an axis too many.
        apart = proto.op_type.startswith(("Random", "Bernoulli", "Multinomial", "Loop")) or proto.domain not in _DOMAINS
        if not known or apart:
            return None
        if proto.op_type == "DequantizeLinear" and self.constants[given[1]].ndim < 2:
            meaning = self.quantized[proto.output[0]] = _quantized(proto, self.constants)
            return {proto.output[0]: meaning.numbers(self.constants[given[0]])}
        found = evaluate(proto, {name: self.constants[name] for name in given}, self.opsets, {} if not _graphs(proto) else self.constants)
        if found is None or sum(value.nbytes for value in found) > max(_MOST_FOLDED_BYTES, *(self.constants[name].nbytes for name in given), 0):
            return None
        return dict(zip(proto.output, found, strict=False))

    def cast(self, proto: Any) -> np.ndarray | None:
        like = proto.input[1] if proto.op_type == "CastLike" and proto.input[0] in self.constants else ""
        return self.constants[proto.input[0]].astype(self.types[like].dtype) if like in self.types else None

    def sizes(self, proto: Any) -> np.ndarray | None:
        if proto.domain not in _DOMAINS or proto.input[0] not in self.types:
            return None
        shape = self.types[proto.input[0]].shape
        if proto.op_type == "Size":
            return None if FREE in shape else np.array(int(np.prod(shape)), np.int64)
        bounds = {attribute.name: attribute.i for attribute in proto.attribute}
        part = shape[bounds.get("start", 0) : bounds.get("end")]
        return None if FREE in part else np.array(part, np.int64)

    def expanded(self, proto: Any, node: Node) -> list[Any] | None:
        """Returns the nodes that we take an operator for."""
        return EXPANSIONS[node.kind](proto, self.constants) if node.kind in EXPANSIONS else None

    def definition(self, proto: Any) -> list[Any] | None:
        """Returns the nodes that an operator is defined as, under names of their own."""
        schema = self.schema(proto)
        if schema is None:
            return None
        types = [_proto_of(self.program.type(name)) if name else None for name in proto.input]
        function = definitions.body(schema, proto, types, self.opsets.get("", 1))
        if function is None:
            return None
        self.made += 1
        return definitions.spelled_out(function, schema, proto, f"{proto.name or proto.output[0]}/{proto.op_type}_{self.made}.")

    def attach_graphs(self, node: Node) -> None:
        """Reads the graphs inside a node. What they take is known to its typing alone, which reads them."""
        for name, value in node.attributes.items():
            if hasattr(value, "node") and hasattr(value, "initializer"):
                node.attributes[name] = Inner(value, self)

    def typed(self, node: Node, proto: Any) -> dict[str, Type]:
        if node.kind in TYPINGS:
            return {name: type for name, type in zip(node.outputs, TYPINGS[node.kind](node, self.program), strict=False) if name}
        schema = self.schema(proto)
        if schema is None:
            raise Unsupported("is no operator of ONNX, and has no counterpart in TFLite that is known here")
        return self.inferred(schema, proto)

    def inferred(self, schema: Any, proto: Any) -> dict[str, Type]:
        import onnx
        from onnx import helper, numpy_helper, shape_inference

        types = {name: _proto_of(self.program.type(name)) for name in proto.input if name}
        small = {name: self.constants[name] for name in types if name in self.constants and self.constants[name].size <= 4096}
        data = {name: numpy_helper.from_array(np.asarray(value), name) for name, value in small.items()}
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
        try:
            found = shape_inference.infer_node_outputs(schema, proto, types, data, opset_imports=opsets, ir_version=onnx.IR_VERSION)
        except (*CODE_ERRORS, shape_inference.InferenceError, onnx.checker.ValidationError) as error:
            raise Unsupported(f"is not valid here: {str(error).strip().splitlines()[-1][:200]}") from error
        free = any(FREE in self.program.type(name).shape for name in types)
        return {name: _type_of(found.get(name), free=free, anywhere=proto.op_type in _AXES) for name in proto.output if name}


@dataclass(eq=False)
class Inner:
    """A graph inside a node, before the types of its inputs are known."""

    proto: Any
    reader: _Reader

    def read(self, types: Sequence[Type]) -> Program:
        """Reads it for inputs of some types; it sees the values around it."""
        inner = _Reader(self.reader.opsets, self.reader.lowered, self.reader.types, self.reader.constants)
        return inner.graph(self.proto, types)

    @property
    def inputs(self) -> list[str]:
        """Names of its inputs."""
        return [value.name for value in self.proto.input]


def evaluate(proto: Any, given: Mapping[str, np.ndarray], opsets: Mapping[str, int], around: Mapping[str, np.ndarray]) -> list[np.ndarray] | None:
    """Computes one node with ONNX's reference evaluator; ``None`` where that cannot."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    feeds = {**around, **given} if around else dict(given)
    try:
        values = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape) for name, value in feeds.items()]
        results = [helper.make_empty_tensor_value_info(name) for name in proto.output if name]
        model = helper.make_model(
            helper.make_graph([proto], "one", values, results), opset_imports=[helper.make_opsetid(*one) for one in opsets.items()]
        )
        found = ReferenceEvaluator(model).run(None, feeds)
    except CODE_ERRORS:
        return None  # whoever lowers the operator may know it
    values_found = iter(found)
    return [np.asarray(next(values_found)) if name else np.zeros(0) for name in proto.output]


def _quantized(proto: Any, constants: Mapping[str, np.ndarray]) -> Quantized:
    content, scale = constants[proto.input[0]], constants[proto.input[1]]
    given = len(proto.input) > 2 and bool(proto.input[2])
    zero_point = constants[proto.input[2]] if given else np.zeros(scale.shape, content.dtype)
    axis = next((one.i for one in proto.attribute if one.name == "axis"), 1)
    return Quantized(content.dtype, scale, zero_point, axis % content.ndim if scale.size > 1 or scale.ndim else None)


def _scope(proto: Any) -> str:
    """Returns the module of a PyTorch model that a node is from, which its exporter writes into the node's metadata."""
    scopes = next((one.value for one in proto.metadata_props if one.key == "pkg.torch.onnx.name_scopes"), "")
    try:
        found = ast.literal_eval(scopes) if scopes else []
    except (ValueError, SyntaxError):
        return ""
    return str(found[-2]) if isinstance(found, list) and len(found) > 1 else ""


def _graphs(proto: Any) -> list[Any]:
    return [attribute.g for attribute in proto.attribute if attribute.HasField("g")]


def _proto_of(type: Type) -> Any:
    from onnx import helper

    shape = [size if size != FREE else "free" for size in type.shape]
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(type.dtype), shape)


def _type_of(proto: Any, *, free: bool, anywhere: bool) -> Type:
    """Reads a type that was inferred; the first size, or any, may be unknown where that of an input is free.

    Raises:
        Unsupported: It is no tensor of a known number of axes, or another size is not known.
    """
    from onnx import helper

    if proto is None or not proto.HasField("tensor_type"):
        raise Unsupported("gives something that is no tensor, or of which nothing is known")
    tensor = proto.tensor_type
    if not tensor.HasField("shape"):
        raise Unsupported("gives a tensor whose sizes depend on the data")
    sizes = [axis.dim_value if axis.HasField("dim_value") else FREE for axis in tensor.shape.dim]
    if (FREE in sizes[1:] and not anywhere) or (FREE in sizes and not free):
        raise Unsupported(f"gives a tensor whose sizes depend on the data: {['?' if size == FREE else size for size in sizes]}")
    return Type(helper.tensor_dtype_to_np_dtype(tensor.elem_type), tuple(sizes))
