"""Reads ``model.xml`` of OpenVINO IR into plain graphs, with neither OpenVINO nor anything that a hostile file could make grow.

The layout follows OpenVINO's operation sets and IR format (version 10 and 11): layers with ports, edges between ports, and
constants as ranges of ``model.bin``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from toolkit.audit.element_types import element_bits

CONST, PARAMETER, RESULT = "Const", "Parameter", "Result"
_BODIES = ("body", "then_body", "else_body")
_MAX_XML_BYTES = 64 << 20
_MAX_DEPTH = 64
_DTYPE = re.compile(r"(bf|fp|f|i|u)(\d+)")
_KINDS = {"bf": "bfloat", "fp": "float", "f": "float", "i": "int", "u": "uint"}


@dataclass(frozen=True)
class Tensor:
    """What comes out of a port; ``-1`` in ``shape`` is a free size."""

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Stored:
    """A constant: its element type, how many elements it has, and its place in ``model.bin``."""

    dtype: str
    elements: int
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class Operator:
    """One layer of the file.

    Attributes:
        name: Its name.
        kind: Its type, such as ``Convolution``.
        opset: The operation set that defines the type.
        attributes: What its ``data`` element says.
        inputs: Keys of the tensors it reads, in the order of its ports.
        outputs: Keys of the tensors it makes.
        result_names: Of a result, the names that the file gives to the model's output.
    """

    name: str
    kind: str
    opset: str
    attributes: Mapping[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    result_names: tuple[str, ...] = ()


@dataclass
class Graph:
    """The main graph, or the body of a loop or of a branch.

    Attributes:
        operators: All layers, in the order of the file, in which each comes after what it reads.
        tensors: Everything that comes out of a port, by key.
        constants: Constants, and what is computed of constants alone, as the largest of the constants it stems from.
    """

    operators: list[Operator]
    tensors: dict[str, Tensor]
    constants: dict[str, Stored] = field(default_factory=dict)

    @cached_property
    def producer(self) -> dict[str, Operator]:
        """The operator that makes each tensor."""
        return {key: operator for operator in self.operators for key in operator.outputs}

    @cached_property
    def consumers(self) -> Counter[str]:
        """How often each tensor is read."""
        return Counter(key for operator in self.operators for key in operator.inputs)

    def of_kind(self, kind: str) -> Iterator[Operator]:
        """All operators of one type."""
        return (operator for operator in self.operators if operator.kind == kind)


def read_graphs(xml: Path, bin_bytes: int) -> tuple[list[Graph], Element]:
    """Returns the main graph and all bodies inside of it, and the file's root element.

    Args:
        xml: The file.
        bin_bytes: Size of the weights beside it.

    Raises:
        ValueError: The file is damaged, or says that weights lie outside of ``model.bin``.
    """
    root = _parse(xml)
    if root.tag != "net":
        raise ValueError(f"its root element is <{root.tag}>, expected <net>")
    graphs = [_graph(root, bin_bytes)]
    graphs += [_graph(body, bin_bytes) for tag in _BODIES for body in root.iter(tag)]
    return graphs, root


def _parse(path: Path) -> Element:
    """Builds the tree; a document type, in which entities could be declared that grow without end, is refused."""
    if path.stat().st_size > _MAX_XML_BYTES:
        raise ValueError(f"{path.name} has more than {_MAX_XML_BYTES:,} bytes")
    builder, parser, depth = TreeBuilder(), expat.ParserCreate(), 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"{path.name} nests elements more than {_MAX_DEPTH} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: Any) -> None:
        raise ValueError(f"{path.name} declares a document type, which IR has not")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except expat.ExpatError as error:
        raise ValueError(f"{path.name} is not XML: {error}") from error
    return builder.close()


def _graph(net: Element, bin_bytes: int) -> Graph:
    layers = {layer.attrib["id"]: layer for layer in net.iterfind("layers/layer")}
    sources = {f"{edge.attrib['to-layer']}:{edge.attrib['to-port']}": _source(edge, layers) for edge in net.iterfind("edges/edge")}
    graph = Graph([], {})
    for number, layer in layers.items():
        operator = _operator(number, layer, sources)
        graph.operators.append(operator)
        graph.tensors.update({f"{number}:{port.attrib['id']}": _tensor(port) for port in layer.iterfind("output/port")})
        _note_constants(operator, graph, bin_bytes)
    lost = [key for operator in graph.operators for key in operator.inputs if key not in graph.tensors]
    if lost:
        raise ValueError(f"an edge leaves from port {lost[0]}, which there is not")
    return graph


def _source(edge: Element, layers: Mapping[str, Element]) -> str:
    for end in ("from-layer", "to-layer"):
        if edge.attrib[end] not in layers:
            raise ValueError(f"an edge names layer {edge.attrib[end]}, which there is not")
    return f"{edge.attrib['from-layer']}:{edge.attrib['from-port']}"


def _operator(number: str, layer: Element, sources: Mapping[str, str]) -> Operator:
    ports = [f"{number}:{port.attrib['id']}" for port in layer.iterfind("input/port")]
    unfed = [port for port in ports if port not in sources]
    if unfed:
        raise ValueError(f"no edge leads to port {unfed[0]} of layer {layer.attrib['name']!r}")
    data = layer.find("data")
    return Operator(
        name=layer.attrib["name"],
        kind=layer.attrib["type"],
        opset=layer.attrib.get("version", ""),
        attributes={} if data is None else data.attrib,
        inputs=tuple(sources[port] for port in ports),
        outputs=tuple(f"{number}:{port.attrib['id']}" for port in layer.iterfind("output/port")),
        result_names=_names(layer.attrib.get("output_names", "")),
    )


def _tensor(port: Element) -> Tensor:
    shape = tuple(int(dim.text or "") for dim in port.iterfind("dim"))
    return Tensor(dtype_name(port.attrib.get("precision", "")), shape, _names(port.attrib.get("names", "")))


def _names(listed: str) -> tuple[str, ...]:
    """Splits a list of names; a comma inside of a name is written with a backslash."""
    return tuple(name.replace("\\,", ",") for name in re.split(r"(?<!\\),", listed) if name)


def dtype_name(written: str) -> str:
    """NumPy's name for an element type, from ``f32`` of a constant or ``FP32`` of a port; types NumPy lacks keep OpenVINO's."""
    small = written.lower()
    match = _DTYPE.fullmatch(small)
    return f"{_KINDS[match[1]]}{match[2]}" if match else "bool" if small == "boolean" else small


def _note_constants(operator: Operator, graph: Graph, bin_bytes: int) -> None:
    if operator.kind == CONST:
        graph.constants.update(dict.fromkeys(operator.outputs, _stored(operator, bin_bytes)))
    elif operator.inputs and operator.kind != RESULT and all(key in graph.constants for key in operator.inputs):
        largest = max((graph.constants[key] for key in operator.inputs), key=lambda stored: stored.elements)
        graph.constants.update(dict.fromkeys(operator.outputs, largest))


def _stored(operator: Operator, bin_bytes: int) -> Stored:
    written = operator.attributes
    offset, size = int(written["offset"]), int(written["size"])
    shape = [int(part) for part in written.get("shape", "").split(",") if part.strip()]
    dtype = dtype_name(written["element_type"])
    bits = element_bits(dtype)
    if offset < 0 or size < 0 or offset + size > bin_bytes:
        raise ValueError(f"constant {operator.name!r} needs bytes {offset:,} to {offset + size:,}, model.bin has {bin_bytes:,}")
    if bits and size != -(-prod(shape) * bits // 8):
        raise ValueError(f"constant {operator.name!r} holds {size:,} bytes, which do not fit {shape} {dtype}")
    return Stored(dtype, prod(shape), offset, size)
