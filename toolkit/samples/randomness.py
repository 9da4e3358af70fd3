"""Is this noise? Samples without any structure, as ``numpy.random`` makes them, give activation ranges that real inputs never take.

Noise means independent draws from one distribution. Whatever breaks that shows in one of five statistics, each brought to a standard normal
score: neighbours that are alike, positions with means of their own, rows or columns with means of their own, samples with means or variances
of their own. Values count as noise only if none of the scores stands out, so that the test errs towards letting samples pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

FEWEST_POSITIONS = 8
"""An axis shorter than this holds channels, not neighbours."""

_SCORE = 4.0  # noise reaches it by chance with a probability of 3e-5, or 6e-5 where both signs count
_FEWEST_VALUES = 512  # neighbours that correlate by 0.3, far less than in pictures, then score above 6
_MOST_VALUES = 1 << 22
_MOST_ALONG_AXIS = 512
_EVEN = 0.1  # of two values that are equally frequent no sample's variance differs; of uniform ones this is 0.8
_FEWEST_SYMBOLS = 16
_FEWEST_PAIRS = 200.0  # text has several times as many equal pairs as uniform draws; 4 standard deviations are then 28 %


def is_noise(column: np.ndarray) -> bool:
    """Whether signals are indistinguishable from independent draws of one distribution.

    Args:
        column: Samples ``[n x ...]`` float, with at least two axes of 8 positions or more; anything else is no signal, and passes. Axes shorter
            than that are channels: each may have its own mean and scale.
    """
    axes = [axis for axis in range(1, column.ndim) if column.shape[axis] >= FEWEST_POSITIONS]
    return column.dtype.kind == "f" and len(axes) >= 2 and _unstructured(_excerpt(column), axes)


def is_drawn_uniformly(column: np.ndarray) -> bool:
    """Whether whole numbers are independent uniform draws, which tokens of text never are: a few make up most of it (Zipf's law).

    Equal pairs are counted: among ``N`` uniform draws from ``V`` symbols there are ``N (N - 1) / 2V`` of them, with a variance of about as many.

    Args:
        column: Samples ``[n x positions]`` of integers.
    """
    if column.dtype.kind not in "iu" or column.ndim != 2 or column.shape[1] < FEWEST_POSITIONS:
        return False
    excerpt = _excerpt(column)
    drawn = excerpt.size
    symbols = int(excerpt.max()) - int(excerpt.min()) + 1
    expected = drawn * (drawn - 1) / 2 / symbols
    if symbols < _FEWEST_SYMBOLS or expected < _FEWEST_PAIRS:
        return False
    counts = np.unique(excerpt, return_counts=True)[1].astype(np.float64)
    pairs = float((counts * (counts - 1)).sum() / 2)
    return abs(pairs - expected) < _SCORE * expected**0.5 and _unstructured(excerpt, [1])


def _excerpt(column: np.ndarray) -> np.ndarray:
    """At most 4 million values, so that the cost does not grow with the data: the middle of each axis, then samples at equal distances."""
    middle: list[slice] = []
    for size in column.shape[1:]:
        start = max(0, (size - _MOST_ALONG_AXIS) // 2)
        middle.append(slice(start, start + _MOST_ALONG_AXIS))
    inside = int(np.prod([min(size, _MOST_ALONG_AXIS) for size in column.shape[1:]]))
    rows = np.unique(np.linspace(0, len(column) - 1, max(4, min(len(column), _MOST_VALUES // inside))).astype(np.int64))
    return np.stack([column[(row, *middle)] for row in rows])


def _unstructured(values: np.ndarray, axes: list[int]) -> bool:
    """Whether no score stands out; ``axes`` are those with neighbours, the others but the first hold channels."""
    if values.size < _FEWEST_VALUES:
        return False
    scaled = values.astype(np.float64)
    scaled -= scaled.mean(axis=(0, *axes), keepdims=True)
    deviation = scaled.std(axis=(0, *axes), keepdims=True)
    if not (deviation > 0).all():
        return False  # a constant channel is not drawn from anything
    scaled /= deviation
    return all(score < _SCORE for score in _scores(scaled, axes))


def _scores(scaled: np.ndarray, axes: list[int]) -> Iterator[float]:
    """Standard normal scores of values that are ``scaled`` to mean 0 and variance 1 in each channel; the clearest ones first."""
    for axis in axes:
        ahead, behind = (np.moveaxis(scaled, axis, 0)[part] for part in (slice(1, None), slice(None, -1)))
        yield abs(float((ahead * behind).mean())) * ahead.size**0.5
    for axis in axes:
        yield _of_means(scaled, axis)
    samples, inside = len(scaled), scaled[0].size
    if samples < 2:
        return
    flat = scaled.reshape(samples, inside)
    excess = float((flat**4).mean()) - 3
    yield _of_sum(float((flat.mean(axis=0) ** 2).sum() * samples), inside - 1, excess / samples)
    yield _of_means(scaled, 0)
    variances = flat.var(axis=1)
    yield _of_sum(float(((variances - variances.mean()) ** 2).sum() * inside / max(excess + 2, _EVEN)), samples - 1)


def _of_means(scaled: np.ndarray, axis: int) -> float:
    """How far the means along an axis lie from zero, all together."""
    means = scaled.mean(axis=tuple(other for other in range(scaled.ndim) if other != axis))
    return _of_sum(float((means**2).sum() * scaled.size / len(means)), len(means) - 1)


def _of_sum(found: float, freedom: int, excess: float = 0.0) -> float:
    """Brings a chi-squared sum to a standard normal score (Wilson and Hilferty 1931).

    Args:
        found: The sum of squares.
        freedom: Its degrees of freedom.
        excess: By how much each square varies beyond that of a normal value: the excess kurtosis, over the values that each is a mean of.
    """
    spread = 2 * (1 + excess / 2) / (9 * freedom)
    return float(((found / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5)
