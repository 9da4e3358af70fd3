"""May a Keras file (``.keras``, ``.h5``) be parsed? It must be whole, and nothing in it may run code or read other files.

Both hold the model's architecture as JSON, from which Keras looks classes and functions up by module and name, and unmarshals
the byte code of Lambda layers. So that JSON is read here first, with nothing but the standard library; only Keras' own layers,
operations and functions may be named in it. Weights are HDF5, whose links may lead to other files: none may.
"""

from __future__ import annotations

import io
import json
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from toolkit.errors import InputRejected, MissingExtra

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
SUFFIXES = {".keras": "keras", ".h5": "h5", ".hdf5": "h5"}

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", ("model.weights.h5", "model.weights.npz")
_MAX_CONFIG = 256 << 20
_MAX_MEMBERS = 10_000
_MAX_DATASETS = 200_000
# Keras stores weights uncompressed, so they cannot be much larger than the file that holds them.
_MAX_INFLATION = 20

_DO_NOT_USE = "do not use this file"
_DOWNLOAD = "download or export the file again"
_WHOLE_MODEL = "save the whole model: model.save('model.keras')"
_OWN_LAYERS = "rebuild the model of Keras' own layers and operations (keras.ops), or convert it where it was trained: model.export(folder)"

# Where the parts of a model come from. Functions elsewhere in Keras load files, download, or turn its own checks off.
_PARTS = re.compile(
    r"keras(\.src)?(\.(layers|activations|initializers|regularizers|constraints|ops|models|dtype_policies|random|quantizers"
    r"|optimizers|losses|metrics|backend\.common)(\.\w+)*)?"
)
_RUNS_CODE = {
    "Lambda": "a Lambda layer, and loading it runs code from the file",
    "__lambda__": "a Python function as byte code, and loading it runs that code",
    "TorchModuleWrapper": "a pickled torch module, and loading a pickle runs code from the file",
    "FlaxLayer": "a layer around a Flax module, which is code outside of the file",
    "JaxLayer": "a layer around a JAX function, which is code outside of the file",
    "TFSMLayer": "a layer that loads a SavedModel from a path",
    "TFOpLambda": "a TensorFlow operation as Keras 2 wrapped it, which Keras 3 cannot load",
    "SlicingOpLambda": "a TensorFlow operation as Keras 2 wrapped it, which Keras 3 cannot load",
}
_PLAIN = {"__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__", "__keras_tensor__", "__tuple__"}


def check(path: Path, format: str, size: int, max_bytes: int) -> None:
    """Looks at a Keras file without Keras.

    Args:
        path: The file, which exists.
        format: ``keras`` or ``h5``.
        size: Its size in bytes.
        max_bytes: Largest size that it may unpack to.

    Raises:
        InputRejected: It is damaged, holds weights only, may run code or read other files, or needs code that is not Keras' own.
        MissingExtra: It is HDF5, and h5py is not installed.
    """
    limit = min(max_bytes, _MAX_INFLATION * size + (1 << 20))
    try:
        with path.open("rb") as file:
            (_check_archive if format == "keras" else _check_h5)(file, limit)
    except _Unusable as damage:
        raise InputRejected(f"is not a usable {format} file: {damage}", where=str(path), hint=damage.hint) from damage
    except OSError as error:
        raise InputRejected(f"cannot be read: {error.strerror or error}", where=str(path), hint="check the file's permissions") from error


def foreign_parts(config: Any) -> Iterator[tuple[str, str]]:
    """Finds everything in a model's configuration that is not made of Keras' own parts.

    Args:
        config: The configuration, as JSON gives it.

    Yields:
        What it is, as ``layer 'scale' of class 'my.module.Scale'``, and why it is refused.
    """
    pending = [config]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending.extend(node)
        elif isinstance(node, dict):
            pending.extend(node.values())
            if "class_name" in node:
                reason = _refusal(node)
                if reason:
                    yield _called(node), reason


class _Unusable(Exception):
    """What is wrong with the bytes."""

    def __init__(self, reason: str, hint: str = _DOWNLOAD) -> None:
        super().__init__(reason)
        self.hint = hint


def _refusal(node: dict[str, Any]) -> str:
    """Says why one serialized object may not be loaded; nothing when it may."""
    name, module, registered = node["class_name"], node.get("module", ""), node.get("registered_name")
    if not isinstance(name, str):
        return "has a class name that is no text"
    bare = name.rpartition(">")[2]
    if bare in _RUNS_CODE:
        return f"is {_RUNS_CODE[bare]}"
    if name in _PLAIN:
        return ""
    if ">" in name or (isinstance(registered, str) and ">" in registered):
        return "is code outside of the file"
    if "module" in node and not (module == "builtins" and name == "function") and not (isinstance(module, str) and _PARTS.fullmatch(module)):
        return "is code outside of the file"
    settings = node.get("config")
    if isinstance(settings, dict) and isinstance(settings.get("vocabulary"), str):
        return f"reads the file {settings['vocabulary']!r} when it is loaded"
    return ""


def _called(node: dict[str, Any]) -> str:
    settings = node.get("config")
    name = settings.get("name") if isinstance(settings, dict) else None
    own = settings if node["class_name"] == "function" else node["class_name"]
    whole = ".".join(str(part) for part in (node.get("module"), own) if part)
    return f"layer {name!r} of class {whole!r}"[:200] if name else f"{whole!r}"[:200]


def _check_config(text: bytes, *, compiled: bool) -> None:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Unusable(f"the model's configuration is not JSON: {error}") from error
    if not isinstance(config, dict) or "class_name" not in config or "config" not in config:
        raise _Unusable("the model's configuration names no class", _WHOLE_MODEL)
    if compiled:
        config.pop("compile_config", None)  # the outermost one is never loaded here: training is over
    for what, reason in foreign_parts(config):
        raise _Unusable(f"{what} {reason}", _OWN_LAYERS)


def _check_archive(file: BinaryIO, limit: int) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            _check_members(archive.infolist(), limit)
            _check_config(_read(archive, _CONFIG), compiled=True)
            damaged = archive.testzip()
            if damaged:
                raise _Unusable(f"the checksum of member {damaged!r} is wrong")
            weights = next(name for name in _WEIGHTS if name in archive.namelist())
            if weights.endswith(".h5"):
                _check_weights(archive.read(weights), limit)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise _Unusable(f"the zip archive is damaged or truncated: {error}") from error


def _check_members(members: list[zipfile.ZipInfo], limit: int) -> None:
    names = [member.filename for member in members]
    for member in members[:_MAX_MEMBERS]:
        name = member.filename
        if (
            name.startswith(("/", "\\"))
            or ".." in PurePosixPath(name.replace("\\", "/")).parts
            or ":" in name
            or stat.S_ISLNK(member.external_attr >> 16)
        ):
            raise _Unusable(f"member {name!r} would be unpacked outside its folder", _DO_NOT_USE)
        if name not in (_CONFIG, _METADATA, *_WEIGHTS) and not name.startswith("assets/"):
            raise _Unusable(f"member {name[:200]!r} does not belong to a Keras model", _WHOLE_MODEL)
    if len(names) > _MAX_MEMBERS or len(set(names)) != len(names):
        raise _Unusable("members share one name, or are far too many", _DO_NOT_USE)
    if _CONFIG not in names or not set(_WEIGHTS) & set(names):
        raise _Unusable(f"it lacks {_CONFIG} or {_WEIGHTS[0]}", _WHOLE_MODEL)
    declared = sum(member.file_size for member in members)
    if declared > limit:
        raise _Unusable(f"it unpacks to {declared:,} bytes, the limit is {limit:,}", _DO_NOT_USE)


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > _MAX_CONFIG:
        raise _Unusable(f"member {name!r} is larger than {_MAX_CONFIG:,} bytes", _DO_NOT_USE)
    return archive.read(name)


def _check_weights(data: bytes, limit: int) -> None:
    with _hdf5(io.BytesIO(data), "the weights") as file:
        _check_datasets(file, limit)


def _check_h5(file: BinaryIO, limit: int) -> None:
    with _hdf5(file, "it") as opened:
        try:
            config = opened.attrs.get("model_config")
            text = config if isinstance(config, bytes) else str(config).encode()
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise _Unusable(f"its configuration is damaged: {error}") from error
        if config is None:
            raise _Unusable("it holds weights only, no model_config", _WHOLE_MODEL)
        if len(text) > _MAX_CONFIG:
            raise _Unusable(f"its configuration is larger than {_MAX_CONFIG:,} bytes", _DO_NOT_USE)
        _check_config(text, compiled=False)
        _check_datasets(opened, limit)


def _hdf5(file: BinaryIO, what: str) -> Any:
    if file.read(len(HDF5_MAGIC)) != HDF5_MAGIC:
        raise _Unusable(f"{what} does not start as HDF5 does")
    try:
        import h5py
    except ImportError as error:
        raise MissingExtra("h5py is needed to look into HDF5 files and is not installed", hint='run: pip install "edgekit[tensorflow]"') from error
    file.seek(0)
    try:
        return h5py.File(file, "r")
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise _Unusable(f"{what} is damaged or truncated HDF5: {error}") from error


def _check_datasets(file: Any, limit: int) -> None:
    """Walks all groups; every link must stay inside, and no dataset may keep its data elsewhere or claim more than the file can hold."""
    import h5py

    pending, declared, count = [file], 0, 0
    try:
        while pending:
            group = pending.pop()
            for name in group:
                count += 1
                if not isinstance(group.get(name, getlink=True), h5py.HardLink) or count > _MAX_DATASETS:
                    raise _Unusable(f"{group.name.rstrip('/')}/{name} is a link to somewhere else, or one of far too many", _DO_NOT_USE)
                node = group[name]
                if isinstance(node, h5py.Group):
                    pending.append(node)
                elif node.external or node.is_virtual or node.dtype.hasobject:
                    raise _Unusable(f"dataset {node.name!r} keeps its values outside of itself", _DO_NOT_USE)
                else:
                    declared += node.nbytes
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise _Unusable(f"its HDF5 groups are damaged: {error}") from error
    if declared > limit:
        raise _Unusable(f"its weights claim {declared:,} bytes, the limit is {limit:,}", _DO_NOT_USE)
