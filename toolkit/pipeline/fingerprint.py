"""Digests of what users bring: files, folders, and the code of their project."""

from __future__ import annotations

import ast
from importlib import metadata
from pathlib import Path
from typing import Any

from toolkit.errors import InputRejected
from toolkit.store import digest_file, digest_of


def fingerprint(role: str, path: Path) -> Any:
    """Describes one of a step's files so that equal content gives equal descriptions.

    Args:
        role: The role; ``project`` stands for the user's code.
        path: A file or a folder.

    Raises:
        InputRejected: The path does not exist.
    """
    if role == "project":
        return _project_code(path)
    if path.is_file():
        return digest_file(path)
    if path.is_dir():
        return digest_of({file.relative_to(path).as_posix(): digest_file(file) for file in _files(path, "*")})
    raise InputRejected("does not exist", where=str(path), hint="check the path")


def _project_code(folder: Path) -> dict[str, Any]:
    """The Python files of a project and the versions of what they import.

    A factory may call any library, and a new version of it may give other data or another model.
    """
    sources = {file.relative_to(folder).as_posix(): file for file in _files(folder, "*.py")}
    imported = {name for file in sources.values() for name in _imports(file)}
    distributions = metadata.packages_distributions()
    names = {distribution for name in imported for distribution in distributions.get(name, ())}
    return {
        "files": {name: digest_file(file) for name, file in sources.items()},
        "versions": {name: metadata.version(name) for name in sorted(names)},
    }


def _imports(file: Path) -> set[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:
        return set()  # the stage that loads it will say so, with the line
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def _files(folder: Path, pattern: str) -> list[Path]:
    """Regular files below a folder, without hidden folders and caches."""
    found = [path for path in folder.rglob(pattern) if path.is_file()]
    return sorted(path for path in found if not any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts))
