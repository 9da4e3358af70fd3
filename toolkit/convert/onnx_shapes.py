"""ONNX operators that move values without computing any: reshaping, slicing, gathering. See :mod:`toolkit.convert.onnx_operators`."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.convert.onnx_operators import Call, Unsupported, named


@named("Reshape")
def _reshape(call: Call) -> Any:
    x, shape = call.tensor(0), call.numbers(1, "shape")
    if not call.attribute("allowzero", 0):
        shape = [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    return x.reshape(shape)


@named("Flatten")
def _flatten(call: Call) -> Any:
    x, axis = call.tensor(0), call.attribute("axis", 1)
    axis = axis % x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


@named("Transpose")
def _transpose(call: Call) -> Any:
    x = call.tensor(0)
    return x.permute(call.attribute("perm", list(reversed(range(x.ndim)))))


@named("Squeeze")
def _squeeze(call: Call) -> Any:
    x, axes = call.tensor(0), call.numbers(1, "axes")
    gone = {axis % x.ndim for axis in axes} if axes else {axis for axis, size in enumerate(x.shape) if size == 1}
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in gone])


@named("Unsqueeze")
def _unsqueeze(call: Call) -> Any:
    x, axes = call.tensor(0), call.numbers(1, "axes")
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@named("Concat")
def _concat(call: Call) -> Any:
    return call.torch.cat(call.tensors(), call.attribute("axis"))


@named("Split")
def _split(call: Call) -> Any:
    x, axis = call.tensor(0), call.attribute("axis", 0)
    sizes = call.numbers(1, "split")
    if not sizes:
        part = -(-x.shape[axis] // call.attribute("num_outputs", call.outputs))
        sizes = [min(part, x.shape[axis] - first) for first in range(0, x.shape[axis], part)]
    return tuple(call.torch.split(x, sizes, axis))


@named("Slice")
def _slice(call: Call) -> Any:
    x = call.tensor(0)
    starts, ends = call.numbers(1, "starts"), call.numbers(2, "ends")
    axes = call.numbers(3, "axes") or list(range(len(starts)))
    steps = call.numbers(4, "steps") or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = x.shape[axis]
        if step > 0:
            first, last, _ = slice(start, end, step).indices(size)
            x = call.torch.narrow(x, axis % x.ndim, first, max(0, last - first)) if step == 1 else _strided(call, x, axis, first, last, step)
        else:
            # The lowest end says "to the very first", which a Python slice cannot say with a number.
            places = range(size)[slice(start, None if end <= -size - 1 else end, step)]
            x = call.torch.index_select(x, axis % x.ndim, call.torch.tensor(list(places)))
    return x


def _strided(call: Call, x: Any, axis: int, first: int, last: int, step: int) -> Any:
    index = [slice(None)] * x.ndim
    index[axis % x.ndim] = slice(first, last, step)
    return x[tuple(index)]


@named("Gather")
def _gather(call: Call) -> Any:
    x, axis = call.tensor(0), call.attribute("axis", 0) % call.tensor(0).ndim
    index = call.tensor(1)
    if call.inputs[1] in call.constants:
        places = call.constant(1)
        if places.ndim == 0:
            return call.torch.select(x, axis, int(places) % x.shape[axis])
        index = call.torch.from_numpy(np.where(places < 0, places + x.shape[axis], places).astype(np.int64))
    elif axis == 0 and x.ndim == 2 and index.dtype in (call.torch.int32, call.torch.int64):
        return call.torch.nn.functional.embedding(index, x)
    picked = call.torch.index_select(x, axis, index.reshape(-1))
    return picked.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


@named("GatherElements")
def _gather_elements(call: Call) -> Any:
    return call.torch.gather(call.tensor(0), call.attribute("axis", 0), call.tensor(1).to(call.torch.int64))


@named("GatherND")
def _gather_nd(call: Call) -> Any:
    if call.attribute("batch_dims", 0):
        raise Unsupported("it gathers in batches")
    index = call.tensor(1).to(call.torch.int64)
    return call.tensor(0)[tuple(index[..., place] for place in range(index.shape[-1]))]


@named("Expand")
def _expand(call: Call) -> Any:
    x, shape = call.tensor(0), call.numbers(1, "shape")
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(shape)))


@named("Tile")
def _tile(call: Call) -> Any:
    return call.torch.tile(call.tensor(0), call.numbers(1, "repeats"))


@named("Range")
def _range(call: Call) -> Any:
    start, limit, step = (call.constant(place).item() for place in range(3))
    return call.torch.arange(start, limit, step)


@named("Shape")
def _shape(call: Call) -> Any:
    return call.torch.tensor(list(call.tensor(0).shape)[call.attribute("start", 0) : call.attribute("end")])


@named("ConstantOfShape")
def _constant_of_shape(call: Call) -> Any:
    from onnx import numpy_helper

    given = call.attribute("value")
    value = numpy_helper.to_array(given) if given is not None else np.zeros(1, np.float32)
    return call.torch.from_numpy(np.full(call.numbers(0, "shape"), value.reshape(-1)[0]))
