"""Statistics as a picture: what each activation held, and where each method would cut it off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from toolkit.quantization.statistics import Observed, Statistics

_ROW_INCHES, _WIDTH_INCHES, _HEAD_INCHES = 0.28, 10.0, 1.2
_COLUMNS = 240
_COLOURS = {"moving_average": "#1f77b4", "percentile": "#2ca02c", "entropy": "#ff7f0e", "mse": "#d62728"}
_LONGEST = 60


def draw(statistics: Statistics, path: Path) -> None:
    """Writes a PNG with a row for each tensor, from its smallest to its largest value.

    Darker is more often, on a logarithmic scale; the marks are the ends of the range that each method finds for 8 bits.

    Args:
        statistics: What to draw; without histograms there are no shades, and marks only of methods that need none.
        path: The file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_INCHES, _HEAD_INCHES + _ROW_INCHES * len(statistics.tensors)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, (name, observed) in enumerate(statistics.tensors.items()):
        _shade(axes, row, observed)
        for method, colour in _COLOURS.items():
            if method == "moving_average" or observed.counts is not None:
                ends = [_place(end, observed) for end in statistics.range(name, method)]
                axes.plot(ends, [row, row], "|", color=colour, markersize=9, markeredgewidth=1.6, label=method if row == 0 else None)
    _label(axes, statistics)
    figure.savefig(path, dpi=110, format="png")


def _shade(axes: Any, row: int, observed: Observed) -> None:
    """How often each part of a tensor's range was seen."""
    shades = np.zeros(_COLUMNS)
    if observed.counts is not None and observed.counts.any():
        places = [_place(edge, observed) for edge in (observed.edges()[:-1] + observed.edges()[1:]) / 2]
        columns = np.clip((np.array(places) * _COLUMNS).astype(int), 0, _COLUMNS - 1)
        shades = np.log1p(np.bincount(columns, weights=observed.counts, minlength=_COLUMNS))
        shades /= shades.max()
    axes.imshow(shades[None], extent=(0, 1, row + 0.4, row - 0.4), aspect="auto", cmap="Greys", vmin=0, vmax=1.6)


def _place(value: float, observed: Observed) -> float:
    """Where a value lies between the smallest and the largest one, 0..1; zero counts to both, as every range includes it."""
    low, high = min(observed.low, 0.0), max(observed.high, 0.0)
    return (value - low) / (high - low) if high > low else 0.0


def _label(axes: Any, statistics: Statistics) -> None:
    rows = range(len(statistics.tensors))
    axes.set_yticks(rows, [_short(name) for name in statistics.tensors], fontsize=7)
    axes.set_xticks([])
    axes.set_ylim(len(statistics.tensors) - 0.5, -0.5)
    axes.set_xlim(-0.01, 1.01)
    axes.set_title(f"activations of {statistics.samples} samples; each row from its smallest to its largest value", fontsize=9)
    ends = axes.twinx()
    ends.set_ylim(axes.get_ylim())
    ends.set_yticks(rows, [f"{min(one.low, 0):z.3g} .. {max(one.high, 0):z.3g}" for one in statistics.tensors.values()], fontsize=7)
    if statistics.tensors:
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.3 / max(1, len(statistics.tensors))), ncols=len(_COLOURS), fontsize=7, frameon=False)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"...{name[3 - _LONGEST :]}"
