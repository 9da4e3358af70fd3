"""Spoken words as MLPerf Tiny's keyword network takes them: mel-frequency cepstral coefficients.

The features are those of the reference implementation (MLPerf Tiny, Banbury et al. 2021; 30 ms windows every 20 ms, 40 mel bands of 20 to
4000 Hz, 10 coefficients), computed by their formulas: the float network must recognize nearly all words, or the formulas are wrong.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

KEYWORDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes", "silence", "unknown")
"""The network's classes in their order."""

_RATE = 16_000
_WINDOW = 480
_STRIDE = 320
_SPECTRUM = 512
_BANDS = 40
_BORDERS_HZ = (20, 4000)
_COEFFICIENTS = 10
_FLOOR = 1e-6


def load(folder: Path) -> dict[str, np.ndarray]:
    """Clips under folders named by their words; a word that is no keyword is ``unknown``.

    Returns:
        ``input_1`` ``[n x 49 x 10 x 1] float32`` and ``label`` ``[n] int64``.
    """
    files = sorted(folder.glob("*/*.wav"))
    words = [file.parent.name if file.parent.name in KEYWORDS else "unknown" for file in files]
    return {"input_1": np.stack([_features(_read(file)) for file in files]), "label": np.array([KEYWORDS.index(word) for word in words])}


def _read(file: Path) -> np.ndarray:
    """One second ``[16000] float64``, its loudest value 1."""
    with wave.open(str(file)) as stream:
        signal = np.frombuffer(stream.readframes(_RATE), np.int16).astype(np.float64)
    return np.pad(signal / max(np.abs(signal).max(), 1), (0, _RATE - len(signal)))


def _features(signal: np.ndarray) -> np.ndarray:
    from scipy.fft import dct
    from scipy.signal.windows import hann

    windows = np.lib.stride_tricks.sliding_window_view(signal, _WINDOW)[::_STRIDE] * hann(_WINDOW, sym=False)
    spectrum = np.abs(np.fft.rfft(windows, _SPECTRUM))
    cepstrum = dct(np.log(spectrum @ _filters() + _FLOOR)) / np.sqrt(2 * _BANDS)
    return np.asarray(cepstrum[:, :_COEFFICIENTS, None], dtype=np.float32)


def _filters() -> np.ndarray:
    """Triangles ``[257 x 40]``, evenly spaced in mel (HTK's formula), without the constant part of the signal."""
    mel = 1127 * np.log1p(np.linspace(0, _RATE / 2, _SPECTRUM // 2 + 1) / 700)[:, None]
    low, high = 1127 * np.log1p(np.array(_BORDERS_HZ) / 700)
    edges = np.linspace(low, high, _BANDS + 2)
    rising, falling = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2]), (edges[2:] - mel) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))
    triangles[0] = 0
    return triangles
