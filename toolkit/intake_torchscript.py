"""May a TorchScript archive be loaded? It must be whole, and nothing in it may touch files or reach outside of plain tensors.

``torch.jit.load`` runs no Python: it reads pickles with a C++ reader that knows tensors and TorchScript's own classes, and it
compiles the archive's code, a small language of PyTorch's operators. That code may run when the file is loaded (a class's
``__setstate__``), and two operators touch files: ``aten::save`` writes one, ``aten::from_file`` opens one and can create it. Some
classes of C++ load compiled code. So the code is parsed here first, by Python's own parser, which it is a part of, and whatever
names such an operator or class is refused; so are namespaces of operators that are not known to be plain arithmetic.
"""

from __future__ import annotations

import ast
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from toolkit.errors import InputRejected

FORMAT = "torchscript"
SUFFIXES = {".torchscript": FORMAT}
_MAX_TEXT = 64 << 20
# Tensors are stored as they are; code is text that may be packed well.
_MAX_INFLATION = 20
_TOUCH_FILES = {"save": "writes files", "from_file": "opens files"}
_NAMESPACES = {"aten", "prim", "prims", "torchvision", "quantized", "mkldnn"}
_ROOTS = ("torch", "ops", "__torch__")
_ATTRIBUTE = re.compile(r"\w+")
_GLOBALS = re.compile(r"__torch__\.(?!torch\.classes\b)[\w.]+ \w+|__torch__ \w+|torch \w+Storage|torch\._utils _rebuild_\w+|torch\.jit\._pickle \w+")
_PLAIN_GLOBALS = {"collections OrderedDict", "torch device"}
_IMPORTING = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
_AGAIN = "save the model again with torch.jit.save"
_DO_NOT_USE = "do not use this file"


def check(path: Path, size: int, max_bytes: int) -> None:
    """Looks at an archive without PyTorch.

    Args:
        path: The file, which exists.
        size: Its size in bytes.
        max_bytes: Most that it may unpack to.

    Raises:
        InputRejected: It is damaged, no TorchScript, or names what touches files or loads compiled code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive.infolist(), size, max_bytes)
            for name in archive.namelist():
                inner = _below_top(name)
                if inner.endswith(".pkl"):
                    _check_pickle(inner, archive.read(name))
                elif inner.startswith("code/") and inner.endswith(".py"):
                    _check_code(inner, archive.read(name))
            damaged = archive.testzip()
    except _Refused as refused:
        raise InputRejected(f"is not a usable {FORMAT} file: {refused}", where=str(path), hint=refused.hint) from refused
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error) as error:
        what = f"is not a usable {FORMAT} file: the zip archive is damaged or truncated: {error}"
        raise InputRejected(what, where=str(path), hint=_AGAIN) from error
    except OSError as error:
        raise InputRejected(f"cannot be read: {error.strerror or error}", where=str(path), hint="check the file's permissions") from error
    if damaged:
        raise InputRejected(f"is not a usable {FORMAT} file: the checksum of member {damaged!r} is wrong", where=str(path), hint=_AGAIN)


class _Refused(Exception):
    """What is wrong with the archive; the caller adds which file it is."""

    def __init__(self, reason: str, hint: str = _AGAIN) -> None:
        super().__init__(reason)
        self.hint = hint


def _check_members(members: list[zipfile.ZipInfo], size: int, max_bytes: int) -> None:
    names = [member.filename for member in members]
    for name in names:
        if name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts:
            raise _Refused(f"member {name!r} would be unpacked outside its folder", _DO_NOT_USE)
    if len(set(names)) != len(names) or len({name.partition("/")[0] for name in names}) != 1:
        raise _Refused("its members do not share one top folder, or two share one name", _DO_NOT_USE)
    inner = {_below_top(name) for name in names}
    if "archive_format" in inner:
        raise _Refused("it is an exported program", "rename it to .pt2")
    missing = [mark for mark in ("constants.pkl", "data.pkl", "version") if mark not in inner]
    if missing or not any(name.startswith("code/") for name in inner):
        raise _Refused(f"it has no {(missing or ['code'])[0]}")
    texts = [member for member in members if _below_top(member.filename).startswith("code/")]
    packed = sum(member.file_size for member in texts)
    plain = sum(member.file_size for member in members) - packed
    if packed > min(max_bytes, _MAX_TEXT) or plain > min(max_bytes, _MAX_INFLATION * size):
        raise _Refused(f"it unpacks to {packed + plain:,} bytes from {size:,}", _DO_NOT_USE)


def _check_pickle(name: str, data: bytes) -> None:
    """Reads the opcodes without running them. Whatever is imported must be tensors, TorchScript's classes or its plain lists."""
    for opcode, argument, _ in pickletools.genops(data):
        known = opcode.name != "GLOBAL" or argument in _PLAIN_GLOBALS or _GLOBALS.fullmatch(str(argument))
        if opcode.name in _IMPORTING or not known:
            raise _Refused(f"member {name!r} imports {argument or opcode.name}", "save the model without custom classes")


def _check_code(name: str, data: bytes) -> None:
    try:
        tree = ast.parse(data.decode("ascii"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _Refused(f"the code of {name!r} cannot be read: {type(error).__name__}") from error
    for reason in _reasons(tree):
        raise _Refused(f"the code of {name!r} {reason}", "do not use this file; or export the model with torch.export.save to .pt2")


def _reasons(tree: ast.AST) -> Iterator[str]:
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if node.attr in _TOUCH_FILES:
                yield f"names the operator {node.attr}, which {_TOUCH_FILES[node.attr]}"
            if _is_operators(node.value) and node.attr not in _NAMESPACES:
                yield f"names operators of {node.attr}, which are not PyTorch's arithmetic"
            if node.attr == "classes" and _last(node.value) == "torch":
                yield "names a class of C++, which may load compiled code"
        elif isinstance(node, ast.Name) and node.id == "getattr" and not _is_plain_getattr(parents[node]):
            yield "looks up names that cannot be told from the code"
        elif isinstance(node, ast.Name) and node.id in _ROOTS and not _is_used_plainly(node, parents):
            yield f"gives {node.id} another name, behind which operators cannot be told"


def _is_operators(node: ast.AST) -> bool:
    """Whether it is ``ops`` or ``torch.ops``, below which operators of all kinds are; ``ops`` in the path of a class is not."""
    return (isinstance(node, ast.Name) and node.id == "ops") or (
        isinstance(node, ast.Attribute) and node.attr == "ops" and _last(node.value) == "torch"
    )


def _is_used_plainly(root: ast.Name, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether a dotted name is called; one of the archive's own functions or types may also stand for itself."""
    top: ast.AST = root
    while isinstance(parents.get(top), ast.Attribute):
        top = parents[top]
    around = parents.get(top)
    if root.id == "__torch__":
        return top is not root and not (_last(top) == "torch" and parents.get(root) is top)
    return top is not root and isinstance(around, ast.Call) and around.func is top


def _is_plain_getattr(call: ast.AST) -> bool:
    """Whether it is ``getattr`` with a name in quotes, as TorchScript writes submodules that are called by a number."""
    if not isinstance(call, ast.Call):
        return False
    name = call.args[1].value if len(call.args) == 2 and isinstance(call.args[1], ast.Constant) else None
    return isinstance(name, str) and bool(_ATTRIBUTE.fullmatch(name)) and name not in _TOUCH_FILES and name not in ("ops", "classes")


def _last(node: ast.AST) -> str:
    """The last part of a dotted name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _below_top(name: str) -> str:
    return name.partition("/")[2]
