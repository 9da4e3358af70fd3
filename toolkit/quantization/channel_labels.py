"""Arrays of labels: which unit each place of a tensor belongs to, whatever its axes; see :mod:`toolkit.quantization.channels`."""

from __future__ import annotations

from math import prod

import numpy as np

from toolkit.quantization.network import Weighted


def together(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Labels of tensors of the same rank, each as large as all; nothing where their sizes do not go together."""
    sizes = [{size for size in sizes if size != 1} for sizes in zip(*(part.shape for part in parts), strict=True)]
    return [] if any(len(one) > 1 for one in sizes) else list(np.broadcast_arrays(*parts))


def placed(labels: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Labels along one axis of an array."""
    return labels.reshape([-1 if other == axis else 1 for other in range(rank)]) if rank else labels


def ranked(labels: np.ndarray, rank: int) -> np.ndarray:
    """Labels of a tensor that is broadcast to more axes."""
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)


def one_axis(units: np.ndarray) -> tuple[int, np.ndarray] | None:
    """The axis along which units differ; ``None`` where that is more than one, or no axis at all."""
    axes = [axis for axis, size in enumerate(units.shape) if size > 1]
    return (axes[0], units.reshape(-1)) if len(axes) == 1 else None


def input_units(layer: Weighted, weight: list[int], labels: np.ndarray) -> np.ndarray | None:
    """The label of what each weight reads; ``None`` where the sizes do not say."""
    rank, outputs = len(weight), weight[layer.output_axis]
    if layer.kind == "depthwise":
        if len(labels) != layer.groups or outputs % layer.groups:
            return None
        return placed(np.repeat(labels, outputs // layer.groups), layer.output_axis, rank)
    assert layer.input_axis is not None
    inputs = weight[layer.input_axis]
    if layer.groups > 1:
        if len(labels) != inputs * layer.groups or outputs % layer.groups:
            return None
        by_output = np.repeat(labels.reshape(layer.groups, inputs), outputs // layer.groups, axis=0)
        return by_output.reshape([size if axis in (layer.output_axis, layer.input_axis) else 1 for axis, size in enumerate(weight)])
    if inputs % len(labels):
        return None
    # Fully connected layers of TFLite flatten what they read, channels last.
    return placed(np.tile(labels, inputs // len(labels)), layer.input_axis, rank)


def reshaped(labels: np.ndarray, before: tuple[int | None, ...], after: tuple[int | None, ...]) -> np.ndarray | None:
    """Labels behind a reshape; ``None`` where free sizes leave open what went where."""
    old, new = ([1 if size is None else size for size in shape] for shape in (before, after))
    if prod(old) != prod(new) or before.count(None) > 1 or before.count(None) != after.count(None):
        return None
    found = np.broadcast_to(labels, old).reshape(new)
    for axis in range(len(new)):
        first = np.take(found, [0], axis=axis)
        found = first if (found == first).all() else found
    return found
