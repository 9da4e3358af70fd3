"""Distances between signals."""

from __future__ import annotations

import math

import numpy as np

SQNR_LIMIT_DB = 200.0


def sqnr_db(expected: np.ndarray, found: np.ndarray) -> float:
    """Returns the signal-to-quantization-noise ratio in dB: power of ``expected`` over power of the difference.

    Infinite when the two are equal, minus infinity when ``expected`` is all zeros and ``found`` is not.
    """
    signal = np.asarray(expected, dtype=np.float64)
    noise = np.asarray(found, dtype=np.float64) - signal
    return power_ratio_db(float(np.vdot(signal, signal)), float(np.vdot(noise, noise)))


def power_ratio_db(signal: float, noise: float) -> float:
    """Returns a ratio of two powers in dB, with the limits for zero on either side."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def finite_db(value_db: float) -> float:
    """Limits a ratio to what JSON can carry: 200 dB says bit-identical."""
    return max(-SQNR_LIMIT_DB, min(SQNR_LIMIT_DB, value_db))
