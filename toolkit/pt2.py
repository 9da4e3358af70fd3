"""Loads captured PyTorch programs (``.pt2``) for everyone who needs one: routes, the runtime, the reader."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit import intake
from toolkit.artifact import Signature
from toolkit.errors import InputRejected, StageOutOfMemory
from toolkit.factory import CODE_ERRORS, first_line

if TYPE_CHECKING:
    import torch
    from torch.fx import Node

# What every PyTorch stage imports: the second is most of the time, and comes along with any optimizer or export.
PRELOAD = ("torch", "torch._dynamo")
FREE_SIZES = "free_sizes.json"
"""Extra file of a captured program: names of its free sizes by input and axis. PyTorch itself keeps no names, only symbols."""
UNBOUNDED = 1 << 40
"""From here on an upper bound is none: sympy's infinity, or the largest 64-bit integer that PyTorch puts in its place."""
_ONLY_WEIGHTS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def load(program: Path, *, keep: bool = False) -> torch.export.ExportedProgram:
    """Reads a ``.pt2`` file, after asking whether its bytes may be parsed.

    Args:
        program: The file.
        keep: Whether the next call for the same file gets this very program, as loading takes seconds. A preflight keeps what it only
            looked at, for the conversion that follows it.

    Raises:
        InputRejected: The file is damaged, or may run code when it is loaded.
        StageOutOfMemory: The process may not have the memory that the program needs.
    """
    state = program.stat() if program.exists() else None
    key = (program.resolve(), state and (state.st_mtime_ns, state.st_size))
    loaded = _kept.pop(key, None) or _load(program)
    _kept.clear()
    if keep:
        _kept[key] = loaded
    return loaded


_kept: dict[tuple[Path, tuple[int, int] | None], torch.export.ExportedProgram] = {}


def _load(program: Path) -> torch.export.ExportedProgram:
    import torch

    intake.check_model(program, "pt2")
    try:
        with _only_weights():
            return torch.export.load(program)
    except MemoryError as error:
        raise StageOutOfMemory(f"loading the program ran out of memory: {first_line(error)}", where=program.name) from error
    except (*CODE_ERRORS, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise InputRejected(f"is not a readable .pt2 program: {first_line(error)}", where=program.name, hint="capture the model again") from error


@contextmanager
def _only_weights() -> Iterator[None]:
    """Makes every ``torch.load`` inside refuse pickled code, also where PyTorch itself asks for the opposite."""
    before = os.environ.get(_ONLY_WEIGHTS)
    os.environ[_ONLY_WEIGHTS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ONLY_WEIGHTS]
        else:
            os.environ[_ONLY_WEIGHTS] = before


def size_names(file: Path, program: torch.export.ExportedProgram) -> dict[str, str]:
    """Returns what the free sizes of a program are called, by PyTorch's symbol: ``{"s77": "batch"}``.

    A program that somebody else captured has no names; its symbols stand for themselves.
    """
    names: dict[str, str] = {}
    inputs = dict(zip(input_names(program), input_nodes(program), strict=False))
    for name, axes in _free_sizes(file).items():
        if name in inputs and hasattr(inputs[name].meta.get("val"), "shape"):
            shape = inputs[name].meta["val"].shape
            names |= {str(shape[int(axis)]): size for axis, size in axes.items() if int(axis) < len(shape)}
    return names


def size_text(size: object, names: Mapping[str, str]) -> int | str:
    """Returns a size as a number, or as an expression of the free sizes' names: ``batch``, ``2*sequence``."""
    return size if isinstance(size, int) else re.sub(r"[a-z]+\d+", lambda symbol: names.get(symbol[0], symbol[0]), str(size))


def largest_batch(program: torch.export.ExportedProgram) -> int | None:
    """Returns the largest first axis of the inputs that a program was captured for; ``None`` where that is fixed or has no bound."""
    values = [node.meta.get("val") for node in input_nodes(program)]
    firsts = {str(value.shape[0]) for value in values if len(getattr(value, "shape", ()))}
    limits = [limit.upper for symbol, limit in program.range_constraints.items() if str(symbol) in firsts]
    return min((int(limit) for limit in limits if limit < UNBOUNDED), default=None)


def input_nodes(program: torch.export.ExportedProgram) -> list[Node]:
    """Returns the graph's nodes of what the user gives, in calling order."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return [nodes[str(name)] for name in program.graph_signature.user_inputs if str(name) in nodes]


def input_names(program: torch.export.ExportedProgram) -> list[str]:
    """Returns the names of the inputs in calling order: of positional ones the graph's, of keywords the caller's."""
    positional, named = program.call_spec.in_spec.children()
    own = [str(name) for name in program.graph_signature.user_inputs]
    return own[: positional.num_leaves] + [str(name) for name in (named.context or [])]


def _free_sizes(file: Path) -> dict[str, dict[str, str]]:
    with zipfile.ZipFile(file) as archive:
        found = next((name for name in archive.namelist() if name.endswith(f"/extra/{FREE_SIZES}")), None)
        sizes: dict[str, dict[str, str]] = json.loads(archive.read(found)) if found else {}
    return sizes


def blank_inputs(signature: Signature, program: torch.export.ExportedProgram | None = None) -> dict[str, torch.Tensor]:
    """Returns zeros of the signature's shapes: tracing needs sizes and dtypes, not values. Free sizes are those of :func:`free_sizes`."""
    import torch

    free = free_sizes(signature, program)
    shapes = {spec.name: [free[size] if isinstance(size, str) else size for size in spec.shape] for spec in signature.inputs}
    return {spec.name: torch.zeros(shapes[spec.name], dtype=getattr(torch, spec.dtype)) for spec in signature.inputs}


def free_sizes(signature: Signature, program: torch.export.ExportedProgram | None = None) -> dict[str, int]:
    """Returns a number for each free size: that of the program's own example; without one 2, 3, 4 and so on."""
    traced = _traced_sizes(program)
    free: dict[str, int] = {}
    for spec in signature.inputs:
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str) and size not in free:
                free[size] = traced[spec.name][axis] if spec.name in traced else len(free) + 2
    return free


def _traced_sizes(program: torch.export.ExportedProgram | None) -> dict[str, tuple[int, ...]]:
    if program is None or program.example_inputs is None:
        return {}
    positional, named = program.example_inputs
    values = dict(zip(input_names(program), positional, strict=False)) | dict(named)
    return {name: tuple(value.shape) for name, value in values.items() if hasattr(value, "shape")}
