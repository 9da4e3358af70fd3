"""May TensorFlow load this graph? Answered from the bytes of ``saved_model.pb`` alone, before TensorFlow sees them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from toolkit.errors import InputRejected
from toolkit.savedmodel_messages import MetaGraph, Node, read_graphs

# A graph is data, but for these: they run Python code, open files of their own choice, or call other machines.
UNSAFE = re.compile(
    r"(Eager)?PyFunc(Stateless)?|ReadFile|WriteFile|MatchingFiles|\w*(Reader|ReaderV2)|\w*(TextLine|TFRecord|FixedLengthRecord|LMDB|Sql|Csv|CSV)\w*"
    r"|(Save|Load|Snapshot|Cache)Dataset(V2)?|DatasetToTFRecord|CreateSummary\w+|Debug\w+|Rpc\w*|RemoteCall|InitializeTableFromTextFile(V2)?"
    r"|LoadAndRemapMatrix|GenerateVocabRemapping|DecodeProtoV2|EncodeProto"
)
CHECKPOINT = re.compile(r"Save(V2|Slices)?|Restore(V2|Slice)?|MergeV2Checkpoints|ShardedFilename")


WRITES_CHECKPOINT = re.compile(r"Save(V2|Slices)?|MergeV2Checkpoints")


def refuse_unsafe(file: Path) -> None:
    """Refuses graphs with operators that run code or open files. Reads the file itself, without TensorFlow.

    Every SavedModel holds operators that save and restore its variables, and TensorFlow's loader uses them. They may be nowhere else:
    not behind a signature, in a function of the object's own, in what runs when the graph is loaded; and what restores must not save.

    Args:
        file: The ``saved_model.pb`` of a SavedModel.

    Raises:
        InputRejected: There is one, or the file is not a SavedModel.
    """
    try:
        for found in unsafe(file):
            message = f"holds the operator {found}, which can run code or open files"
            raise InputRejected(message, where=str(file), hint="export the model without it, or do not use this file")
    except (IndexError, ValueError, KeyError) as error:
        raise InputRejected(f"is not a usable savedmodel: {error}", where=str(file), hint="download or export the model again") from error
    except OSError as error:
        raise InputRejected(f"cannot be read: {error.strerror or error}", where=str(file), hint="check the file's permissions") from error


def unsafe(file: Path) -> Iterator[str]:
    """Yields every operator of a ``saved_model.pb`` that runs code or opens files, with the name of its node: ``ReadFile (words)``.

    Raises:
        ValueError: The file is not a SavedModel.
        OSError: It cannot be read.
    """
    for meta in read_graphs(file.read_bytes()):
        for nodes in (meta.main.nodes, *(function.nodes for function in meta.functions.values())):
            yield from (f"{node.kind} ({node.name})" for node in nodes.values() if UNSAFE.fullmatch(node.kind) or _prints_to_file(node))
        places = [tensor.place for _, outputs in meta.signatures.values() for tensor in outputs.values()]
        started = _run_by(meta, [*places, *meta.started], meta.public)
        yield from (f"{node.kind} ({node.name})" for node in started if CHECKPOINT.fullmatch(node.kind))
        restoring = _run_by(meta, [meta.restores], ())
        yield from (f"{node.kind} ({node.name})" for node in restoring if WRITES_CHECKPOINT.fullmatch(node.kind))


def _prints_to_file(node: Node) -> bool:
    return node.kind == "PrintV2" and any(b"file://" in bytes(part) for value in node.attributes.values() for part in value.bytes(2))


def _run_by(meta: MetaGraph, places: list[str], functions: tuple[str, ...]) -> Iterator[Node]:
    """Yields the nodes that must run for some tensors or nodes of the main graph, and those of functions, all they call included."""
    pending = [place.removeprefix("^").partition(":")[0] for place in places if place]
    called, seen, entered = list(functions), set[str](), set[str]()
    while pending:
        node = meta.main.nodes.get(pending.pop())
        if node is not None and node.name not in seen:
            seen.add(node.name)
            pending += [source.partition(":")[0] for source in (*node.inputs, *node.after)]
            called += [node.kind, *node.functions()]
            yield node
    while called:
        name = called.pop()
        if name in meta.functions and name not in entered:
            entered.add(name)
            for node in meta.functions[name].nodes.values():
                called += [node.kind, *node.functions()]
                yield node
