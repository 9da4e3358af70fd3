"""Pictures of a training run: learning curves and the confusion matrix, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from toolkit.finetuning.loop import Epoch

CURVES = "learning-curves.png"
CONFUSION = "confusion-matrix.png"
_DPI = 110
_MOST_NAMED = 30  # classes, beyond which their names and counts cannot be read
# Colours that are told apart by people who see few: Okabe and Ito (2008).
_BLUE, _ORANGE, _GREEN = "#0072B2", "#E69F00", "#009E73"


def draw(history: Sequence[Epoch], best: int, confusion: np.ndarray, names: Sequence[str], folder: Path) -> list[str]:
    """Draws both pictures.

    Args:
        history: Every epoch.
        best: The number of the one that was kept.
        confusion: How often each class of the held-out rows was taken for which, ``[class x answer]``.
        names: Names of the classes.
        folder: Where to write.

    Returns:
        Names of the files; none where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return []
    _curves(Figure(figsize=(8, 3.4), layout="constrained"), history, best).savefig(folder / CURVES, dpi=_DPI, metadata={"Software": None})
    side = min(12.0, 2.6 + 0.42 * len(names))
    _confusion(Figure(figsize=(side + 0.8, side), layout="constrained"), confusion, names).savefig(
        folder / CONFUSION, dpi=_DPI, metadata={"Software": None}
    )
    return [CURVES, CONFUSION]


def _curves(figure: Any, history: Sequence[Epoch], best: int) -> Any:
    epochs = [one.epoch for one in history]
    loss, accuracy = figure.subplots(1, 2)
    mark = "o" if len(epochs) < 2 else None
    loss.plot(epochs, [one.train_loss for one in history], color=_ORANGE, marker=mark, label="training, as it is trained")
    loss.plot(epochs, [one.validation_loss for one in history], color=_BLUE, marker=mark, label="held out")
    loss.set(xlabel="epoch", ylabel="loss", title="Loss")
    accuracy.plot(epochs, [100 * one.validation_accuracy for one in history], color=_BLUE, marker=mark, label="held out")
    accuracy.set(xlabel="epoch", ylabel="accuracy, %", title="Accuracy")
    for axes in (loss, accuracy):
        axes.axvline(best, color=_GREEN, linestyle="--", linewidth=1, label=f"kept: epoch {best}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def _confusion(figure: Any, confusion: np.ndarray, names: Sequence[str]) -> Any:
    axes = figure.subplots()
    rows = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, rows, out=np.zeros(confusion.shape), where=rows > 0)
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    axes.set(xlabel="answer", ylabel="class", title=f"{int(confusion.sum())} held-out training samples")
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the class, %")
    if len(names) > _MOST_NAMED:
        return figure
    places = range(len(names))
    axes.set_xticks(places, names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    for row, column in np.argwhere(confusion > 0):
        dark = shares[row, column] > 0.5
        axes.text(column, row, str(confusion[row, column]), ha="center", va="center", fontsize=8, color="white" if dark else "black")
    return figure
