"""The first layers of a network in float, where integers make them slower.

Integer kernels work on blocks of channels. A picture's three channels, and the eight of a thin network behind them, leave most of a block empty,
while the sums to be made are the largest of the network: MobileNetV1 with a quarter of its channels took 1.4 times the float model's time as
int8 TFLite, and 0.9 of it with its first three layers in float. Wider networks lose by that, so it is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from toolkit.contents import Contents
from toolkit.errors import InputRejected, StageFailed
from toolkit.quantization.auto import FASTER, latency_ratio
from toolkit.quantization.search import Search
from toolkit.quantization.workshop import State, Workshop

SLOW = 0.8
"""Time over the float model's from which on an int8 file is looked into."""
_COUNTS = (1, 2, 3, 5, 8)
_AS_FAST = 1.03


@dataclass(frozen=True)
class Beginning:
    """First layers that stay float.

    Attributes:
        layers: Their names; none where they gain nothing.
        before: Time over the float model's without them.
        after: Time over the float model's with them.
    """

    layers: tuple[str, ...]
    before: float
    after: float


def quicken(workshop: Workshop, search: Search, state: State, contents: Contents) -> Beginning:
    """Measures whether a file is faster with its first layers in float.

    Args:
        workshop: Makes the files.
        search: Runs them.
        state: What the file is made of.
        contents: What is in the float file.

    Returns:
        The fewest layers with which it is about as fast as it gets, if that is a tenth faster than without.
    """
    before = latency_ratio(search, workshop.make(state), state.model)
    names = tuple(layer.name for layer in contents.layers if layer.weight_dtype != "-")
    if before < SLOW or not getattr(workshop.quantizer(state.scheme), "keeps_float", False):
        return Beginning((), before, before)
    times = {count: time for count in _COUNTS if count < len(names) and (time := _time(workshop, search, state, names[:count]))}
    least = min(times.values(), default=before)
    if least >= before * FASTER:
        return Beginning((), before, before)
    count = min(count for count, time in times.items() if time <= least * _AS_FAST)
    return Beginning(names[:count], before, times[count])


def _time(workshop: Workshop, search: Search, state: State, kept: tuple[str, ...]) -> float | None:
    try:
        return latency_ratio(search, workshop.make(replace(state, keep_float=kept)), state.model)
    except (InputRejected, StageFailed):
        return None
