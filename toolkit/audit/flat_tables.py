"""Flatbuffers without generated code: fields by their number in the schema, every position held against the file's size.

The layout is that of the FlatBuffers documentation, "Internals": a table starts with the distance back to its list of field
positions; a vector starts with its length; what is not stored inline is behind an offset that counts from where it stands. A
damaged file ends in a ``ValueError``, never in a loop.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator


class FlatTable:
    """One table of a flatbuffer.

    Args:
        data: The whole buffer.
        at: Where the table starts.
    """

    def __init__(self, data: bytes | memoryview, at: int) -> None:
        self._data, self._at = data, at
        self._fields = at - _read(data, "<i", at)
        self._count = (_read(data, "<H", self._fields) - 4) // 2

    @classmethod
    def root(cls, data: bytes | memoryview) -> FlatTable:
        """Returns the table that a buffer starts with."""
        return cls(data, _read(data, "<I", 0))

    def number(self, field: int, kind: str, default: int = 0) -> int:
        """Returns a number; ``kind`` is its code in :mod:`struct`, for example ``i``."""
        at = self._place(field)
        return _read(self._data, f"<{kind}", at) if at else default

    def text(self, field: int) -> str:
        """Returns a string; empty when it is left out."""
        at = self._place(field)
        return self._text(self._follow(at)) if at else ""

    def texts(self, field: int) -> list[str]:
        """Returns a vector of strings."""
        return [self._text(self._follow(at)) for at in self._entries(field, 4)]

    def numbers(self, field: int, kind: str) -> list[int]:
        """Returns a vector of numbers."""
        return [_read(self._data, f"<{kind}", at) for at in self._entries(field, struct.calcsize(f"<{kind}"))]

    def length(self, field: int) -> int:
        """Returns how many elements a vector has."""
        at = self._place(field)
        return _read(self._data, "<I", self._follow(at)) if at else 0

    def bytes(self, field: int) -> memoryview:
        """Returns a vector of bytes."""
        at = self._place(field)
        if not at:
            return memoryview(b"")
        start = self._follow(at)
        size = _read(self._data, "<I", start)
        if start + 4 + size > len(self._data):
            raise ValueError(f"a vector claims {size:,} bytes, the file ends before")
        return memoryview(self._data)[start + 4 : start + 4 + size]

    def table(self, field: int) -> FlatTable | None:
        """Returns a table; ``None`` when it is left out."""
        at = self._place(field)
        return FlatTable(self._data, self._follow(at)) if at else None

    def tables(self, field: int) -> list[FlatTable]:
        """Returns a vector of tables."""
        return [FlatTable(self._data, self._follow(at)) for at in self._entries(field, 4)]

    def _entries(self, field: int, size: int) -> Iterator[int]:
        at = self._place(field)
        if not at:
            return
        start = self._follow(at)
        length = _read(self._data, "<I", start)
        if start + 4 + length * size > len(self._data):
            raise ValueError(f"a vector claims {length:,} entries, the file ends before")
        yield from range(start + 4, start + 4 + length * size, size)

    def _place(self, field: int) -> int:
        """Position of a field; 0 when it is left out, as no field can stand there."""
        if field >= self._count:
            return 0
        distance = _read(self._data, "<H", self._fields + 4 + 2 * field)
        return self._at + distance if distance else 0

    def _follow(self, at: int) -> int:
        return at + _read(self._data, "<I", at)

    def _text(self, at: int) -> str:
        size = _read(self._data, "<I", at)
        if at + 4 + size > len(self._data):
            raise ValueError(f"a text claims {size:,} bytes, the file ends before")
        return bytes(self._data[at + 4 : at + 4 + size]).decode(errors="replace")


def _read(data: bytes | memoryview, kind: str, at: int) -> int:
    if not 0 <= at <= len(data) - struct.calcsize(kind):
        raise ValueError(f"it points to byte {at:,}, the file has {len(data):,}")
    value: int = struct.unpack_from(kind, data, at)[0]
    return value
