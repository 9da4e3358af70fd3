"""``toolkit.inspect``: what a model file contains."""

from __future__ import annotations

from pathlib import Path

from toolkit.artifact import Artifact
from toolkit.contents import Contents
from toolkit.pipeline.single import open_model
from toolkit.store import Store


def inspect(model: Artifact | str | Path, *, store: Store | None = None) -> Contents:
    """Reads a model file without executing it.

    Args:
        model: The file.
        store: Where the reading is kept; the user's cache by default.

    Returns:
        Inputs, outputs, dtypes, operators and sizes.

    Raises:
        InputRejected: The file is damaged, or of a format that must not be read.
        MissingExtra: The library that reads this format is not installed.
        NoRoute: No reader looks into this format, and no runtime executes it.
    """
    return open_model(model, store)[1]
