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
from toolkit import modelfile, onnx_external
from toolkit.artifact import MANIFEST_SUFFIX
from toolkit.config import BASELINE_FILE, PROJECT_FILE
from toolkit.errors import InputRejected
from toolkit.store import digest_file, digest_of

# Lies in every folder that Edgekit fills with results, so that results inside a project are not taken for a part of it.
OUTPUT_MARK = ".edgekit-output"
_TOOLS = {".git", ".hg", ".svn", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".ipynb_checkpoints", ".DS_Store"}
_PROSE = {"README", "CHANGELOG", "LICENSE"}
_NOT_STAGES = {"cli", "pipeline", "checks", "report", "templates"}


def fingerprint(path: Path) -> Any:
    """Describes a file or folder so that equal content gives equal descriptions.

    Raises:
        InputRejected: The path does not exist, or is an ONNX model whose weights are missing.
    """
    if path.is_file():
        return modelfile.sha256(path)
    if path.is_dir():
        return digest_of(_digests(path, _walk(path)))
    raise InputRejected("does not exist", where=str(path), hint="check the path")


def fingerprint_project(folder: Path, apart: Collection[Path] = ()) -> dict[str, Any]:
    """Describes everything in a project's folder that its factories may depend on.

    A factory may read any file beside it and call any library, and another picture or another version of the library may
    give other data or another model. So every file counts, with the versions of all that the code imports. What does not
    count: ``edgekit.toml`` (its options are in the keys by themselves) and the baseline (which judges results), what tools keep
    beside the code (``.git``, ``.venv``, caches), ``README``, ``CHANGELOG`` and ``LICENSE``, and Edgekit's own results.

    Args:
        folder: The project's folder.
        apart: Files and folders that the project names as data or weights; the steps that read them follow them.

    Raises:
        InputRejected: The folder does not exist.
    """
    if not folder.is_dir():
        raise InputRejected("does not exist", where=str(folder), hint="check the path")
    left_out = {path.resolve() for path in apart}
    files = [
        file for file in _walk(folder, left_out) if not _is_ours(file) and file.name not in (PROJECT_FILE, BASELINE_FILE) and file.stem not in _PROSE
    ]
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
    try:
        return {file.relative_to(folder).as_posix(): digest_file(file) for file in files}
    except OSError as error:
        raise InputRejected(f"cannot be read: {error.strerror or error}", where=str(error.filename or folder), hint="mend its permissions") from error


def _walk(folder: Path, left_out: Collection[Path] = ()) -> Iterator[Path]:
    """Yields regular files below a folder, behind links too, without what tools keep there and folders that Edgekit filled."""

    def counts(path: Path) -> bool:
        return path.name not in _TOOLS and path.name != OUTPUT_MARK and path.resolve() not in left_out

    visited = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        here = Path(root)
        identity = (here.stat().st_dev, here.stat().st_ino)
        if identity in visited or (OUTPUT_MARK in names and here != folder):
            folders.clear()
            continue
        visited.add(identity)
        folders[:] = sorted(name for name in folders if counts(here / name))
        yield from (here / name for name in sorted(names) if counts(here / name) and (here / name).is_file())


def _is_ours(file: Path) -> bool:
    """Whether a file is a model that Edgekit delivered, the weights of one, or its manifest."""
    model = file.name.removesuffix(onnx_external.DATA_SUFFIX)
    return file.name.endswith(MANIFEST_SUFFIX) or any(file.with_name(name + MANIFEST_SUFFIX).exists() for name in (file.name, model))


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
