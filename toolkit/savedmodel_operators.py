"""May TensorFlow load this graph? Answered from the bytes of ``saved_model.pb`` alone, before TensorFlow sees them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from toolkit.errors import InputRejected

# A graph is data, but for these: they run Python code, open files of their own choice, or call other machines.
UNSAFE = re.compile(
    r"(Eager)?PyFunc(Stateless)?|ReadFile|WriteFile|MatchingFiles|\w*(Reader|ReaderV2)|\w*(TextLine|TFRecord|FixedLengthRecord|LMDB|Sql|Csv|CSV)\w*"
    r"|(Save|Load|Snapshot|Cache)Dataset(V2)?|DatasetToTFRecord|CreateSummary\w+|Debug\w+|Rpc\w*|RemoteCall|InitializeTableFromTextFile(V2)?"
    r"|LoadAndRemapMatrix|GenerateVocabRemapping|DecodeProtoV2|EncodeProto"
)
CHECKPOINT = re.compile(r"Save(V2|Slices)?|Restore(V2|Slice)?|MergeV2Checkpoints|ShardedFilename")


def refuse_unsafe(file: Path) -> None:
    """Refuses graphs with operators that run code or open files. Reads the file itself, without TensorFlow.

    Saving and restoring variables is let through: every SavedModel holds those operators, and TensorFlow's loader uses them itself.
    What may not be is an inference that needs one (``CHECKPOINT``), which only a loaded graph can tell.

    Args:
        file: The ``saved_model.pb`` of a SavedModel.

    Raises:
        InputRejected: There is one, or the file is not a SavedModel.
    """
    try:
        for name, operator, node in _operators(memoryview(file.read_bytes())):
            if UNSAFE.fullmatch(operator) or (operator == "PrintV2" and b"file://" in bytes(node)):
                message = f"holds the operator {operator} ({name}), which can run code or open files"
                raise InputRejected(message, where=str(file), hint="export the model without it, or do not use this file")
    except (IndexError, ValueError) as error:
        raise InputRejected(f"is not a usable savedmodel: {error}", where=str(file), hint="download or export the model again") from error
    except OSError as error:
        raise InputRejected(f"cannot be read: {error.strerror or error}", where=str(file), hint="check the file's permissions") from error


def _operators(data: memoryview) -> Iterator[tuple[str, str, memoryview]]:
    """Yields name, operator and bytes of every node: SavedModel.meta_graphs.graph_def, its nodes and those of its functions."""
    for meta in _fields(data, 2):
        for graph in _fields(meta, 2):
            functions = [function for library in _fields(graph, 2) for function in _fields(library, 1)]
            for nodes in (_fields(graph, 1), *(_fields(function, 3) for function in functions)):
                for node in nodes:
                    yield _text(node, 1), _text(node, 2), node


def _text(message: memoryview, number: int) -> str:
    return bytes(next(_fields(message, number), memoryview(b""))).decode("utf-8", "replace")


def _fields(data: memoryview, wanted: int) -> Iterator[memoryview]:
    """Yields the length-delimited fields of one number of a protobuf message (https://protobuf.dev/programming-guides/encoding)."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, wire = tag >> 3, tag & 7
        if wire not in (0, 1, 2, 5) or not number:
            raise ValueError(f"byte {place:,} starts no protobuf field")
        if wire == 0:
            _, place = _varint(data, place)
            continue
        length, place = _varint(data, place) if wire == 2 else ({1: 8, 5: 4}[wire], place)
        if place + length > len(data):
            raise ValueError(f"a field needs {length:,} bytes and {len(data) - place:,} are left; the file is truncated or damaged")
        if wire == 2 and number == wanted:
            yield data[place : place + length]
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
