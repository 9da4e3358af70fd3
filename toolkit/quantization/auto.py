"""``scheme = "auto"``: what kind of network decides first, and a measurement corrects it.

Convolutional networks take static int8, whose activations stay 8 bits wide from layer to layer. Networks of dense layers, as transformers are,
take dynamic int8: their activations have outliers that one range for all tokens serves badly, and the range of each token costs little.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from toolkit.contents import Contents
from toolkit.errors import ConfigError, InputRejected, NoRoute, StageFailed, ToolkitError, UnsupportedOperators
from toolkit.quantization.search import Judged, Search
from toolkit.quantization.workshop import State, Workshop

AUTO = "auto"
STATIC, DYNAMIC = "static_wi8_ai8", "dynamic_wi8"
_CONVOLUTIONS = {"conv", "fusedconv", "convtranspose", "conv_2d", "depthwise_conv_2d", "transpose_conv", "conv_3d"}
_ROUNDS, _WARM = 15, 5
FASTER = 0.9
"""Time over another file's from which on a file counts as faster."""
_WORSE = 0.005
_WORSE_DB = 6.0
AIM = 0.01
"""Loss of right answers that ``auto`` repairs without being asked to."""
QUICK = ("range_method", "equalization", "bias_correction")
"""Rungs that it climbs for that: they take seconds, and the file stays integer and as fast."""


@dataclass(frozen=True)
class Choice:
    """A scheme, and why it was chosen.

    Attributes:
        scheme: The scheme.
        why: The reason, a sentence.
        measured: What was measured of each candidate: ``scheme``, ``drop``, ``sqnr_db``, ``latency_ratio`` over float; or ``reason``.
        usual: The scheme that such networks take otherwise, where it lost more; empty where it was not that.
    """

    scheme: str
    why: str
    measured: tuple[Mapping[str, Any], ...] = ()
    usual: str = ""

    def facts(self) -> dict[str, Any]:
        """It as plain values."""
        return {"scheme": self.scheme, "why": self.why, "measured": [dict(one) for one in self.measured]}


def choose(contents: Contents, among: Sequence[str] = (STATIC, DYNAMIC)) -> Choice:
    """Chooses by what a float model consists of.

    Args:
        contents: What is in its file.
        among: Schemes that its targets run.
    """
    if len(among) == 1:
        return Choice(among[0], "it is the only one that the targets run")
    work = {node.operator: 0 for node in contents.nodes}
    for node in contents.nodes:
        work[node.operator] += node.macs
    total = sum(work.values())
    convolutions = sum(macs for operator, macs in work.items() if operator.lower() in _CONVOLUTIONS)
    share = convolutions / total if total else 1.0
    if share >= 0.5:
        return Choice(STATIC, f"{share:.0%} of its multiply-accumulates are convolutions")
    return Choice(DYNAMIC, f"{1 - share:.0%} of its multiply-accumulates are matrix products")


def refine(first: Choice, workshop: Workshop, search: Search, state: State, among: Sequence[str] = (STATIC, DYNAMIC)) -> Choice:
    """Measures the chosen scheme beside the other one, on the samples and the runtime of the search.

    The other one is taken where it is right as often and at least a tenth faster, or where the first cannot be made or loses more.

    Args:
        first: The choice so far.
        workshop: Makes the files.
        search: Judges and runs them.
        state: What they are made of but for the scheme.
        among: Schemes that the targets run.

    Raises:
        ToolkitError: Neither scheme can be made.
    """
    if len(among) == 1:
        return first
    order = (first.scheme, DYNAMIC if first.scheme == STATIC else STATIC)
    tried = [_measure(scheme, workshop, search, state) for scheme in order]
    told = tuple(one.told for one in tried)
    usual, other = tried
    if usual.judged is None and other.judged is None:
        assert usual.error is not None
        raise usual.error
    if usual.judged is None:
        return Choice(other.scheme, f"{first.scheme} cannot be made: {told[0]['reason']}", told, usual=first.scheme)
    if other.judged is None:
        return Choice(first.scheme, first.why, told)
    loses_less = usual.judged.drop[0] - other.judged.drop[0] > _WORSE
    as_right = other.judged.drop[0] <= usual.judged.drop[0] + _WORSE and other.judged.sqnr_db >= usual.judged.sqnr_db - _WORSE_DB
    faster = other.ratio < usual.ratio * FASTER
    if (loses_less and other.ratio < 1) or (as_right and faster):
        return Choice(
            other.scheme,
            f"{first.why}, but measured beside {first.scheme}: {_told(other)}, against {_told(usual)}",
            told,
            usual=first.scheme if loses_less else "",
        )
    return Choice(first.scheme, f"{first.why}; measured: {_told(usual)}, against {_told(other)} of {other.scheme}", told)


@dataclass(frozen=True)
class _Tried:
    scheme: str
    judged: Judged | None
    ratio: float
    error: ToolkitError | None = None

    @property
    def told(self) -> dict[str, Any]:
        if self.judged is None:
            return {"scheme": self.scheme, "reason": self.error.message if self.error else ""}
        return {"scheme": self.scheme, **self.judged.facts(), "latency_ratio": self.ratio}


def _measure(scheme: str, workshop: Workshop, search: Search, state: State) -> _Tried:
    try:
        made = workshop.make(replace(state, scheme=scheme))
        judged = search.judge(made, state.model)
    except (ConfigError, InputRejected, NoRoute, StageFailed, UnsupportedOperators) as error:
        return _Tried(scheme, None, 0.0, error)
    return _Tried(scheme, judged, latency_ratio(search, made, state.model))


def latency_ratio(search: Search, model: Path, twin: Path) -> float:
    """Median time of a file over its float twin's, timed in turns on one sample."""
    sessions = [search.runtime.open(path, threads=search.threads) for path in (model, twin)]
    feeds = [_feed(search, session.signature.inputs) for session in sessions]
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(_WARM + _ROUNDS):
        for session, feed, taken in zip(sessions, feeds, times, strict=True):
            started = time.perf_counter()
            session.run(feed)
            if turn >= _WARM:
                taken.append(time.perf_counter() - started)
    return median(mine / float_twin for mine, float_twin in zip(*times, strict=True))


def _feed(search: Search, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
    return {spec.name: np.ascontiguousarray(search.data.columns[spec.name][:1], dtype=spec.dtype) for spec in inputs}


def _told(tried: _Tried) -> str:
    assert tried.judged is not None
    return f"{tried.judged.drop[0] * 100:z.1f} points lost, {tried.judged.sqnr_db:.0f} dB, {tried.ratio:.2f} of the float model's time"
