"""May these bytes be parsed? Cheap answers from the file alone, before any framework sees it.

Parsers written in C++ crash on damaged files, and some formats run code when they are loaded. So a model file is looked at
here first: it exists, has a sane size, carries its format's marks, and ends where it says it ends. Nothing is loaded: ONNX
files are walked through their top-level lengths, TFLite files by their first bytes, ``.pt2`` files as the zip archives they are.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from toolkit import intake_keras, intake_pickles, intake_torchscript, modelfile, onnx_external
from toolkit.errors import InputRejected

FORMATS = {
    **{f".{format}": format for format in ("onnx", "tflite", "pt2", "jax", "ort", "pte")},
    **intake_keras.SUFFIXES,
    **intake_torchscript.SUFFIXES,
}
MAX_BYTES = 16 << 30

_EXPORT_HINT = "export the model with torch.export.save to .pt2, or keep plain weights in .safetensors"

# Field number -> wire type (0 varint, 2 length-delimited) of ModelProto in onnx.proto, IR version 13.
_ONNX_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_ONNX_GRAPH, _ONNX_OPSET = 7, 8
_MAX_ONNX_FIELDS = 200_000

# torch.export.save stores its members uncompressed, so they cannot be much larger than the file that holds them.
_MAX_INFLATION = 20
_MAX_PT2_TEXT = 1 << 30
# What torch.save writes for plain tensors; anything else in a pickle may be a call to any function there is.
_TENSOR_GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
_CALL = re.compile(r"torch\.ops(\.\w+){2,3}|_operator\.(?!attrgetter|itemgetter|methodcaller|call)\w+|math\.\w+|torch\.sym_\w+")
# Sizes as sympy writes them: 2*s0 + 1, or Mul(Integer(2), Symbol('s0', positive=True, integer=True)).
_SIZE_FUNCTION = (
    r"(Add|Mul|Pow|Integer|Rational|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|FloatTrueDiv|IntTrueDiv|TruncToInt|ToFloat|Eq|Ne|Lt|Le|Gt|Ge)\("
)
_SYMBOL = r"Symbol\('[a-z]{1,3}\d+'(, ?(positive|nonnegative|integer)=True)*\)"
_SIZE_TOKEN = re.compile(rf"[suz]\d+|\d+|True|False|int_oo|{_SYMBOL}|{_SIZE_FUNCTION}|[-+*/(),<>= ]")
# ExecuTorch's extended header: magic and length, then the program's size, and where and how long the segments are.
_PTE_HEADER = struct.Struct("<4sIQQQ")
# A .jax file: this mark, the header's length (8 bytes, little-endian), the header (JSON), then the exported program.
JAX_MAGIC = b"\x93EDGEJAX\r\n\x1a\n"
_MAX_JAX_HEADER = 1 << 20
_IMPORTING_OPCODES = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}


def check_model(path: Path, format: str | None = None, *, max_bytes: int = MAX_BYTES) -> str:
    """Decides whether a model file may be handed to its framework's parser.

    Args:
        path: The model file, or the folder of a format whose models are folders.
        format: Its format; taken from the suffix when ``None``. For a format that only a plugin knows, existence and size
            are all that is checked.
        max_bytes: Largest size of the file, and for archives of what they unpack to.

    Returns:
        The format.

    Raises:
        InputRejected: The file is missing, empty, too large, damaged, not what its suffix says, or may run code when loaded.
    """
    folder = modelfile.folder_format(path) or (format if path.is_dir() else None)
    if folder:
        _check_folder(path, folder, max_bytes)
        return folder
    size = _size(path, max_bytes)
    found = format or _format_of(path)
    check = {"onnx": _check_onnx, "tflite": _check_tflite, "pt2": _check_pt2, "jax": _check_jax, "ort": _check_ort, "pte": _check_pte}.get(found)
    if found == intake_torchscript.FORMAT:
        intake_torchscript.check(path, size, max_bytes)
    if found in intake_keras.SUFFIXES.values():
        intake_keras.check(path, found, size, max_bytes)
    if check:
        try:
            with path.open("rb") as file:
                check(file, size, max_bytes)
            if found == "onnx":
                _check_weights(path, size, max_bytes)
        except OSError as error:
            raise InputRejected(f"cannot be read: {error.strerror or error}", where=str(path), hint="check the file's permissions") from error
        except _Damaged as damage:
            raise InputRejected(f"is not a usable {found} file: {damage}", where=str(path), hint=damage.hint) from damage
    return found


def inside(root: Path, candidate: str | Path) -> Path:
    """Resolves a path that a file names, and makes sure that it stays below a folder.

    Args:
        root: The folder that must contain it.
        candidate: The path as written, relative to ``root``; symbolic links are followed before judging.

    Returns:
        The resolved path, which need not exist.

    Raises:
        InputRejected: It leads out of the folder.
    """
    try:
        base = root.resolve()
        resolved = (base / candidate).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputRejected(f"is not a usable path: {error}", where=repr(str(candidate)), hint=f"name a file below {root}") from error
    if not resolved.is_relative_to(base):
        raise InputRejected(f"leads out of {base}, to {resolved}", where=str(candidate), hint=f"move the file below {root}")
    return resolved


class _Damaged(Exception):
    """What is wrong with the bytes; the caller adds which file it is."""

    def __init__(self, reason: str, hint: str = "download or export the file again") -> None:
        super().__init__(reason)
        self.hint = hint


def _size(path: Path, max_bytes: int) -> int:
    where = str(path)
    try:
        exists, regular = path.exists(), path.is_file()
        size = path.stat().st_size if regular else 0
    except (OSError, ValueError) as error:
        raise InputRejected(f"cannot be read: {error}", where=where, hint="check the path and its permissions") from error
    if not exists:
        raise InputRejected("does not exist", where=where, hint="check the path")
    if not regular:
        known = f"{', '.join(FORMATS)}; or a folder: {', '.join(modelfile.FOLDERS)}"
        raise InputRejected("is not a regular file", where=where, hint=f"give a model file: {known}")
    if not size:
        raise InputRejected("is empty (0 bytes)", where=where, hint="download or export the file again")
    if size > max_bytes:
        raise InputRejected(f"has {size:,} bytes, the limit is {max_bytes:,}", where=where, hint="use a smaller model")
    return size


def _check_folder(path: Path, format: str, max_bytes: int) -> None:
    """A folder must hold what marks its format, and nothing that leads out of it."""
    mark = modelfile.FOLDERS.get(format)
    if mark and not (path / mark).is_file():
        raise InputRejected(f"is not a usable {format} folder: it has no {mark}", where=str(path), hint="give the folder that holds it")
    size = modelfile.size_bytes(path)
    if not size:
        raise InputRejected("is empty (0 bytes)", where=str(path), hint="download or export the model again")
    if size > max_bytes:
        raise InputRejected(f"has {size:,} bytes, the limit is {max_bytes:,}", where=str(path), hint="use a smaller model")


def _format_of(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in intake_pickles.SUFFIXES:
        return intake_pickles.format_of(path)
    if suffix not in FORMATS:
        raise InputRejected(f"has the unknown suffix {suffix!r}; known: {', '.join(FORMATS)}", where=str(path), hint="rename the file or convert it")
    return FORMATS[suffix]


def _check_tflite(file: BinaryIO, size: int, max_bytes: int) -> None:
    _check_flatbuffer(file, size, b"TFL3")


def _check_ort(file: BinaryIO, size: int, max_bytes: int) -> None:
    _check_flatbuffer(file, size, b"ORTM")


def _check_pte(file: BinaryIO, size: int, max_bytes: int) -> None:
    """An extended header says how long the program is, and how many bytes of weights follow it."""
    _check_flatbuffer(file, size, b"ET12")
    file.seek(8)
    head = file.read(_PTE_HEADER.size)
    if len(head) == _PTE_HEADER.size and head.startswith(b"eh00"):
        _, _, program, segments, data = _PTE_HEADER.unpack(head)
        wanted = segments + data if segments else program
        if size < wanted:
            raise _Damaged(f"it has {size:,} bytes, its header says {wanted:,}")


def _check_flatbuffer(file: BinaryIO, size: int, mark: bytes) -> None:
    head = file.read(8)
    if head[4:] != mark:
        raise _Damaged(f"bytes 4 to 8 are {head[4:]!r}, expected {mark!r}")
    (root,) = struct.unpack_from("<I", head)
    if not 8 <= root <= size - 4:
        raise _Damaged(f"its root table is at byte {root:,}, the file has {size:,}")


def _check_onnx(file: BinaryIO, size: int, max_bytes: int) -> None:
    """Walks the top level of the protobuf message; a truncated file ends inside a field or lacks the later ones."""
    seen: set[int] = set()
    for count, (number, wire) in enumerate(_onnx_fields(file, size)):
        if _ONNX_FIELDS.get(number) != wire:
            raise _Damaged(f"field {number} with wire type {wire} does not belong to an ONNX ModelProto")
        if count >= _MAX_ONNX_FIELDS:
            raise _Damaged(f"it has more than {_MAX_ONNX_FIELDS:,} top-level fields")
        seen.add(number)
    for number, name in ((_ONNX_GRAPH, "graph"), (_ONNX_OPSET, "opset_import")):
        if number not in seen:
            raise _Damaged(f"it has no {name}, or is truncated before it")


def _check_weights(path: Path, size: int, max_bytes: int) -> None:
    """Weights in other files must be there, below the model's folder, and as long as the graph says."""
    try:
        size += sum(file.stat().st_size for file in onnx_external.check(path))
    except ValueError as error:
        raise _Damaged(str(error)) from error
    if size > max_bytes:
        raise InputRejected(f"has {size:,} bytes with its weights, the limit is {max_bytes:,}", where=str(path), hint="use a smaller model")


def _onnx_fields(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    while file.tell() < size:
        tag = _varint(file)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            _varint(file)
        elif wire == 2:
            length = _varint(file)
            left = size - file.tell()
            if length > left:
                raise _Damaged(f"field {number} needs {length:,} bytes and {left:,} are left; the file is truncated or damaged")
            file.seek(length, io.SEEK_CUR)
        yield number, wire


def _varint(file: BinaryIO) -> int:
    """Reads one base-128 varint (protobuf encoding, at most 10 bytes)."""
    value = 0
    for position in range(10):
        byte = file.read(1)
        if not byte:
            raise _Damaged("it ends inside a field; the file is truncated")
        value |= (byte[0] & 0x7F) << (7 * position)
        if byte[0] < 0x80:
            return value
    raise _Damaged("it has a number longer than 10 bytes")


def read_jax(file: BinaryIO, size: int) -> tuple[dict[str, Any], bytes]:
    """Splits a ``.jax`` file of ``size`` bytes into its header and the exported program, whose digest the header must know.

    Raises:
        ValueError: The file is damaged, truncated or of another kind; :func:`check_model` says so as an ``InputRejected``.
    """
    start = len(JAX_MAGIC) + 8
    head = file.read(start)
    if len(head) < start or not head.startswith(JAX_MAGIC):
        raise ValueError(f"its first bytes are {head[:8]!r}, expected {JAX_MAGIC[:8]!r}")
    length = int.from_bytes(head[-8:], "little")
    if length > min(_MAX_JAX_HEADER, size - start):
        raise ValueError(f"its header claims {length:,} bytes; the file is truncated or damaged")
    header, program = json.loads(file.read(length)), file.read()
    if not isinstance(header, dict) or header.get("sha256") != hashlib.sha256(program).hexdigest():
        raise ValueError("the exported program is not the one that the header describes; the file is truncated or damaged")
    return header, program


def _check_jax(file: BinaryIO, size: int, max_bytes: int) -> None:
    try:
        read_jax(file, size)
    except (ValueError, RecursionError) as error:
        raise _Damaged(str(error), "capture the model again") from error


def _check_pt2(file: BinaryIO, size: int, max_bytes: int) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            _check_members(archive.infolist(), size, max_bytes)
            _check_pt2_marks(archive)
            _refuse_code(archive)
            _check_programs(archive)
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error) as error:
        raise _Damaged(f"the zip archive is damaged or truncated: {error}") from error
    if damaged:
        raise _Damaged(f"the checksum of member {damaged!r} is wrong")


def _check_members(members: list[zipfile.ZipInfo], size: int, max_bytes: int) -> None:
    names = [member.filename for member in members]
    for name in names:
        if name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts or ":" in name.split("/")[0]:
            raise _Damaged(f"member {name!r} would be unpacked outside its folder", "do not use this file")
    if len({name.partition("/")[0] for name in names}) != 1 or not all(map(_below_top, names)):
        raise _Damaged("its members do not share one top folder", _EXPORT_HINT)
    if len(set(names)) != len(names):
        raise _Damaged("two members share one name, so two readers may see two models", "do not use this file")
    limit = min(max_bytes, _MAX_INFLATION * size)
    declared = sum(member.file_size for member in members)
    if declared > limit:
        raise _Damaged(f"it unpacks to {declared:,} bytes, the limit is {limit:,}", "do not use this file")


def _check_pt2_marks(archive: zipfile.ZipFile) -> None:
    marks = [name for name in archive.namelist() if _below_top(name) == "archive_format"]
    if len(marks) != 1 or archive.read(marks[0]) != b"pt2":
        script = any(_below_top(name).startswith("code/") for name in archive.namelist())
        hint = "it looks like TorchScript: rename it to .torchscript" if script else _EXPORT_HINT
        raise _Damaged("the zip archive has no archive_format 'pt2'", hint)


def _refuse_code(archive: zipfile.ZipFile) -> None:
    """Refuses compiled libraries, and every place from which ``torch.export.load`` unpickles more than plain tensors."""
    for name in archive.namelist():
        inner = _below_top(name)
        if inner.startswith("data/aotinductor/"):
            raise _Damaged(f"member {inner!r} is compiled code", _EXPORT_HINT)
        if inner.startswith(("data/constants/custom_obj_", "data/constants/opaque_obj_")):
            raise _Damaged(
                f"member {inner!r} is a pickled object, and loading a pickle runs code from the file", "export the model without custom objects"
            )
        if inner.startswith(("data/weights/", "data/constants/")) and inner.endswith(".json") and _names_pickle(archive, name):
            raise _Damaged(
                f"{inner!r} says that tensors are pickled, and loading a pickle runs code from the file", "export contiguous, plain tensors"
            )
        if inner.startswith("data/sample_inputs/") and archive.getinfo(name).file_size:  # empty when there are none
            _check_tensor_pickle(inner, archive.read(name))


def _check_programs(archive: zipfile.ZipFile) -> None:
    """Refuses programs whose strings PyTorch would evaluate: it looks call targets up by name and evals size expressions."""
    programs = [name for name in archive.namelist() if _below_top(name).startswith("models/") and name.endswith(".json")]
    if not programs:
        raise _Damaged("it holds no exported program", _EXPORT_HINT)
    for name in programs:
        pending = [_json(archive, name)]
        while pending:
            node = pending.pop()
            if isinstance(node, list):
                pending.extend(node)
            elif isinstance(node, dict):
                pending.extend(node.values())
                suspect = _suspect(node)
                if suspect:
                    raise _Damaged(f"member {name!r} holds {suspect[:200]!r}, which can run code when it is loaded", "do not use this file")


def _suspect(node: dict[str, Any]) -> str:
    """Returns a size expression or a call target that is not of the harmless kinds; only calls have inputs."""
    expression, target = node.get("expr_str"), node.get("target")
    if expression is not None and not (isinstance(expression, str) and not _SIZE_TOKEN.sub("", expression)):
        return str(expression)
    if "inputs" in node and target is not None and not (isinstance(target, str) and _CALL.fullmatch(target)):
        return str(target)
    return ""


def _below_top(name: str) -> str:
    return name.partition("/")[2]


def _names_pickle(archive: zipfile.ZipFile, name: str) -> bool:
    try:
        return any(entry.get("use_pickle", True) for entry in _json(archive, name)["config"].values())
    except (KeyError, TypeError, AttributeError) as error:
        raise _Damaged(f"member {name!r} is not a table of tensors: {error}") from error


def _json(archive: zipfile.ZipFile, name: str) -> Any:
    if archive.getinfo(name).file_size > _MAX_PT2_TEXT:
        raise _Damaged(f"member {name!r} is larger than {_MAX_PT2_TEXT:,} bytes")
    try:
        return json.loads(archive.read(name))
    except (ValueError, RecursionError) as error:
        raise _Damaged(f"member {name!r} is not JSON: {error}") from error


def _check_tensor_pickle(name: str, data: bytes) -> None:
    """Reads a ``torch.save`` file's opcodes without running them; every name it imports must build plain tensors."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickles = [member for member in archive.namelist() if member.endswith(".pkl")]
        if len(pickles) != 1 or archive.getinfo(pickles[0]).file_size > _MAX_INFLATION * len(data):
            raise _Damaged(f"member {name!r} is not one plain torch.save file", "export the model again")
        program = archive.read(pickles[0])
    for opcode, argument, _ in pickletools.genops(program):
        known = opcode.name == "GLOBAL" and (argument in _TENSOR_GLOBALS or _is_storage(str(argument)))
        if opcode.name in _IMPORTING_OPCODES or (opcode.name == "GLOBAL" and not known):
            raise _Damaged(f"member {name!r} is a pickle that imports {argument or opcode.name}, and loading it runs that", "do not use this file")


def _is_storage(name: str) -> bool:
    module, _, attribute = name.partition(" ")
    return module == "torch" and attribute.endswith("Storage") and attribute.isidentifier()
