"""Which layers suffer most from int8: measured, by leaving them in float and looking at the model's output.

Where there are many layers they are tried in groups first, and only the groups that help are taken apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.contents import Contents
from toolkit.stats.signal import finite_db, sqnr_db

MOST_FILES = 40
"""Files that a ranking makes, about."""
_WORTH_DB = 0.1


@dataclass(frozen=True)
class Sensitivity:
    """What keeping a layer in float gives.

    Attributes:
        layer: Its name.
        sqnr_db: Signal over quantization noise of the output with this layer in float, in dB.
        gain_db: How much that is above the file that has none in float.
    """

    layer: str
    sqnr_db: float
    gain_db: float


def rank(
    layers: Sequence[str], make: Callable[[tuple[str, ...]], Path], run: Callable[[Path], np.ndarray], reference: np.ndarray
) -> list[Sensitivity]:
    """Ranks layers by what keeping each in float gives, the best first.

    Args:
        layers: Names of all layers, in the order of the file.
        make: Gives the quantized file with some layers in float.
        run: Gives a file's output on a few samples.
        reference: The float model's output on them.

    Returns:
        The layers of the groups that help; at most as many files are made as :data:`MOST_FILES` says, but for a few.
    """

    def quality(kept: tuple[str, ...]) -> float:
        return finite_db(sqnr_db(reference, run(make(kept))))

    plain, left = quality(()), MOST_FILES
    groups = [tuple(part) for part in np.array_split(np.array(layers, object), min(len(layers), MOST_FILES // 4)) if len(part)]
    found: list[Sensitivity] = []
    while groups and left > 0:
        measured = [(group, quality(group)) for group in groups[:left]]
        left -= len(measured)
        found += [Sensitivity(group[0], value, value - plain) for group, value in measured if len(group) == 1]
        helping = sorted((one for one in measured if len(one[0]) > 1 and one[1] > plain + _WORTH_DB), key=lambda one: -one[1])
        groups = [half for group, _ in helping for half in _halves(group)]
    return sorted((one for one in found if one.gain_db > 0), key=lambda one: -one.gain_db)


def keep(ranked: Sequence[Sensitivity], contents: Contents) -> Iterator[tuple[str, ...]]:
    """Proposes growing sets of layers for float: 1, 2, 4 and so on, up to half of all.

    Of layers that give alike, those come first that cost little: a layer's gain counts over its share of the multiply-accumulates.

    Args:
        ranked: What :func:`rank` found.
        contents: What is in the float file.
    """
    work = {node.name: node.macs for node in contents.nodes} | {output: node.macs for node in contents.nodes for output in node.outputs}
    total = max(1, sum(node.macs for node in contents.nodes))
    order = sorted(ranked, key=lambda one: -one.gain_db / (1 + 10 * work.get(one.layer, 0) / total))
    most = max(1, sum(layer.weight_dtype != "-" for layer in contents.layers) // 2)
    size = 1
    while size <= min(most, len(order)):
        yield tuple(one.layer for one in order[:size])
        size *= 2


def _halves(group: tuple[str, ...]) -> list[tuple[str, ...]]:
    middle = (len(group) + 1) // 2
    return [group[:middle], group[middle:]]
