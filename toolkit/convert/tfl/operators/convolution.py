"""Convolutions. TFLite's kernels want the channels last and the filter as ``[outputs x height x width x inputs]``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.convert.tfl.graph import Graph, Shape, Tensor
from toolkit.convert.tfl.lower import Call, channels_last, operator
from toolkit.convert.tfl.program import Unsupported

_SAME, _VALID = 0, 1  # schema.Padding
_AXES = "DHW"
Edges = Sequence[Sequence[int]]


@operator("Conv", rule=channels_last, limits="up to three spatial axes")
def _conv(call: Call) -> Tensor:
    value, weight = call.x(0), call.x(1)
    kernel = weight.shape[2:]
    spatial = len(kernel)
    if spatial > 3:
        raise Unsupported(f"has {spatial} spatial axes")
    strides, dilations = (call.attribute(name) or [1] * spatial for name in ("strides", "dilations"))
    edges = paddings(call, value.shape[1:-1], kernel, strides, dilations)
    bias = call.x(2) if call.has(2) else None
    group = call.attribute("group", 1)
    if spatial == 3:
        return _volume(call.graph, value, weight, bias, strides, dilations, edges, group)
    if spatial == 1:  # a row of height one
        value, weight = row(call.graph, value), call.graph.reshape(weight, (*weight.shape[:2], 1, *kernel))
        strides, dilations, edges = [1, *strides], [1, *dilations], [(0, 0), *edges]
    made = convolve(call.graph, value, weight, bias, strides, dilations, edges, group)
    return call.graph.reshape(made, call.shape())


def row(graph: Graph, value: Tensor) -> Tensor:
    """Returns ``[n x w x c]`` as an image of height one."""
    return graph.reshape(value, (value.shape[0], 1, *value.shape[1:]))


def convolve(
    graph: Graph,
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: Sequence[int],
    dilations: Sequence[int],
    edges: Edges,
    group: int,
) -> Tensor:
    """Adds a convolution of an image ``[n x h x w x c]`` with ONNX's filter ``[outputs x inputs/group x h x w]``."""
    outputs, kernel, channels = weight.shape[0], weight.shape[2:], value.shape[3]
    found = lengths(value.shape[1:3], edges, kernel, strides, dilations)
    value, padding = _edged(graph, value, edges, kernel, strides, dilations)
    options = {"padding": padding, "strideH": strides[0], "strideW": strides[1], "dilationHFactor": dilations[0], "dilationWFactor": dilations[1]}
    shape = (value.shape[0], *found, outputs)
    bias = bias or graph.constant(np.zeros(outputs, np.float32))
    if group == channels and (group > 1 or outputs == 1):
        filters = graph.transpose(weight, (1, 2, 3, 0))  # [1 x h x w x c]
        return graph.add("DEPTHWISE_CONV_2D", [value, filters, bias], shape, depthMultiplier=outputs // channels, **options)
    # A kernel for groups takes them from the sizes: the filter has the channels of one group.
    return graph.add("CONV_2D", [value, graph.transpose(weight, (0, 2, 3, 1)), bias], shape, **options)


def _edged(graph: Graph, value: Tensor, edges: Edges, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> tuple[Tensor, int]:
    """Returns what a convolution reads and how it pads that: what TFLite calls SAME it does itself."""
    same = [same_padding(*given) for given in zip(value.shape[1:-1], kernel, strides, dilations, strict=True)]
    if same == [tuple(edge) for edge in edges] and any(map(any, edges)):
        return value, _SAME
    return graph.pad(value, [(0, 0), *edges, (0, 0)]), _VALID


def _volume(
    graph: Graph,
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: Sequence[int],
    dilations: Sequence[int],
    edges: Edges,
    group: int,
) -> Tensor:
    """Adds a convolution of ``[n x d x h x w x c]``; there is no kernel for groups of channels, so each is one convolution."""
    kernel, outputs = weight.shape[2:], weight.shape[0] // group
    found = lengths(value.shape[1:4], edges, kernel, strides, dilations)
    value, padding = _edged(graph, value, edges, kernel, strides, dilations)
    options = {"padding": padding, **_named("stride", strides), **_named("dilation", dilations, "Factor")}
    filters = graph.transpose(weight, (2, 3, 4, 1, 0))
    parts = zip(_parts(graph, value, 4, group), _parts(graph, filters, 4, group), strict=True)
    shape = (value.shape[0], *found, outputs)
    made = joined(graph, [graph.add("CONV_3D", list(part), shape, **options) for part in parts], 4)
    return graph.binary("ADD", made, bias) if bias else made


def _named(stem: str, numbers: Sequence[int], suffix: str = "") -> dict[str, int]:
    return {f"{stem}{axis}{suffix}": int(number) for axis, number in zip(_AXES[-len(numbers) :], numbers, strict=True)}


def _parts(graph: Graph, value: Tensor, axis: int, count: int) -> list[Tensor]:
    """Splits a tensor into equal parts."""
    if count == 1:
        return [value]
    if value.data is not None:
        return [graph.constant(np.ascontiguousarray(part)) for part in np.split(value.data, count, axis)]
    shape = [size // count if place == axis else size for place, size in enumerate(value.shape)]
    return graph.add_many("SPLIT", [graph.constant(axis, np.int32), value], [(shape, value.dtype)] * count, numSplits=count)


def joined(graph: Graph, parts: Sequence[Tensor], axis: int) -> Tensor:
    """Concatenates tensors."""
    if len(parts) == 1:
        return parts[0]
    shape = [sum(part.shape[axis] for part in parts) if place == axis else size for place, size in enumerate(parts[0].shape)]
    return graph.add("CONCATENATION", parts, shape, axis=axis)


@operator(
    "ConvTranspose", rule=channels_last, limits="up to three spatial axes, with three no free batch; a dilated filter of three axes is constant"
)
def _conv_transpose(call: Call) -> Tensor:
    graph, value, weight = call.graph, call.x(0), call.x(1)
    kernel = weight.shape[2:]
    spatial, group = len(kernel), call.attribute("group", 1)
    strides, dilations = (call.attribute(name) or [1] * spatial for name in ("strides", "dilations"))
    wanted = call.known(call.shape()[1:-1], "the size of its result")
    if len(wanted) != spatial:  # ONNX's inference gives up
        raise Unsupported("has an output_shape that is smaller than its input")
    before = _cut(call, value.shape[1:-1], kernel, strides, dilations, wanted)
    bias = call.x(2) if call.has(2) else None
    if spatial == 1:
        value, weight = row(graph, value), graph.reshape(weight, (*weight.shape[:2], 1, *kernel))
        strides, dilations, before, wanted = [1, *strides], [1, *dilations], [0, *before], (1, *wanted)
    if spatial > 3 or (spatial == 3 and value.shape[0] == -1):
        raise Unsupported(f"has {spatial} spatial axes{' and a free number of samples' if spatial == 3 else ''}")
    if group > 1 and spatial < 3 and weight.data is not None:
        return graph.reshape(_spread_out(graph, value, weight, bias, strides, dilations, before, wanted, group), call.shape())
    weight = _dilated(graph, weight, dilations)
    parts = zip(_parts(graph, value, value.rank - 1, group), _parts(graph, weight, 0, group), strict=True)
    made = joined(graph, [_scattered(graph, *part, strides, before, wanted) for part in parts], value.rank - 1)
    if bias and made is graph.operators[-1].outputs[0] and graph.operators[-1].kind == "TRANSPOSE_CONV":
        graph.operators[-1].inputs.append(bias)
    elif bias:
        made = graph.binary("ADD", made, bias)
    return graph.reshape(made, call.shape())


def _cut(call: Call, sizes: Shape, kernel: Shape, strides: Sequence[int], dilations: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Returns how many elements of the full result of a transposed convolution are cut off before each spatial axis."""
    automatic, spatial = call.attribute("auto_pad", "NOTSET"), len(kernel)
    shape = call.attribute("output_shape")
    if automatic == "VALID" or (automatic == "NOTSET" and not shape):
        given = call.attribute("pads") if automatic == "NOTSET" else None
        return list(given or [0] * spatial)[:spatial]
    extra = call.attribute("output_padding") or [0] * spatial
    found = []
    for size, width, stride, step, more, want in zip(sizes, kernel, strides, dilations, extra, wanted, strict=True):
        total = max(0, (size - 1) * stride + more + (width - 1) * step + 1 - want)
        found.append(total // 2 if automatic == "SAME_UPPER" else total - total // 2)
    return found


def _dilated(graph: Graph, weight: Tensor, dilations: Sequence[int]) -> Tensor:
    """Returns a filter with zeros between its elements, as no kernel for transposed convolutions leaves any out."""
    if all(step == 1 for step in dilations):
        return weight
    sizes = [(width - 1) * step + 1 for width, step in zip(weight.shape[2:], dilations, strict=True)]
    if weight.data is not None:
        made = np.zeros((*weight.shape[:2], *sizes), weight.dtype)
        made[(slice(None), slice(None), *(slice(None, None, step) for step in dilations))] = weight.data
        return graph.constant(made)
    if weight.rank != 4:
        raise Unsupported("has three spatial axes, dilation, and a filter that depends on the data")
    spread = _zeros_between(graph, graph.transpose(weight, (0, 2, 3, 1)), dilations)
    cut = graph.slice(spread, [0] * 4, (weight.shape[0], *sizes, weight.shape[1]))
    return graph.transpose(cut, (0, 3, 1, 2))


def _scattered(graph: Graph, value: Tensor, weight: Tensor, strides: Sequence[int], before: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Adds a transposed convolution: in full, without what the kernel would cut off by rules of its own, and then cut."""
    kernel = weight.shape[2:]
    lost = [low + want for low, want in zip(before, wanted, strict=True)]
    whole = [(size - 1) * stride + width for size, stride, width in zip(value.shape[1:-1], strides, kernel, strict=True)]
    # What output_padding adds is zero; the kernel adds up to one stride itself.
    full = [min(max(size, end), size + stride - 1) for size, end, stride in zip(whole, lost, strides, strict=True)]
    batch, outputs = value.shape[0], weight.shape[1]
    shape = (batch, *full, outputs)
    options = {"padding": _VALID, **_named("stride", strides)}
    if len(kernel) == 3:
        options |= _named("dilation", [1] * 3, "Factor")
        inputs = [graph.integers(shape), graph.transpose(weight, (2, 3, 4, 1, 0)), value]
        made = graph.add("CONV_3D_TRANSPOSE", inputs, shape, np.float32, **options)
    else:
        inputs = [_sizes(graph, value, shape), graph.transpose(weight, (1, 2, 3, 0)), value]
        made = graph.add("TRANSPOSE_CONV", inputs, shape, np.float32, **options)
    return _window(graph, made, [-low for low in before], wanted)


def _sizes(graph: Graph, value: Tensor, shape: Shape) -> Tensor:
    """Returns sizes of a result, whose number of samples may be known at run time alone."""
    if shape[0] != -1:
        return graph.integers(shape)
    batch = graph.slice(graph.add("SHAPE", [value], (value.rank,), np.int32, outType=2), [0], [1])
    return graph.add("CONCATENATION", [batch, graph.integers(shape[1:])], (len(shape),), axis=0)


def _window(graph: Graph, value: Tensor, starts: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Returns the block of an image of ``wanted`` sizes that begins ``starts`` elements before it, or, where negative, inside it."""
    inner = [(max(0, -start), min(size, want - start)) for start, size, want in zip(starts, value.shape[1:-1], wanted, strict=True)]
    block = (value.shape[0], *(end - low for low, end in inner), value.shape[-1])
    cut = graph.slice(value, [0, *(low for low, _ in inner), 0], block)
    edges = [(max(0, start), want - max(0, start) - size) for start, want, size in zip(starts, wanted, block[1:-1], strict=True)]
    return graph.pad(cut, [(0, 0), *edges, (0, 0)])


def _spread_out(
    graph: Graph,
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: Sequence[int],
    dilations: Sequence[int],
    before: Sequence[int],
    wanted: Sequence[int],
    group: int,
) -> Tensor:
    """A transposed convolution of groups as a convolution of groups: of the image with zeros between its elements, with the turned filter."""
    assert weight.data is not None
    kernel = weight.shape[2:]
    split = weight.data.reshape(group, weight.shape[0] // group, *weight.shape[1:])[..., ::-1, ::-1]
    turned = np.ascontiguousarray(split.swapaxes(1, 2)).reshape(group * weight.shape[1], -1, *kernel)
    spread = _zeros_between(graph, value, strides)
    reach = [(width - 1) * step for width, step in zip(kernel, dilations, strict=True)]
    starts = [far - low for far, low in zip(reach, before, strict=True)]
    read = _window(graph, spread, starts, [want + far for want, far in zip(wanted, reach, strict=True)])
    return convolve(graph, read, graph.constant(turned), bias, [1, 1], dilations, [(0, 0)] * 2, group)


def _zeros_between(graph: Graph, value: Tensor, strides: Sequence[int]) -> Tensor:
    """Puts ``stride - 1`` zeros after each element of an image."""
    batch, height, width, channels = value.shape
    high, wide = strides
    rows = graph.pad(graph.reshape(value, (batch, height, 1, width * channels)), [(0, 0), (0, 0), (0, high - 1), (0, 0)])
    columns = graph.pad(graph.reshape(rows, (batch, height * high * width, 1, channels)), [(0, 0), (0, 0), (0, wide - 1), (0, 0)])
    return graph.reshape(columns, (batch, height * high, width * wide, channels))


def paddings(call: Call, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the padding before and after each spatial axis, as ONNX's ``pads`` and ``auto_pad`` say it."""
    automatic = call.attribute("auto_pad", "NOTSET")
    if automatic == "NOTSET":
        given = call.attribute("pads") or [0] * (2 * len(kernel))
        return list(zip(given[: len(kernel)], given[len(kernel) :], strict=True))
    if automatic == "VALID":
        return [(0, 0)] * len(kernel)
    call.known(sizes, "an axis that is padded")
    edges = [same_padding(*given) for given in zip(sizes, kernel, strides, dilations, strict=True)]
    return [(edge[1], edge[0]) for edge in edges] if automatic == "SAME_LOWER" else edges


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Returns the padding that TFLite calls SAME: the result has ``ceil(size / stride)`` elements, and what is odd goes behind."""
    total = max(0, (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
    return total // 2, total - total // 2


def lengths(sizes: Sequence[int], edges: Edges, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Returns the sizes of what windows over an image give."""
    given = zip(sizes, edges, kernel, strides, dilations, strict=True)
    return [(size + sum(edge) - (width - 1) * step - 1) // stride + 1 for size, edge, width, stride, step in given]
