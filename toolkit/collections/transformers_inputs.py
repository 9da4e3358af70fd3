"""Plausible inputs for transformers models: Optimum's dummy inputs, token ids without special meaning, masks and pictures that vary."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.collections.examples import SAMPLES, images
from toolkit.errors import ConfigError

_TOKENS = 64
_WAVE_SAMPLES = 16_000  # a second
_PICTURE = 224
_LONGEST = ("max_position_embeddings", "n_positions", "max_sequence_length")
_GENERATORS = ("DummyTextInputGenerator", "DummyVisionInputGenerator", "DummyAudioInputGenerator", "DummyBboxInputGenerator")


def make(model: Any, task: str, folder: Path) -> dict[str, np.ndarray]:
    """Makes up inputs for a model, under its own names.

    Args:
        model: The live model; its ``config`` gives the sizes.
        task: What it does, by Optimum's name.
        folder: Where ``preprocessor_config.json`` is, which knows the size of pictures where the configuration does not.

    Returns:
        Inputs ``[8 x ...]`` by name; integers are int64, all else is float32.

    Raises:
        ConfigError: Nothing tells what an input looks like.
    """
    names = _names(model)
    sizes = _sizes(model.config, folder)
    rows = [{name: _one(name, task, model.config, sizes) for name in names} for _ in range(SAMPLES)]
    made = {name: np.concatenate([row[name] for row in rows]) for name in names}
    for name, column in made.items():
        if name == "input_ids":
            made[name] = _plain_tokens(column, model.config)
        elif column.ndim == 4 and name == "pixel_values":
            made[name] = images(*column.shape[1:])
        elif column.ndim == 3 and name == "input_features":
            made[name] = images(1, *column.shape[1:])[:, 0]
    return made


def _names(model: Any) -> list[str]:
    """Inputs that tell models apart: the main one, the other modality's, and what a tokenizer adds to token ids."""
    takes = inspect.signature(model.forward).parameters
    config, main = model.config, model.main_input_name
    both = {"input_ids": hasattr(config, "text_config"), "pixel_values": hasattr(config, "vision_config")}
    names = [name for name in ("input_ids", "pixel_values") if name in takes and (name == main or both[name])]
    if main in takes and main not in names:
        names.append(main)
    if "input_ids" in names:
        names[1:1] = [name for name, there in (("attention_mask", True), ("token_type_ids", _has_segments(config))) if there and name in takes]
        names += ["bbox"] if "bbox" in takes and hasattr(config, "max_2d_position_embeddings") else []
    if not names:
        raise ConfigError(f"nothing tells what {type(model).__name__} takes", where="transformers", hint="give samples named like its inputs")
    return names


def _has_segments(config: Any) -> bool:
    return (getattr(config, "type_vocab_size", 0) or 0) > 1


def _sizes(config: Any, folder: Path) -> dict[str, int]:
    text = getattr(config, "text_config", config)
    longest = [getattr(text, name) for name in _LONGEST if isinstance(getattr(text, name, None), int) and getattr(text, name) > 0]
    height, width = _picture(folder)
    frames = 2 * int(getattr(config, "max_source_positions", 0) or 1500)  # Whisper's first convolutions halve them
    return {
        "batch_size": 1,
        "sequence_length": min([_TOKENS, *longest]),
        "height": height,
        "width": width,
        "nb_max_frames": frames,
        "audio_sequence_length": _WAVE_SAMPLES,
    }


def _picture(folder: Path) -> tuple[int, int]:
    """Height and width that the preprocessor makes of pictures."""
    try:
        told = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return _PICTURE, _PICTURE
    size = (told.get("crop_size") or told.get("size")) if isinstance(told, dict) else None
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge", _PICTURE)
        return int(size.get("height", edge)), int(size.get("width", edge))
    return (int(size), int(size)) if isinstance(size, int) else (_PICTURE, _PICTURE)


def _one(name: str, task: str, config: Any, sizes: dict[str, int]) -> np.ndarray:
    """One sample of one input, ``[1 x ...]``."""
    from optimum.utils import input_generators

    for kind in _GENERATORS:
        generator = getattr(input_generators, kind)
        if any(name.startswith(known) for known in generator.SUPPORTED_INPUT_NAMES):
            made: np.ndarray = generator(task, _normalized(config, kind), **sizes).generate(name, framework="pt").numpy()
            return made
    raise ConfigError(f"nothing tells what the input {name!r} looks like", where="transformers", hint="give samples named like the model's inputs")


def _normalized(config: Any, kind: str) -> Any:
    """Returns Optimum's view of a configuration, in which sizes have the same names for all models."""
    from optimum.utils import normalized_config

    if hasattr(config, "text_config") and hasattr(config, "vision_config"):
        return normalized_config.NormalizedTextAndVisionConfig.with_args(text_config="text_config", vision_config="vision_config")(config)
    try:
        return normalized_config.NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
    except KeyError:
        return (normalized_config.NormalizedTextConfig if "Text" in kind else normalized_config.NormalizedVisionConfig)(config)


def _plain_tokens(tokens: np.ndarray, config: Any) -> np.ndarray:
    """Replaces special tokens, which mean padding or an end; an encoder-decoder needs one end, as its last token."""
    text = getattr(config, "text_config", config)
    named = [getattr(text, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos", "sep", "cls", "unk", "decoder_start")]
    special = {int(one) for token in named for one in (token if isinstance(token, list) else [token]) if one is not None}
    plain = np.setdiff1d(np.arange(text.vocab_size), list(special))
    tokens = np.where(np.isin(tokens, list(special)), plain[tokens % len(plain)], tokens) if len(plain) else tokens
    if getattr(text, "is_encoder_decoder", False) and isinstance(text.eos_token_id, int):
        tokens[:, -1] = text.eos_token_id
    return tokens
