"""PyTorch operators in elementary ones that every target executes; each computes what PyTorch's own computes, but for the tanh GELU.

A :class:`Rule` is asked with the operator's arguments, once on a program's notes of shapes and once while PyTorch traces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LONGEST = 1024
"""Sorting by ranks compares all pairs, a megabyte of them at this size."""


@dataclass(frozen=True)
class Rule:
    """Another way to compute an operator.

    Attributes:
        fits: Whether it can, by the operator's arguments.
        build: Computes it, given the operator and its arguments.
    """

    fits: Callable[..., bool]
    build: Callable[..., Any]


def _is_exact(x: Any, approximate: str = "none") -> bool:
    return approximate == "none"


def _gelu_tanh(operator: Any, x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """``0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))``, equation 2 of Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016).

    It differs from the exact one by 4.8e-4 at most.
    """
    import torch

    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))


def _hard_sigmoid(operator: Any, x: torch.Tensor) -> torch.Tensor:
    """``relu6(x + 3) / 6`` (Howard et al., "Searching for MobileNetV3", 2019) as ``clamp(x / 6 + 1/2, 0, 1)``, exact but for rounding.

    TFLite's converter makes ``HARD_SWISH`` of the first form again; XNNPACK has no int8 kernel for it, but for each of the second.
    """
    import torch

    return torch.clamp(x * (1 / 6) + 0.5, 0, 1)


def _hard_swish(operator: Any, x: torch.Tensor) -> torch.Tensor:
    return x * _hard_sigmoid(operator, x)


GELU = {"gelu": Rule(_is_exact, _gelu_tanh)}
HARD_SWISH = {"hardswish": Rule(lambda x: True, _hard_swish), "hardsigmoid": Rule(lambda x: True, _hard_sigmoid)}


def _is_short(x: Any, *args: Any, **named: Any) -> bool:
    axis = named.get("dim", _axis_of(args))
    sizes = list(getattr(x, "shape", ()))
    return bool(sizes) and isinstance(axis, int) and isinstance(sizes[axis], int) and sizes[axis] <= LONGEST


def _axis_of(args: Sequence[Any]) -> int:
    """The axis among positional arguments: what is no bool, and stands last; these operators take the last axis by default."""
    return next((value for value in args[1:] if not isinstance(value, bool)), -1)


def _ranked(x: torch.Tensor, axis: int, count: int, descending: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the first ``count`` values along an axis in order, and where they were; among equal ones the first comes first.

    The rank of a value is the number of values that come before it. NaN has no rank here.
    """
    import torch

    moved = x.movedim(axis, -1)
    size = moved.shape[-1]
    mine, other = moved.unsqueeze(-1), moved.unsqueeze(-2)
    place = torch.arange(size, device=x.device)
    before = other > mine if descending else other < mine
    earlier = (other == mine) & (place.unsqueeze(0) < place.unsqueeze(1))
    rank = (before | earlier).to(torch.int32).sum(-1, dtype=torch.int32)
    chosen = rank.unsqueeze(-2) == torch.arange(count, dtype=torch.int32, device=x.device).unsqueeze(-1)
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    values = torch.where(chosen, moved.unsqueeze(-2), zero).sum(-1, dtype=x.dtype)
    places = (chosen.to(torch.int32) * place.to(torch.int32)).sum(-1, dtype=torch.int32).to(torch.int64)
    return values.movedim(-1, axis), places.movedim(-1, axis)


def _topk(operator: Any, x: torch.Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    return _ranked(x, dim, k, largest)


def _sort(operator: Any, x: torch.Tensor, *args: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    axis, falling = args if len(args) == 2 else (args[0] if args else dim, descending)
    return _ranked(x, axis, x.shape[axis], falling)


def _argsort(operator: Any, x: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
    places: torch.Tensor = _sort(operator, x, *args, **named)[1]
    return places


def _kthvalue(operator: Any, x: torch.Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    values, places = (one.narrow(dim, k - 1, 1) for one in _ranked(x, dim, k, False))
    return (values, places) if keepdim else (values.squeeze(dim), places.squeeze(dim))


def _median(operator: Any, x: torch.Tensor, dim: int, keepdim: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    return _kthvalue(operator, x, (x.shape[dim] + 1) // 2, dim, keepdim)


SORTING = {
    "sort": Rule(lambda x, *args, **named: _is_short(x, None, *args, **named), _sort),
    "argsort": Rule(lambda x, *args, **named: _is_short(x, None, *args, **named), _argsort),
    "topk": Rule(_is_short, _topk),
    "kthvalue": Rule(_is_short, _kthvalue),
    "median": Rule(lambda x, *args, **named: bool(args or named) and _is_short(x, None, *args, **named), _median),
}


def _is_fixed(x: Any, *args: Any, **named: Any) -> bool:
    sizes = [*getattr(x, "shape", ()), *(size for value in (*args, *named.values()) if isinstance(value, list | tuple) for size in value)]
    return x.is_floating_point() and all(isinstance(size, int | float) for size in sizes)


def _is_uneven(x: Any, size: Any = None, scales: Any = None, *more: Any) -> bool:
    """Whether values are repeated unevenly; TFLite's kernel takes other neighbours than PyTorch then."""
    if not _is_fixed(x, size, scales):
        return False
    old = x.shape[2:]
    new = size or [int(length * scale) for length, scale in zip(old, scales, strict=True)]
    return any(after % before for after, before in zip(new, old, strict=True))


def _resize(operator: Any, x: torch.Tensor, *args: Any) -> torch.Tensor:
    """Resizing weights the values along each axis on its own, so it is a matrix product along each: ``H x W^T``.

    The matrices are what the operator itself makes of an identity: they hold its very weights.
    """
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        height, width = (_weights(operator, x.shape[2 + axis], axis, args) for axis in range(2))
    return torch.matmul(height, torch.matmul(x, width.T))


def _weights(operator: Any, length: int, axis: int, args: Sequence[Any]) -> torch.Tensor:
    """The weights along one axis, ``[out x in]``. The other one keeps its two elements; antialiasing goes wrong for a single one."""
    import torch

    unit = torch.eye(length).unsqueeze(-1).repeat(1, 1, 2).unsqueeze(0)
    resized: torch.Tensor = operator(unit if axis == 0 else unit.transpose(2, 3).contiguous(), *_along(args, axis))
    return resized.select(3 - axis, 0)[0].T.contiguous()


def _along(args: Sequence[Any], axis: int) -> list[Any]:
    """An operator's sizes and scales, which are given for two axes, for one of them."""

    def one(values: Sequence[Any]) -> list[Any]:
        return [value if place == axis else 2 if isinstance(value, int) else None if value is None else 1.0 for place, value in enumerate(values)]

    lists = [one(value) if isinstance(value, list | tuple) else value for value in args]
    scales = lists[-2:] if all(value is None or isinstance(value, float) for value in lists[-2:]) else []
    return [*lists[: len(lists) - len(scales)], *one(scales)]


RESIZING = {
    **{name: Rule(_is_fixed, _resize) for name in ("upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")},
    **{name: Rule(_is_uneven, _resize) for name in ("upsample_nearest2d", "_upsample_nearest_exact2d")},
}


def _windows(length: int, count: int) -> list[tuple[int, int]]:
    """First element and size of each window of adaptive pooling."""
    return [(index * length // count, -(-(index + 1) * length // count) - index * length // count) for index in range(count)]


def _adaptive_max_pool(operator: Any, x: torch.Tensor, size: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the maximum of each window, and where in the picture it is."""
    import torch

    width, values, places = x.shape[-1], [], []
    for top, height in _windows(x.shape[-2], size[0]):
        for left, breadth in _windows(width, size[1]):
            window = x.narrow(-2, top, height).narrow(-1, left, breadth).flatten(-2)
            values.append(window.amax(-1))
            where = window.argmax(-1)
            places.append((where // breadth + top) * width + where % breadth + left)
    shape = [*x.shape[:-2], *size]
    return torch.stack(values, -1).reshape(shape), torch.stack(places, -1).reshape(shape)


MAX_POOLING = {"adaptive_max_pool2d": Rule(_is_fixed, _adaptive_max_pool)}
