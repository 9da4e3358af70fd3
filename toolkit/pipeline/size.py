"""``toolkit.check_sizes``: model files against size limits, for a hook that runs before every commit.

Nothing is parsed and nothing heavy is imported, so that the hook costs no more than starting Python.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit import display, modelfile
from toolkit.errors import ConfigError, InputRejected

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_TOLERANCE = "1%"


@dataclass(frozen=True)
class SizeCheck:
    """One file and its limit.

    Attributes:
        file: The file.
        size_bytes: Its size.
        limit_bytes: The largest allowed size; ``None`` when there is none.
        limit_from: Where the limit comes from: ``--max-size-bytes``, or the baseline's name.
    """

    file: str
    size_bytes: int
    limit_bytes: int | None
    limit_from: str = ""

    @property
    def holds(self) -> bool:
        """Whether the file is not larger than its limit."""
        return self.limit_bytes is None or self.size_bytes <= self.limit_bytes

    def to_dict(self) -> dict[str, Any]:
        """Returns the record as plain values."""
        return {**asdict(self), "holds": self.holds}

    def _repr_html_(self) -> str:
        return display.facts_html(self.file, {name: value for name, value in self.to_dict().items() if name != "file"})


def check_sizes(files: Iterable[str | Path], *, max_size_bytes: int | str | None = None, baseline: str | Path | None = None) -> tuple[SizeCheck, ...]:
    """Holds the sizes of files against a limit, and against the sizes of files of the same name in a baseline.

    Args:
        files: Model files.
        max_size_bytes: Largest size of any of them: a number of bytes, or ``"5MB"`` (10^6 bytes), ``"5MiB"``.
        baseline: A baseline file; the smallest recorded size of a file name, with the file's tolerance, limits it.

    Returns:
        One record per file, with the lower of its limits.

    Raises:
        ConfigError: The limit or the baseline cannot be read.
        InputRejected: A file does not exist or is no file.
    """
    asked = None if max_size_bytes is None else parse_size(max_size_bytes)
    recorded = {} if baseline is None else _recorded(Path(baseline))
    checks = []
    for file in map(Path, files):
        if not file.is_file() and not modelfile.folder_format(file):
            raise InputRejected("is not a file" if file.exists() else "does not exist", where=str(file), hint="give model files")
        limits = [(asked, "--max-size-bytes")] if asked is not None else []
        limits += [(recorded[file.name], Path(str(baseline)).name)] if file.name in recorded else []
        limit, origin = min(limits) if limits else (None, "")
        checks.append(SizeCheck(str(file), modelfile.size_bytes(file), limit, origin))
    return tuple(checks)


def parse_size(text: int | str) -> int:
    """Reads a size: bytes, or a number with KB, MB, GB (powers of ten), KiB, MiB or GiB (powers of two).

    Raises:
        ConfigError: It is no size, or not positive.
    """
    parts = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)\s*", str(text))
    unit = _UNITS.get(parts[2].upper()) if parts else None
    size = int(float(parts[1]) * unit) if parts and unit and parts[2] else int(parts[1]) if parts and unit and parts[1].isdecimal() else 0
    if size <= 0:
        raise ConfigError(f"{text!r} is no size", where="max_size_bytes", hint="write bytes, or for example 5MB (10^6 bytes) or 5MiB (2^20 bytes)")
    return size


def _recorded(path: Path) -> dict[str, int]:
    """The size limit of each file name in a baseline; read as plain JSON, as its model would take longer to load than all the rest."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.get("schema", 1) != 1:
            raise ValueError("another layout")
        limits: dict[str, int] = {}
        for row in document["rows"]:
            if "size_bytes" in row:
                tolerance = row.get("tolerances", {}).get("size", document.get("tolerances", {}).get("size", _TOLERANCE))
                limit = int(row["size_bytes"] * (1 + _share(tolerance)))
                limits[row["artifact"]] = min(limit, limits.get(row["artifact"], limit))
    except FileNotFoundError as error:
        raise ConfigError("baseline file does not exist", where=str(path), hint="check the path, or run: edgekit baseline update") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ConfigError("is not a baseline", where=str(path), hint="run: edgekit baseline show, which says what is wrong") from error
    return limits


def _share(value: str | float) -> float:
    parts = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(pp|%)\s*", value) if isinstance(value, str) else None
    share = float(parts[1]) / 100 if parts else float(value)
    if isinstance(value, bool) or not 0 <= share < 1:
        raise ValueError("no share")
    return share
