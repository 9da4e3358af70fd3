"""``toolkit.init``: a commented project file to start from."""

from __future__ import annotations

import re
from pathlib import Path

from toolkit.config import PROJECT_FILE
from toolkit.errors import ConfigError
from toolkit.pipeline.deliver import write_text

_TEMPLATE = Path(__file__).resolve().parent.parent / "templates" / PROJECT_FILE


def init(folder: str | Path = ".", *, force: bool = False) -> Path:
    """Writes a commented ``edgekit.toml``.

    Args:
        folder: Where; made when it does not exist.
        force: Whether an existing file is overwritten.

    Returns:
        The file.

    Raises:
        ConfigError: The file exists already.
        SetupError: The folder cannot be written.
    """
    file = Path(folder) / PROJECT_FILE
    if file.exists() and not force:
        raise ConfigError("exists already", where=str(file), hint="give --force to overwrite it")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", file.resolve().parent.name).strip("-._") or "model"
    write_text(file, _TEMPLATE.read_text(encoding="utf-8").replace("@NAME@", name))
    return file
