"""From what was observed of a tensor to the range that its 2^b steps are spread over. Every range includes zero, which must be exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from toolkit.quantization.statistics import Observed

Range = tuple[float, float]
PERCENTILE = 99.99
ENDS: tuple[str, ...] = ("min_max", "moving_average")
"""Methods that need no histogram."""
_SHRUNK = 128
_SMALLEST_SHARE = 1e-9


def min_max(observed: Observed, bits: int) -> Range:
    """Everything that was seen."""
    return _with_zero(observed.low, observed.high)


def moving_average(observed: Observed, bits: int) -> Range:
    """The moving average of the samples' ends, as LiteRT's tools have it; single outliers hardly count."""
    return _with_zero(observed.average_low, observed.average_high)


def percentile(observed: Observed, bits: int) -> Range:
    """All but one of 10,000 values at either end, to the outer border of the bin that the last one kept lies in."""
    assert observed.counts is not None
    below = np.cumsum(observed.counts)
    if not len(below) or below[-1] == 0:
        return min_max(observed, bits)
    edges, total = observed.edges(), below[-1]
    dropped = int(total * (100 - PERCENTILE) / 100 + _SMALLEST_SHARE)
    low = edges[int(np.searchsorted(below, dropped, side="right"))]
    high = edges[int(np.searchsorted(below, total - dropped, side="left")) + 1]
    return _with_zero(max(float(low), observed.low), min(float(high), observed.high))


def entropy(observed: Observed, bits: int) -> Range:
    """The range whose quantized values tell most of the distribution: smallest Kullback-Leibler divergence.

    Migacz, "8-bit inference with TensorRT" (GTC 2017). What lies outside of a candidate counts to its last bins. Candidates are symmetric
    about zero, cut off where nothing was seen. The zeros behind a ReLU are left out, as zero is exact in any range: they would outweigh the rest.
    """
    assert observed.counts is not None
    negative, positive = map(_without_zeros, _sides(observed))
    width, levels = 2.0**observed.exponent, 2**bits
    most = max(len(negative), len(positive))
    best, chosen = np.inf, most
    for size in range(max(1, levels // (2 if len(negative) and len(positive) else 1)), most + 1):
        divergence = _divergence(negative, positive, size, levels)
        if divergence < best:
            best, chosen = divergence, size
    return _with_zero(max(-chosen * width, observed.low), min(chosen * width, observed.high))


def mse(observed: Observed, bits: int) -> Range:
    """The range with the smallest squared error of rounding and clipping, among those that shrink what was seen to 1/128, 2/128 and so on."""
    assert observed.counts is not None
    low, high = min_max(observed, bits)
    edges, counts = observed.edges(), observed.counts
    errors = [_rounding_error(edges, counts, low * part / _SHRUNK, high * part / _SHRUNK, bits) for part in range(1, _SHRUNK + 1)]
    part = (int(np.argmin(errors)) + 1) / _SHRUNK
    return low * part, high * part


METHODS: dict[str, Callable[[Observed, int], Range]] = {
    "min_max": min_max,
    "moving_average": moving_average,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


def _with_zero(low: float, high: float) -> Range:
    return min(low, 0.0), max(high, 0.0)


def _sides(observed: Observed) -> tuple[np.ndarray, np.ndarray]:
    """The histogram on both sides of zero, each beginning at zero ``[bins] float64``."""
    assert observed.counts is not None
    places = observed.first + np.arange(len(observed.counts))
    negative, positive = observed.counts[places < 0][::-1], observed.counts[places >= 0]
    gap_below = max(0, -(int(places[-1]) + 1)) if len(places) else 0
    gap_above = max(0, int(places[0])) if len(places) else 0
    return (
        np.concatenate([np.zeros(gap_below if len(negative) else 0), negative]).astype(np.float64),
        np.concatenate([np.zeros(gap_above if len(positive) else 0), positive]).astype(np.float64),
    )


def _without_zeros(side: np.ndarray) -> np.ndarray:
    """The bins of one side, the one at zero no higher than its neighbour; none where nothing else is there."""
    if len(side) > 1:
        side[0] = min(side[0], side[1])
    return side if len(side) > 1 else side[:0]


def _divergence(negative: np.ndarray, positive: np.ndarray, size: int, levels: int) -> float:
    """Kullback-Leibler divergence of a clipped distribution from what ``levels`` steps keep of it, spread evenly over bins that are not empty."""
    kept = np.concatenate([negative[:size][::-1], positive[:size]])
    exact = kept.copy()
    exact[0 if len(negative) else -1] += negative[size:].sum()
    exact[-1] += positive[size:].sum()
    total, inside = exact.sum(), kept.sum()
    if not total or not inside:
        return np.inf
    steps = min(levels, len(kept))
    starts = (np.arange(steps) * len(kept)) // steps
    filled = exact > 0
    sums, bins = np.add.reduceat(kept, starts), np.add.reduceat(filled.astype(np.float64), starts)
    spread = np.repeat(np.divide(sums, bins, out=np.zeros_like(sums), where=bins > 0), np.diff(np.append(starts, len(kept))))[filled]
    share = exact[filled] / total
    return float((share * np.log(share / np.maximum(spread / inside, _SMALLEST_SHARE))).sum())


def _rounding_error(edges: np.ndarray, counts: np.ndarray, low: float, high: float, bits: int) -> float:
    """Sum of squared errors, values spread evenly over their bins: a bin is not much narrower than a step, so that its centre says too little."""
    step = (high - low) / (2**bits - 1)
    if step <= 0:
        return float((counts * np.square((edges[:-1] + edges[1:]) / 2)).sum())
    zero = round(-low / step)
    nearest = np.clip(np.round(edges / step), -zero, 2**bits - 1 - zero)
    upto = nearest * step**3 / 12 + (edges - nearest * step) ** 3 / 3  # integral of the squared error from zero on
    return float((counts * np.diff(upto)).sum() / (edges[1] - edges[0]))
