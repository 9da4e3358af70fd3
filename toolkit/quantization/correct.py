"""Bias correction (Nagel et al. 2019, arXiv 1906.04721, section 4.2).

Rounded weights are off by an error that is the same for every sample. Where inputs are not zero on average, as behind every ReLU, neither is the
error of an output: ``E[(W' - W) x] = (W' - W) E[x]``. That much is taken out of the bias.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from toolkit.quantization.network import Network, Weighted
from toolkit.quantization.scheme import decode
from toolkit.quantization.statistics import Statistics

_BITS = 8


def correct_bias(network: Network, statistics: Statistics, *, scheme: str, per_channel: bool = True, keep_float: Collection[str] = ()) -> list[str]:
    """Takes the mean error of rounded weights out of the biases.

    Args:
        network: The float network as it will be quantized; its biases are changed.
        statistics: Of that network, with ``channel_mean`` of the layers' inputs.
        scheme: How it will be quantized; biases are corrected for weights of 8 bits.
        per_channel: Whether every output has a scale of its own.
        keep_float: Layers that stay float.

    Returns:
        What was done, a sentence each; nothing where no bias is corrected.

    Raises:
        ConfigError: The scheme is unknown.
    """
    decoded = decode(scheme)
    if decoded.weight_bits != _BITS or decoded.kind == "float":
        return []
    # Dynamic int8 in ONNX touches matrix products alone.
    kinds = ("dense",) if decoded.kind == "dynamic" and network.format == "onnx" else ("conv", "depthwise", "dense")
    done, without = [], []
    for layer in network.layers:
        mean = _mean(network, layer, statistics)
        if layer.name in keep_float or mean is None or layer.kind not in kinds:
            continue
        if layer.bias is None:
            without.append(layer.name)
            continue
        weight = network.array(layer.weight).astype(np.float64)
        error = _expected(network, layer, rounded(weight, layer.output_axis, per_channel=per_channel) - weight, mean)
        bias = network.array(layer.bias)
        network.store(layer.bias, bias - error.reshape(bias.shape))
        done.append(layer.name)
    if not done:
        return []
    told = [f"the mean error of rounded weights is taken out of the biases of {len(done)} layers"]
    return told + ([f"{len(without)} layers without biases cannot be corrected: {_named(without)}"] if without else [])


def rounded(weight: np.ndarray, output_axis: int, *, per_channel: bool) -> np.ndarray:
    """Weights as 8-bit quantizers store them: symmetric, from -127 to 127, a scale for each output or one for all.

    ONNX Runtime (``compute_scale_zp``) and ai-edge-quantizer (``uniform_quantize_tensor``) do the same; both round halves to even.
    """
    most = 2 ** (_BITS - 1) - 1
    others = tuple(axis for axis in range(weight.ndim) if axis != output_axis % weight.ndim)
    largest = np.abs(weight).max(axis=others if per_channel else None, keepdims=True, initial=0.0)
    # Quantizers work in float32, where a halfway case may fall to the other side.
    scale = np.where(largest > 0, largest / most, 1.0).astype(np.float32)
    found: np.ndarray = np.clip(np.rint(weight.astype(np.float32) / scale), -most, most).astype(np.float64) * scale
    return found


def _mean(network: Network, layer: Weighted, statistics: Statistics) -> np.ndarray | None:
    """Mean of each channel that a layer reads ``[c] float64``; ``None`` where it was not observed."""
    observed = statistics.tensors.get(layer.input)
    if observed is None or observed.channel_mean is None:
        return None
    mean = np.asarray(observed.channel_mean, np.float64)
    if layer.kind == "depthwise":
        return mean if len(mean) == layer.groups else None
    assert layer.input_axis is not None
    wanted = network.array(layer.weight).shape[layer.input_axis] * layer.groups
    # Fully connected layers of TFLite flatten what they read, channels last.
    return np.tile(mean, wanted // len(mean)) if len(mean) and wanted % len(mean) == 0 else None


def _expected(network: Network, layer: Weighted, error: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Mean error of each output ``[o]``."""
    error = np.moveaxis(error, layer.output_axis, 0)
    outputs = len(error)
    if layer.kind == "depthwise":
        by_input = (error * _shares(network, layer, error.shape)).reshape(outputs, -1).sum(axis=1)
        found: np.ndarray = by_input * np.repeat(mean, outputs // layer.groups)
        return found
    assert layer.input_axis is not None
    inputs = layer.input_axis if layer.input_axis > layer.output_axis else layer.input_axis + 1
    shared = error * _shares(network, layer, error.shape)
    by_input = np.moveaxis(shared, inputs, 1).reshape(outputs, shared.shape[inputs], -1).sum(axis=2)
    means = np.repeat(mean.reshape(layer.groups, -1), outputs // layer.groups, axis=0)
    total: np.ndarray = (by_input * means).sum(axis=1)
    return total


def _shares(network: Network, layer: Weighted, error: tuple[int, ...]) -> np.ndarray:
    """What each tap of a kernel meets on average, as a multiple of its input's mean, of a shape that broadcasts to the error ``[o, ...]``.

    A tap at a kernel's border meets the zeros around the input more often than one in the middle. Where an operator of its own puts them there,
    the mean that was observed is one over zeros too.
    """
    geometry, shares = layer.geometry, np.ones([1] * len(error))
    if geometry is None or geometry.pads is None:
        return shares
    first = 2 if layer.channel_axis == 1 else 1
    # Behind the outputs an error has the inputs and the taps in ONNX; TFLite has the taps first.
    taps = 2 if layer.channel_axis == 1 or layer.kind == "depthwise" else 1
    sizes, zeros = network.shapes.get(layer.input, ()), _zeros(network, layer)
    for place, (before, behind) in enumerate(geometry.pads):
        size = sizes[first + place] if first + place < len(sizes) else None
        if size is None:
            continue
        inner, outer = zeros[first + place] if zeros else (0, 0)
        filled = size - inner - outer
        share = _share(filled, error[taps + place], geometry.strides[place], geometry.dilations[place], before + inner, behind + outer)
        shares = shares * (share * size / filled).reshape([-1 if axis == taps + place else 1 for axis in range(len(error))])
    return shares


def _zeros(network: Network, layer: Weighted) -> tuple[tuple[int, int], ...] | None:
    """Zeros that the operator before a layer puts around its input, by axis."""
    writer = network.writer(layer.input)
    zeros: tuple[tuple[int, int], ...] | None = writer.attributes.get("zeros") if writer and writer.role == "window" else None
    return zeros if zeros and all(before >= 0 and behind >= 0 for before, behind in zeros) else None


def _share(size: int, taps: int, stride: int, dilation: int, before: int, behind: int) -> np.ndarray:
    """Share of the positions at which each tap ``[taps]`` is inside of an axis."""
    positions = (size + before + behind - dilation * (taps - 1) - 1) // stride + 1
    starts = np.arange(max(positions, 1)) * stride - before
    places = starts[:, None] + np.arange(taps) * dilation
    found: np.ndarray = ((places >= 0) & (places < size)).mean(axis=0)
    return found


def _named(names: list[str]) -> str:
    return ", ".join(names[:4]) + (" and others" if len(names) > 4 else "")
