"""TFLite files as objects: read, changed, and packed without copying constants one by one."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import InputRejected
from toolkit.factory import CODE_ERRORS, first_line

_IDENTIFIER = b"TFL3"
_ALIGNMENT = 64
_ENTRY_BYTES = 512  # a tensor or an operator with its name
_KEPT_BYTES = 1024  # constants of this size stay where they are


@dataclass(frozen=True)
class Entry:
    """A way into a file.

    Attributes:
        graph: Number of the subgraph that runs.
        inputs: Numbers of the input tensors in it, by the names that callers use.
    """

    graph: int
    inputs: Mapping[str, int]


def read(model: Path) -> Any:
    """Reads a file into the schema's objects, whose constants are views of the file.

    Raises:
        InputRejected: It is missing or damaged.
    """
    return read_mapped(model)[0]


def read_mapped(model: Path) -> tuple[Any, mmap.mmap]:
    """Reads a file into the schema's objects, to be changed.

    Returns:
        The objects, whose constants are views of the file; and the file.

    Raises:
        InputRejected: It is missing or damaged.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    try:
        Interpreter(str(model))  # it refuses damaged files that the schema's classes would parse
        with model.open("rb") as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        content = schema.ModelT.InitFromPackedBuf(data, 0)
        for buffer in content.buffers:
            if buffer.data is None and buffer.offset > 1:  # data behind the flatbuffer
                buffer.data, buffer.offset, buffer.size = np.frombuffer(data, np.uint8, buffer.size, buffer.offset), 0, 0
    except CODE_ERRORS as error:
        raise InputRejected(f"is not a readable TFLite model: {first_line(error)}", where=model.name, hint="convert the model again") from error
    return content, data


def entries(content: Any) -> list[Entry]:
    """Ways into a file: its signatures, else its first subgraph with the tensors' own names."""
    found = [Entry(one.subgraphIndex, {text(at.name): int(at.tensorIndex) for at in one.inputs or ()}) for one in content.signatureDefs or ()]
    if found:
        return found
    graph = content.subgraphs[0]
    return [Entry(0, {text(graph.tensors[at].name): int(at) for at in graph.inputs})]


def entry_for(content: Any, columns: Collection[str]) -> Entry:
    """The first way into a file that takes exactly these columns, else one that takes some of them; without columns the first.

    Raises:
        InputRejected: None takes them.
    """
    known = entries(content)
    if not columns:
        return known[0]
    fitting = [one for one in known if set(one.inputs) == set(columns)] or [one for one in known if set(one.inputs) <= set(columns)]
    if not fitting:
        found = "; or ".join(", ".join(sorted(one.inputs)) for one in known)
        what = f"samples have the columns {', '.join(sorted(columns))}, the model takes {found}"
        raise InputRejected(what, where="calibration", hint="name columns like the model's inputs")
    return fitting[0]


def kinds(content: Any) -> list[str]:
    """Name of every operator code, in the schema's words."""
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    # Codes below 127 are also written to the older, narrower field; the larger one counts (schema.fbs).
    return [names.get(max(one.builtinCode, one.deprecatedBuiltinCode), "") for one in content.operatorCodes]


def text(value: bytes | str | None) -> str:
    """A name as the schema's objects hold it."""
    return value if isinstance(value, str) else (value or b"").decode("utf-8", "replace")


def put_first(content: Any, number: int) -> None:
    """Makes a subgraph the first one, which is the one that the interpreter runs by tensor numbers."""
    if number == 0:
        return
    turned = {0: number, number: 0}
    graphs = content.subgraphs
    graphs[0], graphs[number] = graphs[number], graphs[0]
    for signature in content.signatureDefs or ():
        signature.subgraphIndex = turned.get(signature.subgraphIndex, signature.subgraphIndex)
    for options in _options(content):
        for name, value in vars(options).items():
            if name.lower().endswith("subgraphindex") or (name == "subgraph" and isinstance(value, int)):
                setattr(options, name, turned.get(value, value))


def _options(content: Any) -> Iterator[Any]:
    for graph in content.subgraphs:
        for operator in graph.operators or ():
            yield from (one for one in (operator.builtinOptions, operator.builtinOptions2) if one is not None)


def to_bytes(content: Any, data: bytes | mmap.mmap) -> bytes:
    """Packs changed objects: the file that they were read from, with other tables behind it.

    Constants stay where they lie in it, so that nothing is copied one by one, and keep the alignment that kernels need.

    Args:
        content: What :func:`read_mapped` returned, with its changes.
        data: The bytes that came with it.
    """
    import flatbuffers

    builder = flatbuffers.Builder(_ENTRY_BYTES * sum(len(graph.tensors or ()) + len(graph.operators or ()) for graph in content.subgraphs))
    kept = [(buffer, buffer.data) for buffer in content.buffers if buffer.data is not None and len(buffer.data) >= _KEPT_BYTES]
    start = _address(np.frombuffer(data, np.uint8))
    for buffer, constant in kept:
        place = _address(constant) - start
        if 0 < place < len(data):
            buffer.data, buffer.offset, buffer.size = None, place, len(constant)
    try:
        builder.Finish(content.Pack(builder), file_identifier=_IDENTIFIER)
    finally:
        for buffer, constant in kept:
            buffer.data, buffer.offset, buffer.size = constant, 0, 0
    tables = memoryview(builder.Bytes)[builder.Head() :]
    before = len(data) + -len(data) % _ALIGNMENT
    (root,) = struct.unpack_from("<I", tables)
    begin = struct.pack("<I", before + root)
    return b"".join([begin, memoryview(data)[len(begin) :], bytes(before - len(data)), tables])


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])
