"""ONNX operators over pictures and sequences: convolutions, pooling, padding, resizing. See :mod:`toolkit.convert.onnx_operators`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from toolkit.convert.onnx_operators import Call, Unsupported, named


def _pads(call: Call, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[tuple[int, int]]:
    """Returns how much to pad before and after each axis, with ``auto_pad`` resolved for static sizes."""
    rule, rank = call.attribute("auto_pad", "NOTSET"), len(kernel)
    if rule in ("NOTSET", ""):
        given = call.attribute("pads", [0] * 2 * rank)
        return list(zip(given[:rank], given[rank:], strict=True))
    if rule == "VALID":
        return [(0, 0)] * rank
    found = []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + dilation * (width - 1) + 1 - size)
        small = total // 2
        found.append((small, total - small) if rule == "SAME_UPPER" else (total - small, small))
    return found


def _for_torch(pads: Sequence[tuple[int, int]]) -> list[int]:
    """Returns pads as ``torch.nn.functional.pad`` takes them: the last axis first."""
    return [amount for pair in reversed(pads) for amount in pair]


def _symmetric(pads: Sequence[tuple[int, int]]) -> bool:
    return all(before == after for before, after in pads)


@named("Conv")
def _conv(call: Call) -> Any:
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    rank = weight.ndim - 2
    strides, dilations = call.attribute("strides", [1] * rank), call.attribute("dilations", [1] * rank)
    pads = _pads(call, x.shape[2:], weight.shape[2:], strides, dilations)
    if not _symmetric(pads):
        x, pads = call.torch.nn.functional.pad(x, _for_torch(pads)), [(0, 0)] * rank
    function = getattr(call.torch.nn.functional, f"conv{rank}d")
    return function(x, weight, bias, strides, [before for before, _ in pads], dilations, call.attribute("group", 1))


@named("ConvTranspose")
def _conv_transpose(call: Call) -> Any:
    """The whole product first, then what the pads take away: so pads of any kind, and a wanted size, come out exactly."""
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    rank = weight.ndim - 2
    strides, dilations = call.attribute("strides", [1] * rank), call.attribute("dilations", [1] * rank)
    extra, groups = call.attribute("output_padding", [0] * rank), call.attribute("group", 1)
    whole = [
        stride * (size - 1) + dilation * (width - 1) + 1
        for stride, size, dilation, width in zip(strides, x.shape[2:], dilations, weight.shape[2:], strict=True)
    ]
    pads = _transposed_pads(call, whole, x.shape[2:], strides, extra)
    function = getattr(call.torch.nn.functional, f"conv_transpose{rank}d")
    if _symmetric(pads) and all(after >= 0 for _, after in pads):
        return function(x, weight, bias, strides, [before for before, _ in pads], extra, groups, dilations)
    found = function(x, weight, None, strides, 0, 0, groups, dilations)
    found = call.torch.nn.functional.pad(found, _for_torch([(-before, more - after) for (before, after), more in zip(pads, extra, strict=True)]))
    return found if bias is None else found + bias.reshape(1, -1, *[1] * rank)


def _transposed_pads(call: Call, whole: Sequence[int], sizes: Sequence[int], strides: Sequence[int], extra: Sequence[int]) -> list[tuple[int, int]]:
    rule, wanted = call.attribute("auto_pad", "NOTSET"), call.attribute("output_shape")
    if rule in ("SAME_UPPER", "SAME_LOWER") and not wanted:
        wanted = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    if not wanted:
        given = call.attribute("pads", [0] * 2 * len(whole))
        return list(zip(given[: len(whole)], given[len(whole) :], strict=True))
    found = []
    for total, more, want in zip(whole, extra, wanted[-len(whole) :], strict=True):
        away = total + more - want
        small = away // 2
        found.append((small, away - small) if rule == "SAME_UPPER" else (away - small, small))
    return found


@named("MaxPool")
def _max_pool(call: Call) -> Any:
    if call.outputs > 1:
        raise Unsupported("the places of its maxima are asked for")
    x, kernel = call.tensor(0), call.attribute("kernel_shape")
    rank = len(kernel)
    strides, dilations = call.attribute("strides", [1] * rank), call.attribute("dilations", [1] * rank)
    pads = _pads(call, x.shape[2:], kernel, strides, dilations)
    if not _symmetric(pads) or any(2 * before > width for (before, _), width in zip(pads, kernel, strict=True)):
        x, pads = call.torch.nn.functional.pad(x, _for_torch(pads), value=-math.inf), [(0, 0)] * rank
    function = getattr(call.torch.nn.functional, f"max_pool{rank}d")
    return function(x, kernel, strides, [before for before, _ in pads], dilations, bool(call.attribute("ceil_mode", 0)))


@named("AveragePool")
def _average_pool(call: Call) -> Any:
    """Where the padding is uneven and does not count, sums and counts are pooled separately."""
    functional, x, kernel = call.torch.nn.functional, call.tensor(0), call.attribute("kernel_shape")
    rank = len(kernel)
    strides = call.attribute("strides", [1] * rank)
    if any(step != 1 for step in call.attribute("dilations", [1] * rank)):
        raise Unsupported("it is dilated")
    pads, counted = _pads(call, x.shape[2:], kernel, strides, [1] * rank), bool(call.attribute("count_include_pad", 0))
    pool, ceil = getattr(functional, f"avg_pool{rank}d"), bool(call.attribute("ceil_mode", 0))
    if ceil and any(pair != (0, 0) for pair in pads):
        raise Unsupported("it rounds its size up and is padded")  # the two count the outermost values in different ways
    if _symmetric(pads) and all(2 * before <= width for (before, _), width in zip(pads, kernel, strict=True)):
        return pool(x, kernel, strides, [before for before, _ in pads], ceil, counted)
    padded = functional.pad(x, _for_torch(pads))
    if counted:
        return pool(padded, kernel, strides)
    inside = functional.pad(call.torch.ones_like(x[:1, :1]), _for_torch(pads))
    return pool(padded, kernel, strides) / pool(inside, kernel, strides)


@named("GlobalAveragePool")
def _global_average(call: Call) -> Any:
    x = call.tensor(0)
    return call.torch.mean(x, list(range(2, x.ndim)), keepdim=True)


@named("GlobalMaxPool")
def _global_max(call: Call) -> Any:
    x = call.tensor(0)
    return call.torch.amax(x, list(range(2, x.ndim)), keepdim=True)


@named("Pad")
def _pad(call: Call) -> Any:
    x, mode = call.tensor(0), call.attribute("mode", "constant")
    given = call.numbers(1, "pads")
    axes = [int(axis) % x.ndim for axis in call.constant(3)] if call.has(3) else list(range(x.ndim))
    pairs = dict(zip(axes, zip(given[: len(axes)], given[len(axes) :], strict=True), strict=True))
    pads = [pairs.get(axis, (0, 0)) for axis in range(x.ndim)]
    if mode == "constant":
        value = call.constant(2).item() if call.has(2) else call.attribute("value", 0.0)
        return call.torch.nn.functional.pad(x, _for_torch(pads), value=value)
    if mode not in ("reflect", "edge") or any(pair != (0, 0) for pair in pads[:-3]):
        raise Unsupported(f"mode {mode} over {x.ndim} axes")
    changed = next(axis for axis in range(x.ndim) if pads[axis] != (0, 0) or axis == x.ndim - 1)
    grown = x[(None,) * max(0, 2 - changed)]  # PyTorch wants two axes in front of those that are padded
    return call.torch.nn.functional.pad(grown, _for_torch(pads[changed:]), mode="reflect" if mode == "reflect" else "replicate").reshape(
        [size + sum(pair) for size, pair in zip(x.shape, pads, strict=True)]
    )


@named("Resize", "Upsample")
def _resize(call: Call) -> Any:
    x, mode = call.tensor(0), call.attribute("mode", "nearest")
    sizes = _resized(call, x)
    if list(sizes[:2]) != list(x.shape[:2]):
        raise Unsupported("it resizes more than the last axes")
    rule = call.attribute("coordinate_transformation_mode", "half_pixel" if call.opset >= 11 else "asymmetric")
    functional = call.torch.nn.functional
    if mode == "nearest":
        rounding = call.attribute("nearest_mode", "floor" if call.opset < 11 else "round_prefer_floor")
        whole = all(new % old == 0 for new, old in zip(sizes[2:], x.shape[2:], strict=True))
        # PyTorch takes the floor of i / scale; around half pixels that is the nearest one for whole scales only.
        if (rule, rounding) != ("asymmetric", "floor") and not (whole and rule.endswith("half_pixel") and rounding.startswith("round")):
            raise Unsupported(f"nearest by {rounding} with {rule}")
        return functional.interpolate(x, size=sizes[2:], mode="nearest")
    kinds = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}
    if (mode, x.ndim) not in kinds or rule not in ("half_pixel", "pytorch_half_pixel", "align_corners") or call.attribute("antialias", 0):
        raise Unsupported(f"{mode} with {rule} over {x.ndim} axes")
    if mode == "cubic" and call.attribute("cubic_coeff_a", -0.75) != -0.75:
        raise Unsupported("another cubic coefficient than -0.75")
    if rule == "pytorch_half_pixel" and any(new == 1 < old for new, old in zip(sizes[2:], x.shape[2:], strict=True)):
        raise Unsupported("it shrinks an axis to 1 by its first value")
    return functional.interpolate(x, size=sizes[2:], mode=kinds[mode, x.ndim], align_corners=rule == "align_corners")


def _resized(call: Call, x: Any) -> list[int]:
    """Returns the new size of every axis."""
    if call.has(3) and not call.attribute("axes"):
        if call.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise Unsupported("it keeps a ratio")
        return [int(size) for size in call.constant(3)]
    if call.attribute("axes") or call.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unsupported("it names its axes, or keeps a ratio")
    place = 1 if call.opset < 11 else 2
    scales = [float(scale) for scale in (call.constant(place) if call.has(place) else call.attribute("scales"))]
    sizes = [math.floor(size * scale) for size, scale in zip(x.shape, scales, strict=True)]
    # PyTorch is given sizes, and takes their ratio for the scale.
    if any(abs(new / old - scale) > 1e-6 for new, old, scale in zip(sizes, x.shape, scales, strict=True)):
        raise Unsupported("its scales do not lead to whole sizes")
    return sizes


@named("DepthToSpace")
def _depth_to_space(call: Call) -> Any:
    x, block = call.tensor(0), call.attribute("blocksize")
    n, c, h, w = x.shape
    if call.attribute("mode", "DCR") == "CRD":
        return call.torch.nn.functional.pixel_shuffle(x, block)
    parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


@named("SpaceToDepth")
def _space_to_depth(call: Call) -> Any:
    x, block = call.tensor(0), call.attribute("blocksize")
    n, c, h, w = x.shape
    order = (0, 1, 3, 5, 2, 4) if call.attribute("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    return x.reshape(n, c, h // block, block, w // block, block).permute(order).reshape(n, c * block**2, h // block, w // block)
