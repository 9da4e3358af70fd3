"""Where the files of a transformers model are: a folder, the hub's cache, or the hub. Pickled checkpoints are refused."""

from __future__ import annotations

import re
from pathlib import Path

from toolkit.collections.examples import online
from toolkit.errors import ConfigError, InputRejected, SetupError
from toolkit.factory import first_line

CONFIG = "config.json"
_HUB = "huggingface.co"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_OTHERS = ("*.h5", "*.msgpack", "*.gguf")
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_NEEDED = ("*.json", "*.safetensors", "*.txt", "*.model")


def folder(place: str) -> Path:
    """Returns the folder that a model's files are in, downloading them only when ``place`` is an id on the hub that is not in its cache.

    Raises:
        ConfigError: There is no such folder, and it cannot be an id, or the folder holds no model of transformers.
        InputRejected: Its weights are pickled.
        SetupError: The hub's model is not on this machine and cannot be downloaded.
    """
    path = Path(place)
    found = path if path.is_dir() else _snapshot(place)
    if not (found / CONFIG).is_file():
        raise ConfigError(f"has no {CONFIG}", where=str(found), hint="give the folder that save_pretrained wrote")
    _refuse_pickles(found)
    if found != path and not has_weights(found):
        raise _offline(place, "its weights in .safetensors are not in the cache of downloads")
    return found


def has_weights(found: Path) -> bool:
    """Whether a folder holds ``.safetensors`` weights."""
    return any(next(found.glob(pattern), None) for pattern in _WEIGHTS)


def notes(found: Path) -> list[str]:
    """Returns what lies beside the model: its tokenizer's files, which are no part of a program."""
    files = [name for name in _TOKENIZERS if (found / name).is_file()]
    return [f"its tokenizer ({', '.join(files)}) is no part of the file: give token ids"] if files else []


def _refuse_pickles(found: Path) -> None:
    if has_weights(found):
        return
    for pattern in (*_PICKLES, *_OTHERS):
        file = next(found.glob(pattern), None)
        if file is not None:
            pickled = "may be a pickle, and loading a pickle runs code from the file" if pattern in _PICKLES else "is of another framework"
            hint = "save the model where you trust it: model.save_pretrained(folder, safe_serialization=True)"
            raise InputRejected(f"holds no .safetensors; {file.name} {pickled}", where=str(found), hint=hint)


def _snapshot(place: str) -> Path:
    """Returns the hub's snapshot of a model: the one in its cache as it is, else a download."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if not _HUB_ID.fullmatch(place):
        raise ConfigError("is no folder, and no id on the hub either", where=place, hint="give the folder that save_pretrained wrote")
    try:
        return Path(snapshot_download(place, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        pass
    if not online(_HUB):
        raise _offline(place, f"there is no folder of that name, nor a download of it, and {_HUB} cannot be reached")
    try:
        return Path(snapshot_download(place, allow_patterns=list(_NEEDED)))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise _offline(place, f"cannot be downloaded: {first_line(error)}") from error


def _offline(place: str, what: str) -> SetupError:
    hint = f"run elsewhere: huggingface-cli download {place} --local-dir model; then give that folder: transformers:./model"
    return SetupError(what, where=f"transformers:{place}", hint=hint)
