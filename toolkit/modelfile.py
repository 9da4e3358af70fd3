"""A model on disk: one file, a folder where a format asks for one (SavedModel, OpenVINO IR, Core ML packages), or an ONNX graph and its weights."""

from __future__ import annotations

import hashlib
import mmap
import shutil
from collections.abc import Iterable
from pathlib import Path

from toolkit import onnx_external
from toolkit.errors import InputRejected

FOLDERS = {"savedmodel": "saved_model.pb", "openvino": "model.xml", "mlpackage": "Manifest.json"}
"""Formats whose models are folders, and the file that each must hold."""
MOST_FILES = 10_000
BUFFER_BYTES = (1 << 31) - 1
"""What one Protocol Buffer or FlatBuffer holds, and so any file that is one."""


def exists(path: Path) -> bool:
    """Whether there is a model file, or a folder that could be a model."""
    return path.is_file() or path.is_dir()


def folder_format(path: Path) -> str | None:
    """Returns the format of a folder, by its suffix or by the file that marks it; ``None`` for any other folder and for files."""
    if not path.is_dir():
        return None
    suffix = path.suffix.lower().removeprefix(".")
    if suffix in FOLDERS:
        return suffix
    return next((format for format, mark in FOLDERS.items() if format != "mlpackage" and (path / mark).is_file()), None)


def files(path: Path) -> list[Path]:
    """Returns all files of a model: of a folder in the order of their names; of an ONNX model the graph, then the files of its weights.

    Raises:
        InputRejected: A folder holds symbolic links, which a copy or a digest would not follow, or far too many files; or weights that
            an ONNX graph refers to are missing, or outside its folder.
    """
    if not path.is_dir():
        return [path, *onnx_external.data_files(path)]
    found = []
    for entry in path.rglob("*"):
        if entry.is_symlink():
            raise InputRejected("is a symbolic link inside of a model", where=str(entry), hint="put the file itself there")
        if entry.is_file():
            found.append(entry)
        if len(found) > MOST_FILES:
            raise InputRejected(f"has more than {MOST_FILES:,} files", where=str(path), hint="give the folder of one model")
    return sorted(found, key=lambda file: file.relative_to(path).as_posix())


def mentions(path: Path, words: Iterable[bytes]) -> bool:
    """Whether a file holds one of some words: a quick look, before anything is read properly."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(word) >= 0 for word in words)


def size_bytes(path: Path) -> int:
    """Returns the size of a model: of its file, or of all its files.

    Raises:
        InputRejected: As :func:`files`.
    """
    return sum(file.stat().st_size for file in files(path))


def sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a model.

    Of a folder it is the digest of lines ``<sha256 of the file>  <path below the folder>``, as ``sha256sum`` prints them, in
    the order of the paths. Of an ONNX graph with weights in another file it is such a digest too, see :func:`toolkit.onnx_external.sha256`.

    Raises:
        InputRejected: A file cannot be read, or as :func:`files`.
    """
    if not path.is_dir():
        return _sha256_pair(path, data) if (data := onnx_external.data_files(path)) else sha256_file(path)
    lines = [f"{sha256_file(file)}  {file.relative_to(path).as_posix()}\n" for file in files(path)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file, read in chunks.

    Raises:
        InputRejected: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(error, path) from error


def _sha256_pair(path: Path, data: list[Path]) -> str:
    try:
        return onnx_external.sha256(path, data)
    except OSError as error:
        raise _unreadable(error, path) from error


def _unreadable(error: OSError, path: Path) -> InputRejected:
    hint = "check the path and its permissions"
    return InputRejected(f"cannot be read: {error.strerror or error}", where=str(error.filename or path), hint=hint)


def copy(source: Path, out: Path) -> None:
    """Copies a model's content; ``out`` must not exist as a folder.

    An ONNX graph with weights in other files becomes a pair: ``out``, and beside it all weights in ``<out>.data``.

    Raises:
        InputRejected: As :func:`files`.
    """
    data = onnx_external.data_files(source)
    if source.is_dir():
        _copy_folder(source, out)
    elif data:
        onnx_external.write_data(data, onnx_external.data_path(out))
        out.write_bytes(onnx_external.graph_for(source, out.name, data))
    else:
        shutil.copyfile(source, out)


def _copy_folder(source: Path, out: Path) -> None:
    # Not copytree: the store's files are read-only, and copies belong to whoever asked for them.
    for file in files(source):
        target = out / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        target.chmod(0o644)
