"""What is in a file whose suffix pickles have? PyTorch writes three kinds of archive as ``.pt``, of which two are models.

The content decides: TorchScript and exported programs are taken for what they are. Weights alone and pickled objects are refused,
each with what to do instead. Nothing is unpickled; a pickle is read opcode by opcode.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
import zlib
from pathlib import Path

from toolkit.errors import InputRejected

SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
_EXPORT = "export the model with torch.export.save to .pt2, or keep plain weights in .safetensors"
_LOAD = "load them and give the live model: model.load_state_dict(torch.load(file, weights_only=True)); or keep them as .safetensors for --weights"
_PLAIN = re.compile(r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage|torch (Size|device)")
_IMPORTING = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
_MAX_PICKLE = 64 << 20


def format_of(path: Path) -> str:
    """Returns the format of a file by its content: ``torchscript`` or ``pt2``.

    Args:
        path: The file, which exists.

    Raises:
        InputRejected: It holds weights without a model, or is or may be a pickle whose loading runs code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            places = {name.partition("/")[2]: name for name in archive.namelist()}
            if "constants.pkl" in places and any(name.startswith("code/") for name in places):
                return "torchscript"
            if "archive_format" in places:
                return "pt2"
            if "data.pkl" in places and archive.getinfo(places["data.pkl"]).file_size <= _MAX_PICKLE:
                raise _refusal(path, _first_import(archive.read(places["data.pkl"])))
    except (OSError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, NotImplementedError, ValueError, RuntimeError, EOFError):
        pass  # neither an archive nor anything else that can be told from a pickle
    raise _refusal(path, None)


def _first_import(data: bytes) -> str | None:
    """Returns what a pickle imports beside plain tensors, ``module.name``; empty where it imports nothing else."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in _IMPORTING:
            return None
        if opcode.name == "GLOBAL" and not _PLAIN.fullmatch(str(argument)):
            return str(argument).replace(" ", ".")
    return ""


def _refusal(path: Path, imported: str | None) -> InputRejected:
    """Explains what is in the way.

    Args:
        path: The file.
        imported: What its pickle imports; empty for plain weights, ``None`` where nothing is known of it.
    """
    if imported == "":
        return InputRejected("holds weights without a model (a state dict)", where=str(path), hint=_LOAD)
    found = f"is a pickle of {imported}" if imported else "may be a pickle"
    what = f"{path.suffix.lower()} files are refused: this one {found}, and loading a pickle runs code from the file"
    return InputRejected(what, where=str(path), hint=_EXPORT)
