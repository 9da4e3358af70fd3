"""Ranges of activations: from a file of statistics as far as it goes, else from a pass over the samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from toolkit.dataset import Dataset
from toolkit.errors import StageFailed
from toolkit.quantization import ranges
from toolkit.quantization.observe import observe
from toolkit.quantization.statistics import Statistics

METHODS: tuple[str, ...] = tuple(ranges.METHODS)
"""How a range can be found; see :mod:`toolkit.quantization.ranges`."""


def find_ranges(
    model: Path,
    tensors: Sequence[str],
    calibration: Dataset | None,
    options: Mapping[str, Any],
    *,
    bits: int,
    same: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, tuple[float, float]]:
    """Finds the range of each tensor.

    Args:
        model: The float file, which has tensors of these names, or the last one of those with the same values.
        tensors: Names of float activations.
        calibration: Samples by input; needed for tensors that the statistics do not know.
        options: ``method``, one of :data:`METHODS`; ``statistics``, a file of :class:`toolkit.quantization.statistics.Statistics`.
        bits: Bits that the range is going to be divided into.
        same: Other tensors with the same values, by name.

    Raises:
        InputRejected: The statistics or the model are damaged.
        StageFailed: A tensor is NaN or Inf on the samples, or there are no samples for it.
    """
    method = options.get("method", "min_max")
    given = Statistics.read(Path(options["statistics"])) if options.get("statistics") else None
    in_full = method not in ranges.ENDS
    known = {name for name, one in given.tensors.items() if one.counts is not None or not in_full} if given else set()
    equal = {name: (name, *(same or {}).get(name, ())) for name in tensors}
    chosen = {name: next((one for one in names if one in known), names[-1]) for name, names in equal.items()}
    sources: dict[str, Statistics] = {name: given for name in chosen.values() if given and name in known}
    missing = [name for name in dict.fromkeys(chosen.values()) if name not in sources]
    if missing:
        if calibration is None:
            what = f"there are no samples to find the range of {missing[0]} from"
            raise StageFailed(what, where="calibration", hint="give calibration samples")
        sources |= dict.fromkeys(missing, observe(model, calibration, tensors=missing, histograms=in_full))
    for name, statistics in sources.items():
        seen = statistics.tensors[name]
        if not (isfinite(seen.low) and isfinite(seen.high)):
            what = f"an activation overflows on the calibration samples: {name} reaches {seen.low:g} to {seen.high:g}"
            raise StageFailed(what, where="calibration", hint="check the samples' range")
    found = {name: statistics.range(name, method, bits=bits) for name, statistics in sources.items()}
    return {name: found[one] for name, one in chosen.items()}
