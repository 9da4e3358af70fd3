"""ONNX models that keep weights in files beside the graph, as those above 2 GiB must (onnx.proto, ``TensorProto.external_data``).

Edgekit writes such a model as a pair, ``NAME.onnx`` and ``NAME.onnx.data``. Others choose other names, or several files: a copy is always
such a pair, whatever it was made of. References are found and changed in the encoded graph, so that no framework is needed and
no weight is loaded.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from toolkit import onnx_wire
from toolkit.errors import InputRejected

SUFFIX = ".onnx"
DATA_SUFFIX = ".data"
CANONICAL = "model.onnx"
"""The name under which a pair is digested: it stands in the graph, and the same model has the same digest under every name."""
_HINT = "keep the file beside the model, under the name that it had when the model was saved"
_NOT_OURS = "do not use this file"
# The start of each file in a joined one: a multiple of the page size, so that a runtime can map its weights.
_ALIGNMENT = 4096
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Span:
    """Where the bytes of one tensor lie.

    Attributes:
        file: The data file.
        offset: First byte.
        length: Number of bytes; ``None`` where the graph does not say, which means all up to the end.
    """

    file: Path
    offset: int
    length: int | None

    @property
    def end(self) -> int:
        """The size that the file has at least."""
        return self.offset + (self.length or 0)


def data_path(model: Path) -> Path:
    """Where the weights of a pair are."""
    return model.with_name(model.name + DATA_SUFFIX)


def data_files(model: Path) -> list[Path]:
    """Returns the files in which a model keeps weights, in the order in which its graph names them; none for most models.

    A damaged graph names none: whoever parses the file says what is wrong with it.

    Raises:
        InputRejected: Such a file is missing, too short, or outside the model's folder.
    """
    if model.suffix.lower() != SUFFIX or not model.is_file():
        return []
    try:
        return list(check(model))
    except (ValueError, OSError):
        return []


def check(model: Path) -> dict[Path, int]:
    """Makes sure that all weights that a graph refers to are there, without reading them.

    Args:
        model: The ``.onnx`` file.

    Returns:
        For each data file, how many bytes of it are needed at least.

    Raises:
        InputRejected: A data file is missing, too short, or outside the model's folder.
        ValueError: The graph is damaged.
        OSError: The graph cannot be read.
    """
    needed: dict[Path, int] = {}
    for name, entries in onnx_wire.external_tensors(model):
        span = locate(model, name, entries)
        needed[span.file] = max(span.end, needed.get(span.file, 0))
    for file, size_bytes in needed.items():
        _check_size(model, file, size_bytes)
    return needed


def locate(model: Path, tensor: str, entries: Mapping[str, str]) -> Span:
    """Returns where the bytes of a tensor lie; whether they do is for :func:`check`.

    Args:
        model: The ``.onnx`` file.
        tensor: The tensor's name, for messages.
        entries: Its ``external_data``.

    Raises:
        InputRejected: The place is outside the model's folder, or no place.
    """
    where = f"{model}: tensor {tensor!r}"
    location = entries.get("location", "")
    if not location or Path(location).is_absolute() or PureWindowsPath(location).anchor or ".." in PureWindowsPath(location).parts:
        raise InputRejected(f"its external data {location!r} lies outside the model's folder", where=where, hint=_NOT_OURS)
    try:
        base = model.parent.resolve()
        file = (base / location).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputRejected(f"its external data {location!r} is not a usable path: {error}", where=where, hint=_NOT_OURS) from error
    if not file.is_relative_to(base) or file == model.resolve():
        what = "is the model itself" if file == model.resolve() else f"leads out of the model's folder, to {file}"
        raise InputRejected(f"its external data {location!r} {what}", where=where, hint="put the file itself beside the model")
    return Span(file, _number(entries, "offset", where) or 0, _number(entries, "length", where))


def sha256(model: Path, files: list[Path]) -> str:
    """Returns the hexadecimal SHA-256 of a model and its data files.

    It is the digest of what ``sha256sum model.onnx model.onnx.data`` prints of a copy under that name, so that it depends neither on the
    model's name nor on how the data is spread over files.

    Args:
        model: The ``.onnx`` file.
        files: Its data files, as :func:`data_files` returns them.

    Raises:
        OSError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for chunk in _joined(files):
        digest.update(chunk)
    graph = hashlib.sha256(graph_for(model, CANONICAL, files)).hexdigest()
    lines = f"{graph}  {CANONICAL}\n{digest.hexdigest()}  {CANONICAL}{DATA_SUFFIX}\n"
    return hashlib.sha256(lines.encode()).hexdigest()


def write_data(files: list[Path], out: Path) -> None:
    """Joins the data files of a model in one, each beginning at a multiple of 4096 bytes.

    Raises:
        OSError: A file cannot be read, or ``out`` not written.
    """
    if len(files) == 1:
        shutil.copyfile(files[0], out)
        return
    with out.open("wb") as stream:
        for chunk in _joined(files):
            stream.write(chunk)


def graph_for(model: Path, name: str, files: list[Path]) -> bytes:
    """Returns the graph of a model as it belongs beside the joined data of a model that is called ``name``.

    Args:
        model: The ``.onnx`` file.
        name: Name of the ``.onnx`` file that it is for.
        files: Its data files, as :func:`data_files` returns them.

    Raises:
        ValueError: The graph is damaged.
        OSError: It cannot be read.
    """
    starts = dict(zip(files, _starts(files), strict=True))

    def moved(tensor: str, entries: dict[str, str]) -> dict[str, str]:
        span = locate(model, tensor, entries)
        changed = {**entries, "location": name + DATA_SUFFIX}
        if len(files) > 1:
            length = span.file.stat().st_size - span.offset if span.length is None else span.length
            changed |= {"offset": str(starts[span.file] + span.offset), "length": str(length)}
        return changed

    return onnx_wire.rewritten(model, moved)


def _check_size(model: Path, file: Path, needed: int) -> None:
    where = str(model)
    if not file.is_file():
        raise InputRejected(f"its external data {file.name!r} is missing; at least {needed:,} bytes are expected there", where=where, hint=_HINT)
    size = file.stat().st_size
    if size < needed:
        found = f"its external data {file.name!r} has {size:,} bytes, expected at least {needed:,}"
        raise InputRejected(found, where=where, hint="copy the file again; it is truncated")


def _number(entries: Mapping[str, str], key: str, where: str) -> int | None:
    text = entries.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise InputRejected(f"its external data has the {key} {text[:40]!r}, which is no size", where=where, hint=_NOT_OURS)
    return int(text)


def _starts(files: list[Path]) -> list[int]:
    """Where each file begins in the joined one."""
    starts, position = [], 0
    for file in files:
        starts.append(position)
        position += -(-file.stat().st_size // _ALIGNMENT) * _ALIGNMENT
    return starts


def _joined(files: list[Path]) -> Iterator[bytes]:
    written = 0
    for start, file in zip(_starts(files), files, strict=True):
        yield bytes(start - written)
        written = start
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                written += len(chunk)
                yield chunk
