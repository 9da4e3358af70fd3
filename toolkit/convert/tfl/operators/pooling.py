"""Pooling over windows and over whole images.

Extremes, sums and means over a box are those over its sides one after the other, so that windows of any number of axes are windows of
two and of one; where windows leave elements out, they are the extremes and sums of shifted images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from toolkit.convert.tfl.graph import Graph, Tensor
from toolkit.convert.tfl.lower import Call, channels_first, channels_last, either, operator
from toolkit.convert.tfl.operators.convolution import lengths, paddings, same_padding
from toolkit.convert.tfl.program import FREE, Unsupported

_SAME, _VALID = 0, 1  # schema.Padding
_LOWEST = float(np.finfo(np.float32).min)
_LIMITS = "images of a known size; up to three spatial axes, with three no free batch; no window in the padding alone"


@dataclass(frozen=True)
class Windows:
    """Windows over the spatial axes of an image, and what is put around it so that all of them are full."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    edges: list[tuple[int, int]]
    wanted: tuple[int, ...]

    def along(self, axes: slice) -> Windows:
        """Returns the windows' sides along some axes."""
        return Windows(self.kernel[axes], self.strides[axes], self.dilations[axes], self.edges[axes], self.wanted[axes])


@operator("GlobalAveragePool", "GlobalMaxPool", rule=either)
def _global(call: Call) -> Tensor:
    kind = "MEAN" if call.node.kind == "GlobalAveragePool" else "REDUCE_MAX"
    return _whole(call, kind, call.x(0))


def _whole(call: Call, kind: str, value: Tensor) -> Tensor:
    rank = value.rank
    axes = sorted(call.axis(axis, rank) for axis in range(2, rank))
    return call.graph.add(kind, [value, call.graph.integers(axes)], call.shape(), keepDims=True)


@operator("GlobalLpPool", rule=either)
def _global_lp(call: Call) -> Tensor:
    power = call.attribute("p", 2)
    return _root(call.graph, _whole(call, "SUM", _powered(call.graph, call.x(0), power)), power)


def _powered(graph: Graph, value: Tensor, power: int) -> Tensor:
    if power == 2:
        return graph.unary("SQUARE", value)
    size = graph.unary("ABS", value)
    return size if power == 1 else graph.binary("POW", size, graph.constant(np.float32(power)))


def _root(graph: Graph, value: Tensor, power: int) -> Tensor:
    if power == 2:
        return graph.unary("SQRT", value)
    return value if power == 1 else graph.binary("POW", value, graph.constant(np.float32(1 / power)))


def _windows(call: Call) -> Windows:
    """Reads the windows; with ceil_mode the last one hangs over the end."""
    sizes, wanted = call.known(call.type(0).shape[2:], "an image's size"), call.result().shape[2:]
    kernel = list(call.attribute("kernel_shape"))
    strides, dilations = (list(call.attribute(name) or [1] * len(kernel)) for name in ("strides", "dilations"))
    edges = paddings(call, sizes, kernel, strides, dilations)
    beyond = any((size - 1) % stride > width for size, stride, width in zip(sizes, strides, kernel, strict=True))
    if beyond and call.attribute("auto_pad", "NOTSET").startswith("SAME"):
        raise Unsupported("has strides that leave out what runtimes disagree about: say the padding with pads")
    found = lengths(sizes, edges, kernel, strides, dilations)
    last = zip(sizes, edges, strides, wanted, strict=True)
    if call.attribute("ceil_mode", 0) and any((want - 1) * stride >= size + low for size, (low, _), stride, want in last):
        raise Unsupported("has windows that lie in the padding alone, of which runtimes make nothing")
    edges = [(low, high + max(0, want - have) * stride) for (low, high), want, have, stride in zip(edges, wanted, found, strides, strict=True)]
    return Windows(kernel, strides, dilations, edges, tuple(wanted))


@operator("MaxPool", rule=channels_last, limits=_LIMITS)
def _max_pool(call: Call) -> Tensor | Sequence[Tensor | None]:
    graph, windows = call.graph, _windows(call)
    value = call.stored(0) if call.type(0).dtype.name in ("int8", "uint8") else call.x(0)
    if len(call.node.outputs) > 1 and call.node.outputs[1]:
        return _max_with_places(call, value, windows)
    if value.dtype == np.int32:  # small numbers, that float32 has all of
        return graph.cast(_pooled(graph, graph.cast(value, np.float32), windows, "MAX_POOL_2D", _LOWEST), np.int32)
    lowest = _LOWEST if value.dtype.kind == "f" else float(np.iinfo(value.dtype).min)
    made = _pooled(graph, value, windows, "MAX_POOL_2D", lowest)
    made.quantization = value.quantization
    return made


@operator("AveragePool", rule=channels_last, limits=_LIMITS)
def _average_pool(call: Call) -> Tensor:
    windows = _windows(call)
    if windows.kernel == list(call.type(0).shape[2:]) and not np.any(windows.edges):
        return _whole(call, "MEAN", call.x(0))  # which takes integers of any scale, as pooling does not
    if _is_same(windows, call.type(0).shape[2:]) and not call.attribute("count_include_pad", 0):
        return _pooled(call.graph, call.x(0), windows, "AVERAGE_POOL_2D", 0.0)  # the kernel divides by what it has read
    mean = _full_means(call.graph, call.x(0), windows)
    for axis in range(len(windows.kernel)):
        mean = _corrected(call, mean, windows, axis)
    return mean


def _corrected(call: Call, mean: Tensor, windows: Windows, axis: int) -> Tensor:
    """Multiplies a mean over windows with zeros by what it should have been divided by along one axis."""
    kernel, stride, step, (low, high) = windows.kernel[axis], windows.strides[axis], windows.dilations[axis], windows.edges[axis]
    counted = np.ones(low + call.type(0).shape[2 + axis] + high)
    if call.attribute("count_include_pad", 0):
        # Only what ceil_mode adds beyond the declared padding does not count.
        declared = paddings(call, call.type(0).shape[2:], windows.kernel, windows.strides, windows.dilations)[axis][1]
        counted[len(counted) - (high - declared) :] = 0
    else:
        counted[:low], counted[len(counted) - high :] = 0, 0
    counts = np.array([counted[place * stride :][: (kernel - 1) * step + 1 : step].sum() for place in range(windows.wanted[axis])])
    if np.all(counts == kernel):
        return mean
    shape = [1] * mean.rank
    shape[1 + axis] = len(counts)
    factors = (kernel / np.maximum(counts, 1)).astype(np.float32).reshape(shape)
    return call.graph.binary("MUL", mean, call.graph.constant(factors))


@operator("LpPool", rule=channels_last, limits=_LIMITS)
def _lp_pool(call: Call) -> Tensor:
    graph, windows, power = call.graph, _windows(call), call.attribute("p", 2)
    mean = _full_means(graph, _powered(graph, call.x(0), power), windows)
    return _root(graph, graph.binary("MUL", mean, graph.constant(np.float32(np.prod(windows.kernel)))), power)


def _full_means(graph: Graph, value: Tensor, windows: Windows) -> Tensor:
    """Adds the means over windows to which the border belongs."""
    inner = Windows(windows.kernel, windows.strides, windows.dilations, [(0, 0)] * len(windows.kernel), windows.wanted)
    return _pooled(graph, _edged(graph, value, windows, 0.0), inner, "AVERAGE_POOL_2D", 0.0)


def _edged(graph: Graph, value: Tensor, windows: Windows, content: float) -> Tensor:
    return graph.pad(value, [(0, 0), *windows.edges, (0, 0)], content)


def _is_same(windows: Windows, sizes: Sequence[int]) -> bool:
    """Whether the windows are padded as TFLite's SAME does it."""
    given = zip(sizes, windows.kernel, windows.strides, strict=True)
    plain = all(step == 1 for step in windows.dilations) and len(windows.kernel) <= 2
    return plain and any(map(any, windows.edges)) and [same_padding(*one, 1) for one in given] == [tuple(edge) for edge in windows.edges]


def _pooled(graph: Graph, value: Tensor, windows: Windows, kind: str, border: float) -> Tensor:
    """Adds the extremes or means over windows of ``[n x ... x c]``, the border being ``border``."""
    if _is_same(windows, value.shape[1:-1]):
        return _kernel(graph, value, windows, kind, _SAME)
    value = _edged(graph, value, windows, border)
    if any(step != 1 for step in windows.dilations):
        for axis in range(len(windows.kernel)):
            value = _shifted(graph, value, windows, axis, kind)
        return value
    if len(windows.kernel) <= 2:
        return _kernel(graph, value, windows, kind, _VALID)
    if len(windows.kernel) > 3 or value.shape[0] == FREE:
        raise Unsupported("has three spatial axes and a free number of samples, or more axes")
    batch, depth, *_, channels = value.shape
    flat = graph.reshape(value, (batch * depth, *value.shape[2:]))
    planes = _kernel(graph, flat, windows.along(slice(1, None)), kind, _VALID)
    columns = graph.reshape(planes, (batch, depth, int(np.prod(windows.wanted[1:])), channels))
    sides = Windows([windows.kernel[0], 1], [windows.strides[0], 1], [1, 1], [(0, 0)] * 2, (windows.wanted[0], columns.shape[2]))
    return graph.reshape(_kernel(graph, columns, sides, kind, _VALID), (batch, *windows.wanted, channels))


def _kernel(graph: Graph, value: Tensor, windows: Windows, kind: str, padding: int) -> Tensor:
    """Adds the kernel, for images of one axis as for those of height one."""
    ones = [1] * (2 - len(windows.kernel))
    kernel, strides, wanted = [*ones, *windows.kernel], [*ones, *windows.strides], [*ones, *windows.wanted]
    image = graph.reshape(value, (value.shape[0], *ones, *value.shape[1:]))
    options = {"padding": padding, "strideH": strides[0], "strideW": strides[1], "filterHeight": kernel[0], "filterWidth": kernel[1]}
    made = graph.add(kind, [image], (value.shape[0], *wanted, value.shape[-1]), **options)
    return graph.reshape(made, (value.shape[0], *windows.wanted, value.shape[-1]))


def _shifted(graph: Graph, value: Tensor, windows: Windows, axis: int, kind: str) -> Tensor:
    """Takes the extremes or means along one axis over shifted images."""
    kernel, stride, step, want = windows.kernel[axis], windows.strides[axis], windows.dilations[axis], windows.wanted[axis]
    steps, wanted = [1] * value.rank, list(value.shape)
    steps[1 + axis], wanted[1 + axis] = stride, want
    starts = [[place * step if one == 1 + axis else 0 for one in range(value.rank)] for place in range(kernel)]
    parts = [strided(graph, value, start, steps, wanted) for start in starts]
    if kind == "MAX_POOL_2D":
        return reduce(lambda left, right: graph.binary("MAXIMUM", left, right), parts)
    total = reduce(lambda left, right: graph.binary("ADD", left, right), parts)
    return graph.binary("MUL", total, graph.constant(np.float32(1 / kernel)))


def strided(graph: Graph, value: Tensor, starts: Sequence[int], steps: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Returns every so many elements of a tensor along each axis; a free first axis is taken whole."""
    ends = [start + (want - 1) * step + 1 if want != FREE else 0 for start, step, want in zip(starts, steps, wanted, strict=True)]
    whole = int(wanted[0] == FREE)
    inputs = [value, graph.integers(starts), graph.integers(ends), graph.integers(steps)]
    return graph.add("STRIDED_SLICE", inputs, wanted, beginMask=whole, endMask=whole)


def _max_with_places(call: Call, value: Tensor, windows: Windows) -> list[Tensor]:
    """Takes the greatest element of each window, the first of several, and its place in the whole input as ONNX counts it."""
    graph, sizes = call.graph, call.known(call.type(0).shape, "a size")
    if value.dtype.kind != "f":
        value = graph.cast(value, np.float32)
    planes = sizes[2:] if not call.attribute("storage_order", 0) else sizes[:1:-1]
    units = [int(np.prod(planes[place + 1 :])) for place in range(len(planes))]
    units = units if not call.attribute("storage_order", 0) else units[::-1]
    best, place = _greatest(graph, _edged(graph, value, windows, _LOWEST), windows, units)
    begin: np.ndarray = np.zeros([1] * value.rank, np.int64)
    for axis, unit in enumerate(units):
        along = (np.arange(windows.wanted[axis]) * windows.strides[axis] - windows.edges[axis][0]) * unit
        begin = begin + along.reshape([-1 if one == 1 + axis else 1 for one in range(value.rank)])
    image = int(np.prod(sizes[2:]))
    begin = begin + np.arange(sizes[1]) * image + np.arange(sizes[0]).reshape(-1, *[1] * (value.rank - 1)) * image * sizes[1]
    found = graph.binary("ADD", place, graph.constant(begin.astype(np.int32)))
    order = [0, value.rank - 1, *range(1, value.rank - 1)]
    if call.type(0).dtype.kind != "f":
        best = graph.cast(best, np.int32)
    return [best, graph.transpose(found, order)]


def _greatest(graph: Graph, value: Tensor, windows: Windows, units: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Compares the elements of all windows in order; returns the greatest and how far each is from its window's begin."""
    wanted = (value.shape[0], *windows.wanted, value.shape[-1])
    best: Tensor | None = None
    place = graph.constant(0, np.int32)
    for offsets in np.ndindex(*windows.kernel):
        starts = [offset * step for offset, step in zip(offsets, windows.dilations, strict=True)]
        part = strided(graph, value, [0, *starts, 0], [1, *windows.strides, 1], wanted)
        far = graph.constant(int(np.dot(starts, units)), np.int32)
        if best is None:
            best, place = part, far
            continue
        greater = graph.binary("GREATER", part, best, bool)
        place = graph.add("SELECT_V2", [greater, far, place], wanted, np.int32)
        best = graph.binary("MAXIMUM", best, part)
    assert best is not None
    if place.shape != wanted:
        place = graph.constant(np.zeros(wanted, np.int32))
    return best, place


@operator("MaxUnpool", rule=channels_first, limits="known sizes; windows that do not overlap; indices counted in the output")
def _max_unpool(call: Call) -> Tensor:
    """Puts elements back to the places that MaxPool told."""
    graph, value, places = call.graph, call.x(0), call.x(1)
    kernel = call.attribute("kernel_shape")
    strides = call.attribute("strides") or [1] * len(kernel)
    if any(stride < width for stride, width in zip(strides, kernel, strict=True)):
        raise Unsupported("has windows that overlap, which the kernel would add up")
    pads = call.attribute("pads") or [0] * (2 * len(kernel))
    half = len(kernel)
    given = zip(value.shape[2:], strides, kernel, pads[:half], pads[half:], strict=True)
    counted = [(size - 1) * stride + width - low - high for size, stride, width, low, high in given]
    if tuple(counted) != tuple(call.result().shape[2:]):
        raise Unsupported("has an output_shape other than the one that its indices are counted in")
    shape = call.known(call.shape(), "a size")
    count = int(np.prod(shape))
    inputs = [graph.reshape(places, (value.size, 1)), graph.reshape(value, (value.size,)), graph.integers([count])]
    return graph.reshape(graph.add("SCATTER_ND", inputs, (count,), value.dtype), shape)
