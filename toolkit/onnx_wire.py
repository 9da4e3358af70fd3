"""ONNX graphs as they are encoded (Protocol Buffers, "Encoding"; onnx.proto): where tensors say that their bytes are in another file.

Fields are walked by their lengths in a mapped file: nothing is parsed that does not lead to such a tensor, and no weight is loaded.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

_MAX_DEPTH = 100  # as in Protocol Buffers' own parsers
_EXTERNAL = 1
_FLOAT = 1
_TENSOR_TYPE, _TENSOR_NAME, _TENSOR_BYTES, _TENSOR_ENTRY, _TENSOR_PLACE = 2, 8, 9, 13, 14
_INITIALIZERS = {"model": {7: "graph"}, "graph": {5: "tensor"}}
# Field numbers of onnx.proto that lead from a message to the tensors in it.
_CHILDREN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
Moved = Callable[[str, dict[str, str]], dict[str, str]]


def external_tensors(model: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields name and ``external_data`` of each tensor that has its bytes in another file.

    Raises:
        ValueError: The graph is damaged.
        OSError: It cannot be read.
    """
    with _mapped(model) as data:
        yield from _tensors(data, 0, len(data), "model", 0)


def rewritten(model: Path, moved: Moved) -> bytes:
    """Returns a model with other ``external_data``; all else keeps its bytes.

    Args:
        model: The ``.onnx`` file.
        moved: Gives the new entries of a tensor by its name and its entries.

    Raises:
        ValueError: The graph is damaged.
        OSError: It cannot be read.
    """
    with _mapped(model) as data:
        return _Rewriting(data, moved).message(0, len(data), "model")


def lightened(model: Path, most_bytes: int) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Returns a model without the bytes of its large float32 initializers, and where in the file those are, as offset and length by name.

    Args:
        model: The ``.onnx`` file.
        most_bytes: Size up to which a tensor keeps its bytes.

    Raises:
        ValueError: The graph is damaged.
        OSError: It cannot be read.
    """
    with _mapped(model) as data:
        taken = _Lightening(data, most_bytes)
        return taken.message(0, len(data), "model"), taken.found


def _mapped(model: Path) -> mmap.mmap:
    with model.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # of an empty file: a ValueError


def _tensors(data: mmap.mmap, start: int, end: int, kind: str, depth: int) -> Iterator[tuple[str, dict[str, str]]]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"its messages are nested more than {_MAX_DEPTH} deep")
    if kind == "tensor":
        name, entries = _external(data, start, end)
        if entries is not None:
            yield name, entries
        return
    children = _CHILDREN[kind]
    for number, wire, _, content, after in _fields(data, start, end):
        if wire == 2 and number in children:
            yield from _tensors(data, content, after, children[number], depth + 1)


def _external(data: mmap.mmap, start: int, end: int) -> tuple[str, dict[str, str] | None]:
    """Returns name and ``external_data`` of a tensor; ``None`` where its bytes are in the graph."""
    name, entries, elsewhere = "", dict[str, str](), False
    for number, wire, _, content, after in _fields(data, start, end):
        if number == _TENSOR_ENTRY and wire == 2:
            entry = {inner: _text(data, low, high) for inner, kind, _, low, high in _fields(data, content, after) if kind == 2}
            entries[entry.get(1, "")] = entry.get(2, "")
        elif number == _TENSOR_PLACE and wire == 0:
            elsewhere = _varint(data, content, after)[0] == _EXTERNAL
        elif number == _TENSOR_NAME and wire == 2:
            name = _text(data, content, after)
    return name, entries if elsewhere or entries else None


def _text(data: mmap.mmap, start: int, end: int) -> str:
    return data[start:end].decode(errors="surrogateescape")


class _Rewriting:
    """Encodes a model anew with other ``external_data``; all else keeps its bytes."""

    def __init__(self, data: mmap.mmap, moved: Moved) -> None:
        self._data, self._moved = data, moved

    def message(self, start: int, end: int, kind: str) -> bytes:
        if kind == "tensor":
            return self._tensor(start, end)
        children, parts = _CHILDREN[kind], list[bytes]()
        for number, wire, first, content, after in _fields(self._data, start, end):
            if wire == 2 and number in children:
                parts.append(_encoded(number, self.message(content, after, children[number])))
            else:
                parts.append(self._data[first:after])
        return b"".join(parts)

    def _tensor(self, start: int, end: int) -> bytes:
        name, entries = _external(self._data, start, end)
        if not entries:
            return self._data[start:end]
        changed = [_entry(key, value) for key, value in self._moved(name, entries).items()]
        parts = []
        for number, _, first, _, after in _fields(self._data, start, end):
            parts.append(self._data[first:after] if number != _TENSOR_ENTRY else b"".join(changed))
            changed = [] if number == _TENSOR_ENTRY else changed
        return b"".join(parts)


class _Lightening:
    """Encodes a model anew without the bytes of large initializers, and keeps where they were."""

    def __init__(self, data: mmap.mmap, most_bytes: int) -> None:
        self._data, self._most_bytes = data, most_bytes
        self.found: dict[str, tuple[int, int]] = {}

    def message(self, start: int, end: int, kind: str) -> bytes:
        if end - start <= self._most_bytes:
            return self._data[start:end]
        if kind == "tensor":
            return self._tensor(start, end)
        parts = list[bytes]()
        for number, wire, first, content, after in _fields(self._data, start, end):
            child = _INITIALIZERS[kind].get(number) if wire == 2 else None
            parts.append(_encoded(number, self.message(content, after, child)) if child else self._data[first:after])
        return b"".join(parts)

    def _tensor(self, start: int, end: int) -> bytes:
        fields = list(_fields(self._data, start, end))
        names = [_text(self._data, content, after) for number, wire, _, content, after in fields if (number, wire) == (_TENSOR_NAME, 2)]
        types = [_varint(self._data, content, after)[0] for number, wire, _, content, after in fields if (number, wire) == (_TENSOR_TYPE, 0)]
        spans = [(content, after - content) for number, wire, _, content, after in fields if (number, wire) == (_TENSOR_BYTES, 2)]
        if len(names) != 1 or types != [_FLOAT] or len(spans) != 1 or spans[0][1] <= self._most_bytes:
            return self._data[start:end]
        self.found[names[0]] = spans[0]
        return b"".join(self._data[first:after] for number, _, first, _, after in fields if number != _TENSOR_BYTES)


def _entry(key: str, value: str) -> bytes:
    texts = (text.encode(errors="surrogateescape") for text in (key, value))
    return _encoded(_TENSOR_ENTRY, b"".join(_encoded(number, text) for number, text in enumerate(texts, 1)))


def _encoded(number: int, content: bytes) -> bytes:
    return _as_varint(number << 3 | 2) + _as_varint(len(content)) + content


def _as_varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yields number, wire type, first byte, first byte of the content, and the byte after it, for each field of a message."""
    while position < end:
        first = position
        tag, position = _varint(data, position, end)
        wire, content = tag & 7, position
        if wire == 2:
            length, content = _varint(data, position, end)
            position = content + length
        elif wire == 0:
            position = _varint(data, position, end)[1]
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field has the unknown wire type {wire}")
        if position > end:
            raise ValueError("a field ends after the message that holds it; the file is truncated or damaged")
        yield tag >> 3, wire, first, content, position


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    """Reads a base-128 number of at most 10 bytes; returns it and the position after it."""
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("a number ends after the message that holds it; the file is truncated or damaged")
