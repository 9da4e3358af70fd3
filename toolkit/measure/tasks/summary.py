"""What the metrics of a classification need to know of each sample, read from its class scores a piece at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.dataset import pieces

_LARGEST = float(np.finfo(np.float32).max)
_SUM_TOLERANCE = 0.05
_STEP = 1 / 256  # of 8-bit probabilities; rounding moves each by up to half of it
_PEAK_TOLERANCE = 0.01
_DECIMALS = 6


@dataclass(frozen=True)
class Summary:
    """One model's answers on ``n`` samples.

    Attributes:
        picked: The class with the highest score, the first of equal ones, ``[n] int64``.
        rank: How many classes come before the right one, ``[n] int64``; of equal scores the lower index comes first.
        confidence: Probability of the picked class, ``[n] float64``.
        probabilities: Whether the scores are probabilities; logits otherwise.
    """

    picked: np.ndarray
    rank: np.ndarray
    confidence: np.ndarray
    probabilities: bool

    @property
    def right(self) -> np.ndarray:
        """Which samples are right, ``[n] bool``."""
        return self.rank == 0


def summarize(scores: np.ndarray, label: np.ndarray) -> Summary:
    """Reads the scores once.

    Scores are taken as probabilities where none is negative or above 1 and they add up to 1 in the typical sample, within what 8-bit
    rounding does to so many of them; else as logits, whose probabilities are their softmax.

    Args:
        scores: ``[n x classes] float32``.
        label: ``[n] int64``.
    """
    rows = [_summarize(some, label[start : start + len(some)]) for start, some in pieces(scores)]
    picked, rank, peak, lowest, total, softmax = (np.concatenate(column) for column in zip(*rows, strict=True))
    inside = bool(lowest.min() >= 0) and bool(peak.max() <= 1 + _PEAK_TOLERANCE)
    given = inside and abs(float(np.median(total)) - 1) <= _SUM_TOLERANCE + scores.shape[1] * _STEP / 2
    return Summary(picked, rank, np.minimum(peak, 1.0) if given else softmax, given)


def _summarize(scores: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, ...]:
    found = _finite(scores)
    own = found[np.arange(len(found)), label][:, None]
    earlier = np.arange(found.shape[1]) < label[:, None]
    rank = np.count_nonzero((found > own) | ((found == own) & earlier), axis=1)
    peak = found.max(axis=1)
    softmax = 1 / np.exp(found - peak[:, None]).sum(axis=1)
    return found.argmax(axis=1), rank, peak, found.min(axis=1), found.sum(axis=1), softmax


def standing(scores: np.ndarray, summary: Summary, classes: slice | int = slice(None)) -> np.ndarray:
    """Returns numbers that rank samples by the probability of a class, ``[n x classes] float64``, or ``[n]`` for one class.

    Probabilities stand for themselves. Of logits these are the logarithmic odds of each class against all others, which rank
    samples as their softmax does and never saturate.

    Args:
        scores: ``[n x classes] float32``.
        summary: What is known of them.
        classes: Which classes to return.
    """
    rank = _finite if summary.probabilities else _log_odds
    return np.concatenate([rank(some)[:, classes].copy() for _, some in pieces(scores)])  # a view would keep all classes


def class_counts(summary: Summary, label: np.ndarray) -> Any:
    """Returns whether each sample is right, labelled and picked as each class, sparse ``[n x 3c]``, of the classes that occur."""
    from scipy.sparse import csr_array

    n = len(label)
    occurring, index = np.unique(np.concatenate([label, summary.picked]), return_inverse=True)
    count, rows, labelled, picked = len(occurring), np.arange(n), index[:n], index[n:]
    columns = np.concatenate([labelled[summary.right], labelled + count, picked + 2 * count])
    places = np.concatenate([rows[summary.right], rows, rows])
    return csr_array((np.ones(len(places)), (places, columns)), shape=(n, 3 * count))


def _log_odds(scores: np.ndarray) -> np.ndarray:
    found = _finite(scores)
    rows, top = np.arange(len(found)), found.argmax(axis=1)
    peak = found[rows, top]
    powers = np.exp(found - peak[:, None])
    powers[rows, top] = 0.0
    runners = found.copy()
    runners[rows, top] = -np.inf
    second = runners.max(axis=1)
    # What is left of the sum without a class; for the highest one, found without cancellation.
    odds = found - (peak[:, None] + np.log1p(powers.sum(axis=1, keepdims=True) - powers))
    odds[rows, top] = peak - second - np.log(np.exp(runners - second[:, None]).sum(axis=1))
    return np.round(odds, _DECIMALS)  # equal odds must tie, whatever rounding did on the way


def _finite(scores: np.ndarray) -> np.ndarray:
    """Returns scores as ``float64``; infinite ones, as of a masked class, are the largest that ``float32`` knows."""
    return np.clip(scores.astype(np.float64), -_LARGEST, _LARGEST)
