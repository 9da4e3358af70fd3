"""Digests of what users bring: files, folders, and whole projects."""

from __future__ import annotations

import ast
import os
from collections.abc import Collection, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import toolkit
from toolkit.artifact import MANIFEST_SUFFIX
from toolkit.config import PROJECT_FILE
from toolkit.errors import InputRejected
from toolkit.store import digest_file, digest_of

# Lies in every folder that Edgekit fills with results, so that results inside a project are not taken for a part of it.
OUTPUT_MARK = ".edgekit-output"
_NOT_STAGES = {"cli", "pipeline", "checks", "report", "templates"}


def fingerprint(path: Path) -> Any:
    """Describes a file or folder so that equal content gives equal descriptions.

    Raises:
        InputRejected: The path does not exist.
    """
    if path.is_file():
        return digest_file(path)
    if path.is_dir():
        return digest_of(_digests(path, _walk(path)))
    raise InputRejected("does not exist", where=str(path), hint="check the path")


def fingerprint_project(folder: Path, apart: Collection[Path] = ()) -> dict[str, Any]:
    """Describes everything in a project's folder that its factories may depend on.

    A factory may read any file beside it and call any library, and another picture or another version of the library may
    give other data or another model. So every file counts, with the versions of all that the code imports. What does not
    count: hidden files, ``edgekit.toml`` (its options are in the keys by themselves), prose, and Edgekit's own results.

    Args:
        folder: The project's folder.
        apart: Files and folders that the project names as data or weights; the steps that read them follow them.

    Raises:
        InputRejected: The folder does not exist.
    """
    if not folder.is_dir():
        raise InputRejected("does not exist", where=str(folder), hint="check the path")
    left_out = {path.resolve() for path in apart}
    files = [file for file in _walk(folder, left_out) if not _is_ours(file) and file.name != PROJECT_FILE and file.suffix != ".md"]
    imported = {name for file in files if file.suffix == ".py" for name in _imports(file)}
    distributions = metadata.packages_distributions()
    names = {distribution for name in imported for distribution in distributions.get(name, ())}
    return {"files": _digests(folder, files), "versions": {name: metadata.version(name) for name in sorted(names)}}


@cache
def own_code() -> str:
    """Describes Edgekit's own code as far as it takes part in a stage, so that no stale result outlives a change of it.

    The command line, the pipeline, checks and reports come after the stages and decide nothing that is stored.
    """
    package = Path(toolkit.__file__).parent
    rooms = [folder for folder in package.iterdir() if folder.is_dir() and folder.name not in _NOT_STAGES and not folder.name.startswith("_")]
    files = [*package.glob("*.py"), *(file for folder in rooms for file in folder.rglob("*.py"))]
    return digest_of(_digests(package, sorted(files)))


def _digests(folder: Path, files: Collection[Path] | Iterator[Path]) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): digest_file(file) for file in files}


def _walk(folder: Path, left_out: Collection[Path] = ()) -> Iterator[Path]:
    """Yields regular files below a folder, without hidden ones, caches and folders that Edgekit filled."""
    for root, folders, names in os.walk(folder):
        if OUTPUT_MARK in names:
            folders.clear()
            continue
        here = Path(root)
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name != "__pycache__" and (here / name).resolve() not in left_out
        )
        yield from (here / name for name in sorted(names) if not name.startswith(".") and (here / name).resolve() not in left_out)


def _is_ours(file: Path) -> bool:
    """Whether a file is a model that Edgekit delivered, or its manifest."""
    return file.name.endswith(MANIFEST_SUFFIX) or file.with_name(file.name + MANIFEST_SUFFIX).exists()


def _imports(file: Path) -> set[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return set()  # the stage that loads it will say so, with the line
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found
