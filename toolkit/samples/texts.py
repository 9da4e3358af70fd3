"""Texts become token ids, as the model's own tokenizer makes them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import ConfigError, InputRejected, MissingExtra, SetupError
from toolkit.factory import CODE_ERRORS, first_line

FOLDER = "tokenizer"
_PIECE = 1000


class Tokenizer:
    """A tokenizer of transformers, with the length of a sample.

    Args:
        place: A folder, or an id on the hub; code in it is never run.
        max_length: Tokens of a sample.

    Raises:
        ConfigError: None is named.
        MissingExtra: transformers is not installed.
        SetupError: It would have to be downloaded, and cannot be.
        InputRejected: The folder holds none.
    """

    def __init__(self, place: str | Path | None, max_length: int) -> None:
        if place is None:
            hint = "set data.tokenizer to a folder or a hub id, or name a folder of transformers in model.name"
            raise ConfigError("texts need a tokenizer, and none is named", where="data.tokenizer", hint=hint)
        try:
            import transformers
        except ModuleNotFoundError as error:
            raise MissingExtra("reading texts needs transformers", where="data.text", hint='pip install "edgekit[finetune]"') from error
        transformers.utils.logging.set_verbosity_error()
        self.place, self.max_length = str(place), max_length
        try:
            self._made: Any = transformers.AutoTokenizer.from_pretrained(self.place, trust_remote_code=False)
        except CODE_ERRORS as error:
            if Path(place).is_dir():
                raise InputRejected(
                    f"holds no tokenizer: {first_line(error)}", where=self.place, hint="save it there with save_pretrained"
                ) from error
            told = f"the tokenizer {self.place} is not on this machine, and cannot be fetched: {first_line(error)}"
            raise SetupError(told, where="data.tokenizer", hint="fetch it elsewhere, and name its folder") from error

    def columns(self, texts: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
        """Returns ``input_ids``, ``attention_mask`` and what else the model takes, each ``[n x max_length] int64``.

        Args:
            texts: The texts, or the firsts and the seconds of pairs.
        """
        parts = []
        for start in range(0, len(texts[0]), _PIECE):
            piece = [[str(text) for text in column[start : start + _PIECE]] for column in texts]
            parts.append(self._made(*piece, padding="max_length", truncation=True, max_length=self.max_length, return_tensors="np"))
        names = [name for name in self._made.model_input_names if name in parts[0]]
        return {name: np.concatenate([part[name] for part in parts]).astype(np.int64) for name in names}

    def write(self, folder: Path) -> None:
        """Writes its files, for the device."""
        self._made.save_pretrained(str(folder / FOLDER))
        for leftover in (folder / FOLDER).glob(".*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def described(self) -> dict[str, Any]:
        """Returns what a device must do to a text."""
        special = {name: str(token) for name, token in self._made.special_tokens_map.items() if isinstance(token, str)}
        return {
            "kind": "text",
            "tokenizer": FOLDER,
            "class": type(self._made).__name__,
            "max_length": self.max_length,
            "padding": f"{self._made.padding_side}, to max_length",
            "truncation": self._made.truncation_side,
            "special_tokens": special,
        }
