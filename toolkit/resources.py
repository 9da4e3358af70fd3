"""Finds targets and calibration recipes: those that ship with Edgekit, by name, and the user's own, by path."""

from __future__ import annotations

from pathlib import Path

from toolkit.config import Recipe, Target, parse, read_text
from toolkit.errors import ConfigError, SetupError
from toolkit.mistakes import nearest


def target_names() -> list[str]:
    """Lists the shipped targets."""
    return _names("targets")


def recipe_names() -> list[str]:
    """Lists the shipped calibration recipes."""
    return _names("calibration")


def load_target(name_or_path: str, base: Path | None = None) -> Target:
    """Loads a target by shipped name or by path (anything that ends in ``.toml``).

    Args:
        name_or_path: For example ``desktop-ort`` or ``./mine.toml``.
        base: Folder that a relative path starts from; the current one by default.

    Raises:
        ConfigError: There is no such target, or its file is wrong.
    """
    file = _find("targets", name_or_path, base)
    return parse(Target, read_text(file, "target file"), str(file), name=file.stem)


def load_recipe(name_or_path: str, base: Path | None = None) -> Recipe:
    """Loads a calibration recipe by shipped name or by path.

    Raises:
        ConfigError: There is no such recipe, or its file is wrong.
    """
    file = _find("calibration", name_or_path, base)
    return parse(Recipe, read_text(file, "calibration recipe"), str(file), name=file.stem)


def _find(kind: str, name_or_path: str, base: Path | None) -> Path:
    if name_or_path.endswith(".toml"):
        return (base or Path()) / name_or_path
    known = _names(kind)
    if name_or_path not in known:
        what = "target" if kind == "targets" else "calibration recipe"
        raise ConfigError(f"unknown {what} {name_or_path!r}", hint=nearest(name_or_path, known) + "; a path must end in .toml")
    return _folder(kind) / f"{name_or_path}.toml"


def _names(kind: str) -> list[str]:
    return sorted(file.stem for file in _folder(kind).glob("*.toml"))


def _folder(kind: str) -> Path:
    """The installed data folder, or the checkout's own."""
    package = Path(__file__).resolve().parent
    for folder in (package / "_data" / kind, package.parent / kind):
        if folder.is_dir():
            return folder
    raise SetupError(f"the shipped folder {kind!r} is missing", where=str(package), hint="reinstall edgekit")
