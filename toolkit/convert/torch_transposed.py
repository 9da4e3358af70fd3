"""Transposed convolutions in a form that TFLite's one kernel for them computes exactly.

``TRANSPOSE_CONV`` knows no groups, no dilation, and two paddings only: none, and the one that multiplies sizes by the stride.
litert-torch stops at every other transposed convolution ("failed to legalize"). By definition, padding cuts the borders of the
result and output padding appends to it, groups are convolutions of their own, and a dilated kernel has zeros between its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_RANKS = {3: 1, 4: 2}


def is_transposed(operator: Any) -> bool:
    """Whether a PyTorch operator is a transposed convolution over one or two axes."""
    packet = getattr(operator, "overloadpacket", None)
    return packet is not None and packet.__name__ in ("conv_transpose1d", "conv_transpose2d")


def convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int = 0,
    output_padding: Sequence[int] | int = 0,
    groups: int = 1,
    dilation: Sequence[int] | int = 1,
) -> torch.Tensor:
    """Computes a transposed convolution; arguments as of ``torch.nn.functional.conv_transpose2d``.

    Args:
        x: ``[n x c x h x w]`` or ``[n x c x w]``.
        weight: ``[c x k / groups x ...]``, the kernel's sizes last.
        bias: ``[k]``.
        stride: Steps of the kernel, by axis.
        padding: Elements cut off at both ends of each axis.
        output_padding: Elements appended at the end of each axis.
        groups: Blocks of channels that do not mix.
        dilation: Distance of the kernel's elements, by axis.

    Returns:
        ``[n x k x ...]``.
    """
    import torch

    axes = _RANKS[x.dim()]
    steps, cut, append, spread = (_sizes(value, axes) for value in (stride, padding, output_padding, dilation))
    weight = _spread(weight, spread)
    if groups == 1 and not any(append) and _has_kernel(list(weight.shape[2:]), steps, cut):
        return _plain(x, weight, bias, steps, cut)
    sizes = [
        (size - 1) * step - 2 * border + kernel + more
        for size, step, border, kernel, more in zip(x.shape[2:], steps, cut, weight.shape[2:], append, strict=True)
    ]
    whole = _grouped(x, weight, steps, groups)
    missing = [max(0, border + size - have) for border, size, have in zip(cut, sizes, whole.shape[2:], strict=True)]
    if any(missing):
        whole = torch.nn.functional.pad(whole, [count for size in reversed(missing) for count in (0, size)])
    for axis, (border, size) in enumerate(zip(cut, sizes, strict=True), start=2):
        whole = whole.narrow(axis, border, size)
    return whole if bias is None else whole + bias.reshape(1, -1, *[1] * axes)


def _sizes(value: Sequence[int] | int, axes: int) -> list[int]:
    given = [value] if isinstance(value, int) else list(value)
    return given * axes if len(given) == 1 else given


def _has_kernel(kernel: list[int], steps: list[int], cut: list[int]) -> bool:
    """Whether nothing is cut, or on every axis just so much that sizes are multiplied by the stride."""
    return not any(cut) or all(size - step == 2 * border for size, step, border in zip(kernel, steps, cut, strict=True))


def _spread(weight: torch.Tensor, spread: list[int]) -> torch.Tensor:
    """Puts zeros between the weights of a dilated kernel, which makes it a plain one."""
    import torch

    for axis, distance in enumerate(spread, start=2):
        if distance > 1:
            size = weight.shape[axis]
            between = torch.zeros([*weight.shape[: axis + 1], distance - 1, *weight.shape[axis + 1 :]], dtype=weight.dtype)
            weight = torch.cat([weight.unsqueeze(axis + 1), between], axis + 1).flatten(axis, axis + 1).narrow(axis, 0, (size - 1) * distance + 1)
    return weight


def _grouped(x: torch.Tensor, weight: torch.Tensor, steps: list[int], groups: int) -> torch.Tensor:
    import torch

    if groups == 1:
        return _plain(x, weight, None, steps, [0] * len(steps))
    parts = zip(x.chunk(groups, 1), weight.chunk(groups, 0), strict=True)
    return torch.cat([_plain(part, own, None, steps, [0] * len(steps)) for part, own in parts], 1)


def _plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, steps: list[int], cut: list[int]) -> torch.Tensor:
    """One call of the kernel, which takes pictures: a single axis becomes a picture of height 1."""
    import torch

    if x.dim() == 4:
        return torch.nn.functional.conv_transpose2d(x, weight, bias, steps, cut)
    return torch.nn.functional.conv_transpose2d(x.unsqueeze(2), weight.unsqueeze(2), bias, [1, *steps], [0, *cut]).squeeze(2)
