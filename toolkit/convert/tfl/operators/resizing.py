"""Images of another size.

Where TFLite's own kernels compute the same they are used; everything else is a product with a known matrix along each axis, or takes
known places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.convert.tfl.facts import COMMON
from toolkit.convert.tfl.graph import Graph, Tensor
from toolkit.convert.tfl.layout import Demand
from toolkit.convert.tfl.lower import Call, carried, either, operator
from toolkit.convert.tfl.operators.indexing import take
from toolkit.convert.tfl.program import FREE, Node, Program, Unsupported

_TOLERANCE = 1e-6
# Options of the kernels: alignCorners, halfPixelCenters.
_KERNELS = ((False, True), (True, False), (False, False))


@dataclass(frozen=True)
class Axis:
    """How one axis of an image is resized.

    Attributes:
        axis: The axis, in ONNX's order.
        size: How many elements it has.
        coordinates: Where each element of the result lies among them.
        scale: How much larger the result is.
        outside: Whether each lies outside of the image and gets a value of its own.
    """

    axis: int
    size: int
    coordinates: np.ndarray
    scale: float
    outside: np.ndarray


def plan(node: Node, program: Program) -> list[Axis]:
    """Returns what happens along each axis that changes.

    Raises:
        Unsupported: That depends on the data, or on sizes that are free at run time.
    """
    before, after = program.type(node.inputs[0]).shape, program.types[node.outputs[0]].shape
    axes = [axis % len(before) for axis in node.attributes.get("axes") or range(len(before))]
    scales = _scales(node, program, [before[axis] for axis in axes], [after[axis] for axis in axes])
    mode = node.attributes.get("coordinate_transformation_mode", "half_pixel" if node.version > 10 else "asymmetric")
    crop = _known(node, program, 1) if mode == "tf_crop_and_resize" else np.tile([[0.0], [1.0]], len(axes))
    made = []
    for axis, scale, bounds in zip(axes, scales, np.reshape(crop, (2, -1)).T, strict=True):
        if before[axis] == FREE:
            if scale != 1:
                raise Unsupported("resizes an axis whose size is free at run time")
            continue
        places = _coordinates(mode, before[axis], after[axis], scale, bounds)
        if after[axis] != before[axis] or not np.array_equal(places, np.arange(after[axis])):
            beyond = (places < 0) | (places > before[axis] - 1)
            made.append(Axis(axis, before[axis], places, scale, beyond & (mode == "tf_crop_and_resize")))
    return made


def _known(node: Node, program: Program, place: int) -> np.ndarray:
    if node.inputs[place] not in program.constants:
        raise Unsupported(f"its input {place} ({node.inputs[place]}) depends on the data")
    return program.constants[node.inputs[place]]


def _scales(node: Node, program: Program, before: Sequence[int], after: Sequence[int]) -> list[float]:
    """Returns the scale of each axis: as it is given, or as the sizes make it."""
    if node.kind == "Upsample" and "scales" in node.attributes:
        return [float(scale) for scale in node.attributes["scales"]]
    place = 1 if node.kind == "Upsample" or node.version < 11 else 2
    if len(node.inputs) > place and node.inputs[place] and _known(node, program, place).size:
        return [float(scale) for scale in _known(node, program, place)]
    policy = node.attributes.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return [1.0 if FREE in (new, old) and new == old else new / old for new, old in zip(after, before, strict=True)]
    asked = [int(size) / old for size, old in zip(_known(node, program, 3), before, strict=True)]
    return [min(asked) if policy == "not_larger" else max(asked)] * len(before)


def _coordinates(mode: str, size: int, wanted: int, scale: float, bounds: np.ndarray) -> np.ndarray:
    """Returns where the elements of the result lie, as ONNX defines it."""
    places, length = np.arange(wanted, dtype=np.float64), scale * size
    if mode == "align_corners":
        return places * 0 if length == 1 else places * (size - 1) / (length - 1)
    if mode == "asymmetric":
        return places / scale
    if mode == "tf_crop_and_resize":
        start, end = (float(bound) for bound in bounds)
        steps = np.full(wanted, 0.5) if wanted == 1 else places / (wanted - 1)
        return start * (size - 1) + steps * (end - start) * (size - 1)
    centred = (places + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        return centred + size / 2 * (1 - wanted / length)
    if mode == "pytorch_half_pixel" and wanted == 1:
        return np.zeros(1)
    if mode not in ("half_pixel", "pytorch_half_pixel"):
        raise Unsupported(f"has coordinates of the kind {mode}")
    return centred


def nearest(one: Axis, rounding: str) -> np.ndarray:
    """Returns the element that is taken for each of the result."""
    if rounding in ("round_prefer_floor", "floor"):
        rounded = np.floor(one.coordinates) if rounding == "floor" else np.ceil(one.coordinates - 0.5)
    else:
        rounded = np.ceil(one.coordinates) if rounding == "ceil" else np.floor(one.coordinates + 0.5)
    return np.clip(rounded, 0, one.size - 1).astype(np.int64)


def matrix(one: Axis, node: Node) -> np.ndarray:
    """Returns the weights ``[results x elements]`` of an interpolation along an axis."""
    cubic = node.attributes.get("mode") == "cubic"
    shrink = min(1.0, one.scale) if node.attributes.get("antialias", 0) else 1.0
    reach = (2 if cubic else 1) / shrink
    weights = np.zeros((len(one.coordinates), one.size))
    for row, place in enumerate(one.coordinates):
        near = np.arange(int(np.floor(place - reach)), int(np.ceil(place + reach)) + 1)
        found = _weight((near - place) * shrink, node.attributes.get("cubic_coeff_a", -0.75) if cubic else None)
        if node.attributes.get("exclude_outside", 0):
            found[(near < 0) | (near >= one.size)] = 0
        np.add.at(weights[row], np.clip(near, 0, one.size - 1), found / found.sum())
    return weights


def _weight(distances: np.ndarray, cubic: float | None) -> np.ndarray:
    """Keys, Cubic Convolution Interpolation for Digital Image Processing, 1981; a triangle for the linear one."""
    far = np.abs(distances)
    if cubic is None:
        return np.maximum(0, 1 - far)
    inner = ((cubic + 2) * far - (cubic + 3)) * far**2 + 1
    outer = (((far - 5) * far + 8) * far - 4) * cubic
    return np.where(far <= 1, inner, np.where(far < 2, outer, 0))


def _kernel(node: Node, program: Program) -> tuple[str, bool, bool] | None:
    """Returns TFLite's kernel and its options, where one computes the same for an image."""
    axes, given = plan(node, program), program.type(node.inputs[0])
    mode = node.attributes.get("mode", "nearest")
    if not axes or len(given.shape) != 4 or any(one.axis < 2 or one.outside.any() for one in axes) or carried(given.dtype) != np.float32:
        return None
    after = program.types[node.outputs[0]].shape
    for corners, halves in _KERNELS:
        same = True
        for one in axes:
            if mode == "nearest":
                found = _kernel_nearest(one.size, after[one.axis], corners, halves)
                same &= np.array_equal(found, nearest(one, node.attributes.get("nearest_mode", _default_rounding(node))))
            elif mode == "linear":
                alike = Axis(one.axis, one.size, _kernel_places(one.size, after[one.axis], corners, halves), one.scale, one.outside)
                same &= np.allclose(matrix(alike, Node("", 1, "", [], [], {})), matrix(one, node), rtol=0, atol=_TOLERANCE)
            else:
                return None
        if same:
            return "RESIZE_NEAREST_NEIGHBOR" if mode == "nearest" else "RESIZE_BILINEAR", corners, halves
    return None


def _default_rounding(node: Node) -> str:
    return "round_prefer_floor" if node.version > 10 else "floor"


def _kernel_places(size: int, wanted: int, corners: bool, halves: bool) -> np.ndarray:
    scale = (size - 1) / (wanted - 1) if corners and wanted > 1 else size / wanted
    shift = 0.5 if halves else 0.0
    return np.maximum(0, (np.arange(wanted) + shift) * scale - shift)


def _kernel_nearest(size: int, wanted: int, corners: bool, halves: bool) -> np.ndarray:
    """What the kernel takes, in the precision that it computes with."""
    scale = np.float32((size - 1) / np.float32(wanted - 1) if corners and wanted > 1 else size / np.float32(wanted))
    places = (np.arange(wanted, dtype=np.float32) + np.float32(0.5 if halves else 0)) * scale
    return np.clip(np.floor(places + np.float32(0.5)) if corners else np.floor(places), 0, size - 1).astype(np.int64)


def resizing(node: Node, program: Program) -> Demand:
    """The kernels want the channels last; products and places along an axis work in any layout."""
    demand = either(node, program)
    try:
        fixed = _kernel(node, program) is not None
    except Unsupported:
        fixed = False
    return Demand("last", demand.inputs[:1], demand.outputs) if fixed else demand


@operator("Resize", "Upsample", rule=resizing, dtypes=COMMON, limits="constant sizes or scales; only real numbers are interpolated; no free axis")
def _resize(call: Call) -> Tensor:
    graph, node, value = call.graph, call.node, call.x(0)
    kernel = _kernel(node, call.program)
    if kernel is not None:
        kind, corners, halves = kernel
        return graph.add(kind, [value, graph.integers(call.shape()[1:3])], call.shape(), alignCorners=corners, halfPixelCenters=halves)
    real, axes = value, plan(node, call.program)
    for one in sorted(axes, key=lambda axis: len(axis.coordinates) / axis.size):  # what shrinks first leaves less to compute
        place = call.axis(one.axis, value.rank)
        if node.attributes.get("mode", "nearest") == "nearest":
            real = take(graph, real, nearest(one, node.attributes.get("nearest_mode", _default_rounding(node))), place)
        else:
            real = multiplied(graph, graph.cast(real, np.float32), matrix(one, node), place)
    return _cast_back(call, _outside(call, real, axes), value)


def _cast_back(call: Call, made: Tensor, value: Tensor) -> Tensor:
    if made.dtype != value.dtype:
        raise Unsupported(f"interpolates {call.type(0).dtype}")
    return made


def _outside(call: Call, value: Tensor, axes: Sequence[Axis]) -> Tensor:
    """Puts the value of the outside where a coordinate of any axis is there."""
    mask = np.zeros((1,) * value.rank, bool)
    for one in axes:
        shape = [1] * value.rank
        shape[call.axis(one.axis, value.rank)] = -1
        mask = mask | one.outside.reshape(shape)
    if not mask.any():
        return value
    full = np.broadcast_to(mask, [1 if size == FREE else size for size in value.shape]) if value.rank > 4 else mask
    content = call.graph.constant(call.attribute("extrapolation_value", 0.0), value.dtype)
    return call.graph.add("SELECT_V2", [call.graph.constant(full), content, value], value.shape, value.dtype)


def multiplied(graph: Graph, value: Tensor, weights: np.ndarray, axis: int) -> Tensor:
    """Returns the product of a matrix ``[results x elements]`` and an axis."""
    known = graph.constant(weights.astype(np.float32))
    shape = (*value.shape[:axis], len(weights), *value.shape[axis + 1 :])
    if axis == value.rank - 1 and value.rank > 1:
        return graph.add("FULLY_CONNECTED", [value, known, None], shape, keepNumDims=True)
    inner = int(np.prod(value.shape[axis + 1 :]))
    outer = FREE if FREE in value.shape[:axis] else int(np.prod(value.shape[:axis]))
    rows = graph.reshape(value, (outer, value.shape[axis], inner))
    made = graph.add("BATCH_MATMUL", [graph.reshape(known, (1, *known.shape)), rows], (outer, len(weights), inner), adjX=False, adjY=False)
    return graph.reshape(made, shape)


@operator("AffineGrid", limits="a constant size")
def _affine_grid(call: Call) -> Tensor:
    """A known grid of places, as wide as the sizes say, times a matrix for each sample."""
    graph, sizes = call.graph, call.numbers(1, "")[2:]
    lines = [_line(size, bool(call.attribute("align_corners", 0))) for size in sizes]
    places = np.stack([*np.meshgrid(*lines, indexing="ij")[::-1], np.ones(sizes)], axis=-1).reshape(1, -1, len(sizes) + 1)
    shape = (call.shape()[0], places.shape[1], len(sizes))
    made = graph.add("BATCH_MATMUL", [graph.constant(places.astype(np.float32)), call.x(0)], shape, adjX=False, adjY=True)
    return graph.reshape(made, call.shape())


def _line(size: int, corners: bool) -> np.ndarray:
    if corners and size == 1:
        raise Unsupported("aligns the corners of an axis of one element")
    return np.linspace(-1, 1, size) if corners else (2 * np.arange(size) + 1) / size - 1


@operator("Col2Im", dtypes=COMMON, limits="constant sizes; no free batch")
def _col2im(call: Call) -> Tensor:
    """Adds the columns of a matrix up where they came from: ``SCATTER_ND`` adds what meets."""
    graph, value = call.graph, call.x(0)
    batch, channels = call.known(call.shape(), "its number of samples")[:2]
    image, block = call.numbers(1, ""), call.numbers(2, "")
    places = _block_places(call, image, block)
    pixels, width = int(np.prod(image)), batch * channels
    columns = graph.transpose(graph.reshape(value, (width, places.size)), (1, 0))
    # What lies in the padding is added to one more pixel, which is dropped.
    operands = [graph.constant(places.reshape(-1, 1).astype(np.int32)), columns, graph.integers((pixels + 1, width))]
    made = graph.add("SCATTER_ND", operands, (pixels + 1, width), value.dtype)
    return graph.reshape(graph.transpose(graph.slice(made, (0, 0), (pixels, width)), (1, 0)), call.shape())


def _block_places(call: Call, image: Sequence[int], block: Sequence[int]) -> np.ndarray:
    """Returns the pixel ``[places in the block x blocks]`` of each element; one behind the image for what is outside of it."""
    rank = len(image)
    dilations, strides = (call.attribute(name, [1] * rank) for name in ("dilations", "strides"))
    pads = call.attribute("pads", [0] * (2 * rank))
    found, inside = np.zeros((1,) * (2 * rank), np.int64), np.ones((1,) * (2 * rank), bool)
    for axis in range(rank):
        reach = dilations[axis] * (block[axis] - 1) + 1
        count = (image[axis] + pads[axis] + pads[rank + axis] - reach) // strides[axis] + 1
        own = np.arange(block[axis])[:, None] * dilations[axis] + np.arange(count) * strides[axis] - pads[axis]
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = own.shape
        own = own.reshape(shape)
        found = found * image[axis] + own
        inside = inside & (own >= 0) & (own < image[axis])
    return np.where(inside, found, int(np.prod(image)))
