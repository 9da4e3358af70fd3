"""The rungs of the repair ladder: each proposes other ways to make a file of the best one so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import plugins
from toolkit.quantization import adaround, correct, equalize, sensitivity, smooth
from toolkit.quantization.network import Network, open_network
from toolkit.quantization.search import Search
from toolkit.quantization.workshop import MIN_MAX, State, Workshop

_SENSITIVITY_ROWS = 32


@dataclass(frozen=True)
class Proposal:
    """One file that a rung would make.

    Attributes:
        state: What it is made of.
        done: What was changed, a sentence each.
    """

    state: State
    done: tuple[str, ...]


Rung = Callable[[Workshop, Search, State], Iterator[Proposal]]


def methods(workshop: Workshop, search: Search, state: State) -> Iterator[Proposal]:
    """Other ways to find ranges."""
    quantizer = workshop.quantizer(state.scheme)
    if state.scheme in quantizer.needs_calibration:
        for method in getattr(quantizer, "methods", ()):
            if method != state.method:
                yield Proposal(replace(state, method=method), (f"ranges by {method} instead of {state.method}",))


def per_channel(workshop: Workshop, search: Search, state: State) -> Iterator[Proposal]:
    """A scale for each output channel."""
    if not state.per_channel:
        yield Proposal(replace(state, per_channel=True), ("a scale for every output channel of a weight",))


def equalization(workshop: Workshop, search: Search, state: State) -> Iterator[Proposal]:
    """Equal ranges of the channels between layers, by what they were seen to be and by weights alone."""
    if workshop.calibration is not None:
        statistics = workshop.read_statistics(state.model)
        yield from _edited(workshop, state, partial(equalize.equalize, statistics=statistics))
    yield from _edited(workshop, state, equalize.equalize)


def bias_correction(workshop: Workshop, search: Search, state: State) -> Iterator[Proposal]:
    """The mean error of rounded weights, taken out of the biases."""
    if workshop.calibration is not None and "wi8" in state.scheme:
        statistics = workshop.read_statistics(state.model)
        asked: dict[str, Any] = {"scheme": state.scheme, "per_channel": state.per_channel, "keep_float": state.keep_float}
        yield from _edited(workshop, state, partial(correct.correct_bias, statistics=statistics, **asked))


def smoothing(workshop: Workshop, search: Search, state: State) -> Iterator[Proposal]:
    """Ranges moved from activations into weights."""
    if workshop.calibration is None or not open_network(state.model).norms:
        return
    statistics = workshop.read_statistics(state.model)
    for alpha in (0.5, 0.75):
        yield from _edited(workshop, state, partial(smooth.smooth, statistics=statistics, alpha=alpha))


def rounding(workshop: Workshop, search: Search, state: State) -> Iterator[Proposal]:
    """Weights rounded for the sake of the layer's output."""
    if workshop.calibration is None or find_spec("torch") is None:
        return
    samples = workshop.calibration
    asked: dict[str, Any] = {"per_channel": state.per_channel, "keep_float": state.keep_float, "progress": workshop.progress}

    def change(network: Network) -> list[str]:
        return adaround.round_weights(network, state.model, samples, **asked)

    yield from _edited(workshop, state, change)


def kept_layers(workshop: Workshop, search: Search, state: State) -> Iterator[Proposal]:
    """The most sensitive layers in float: 1, 2, 4 and so on, ranked by what keeping them was measured to give."""
    if not getattr(workshop.quantizer(state.scheme), "keeps_float", False):
        return
    contents = plugins.reader(workshop.format).read(state.model)
    names = [layer.name for layer in contents.layers if layer.weight_dtype != "-" and layer.name not in state.keep_float]
    rows = min(_SENSITIVITY_ROWS, len(search.data))

    def make(kept: tuple[str, ...]) -> Path:
        return workshop.make(replace(state, keep_float=(*state.keep_float, *kept)))

    def run(model: Path) -> np.ndarray:
        return search.outputs(model, rows=rows)

    ranked = sensitivity.rank(names, make, run, run(state.model))
    for kept in sensitivity.keep(ranked, contents):
        yield Proposal(replace(state, keep_float=(*state.keep_float, *kept)), (f"{len(kept)} of {len(names)} layers in float: {_named(kept)}",))


RUNGS: dict[str, Rung] = {
    "range_method": methods,
    "per_channel": per_channel,
    "equalization": equalization,
    "bias_correction": bias_correction,
    "smooth_quant": smoothing,
    "adaround": rounding,
    "keep_float": kept_layers,
}
"""The rungs from the cheapest to the dearest."""


def _edited(workshop: Workshop, state: State, change: Callable[[Network], list[str]]) -> Iterator[Proposal]:
    """An edited model, first with plain ranges again where another method was taken before: what that cut off may be gone."""
    model, done = workshop.edit(state.model, change)
    if done and state.method != MIN_MAX:
        yield Proposal(replace(state, model=model, method=MIN_MAX), (*done, f"ranges by {MIN_MAX} again"))
    if done:
        yield Proposal(replace(state, model=model), tuple(done))


def _named(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (" and others" if len(names) > 4 else "")
