"""Reads ``saved_model.pb`` without TensorFlow: its nodes, functions and signatures, as the protobuf messages they are.

Field numbers are those of ``tensorflow/core/protobuf`` (saved_model, meta_graph) and ``tensorflow/core/framework`` (graph,
function, node_def, attr_value, tensor, tensor_shape), which only ever append.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

_DTYPE_NAMES = {
    1: "float32 float64 int32 uint8 int16 int8 str complex64 int64 bool qint8 quint8 qint32 bfloat16 qint16 quint16 uint16 complex128 float16",
    20: "resource variant uint32 uint64 float8_e5m2 float8_e4m3fn",
    29: "int4 uint4",
}
# Collections of nodes that run when the graph is loaded, as TensorFlow 1 wrote them.
_STARTING = ("saved_model_main_op", "legacy_init_op")
# Numbers of DataType; 100 more stand for a reference to one.
_DTYPES = {number: name for first, names in _DTYPE_NAMES.items() for number, name in enumerate(names.split(), first)}


class Message:
    """A protobuf message, whose fields are told apart by their numbers alone."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    @cached_property
    def _fields(self) -> dict[int, list[memoryview | int]]:
        found = defaultdict(list)
        for number, value in fields(self._data):
            found[number].append(value)
        return dict(found)

    def bytes(self, number: int) -> list[memoryview]:
        """Returns what one field holds, as often as it stands there."""
        return [value for value in self._fields.get(number, []) if isinstance(value, memoryview)]

    def all(self, number: int) -> list[Message]:
        """Returns the messages in one field."""
        return list(map(Message, self.bytes(number)))

    def one(self, number: int) -> Message:
        """Returns the message in one field, an empty one where there is none; parts of one are one, as in Protocol Buffers' own parsers."""
        parts = self.bytes(number)
        return Message(parts[0] if len(parts) == 1 else memoryview(b"".join(parts)))

    def texts(self, number: int) -> list[str]:
        """Returns the texts in one field.

        Raises:
            UnicodeDecodeError: One is no UTF-8; a ``ValueError``.
        """
        return [str(value, "utf-8") for value in self.bytes(number)]

    def text(self, number: int) -> str:
        """Returns the text in one field; empty where there is none."""
        return next(iter(reversed(self.texts(number))), "")

    def number(self, number: int) -> int:
        """Returns the signed number in one field; 0 where there is none."""
        value = next((value for value in reversed(self._fields.get(number, [])) if isinstance(value, int)), 0)
        return value - (1 << 64) if value >= 1 << 63 else value

    def map(self, number: int) -> dict[str, Message]:
        """Returns a field that maps texts to messages."""
        return {entry.text(1): entry.one(2) for entry in self.all(number)}

    def value_bytes(self, first: int) -> int:
        """Returns the bytes that all fields hold from a number on."""
        return sum(value.nbytes if isinstance(value, memoryview) else 1 for number, all in self._fields.items() if number >= first for value in all)


class Node:
    """One operator.

    Attributes:
        name: Its name in its graph or function.
        kind: The operator.
        inputs: The tensors that it takes.
        after: The nodes that only run before it.
    """

    def __init__(self, message: Message) -> None:
        self._message = message
        self.name, self.kind = message.text(1), message.text(2)
        reads = message.texts(3)
        self.inputs = tuple(name for name in reads if not name.startswith("^"))
        self.after = tuple(name[1:] for name in reads if name.startswith("^"))

    @cached_property
    def attributes(self) -> dict[str, Message]:
        """Its attributes, messages of the kind ``AttrValue``."""
        return self._message.map(5)

    def dtype(self, attribute: str) -> str:
        """Returns the element type that an attribute names; empty where it has none."""
        return dtype(self.attributes[attribute].number(6)) if attribute in self.attributes else ""

    def functions(self) -> Iterator[str]:
        """Yields the names of functions that it calls or runs as a body, each attribute's in the order of the attributes' names."""
        for _, value in sorted(self.attributes.items(), key=lambda item: item[0]):
            yield from (named.text(1) for named in (*value.all(10), *value.one(1).all(9)))


@dataclass(frozen=True)
class Function:
    """Nodes by name, between the names of arguments and the tensors that are returned."""

    name: str
    nodes: Mapping[str, Node]
    arguments: tuple[str, ...] = ()
    returns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tensor:
    """An input or output of a signature: where in the graph it is, its element type, and its sizes, -1 for a free one.

    ``shape`` is ``None`` where not even their number is known.
    """

    place: str
    dtype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class MetaGraph:
    """One graph of a SavedModel, with what it is for.

    Attributes:
        tags: What it is for: ``serve``.
        tensorflow: Version that wrote it.
        with_objects: Whether it was written by TensorFlow 2, as an object with functions.
        main: Its own nodes.
        functions: Functions that nodes call, by name.
        signatures: Inputs and outputs by signature, those that TensorFlow itself uses among them.
        public: Names of the functions that the object's own are, which a user or TensorFlow's loader may call.
        started: Names of nodes that run when the graph is loaded.
        restores: Name of the node that restores variables; empty without one.
    """

    tags: tuple[str, ...]
    tensorflow: str
    with_objects: bool
    main: Function
    functions: Mapping[str, Function]
    signatures: Mapping[str, tuple[dict[str, Tensor], dict[str, Tensor]]]
    public: tuple[str, ...]
    started: tuple[str, ...]
    restores: str


def read_graphs(data: bytes) -> list[MetaGraph]:
    """Reads the graphs of a ``saved_model.pb``.

    Raises:
        ValueError: It is damaged or truncated.
    """
    return list(map(_meta_graph, Message(memoryview(data)).all(2)))


def dtype(number: int) -> str:
    """Returns the name of an element type."""
    return _DTYPES.get(number - 100 if number > 100 else number, "unknown")


def sizes(shape: Message) -> tuple[int, ...] | None:
    """Returns the sizes of a ``TensorShapeProto``; ``None`` where their number is unknown."""
    return None if shape.number(3) else tuple(dimension.number(1) for dimension in shape.all(2))


def _meta_graph(meta: Message) -> MetaGraph:
    told, graph, collections = meta.one(1), meta.one(2), meta.map(4)
    functions = [_function(function) for function in graph.one(2).all(1)]
    if len({function.name for function in functions}) < len(functions):
        raise ValueError("two of its functions share one name")
    return MetaGraph(
        tags=tuple(told.texts(4)),
        tensorflow=told.text(5),
        with_objects=bool(meta.bytes(7)),
        main=Function("", _nodes(graph.all(1))),
        functions={function.name: function for function in functions},
        signatures={key: (_tensors(found.map(1)), _tensors(found.map(2))) for key, found in sorted(meta.map(5).items(), key=lambda item: item[0])},
        public=tuple(sorted(meta.one(7).map(2))),
        started=tuple(name for key in _STARTING if key in collections for name in collections[key].one(1).texts(1)),
        restores=meta.one(3).text(3),
    )


def _function(function: Message) -> Function:
    signature = function.one(1)
    returned = {entry.text(1): entry.text(2) for entry in function.all(4)}
    arguments, outputs = ([argument.text(1) for argument in signature.all(number)] for number in (2, 3))
    return Function(signature.text(1), _nodes(function.all(3)), tuple(arguments), tuple(returned[name] for name in outputs))


def _nodes(nodes: list[Message]) -> dict[str, Node]:
    found = {node.name: node for node in map(Node, nodes)}
    if len(found) < len(nodes):
        raise ValueError("two of its nodes share one name")
    return found


def _tensors(infos: Mapping[str, Message]) -> dict[str, Tensor]:
    return {name: Tensor(info.text(1), dtype(info.number(2)), sizes(info.one(3))) for name, info in sorted(infos.items(), key=lambda item: item[0])}


def fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yields number and value of every field of a protobuf message (https://protobuf.dev/programming-guides/encoding).

    Numbers of variable length come as they are, without a sign; all else as its bytes.

    Raises:
        ValueError: The message is damaged or truncated.
    """
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, wire = tag >> 3, tag & 7
        if wire not in (0, 1, 2, 5) or not number:
            raise ValueError(f"byte {place:,} starts no protobuf field")
        if wire == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        length, place = _varint(data, place) if wire == 2 else ({1: 8, 5: 4}[wire], place)
        if place + length > len(data):
            raise ValueError(f"a field needs {length:,} bytes and {len(data) - place:,} are left; the file is truncated or damaged")
        yield number, data[place : place + length]
        place += length


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for position in range(10):
        if place + position >= len(data):
            raise ValueError("it ends inside a field; the file is truncated")
        byte = data[place + position]
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return value, place + position + 1
    raise ValueError("it has a number longer than 10 bytes")
