"""Free sizes of a PyTorch program: named dimensions for ``torch.export``, and its refusals in words of the user's model."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import InputRejected
from toolkit.sizes import FreeSize

if TYPE_CHECKING:
    import torch

Axes = Mapping[str, Mapping[int, str]]
Limits = dict[str, dict[str, int]]

# PyTorch says what it would have liked instead: ``size_1 = 8``, ``size_1 = Dim('size_1', max=512)``, ``size_1 = 4*_size_1``.
_SUGGESTION = re.compile(r"^\s+(size_\d+) = (.+)$", re.MULTILINE)
_DIM = re.compile(r"\bsize_\d+\b")
_PLACE = re.compile(r"L\['(\w+)'\]\.size\(\)\[(\d+)\]")
_LIMIT = re.compile(r"(min|max)=(\d+)")
_HINT = "compute that size from the input's shape in forward, or leave it fixed"
_TRIES = 3


def export(
    module: torch.nn.Module, sample: dict[str, torch.Tensor], free: Axes, bounds: Mapping[str, FreeSize] | None = None
) -> torch.export.ExportedProgram:
    """Exports a module whose inputs have free sizes; equal names are equal sizes.

    Bounds become the program's. Where there are none, a limit that the model itself has, such as the length of its table of positions,
    does.

    Args:
        module: Takes ``sample`` by keyword.
        sample: Inputs of sizes of which none is 1 where it is free: PyTorch takes a 1 for a constant.
        free: Names of the free sizes by input and axis.
        bounds: The numbers between which they may lie, by name.

    Raises:
        InputRejected: The model fixes a size, ties it to another one or to multiples of a number, or has narrower limits than ``bounds``.
    """
    import torch
    from torch._dynamo.exc import UserError

    if not free:
        return torch.export.export(module, (), kwargs=sample)
    dims = {name: f"size_{place}" for place, name in enumerate(dict.fromkeys(size for names in free.values() for size in names.values()))}
    asked = {dims[name]: _asked(size) for name, size in (bounds or {}).items() if name in dims and size.is_bounded}
    limits: Limits = {dim: dict(ends) for dim, ends in asked.items()}
    for _ in range(_TRIES):
        try:
            return torch.export.export(module, (), kwargs=sample, dynamic_shapes=_shapes(sample, free, dims, limits))
        except UserError as error:
            found = _limits(str(error), free, dims)
            if found is None:
                raise _refusal(error, module, sample, free, dims, limits) from error
            for dim, ends in found.items():
                _keep_to(asked.get(dim, {}), ends, dim, free, dims)
                limits[dim] = limits.get(dim, {}) | ends
    raise InputRejected("torch.export finds other limits of the free sizes each time", where="convert.dynamic", hint=_HINT)


def _asked(size: FreeSize) -> dict[str, int]:
    return ({"min": size.least} if size.least > 1 else {}) | ({"max": size.most} if size.most else {})


def _keep_to(asked: Mapping[str, int], ends: Mapping[str, int], dim: str, free: Axes, dims: Mapping[str, str]) -> None:
    """Refuses bounds that are wider than what the model takes; a program that is captured anew with fewer sizes would not be what was asked."""
    names = {dim: name for name, dim in dims.items()}
    for end, words, narrower, bound in (("max", "at most", min, "{name}<={size}"), ("min", "at least", max, "{size}<={name}")):
        if end in asked and end in ends and narrower(asked[end], ends[end]) != asked[end]:
            hint = f"write {bound.format(name=names[dim], size=ends[end])}"
            raise InputRejected(f"the model takes {words} {ends[end]}, found the bound {asked[end]}", where=_place(names[dim], free), hint=hint)


def _place(size: str, free: Axes) -> str:
    return next(f"input {name!r}, axis {axis} ({size!r})" for name, sizes in free.items() for axis, called in sizes.items() if called == size)


def _shapes(sample: Mapping[str, Any], free: Axes, dims: Mapping[str, str], limits: Mapping[str, dict[str, int]]) -> dict[str, Any]:
    from torch.export import Dim

    made = {name: Dim(dim, **limits.get(dim, {})) for name, dim in dims.items()}
    return {name: {axis: made[size] for axis, size in free.get(name, {}).items()} or None for name in sample}


def _limits(message: str, free: Axes, dims: Mapping[str, str]) -> Limits | None:
    """Returns the limits that PyTorch asks for, or ``None`` when it asks for anything else too."""
    suggestions = _SUGGESTION.findall(message)
    if not suggestions or not all(text.startswith("Dim(") for _, text in suggestions):
        return None
    return {dim: {end: int(value) for end, value in _LIMIT.findall(text)} for dim, text in suggestions}


def _refusal(error: Exception, module: Any, sample: Any, free: Axes, dims: Mapping[str, str], limits: Any) -> InputRejected:
    """Explains why a size cannot be free: which input, which axis, what the model does with it, and where."""
    names = {dim: name for name, dim in dims.items()}
    for dim, text in _SUGGESTION.findall(str(error)):
        if text.startswith("Dim("):
            continue
        size = names[dim]
        place = _place(size, free)
        if text in names:
            hint = "give both the same name"
            return InputRejected(f"is always equal to the free size {names[text]!r} in this model", where=place, hint=hint)
        if text.isdigit():
            line = _where_fixed(module, sample, _shapes(sample, free, dims, limits))
            return InputRejected(f"the model works at size {text} only{f', because of {line}' if line else ''}", where=place, hint=_HINT)
        needed = text.replace(f"_{dim}", "n")
        return InputRejected(f"the model takes only sizes {needed}, with n a whole number", where=place, hint=_HINT)
    reason = next((line.strip(" -") for line in str(error).splitlines()[1:] if line.strip()), str(error))
    reason = _PLACE.sub(r"size \2 of \1", _DIM.sub(lambda dim: repr(names[dim[0]]), reason))
    return InputRejected(f"the sizes cannot be free: {reason[:300]}", where="convert.dynamic", hint=_HINT)


def _where_fixed(module: Any, sample: Any, shapes: Any) -> str:
    """Exports once more and listens to where PyTorch replaces a size by a number: ``forward in model.py, line 12``."""
    import torch
    from torch._dynamo.exc import UserError

    with _listening() as places, suppress(UserError):
        torch.export.export(module, (), kwargs=sample, dynamic_shapes=shapes)
    return places[0] if places else ""


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Collects where in the user's code sizes become numbers. PyTorch tells it in its log, in the very call that does it."""
    places: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "set_replacement" in record.getMessage():
                places.extend(_own_line())

    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before = logger.level, logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [Listener()], False
    logger.setLevel(logging.INFO)
    try:
        yield places
    finally:
        logger.handlers, logger.propagate = before[1], before[2]
        logger.setLevel(before[0])


def _own_line() -> list[str]:
    """The innermost line of the call stack that belongs to the model's code: not to PyTorch, Python or what PyTorch builds on."""
    for frame in reversed(traceback.extract_stack()):
        file = Path(frame.filename)
        if file != Path(__file__) and file.is_relative_to(Path(__file__).parents[1]):
            return []  # the wrapper around the model: no line of the model's own was on the way
        if file.suffix == ".py" and file != Path(__file__) and not _is_foreign(file):
            return [f"{file.name}, line {frame.lineno}: {frame.line}"]
    return []


def _is_foreign(file: Path) -> bool:
    import sympy
    import torch

    library = file.is_relative_to(Path(logging.__file__).parents[1]) and "site-packages" not in file.parts
    return library or any(file.is_relative_to(Path(str(module.__file__)).parent) for module in (torch, sympy))
