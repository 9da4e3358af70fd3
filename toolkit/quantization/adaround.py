"""AdaRound (Nagel et al. 2020, arXiv 2004.10568): weights are rounded up or down so that a layer's output changes least.

One layer at a time learns for each weight whether it goes up, on what the layer reads in the float model, before its activation. The stored float
weight then is a point of the grid that the quantizer is going to choose, so that rounding to the nearest finds it. A layer keeps its weights where
that does not help on samples that were not learned from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.dataset import Dataset
from toolkit.quantization.network import Network, Weighted
from toolkit.quantization.observe import fetch

if TYPE_CHECKING:
    import torch

ITERATIONS = 400
_ROWS = 64
_MOST_BYTES = 256 << 20
_BATCH = 8
_PLACES = 1024
_STEPS = 127
_LOW, _HIGH = -0.1, 1.1  # the rectified sigmoid's stretch, zeta and gamma of the paper
_FORCE = 0.01
_WARM = 0.2
_RATE = 1e-2


def round_weights(
    network: Network,
    model: Path,
    samples: Dataset,
    *,
    bits: int = 8,
    per_channel: bool = True,
    keep_float: Collection[str] = (),
    iterations: int = ITERATIONS,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[str]:
    """Chooses the rounding of every layer's weights.

    Args:
        network: The float network; its weights are changed.
        model: The file that it was opened from.
        samples: Calibration samples; what layers read on them is computed layer by layer.
        bits: Bits of a weight.
        per_channel: Whether every output has a scale of its own.
        keep_float: Layers that stay float.
        iterations: Steps of learning for each layer.
        progress: Callback ``(done, total, note)``.

    Returns:
        What was done, a sentence each; nothing where no layer gained.

    Raises:
        StageFailed: The model cannot be run.
    """
    import torch

    torch.manual_seed(0)
    layers = [layer for layer in network.layers if layer.name not in keep_float and not _unknown_borders(layer)]
    gains = []
    for number, layer in enumerate(layers):
        if progress:
            progress(number, len(layers), f"rounding layer {number + 1} of {len(layers)}")
        gain = _round(network, model, samples, layer, 2 ** (bits - 1) - 1 if bits != 8 else _STEPS, per_channel, iterations)
        gains += [gain] if gain is not None else []
    if not gains:
        return []
    return [f"weights of {len(gains)} of {len(layers)} layers are rounded for their outputs, whose error falls by {np.median(gains):.0%} (median)"]


def _unknown_borders(layer: Weighted) -> bool:
    return layer.kind != "dense" and (layer.geometry is None or layer.geometry.pads is None or len(layer.geometry.strides) != 2)


def _round(network: Network, model: Path, samples: Dataset, layer: Weighted, steps: int, per_channel: bool, iterations: int) -> float | None:
    """Rounds one layer; returns by which share its error fell on samples that it did not learn from."""
    import torch

    given = torch.from_numpy(_read(model, samples, layer))
    stored = network.array(layer.weight)
    weight = torch.from_numpy(np.ascontiguousarray(_outputs_first(stored, layer)))
    scale = (weight.abs().flatten(1).amax(1) if per_channel else weight.abs().amax().expand(len(weight))) / steps
    if not len(given) or len(given) < 4 or not bool((scale > 0).all()):
        return None
    scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
    learned, others = given[: len(given) * 3 // 4], given[len(given) * 3 // 4 :]
    nearest = (weight / scale).round().clamp(-steps, steps) * scale
    chosen = _learn(layer, learned, weight, scale, steps, iterations)
    with torch.no_grad():
        expected = _apply(layer, others, weight)
        errors = [float((_apply(layer, others, one) - expected).square().mean()) for one in (nearest, chosen)]
    if not errors[1] < errors[0]:
        return None
    network.store(layer.weight, _outputs_back(chosen.numpy(), layer, stored.shape).astype(stored.dtype))
    return 1 - errors[1] / errors[0]


def _read(model: Path, samples: Dataset, layer: Weighted) -> np.ndarray:
    """What a layer reads, as pictures ``[n x c x h x w]`` or rows ``[n x c]``, within the memory's limit."""
    first = fetch(model, samples, [layer.input], rows=1)[layer.input]
    rows = max(4, min(_ROWS, len(samples), _MOST_BYTES // max(1, first.nbytes)))
    found = fetch(model, samples, [layer.input], rows=rows)[layer.input]
    if layer.kind == "dense":
        flat = found.reshape(-1, found.shape[-1])
        return np.ascontiguousarray(flat[:: max(1, len(flat) // (_ROWS * _PLACES // 16))])
    return np.ascontiguousarray(np.moveaxis(found, layer.channel_axis, 1))


def _learn(layer: Weighted, given: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, steps: int, iterations: int) -> torch.Tensor:
    """The weights on their grid, up or down as the layer's output on some samples wants it."""
    import torch

    low = torch.floor(weight / scale)
    rest = (weight / scale - low).clamp(1e-4, 1 - 1e-4)
    fixed = (weight / scale).abs() >= steps - 1e-3  # the ends of a channel make its scale: they stay
    share = (rest - _LOW) / (_HIGH - _LOW)
    raw = torch.log(share / (1 - share)).requires_grad_(True)
    optimizer = torch.optim.Adam([raw], lr=_RATE)
    with torch.no_grad():
        size = _apply(layer, given[:_BATCH], weight).square().mean().clamp(min=1e-12)
    for step, rows in enumerate(_batches(len(given), iterations, 32 * _BATCH if layer.kind == "dense" else _BATCH)):
        up = (torch.sigmoid(raw) * (_HIGH - _LOW) + _LOW).clamp(0, 1)
        rounded = torch.where(fixed, weight, (low + up).clamp(-steps, steps) * scale)
        with torch.no_grad():
            expected = _apply(layer, given[rows], weight)
        loss = (_apply(layer, given[rows], rounded) - expected).square().mean() / size
        if step > _WARM * iterations:
            along = (step / iterations - _WARM) / (1 - _WARM)
            loss = loss + _FORCE * _undecided(up, 20 - 18 * along)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        up = (torch.sigmoid(raw) * (_HIGH - _LOW) + _LOW >= 0.5).to(weight.dtype)
        return torch.where(fixed, (weight / scale).round() * scale, (low + up).clamp(-steps, steps) * scale)


def _undecided(up: torch.Tensor, beta: float) -> torch.Tensor:
    found: torch.Tensor = (1 - (2 * up - 1).abs().pow(beta)).mean()
    return found


def _batches(rows: int, iterations: int, size: int) -> Iterator[Any]:
    import torch

    for _ in range(iterations):
        yield torch.randint(0, rows, (min(size, rows),))


def _apply(layer: Weighted, given: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The layer's output before bias and activation."""
    import torch

    if layer.kind == "dense":
        return given @ weight.T
    assert layer.geometry is not None
    assert layer.geometry.pads is not None
    (top, bottom), (left, right) = layer.geometry.pads
    padded = torch.nn.functional.pad(given, (left, right, top, bottom))
    return torch.nn.functional.conv2d(padded, weight, stride=layer.geometry.strides, dilation=layer.geometry.dilations, groups=layer.groups)


def _outputs_first(array: np.ndarray, layer: Weighted) -> np.ndarray:
    """Weights as PyTorch has them: outputs, inputs, then places."""
    if layer.input_axis is None:
        moved = np.moveaxis(array, layer.output_axis, 0)
        return moved.reshape(len(moved), 1, *[size for size in moved.shape[1:] if size][-2:])
    return np.moveaxis(array, (layer.output_axis, layer.input_axis), (0, 1))


def _outputs_back(array: np.ndarray, layer: Weighted, shape: tuple[int, ...]) -> np.ndarray:
    if layer.input_axis is None:
        others = [size for axis, size in enumerate(shape) if axis != layer.output_axis]
        return np.moveaxis(array.reshape(len(array), *others), 0, layer.output_axis)
    return np.moveaxis(array, (0, 1), (layer.output_axis, layer.input_axis))
