"""What activations did on calibration samples: collected in one pass, in memory that the number of samples does not change.

A histogram's bins are a power of two wide and lie on a grid anchored at zero. A range that grows makes the bins wider by pairs, and so two
histograms are added exactly: statistics of shards, merged, are those of one pass over all samples.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import InputRejected
from toolkit.quantization import ranges

BINS = 2048
GROUPS = 64
_DECAY = 0.95
_FINEST = 20
_SMALLEST_EXPONENT = -100
_LAYOUT = 1
_FARTHEST = 1 << 40
_LARGEST_BYTES = 1 << 26
_NUMBERS = ("low", "high", "average_low", "average_high", "values", "samples", "first", "exponent")
_ARRAYS = ("counts", "channel_low", "channel_high", "channel_mean", "group_low", "group_high")


@dataclass(frozen=True)
class Seen:
    """What one batch told of one tensor.

    Attributes:
        low: Smallest value of each sample ``[n] float32``.
        high: Largest value of each sample ``[n] float32``.
        values: Values for the histogram, any shape, ``float32``; all of them, or the same share of each sample.
        channel_low: Smallest value of each channel ``[c] float32``.
        channel_high: Largest value of each channel ``[c] float32``.
        channel_mean: Mean of each channel ``[c] float32``.
    """

    low: np.ndarray
    high: np.ndarray
    values: np.ndarray | None = None
    channel_low: np.ndarray | None = None
    channel_high: np.ndarray | None = None
    channel_mean: np.ndarray | None = None


@dataclass(frozen=True)
class Observed:
    """One tensor over all samples.

    Attributes:
        low: Smallest value.
        high: Largest value.
        average_low: Moving average of the samples' smallest values, each new one with a weight of a twentieth.
        average_high: Moving average of their largest values.
        values: How many values the histogram has.
        samples: How many samples were seen.
        first: Number of the histogram's first bin; bin ``i`` holds ``i * 2**exponent <= x < (i + 1) * 2**exponent``.
        exponent: Of the bins' width.
        counts: The histogram ``[bins] int64``; ``None`` where none was asked for.
        channel_low: Smallest value of each channel ``[c]``; ``None`` where it was not asked for.
        channel_high: Largest value of each channel ``[c]``.
        channel_mean: Mean of each channel ``[c]``.
        group_low: Smallest value of each group of samples ``[g]``, where sample ``i`` belongs to group ``i`` modulo :data:`GROUPS`: what
            other samples might have given, see :mod:`toolkit.quantization.stability`.
        group_high: Largest value of each group ``[g]``.
    """

    low: float
    high: float
    average_low: float
    average_high: float
    values: int = 0
    samples: int = 0
    first: int = 0
    exponent: int = 0
    counts: np.ndarray | None = None
    channel_low: np.ndarray | None = None
    channel_high: np.ndarray | None = None
    channel_mean: np.ndarray | None = None
    group_low: np.ndarray | None = None
    group_high: np.ndarray | None = None

    def edges(self) -> np.ndarray:
        """The histogram's borders ``[bins + 1] float64``."""
        assert self.counts is not None
        return (self.first + np.arange(len(self.counts) + 1)) * 2.0**self.exponent


class Statistics:
    """Everything that was seen of a model's activations.

    Attributes:
        model_sha256: Digest of the model file.
        samples: How many samples were seen.
        tensors: What was seen, by tensor.
    """

    def __init__(self, model_sha256: str = "", samples: int = 0, tensors: Mapping[str, Observed] | None = None) -> None:
        self.model_sha256 = model_sha256
        self.samples = samples
        self.tensors: dict[str, Observed] = dict(tensors or {})

    def add(self, seen: Mapping[str, Seen], samples: int) -> None:
        """Takes in one batch.

        Args:
            seen: What it told, by tensor.
            samples: How many samples it had.
        """
        groups = (self.samples + np.arange(samples)) % GROUPS
        self.samples += samples
        for name, one in seen.items():
            known = self.tensors.get(name)
            fresh = _observed(one, known, groups)
            self.tensors[name] = _joined(known, fresh) if known else fresh

    def merged(self, other: Statistics) -> Statistics:
        """Returns the statistics of both sets of samples.

        They equal those of one pass over all samples, with two exceptions, as they depend on the order: moving averages, of which this is
        the mean weighted by samples, and which samples make a group.

        Raises:
            InputRejected: They are not of the same model, or not of the same tensors.
        """
        if self.model_sha256 != other.model_sha256 or set(self.tensors) != set(other.tensors):
            raise InputRejected("are statistics of another model, or of other tensors", where="statistics", hint="merge shards of one calibration")
        tensors = {name: _averaged(one, other.tensors[name]) for name, one in self.tensors.items()}
        return Statistics(self.model_sha256, self.samples + other.samples, tensors)

    def range(self, name: str, method: str, *, bits: int = 8) -> tuple[float, float]:
        """Returns the range of a tensor, which includes zero.

        Args:
            name: The tensor.
            method: ``min_max``, ``moving_average``, ``percentile``, ``entropy`` or ``mse``; see :mod:`toolkit.quantization.ranges`.
            bits: Bits that the range is going to be divided into.

        Raises:
            InputRejected: The tensor was not observed, or no histogram was made of it.
        """
        if name not in self.tensors:
            raise InputRejected(f"do not know the tensor {name!r}", where="statistics", hint="observe the model again")
        if method not in ranges.ENDS and self.tensors[name].counts is None:
            raise InputRejected(f"have no histogram of {name!r}, which {method} needs", where="statistics", hint="observe it with histograms")
        return ranges.METHODS[method](self.tensors[name], bits)

    def write(self, path: Path) -> None:
        """Writes one ``.npz`` file; equal statistics give equal bytes."""
        named = sorted(self.tensors)
        header = {"layout": _LAYOUT, "model_sha256": self.model_sha256, "samples": self.samples, "tensors": []}
        arrays: dict[str, np.ndarray] = {}
        for place, name in enumerate(named):
            one = self.tensors[name]
            header["tensors"].append({"name": name, **{key: getattr(one, key) for key in _NUMBERS}})  # type: ignore[attr-defined]
            arrays |= {f"{place}.{key}": array for key in _ARRAYS if (array := getattr(one, key)) is not None}
        text = json.dumps(header, sort_keys=True).encode()
        with path.open("wb") as stream:
            np.savez(stream, header=np.frombuffer(text, np.uint8), **arrays)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: Path) -> Statistics:
        """Reads what :meth:`write` wrote.

        Raises:
            InputRejected: The file is something else, or damaged.
        """
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                if max((member.file_size for member in archive.zip.infolist()), default=0) > _LARGEST_BYTES:
                    raise ValueError("it holds more than statistics do")
                header = json.loads(archive["header"].tobytes())
                if header["layout"] != _LAYOUT:
                    raise ValueError(f"its layout is {header['layout']}, this version reads {_LAYOUT}")
                tensors = {one["name"]: _read(one, place, archive) for place, one in enumerate(header["tensors"])}
                return cls(str(header["model_sha256"]), int(header["samples"]), tensors)
        except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, OverflowError, MemoryError, zipfile.BadZipFile) as error:
            hint = "observe the model again"
            raise InputRejected(f"is not a readable file of statistics: {error}", where=str(path), hint=hint) from error


def exponent_for(low: float, high: float) -> int:
    """Returns the exponent of the finest bins of which :data:`BINS` hold a range; a wider range never gives finer ones."""
    largest = max(abs(low), abs(high))
    if largest == 0:
        return _SMALLEST_EXPONENT
    exponent = max(_SMALLEST_EXPONENT, math.frexp(largest)[1] - _FINEST)
    while math.floor(high / 2.0**exponent) - math.floor(low / 2.0**exponent) >= BINS:
        exponent += 1
    return exponent


def _observed(seen: Seen, known: Observed | None, groups: np.ndarray) -> Observed:
    """What one batch says, its moving average going on from what is known."""
    low, high = float(seen.low.min()), float(seen.high.max())
    average_low = _moved(known.average_low if known else None, seen.low)
    average_high = _moved(known.average_high if known else None, seen.high)
    lows, highs = np.full(GROUPS, np.inf, np.float32), np.full(GROUPS, -np.inf, np.float32)
    np.minimum.at(lows, groups, seen.low)
    np.maximum.at(highs, groups, seen.high)
    found = Observed(
        *(low, high, average_low, average_high),
        samples=len(seen.low),
        channel_low=seen.channel_low,
        channel_high=seen.channel_high,
        channel_mean=seen.channel_mean,
        group_low=lows,
        group_high=highs,
    )
    if seen.values is None:
        return found
    return _counted(found, seen.values, (min(low, known.low), max(high, known.high)) if known else (low, high))


def _moved(average: float | None, ends: np.ndarray) -> float:
    for end in ends.tolist():
        average = end if average is None else _DECAY * average + (1 - _DECAY) * end
    return float(average) if average is not None else math.nan


def _counted(found: Observed, values: np.ndarray, within: tuple[float, float]) -> Observed:
    """The batch's histogram, in bins that fit everything seen so far."""
    if not all(map(math.isfinite, within)):
        values, within = values[np.isfinite(values)], (0.0, 0.0)
        within = (float(values.min()), float(values.max())) if len(values) else within
    scale = np.float32(2.0 ** -exponent_for(*within))
    first = math.floor(max(found.low, within[0]) * float(scale))
    scaled = values * scale  # exact: the scale is a power of two
    places = np.floor(scaled, out=scaled).astype(np.intp).reshape(-1)
    places -= first
    return replace(found, values=values.size, first=first, exponent=exponent_for(*within), counts=np.bincount(places).astype(np.int64))


def _joined(one: Observed, other: Observed) -> Observed:
    """Both sets of samples, the moving average that of the later one."""
    counts = _added(one, other) if one.counts is not None and other.counts is not None else {}
    samples = one.samples + other.samples
    channels: dict[str, Any] = {}
    if one.group_low is not None and other.group_low is not None and one.group_high is not None and other.group_high is not None:
        channels = {"group_low": np.minimum(one.group_low, other.group_low), "group_high": np.maximum(one.group_high, other.group_high)}
    if one.channel_low is not None and other.channel_low is not None:
        channels["channel_low"] = np.minimum(one.channel_low, other.channel_low)
    if one.channel_high is not None and other.channel_high is not None:
        channels["channel_high"] = np.maximum(one.channel_high, other.channel_high)
    if one.channel_mean is not None and other.channel_mean is not None:
        both = one.channel_mean.astype(np.float64) * one.samples + other.channel_mean.astype(np.float64) * other.samples
        channels["channel_mean"] = both / samples
    low, high = min(one.low, other.low), max(one.high, other.high)
    return replace(other, low=low, high=high, samples=samples, values=one.values + other.values, **counts, **channels)


def _averaged(one: Observed, other: Observed) -> Observed:
    share = other.samples / max(one.samples + other.samples, 1)
    low = one.average_low * (1 - share) + other.average_low * share
    high = one.average_high * (1 - share) + other.average_high * share
    return replace(_joined(one, other), average_low=low, average_high=high)


def _added(one: Observed, other: Observed) -> dict[str, Any]:
    """The sum of two histograms, in the wider bins of both, or wider still where they would be too many."""
    exponent = max(one.exponent, other.exponent, exponent_for(min(one.low, other.low), max(one.high, other.high)))
    parts = [_coarsened(part, exponent) for part in (one, other)]
    first = min(start for start, _ in parts)
    total = np.zeros(max(start + len(counts) for start, counts in parts) - first, np.int64)
    for start, counts in parts:
        total[start - first : start - first + len(counts)] += counts
    return {"counts": total, "first": first, "exponent": exponent}


def _coarsened(one: Observed, exponent: int) -> tuple[int, np.ndarray]:
    """First bin and counts of a histogram in bins of another width, which is not finer."""
    assert one.counts is not None
    if not len(one.counts):
        return one.first >> (exponent - one.exponent), one.counts
    places = (one.first + np.arange(len(one.counts))) >> (exponent - one.exponent)
    first = int(places[0])
    return first, np.bincount(places - first, weights=None if not one.counts.any() else one.counts).astype(np.int64)


def _read(numbers: Mapping[str, Any], place: int, archive: Any) -> Observed:
    kinds = {field.name: field.type for field in fields(Observed)}
    values: dict[str, Any] = {key: (int if kinds[key] == "int" else float)(numbers[key]) for key in _NUMBERS}
    arrays = {key: archive[f"{place}.{key}"] for key in _ARRAYS if f"{place}.{key}" in archive.files}
    for key, array in arrays.items():
        if array.ndim != 1 or array.dtype.kind != ("i" if key == "counts" else "f"):
            raise ValueError(f"{key} of {numbers['name']!r} has another shape or type")
    counts = arrays.get("counts", np.zeros(0, np.int64))
    if (
        len(counts) > BINS
        or (counts < 0).any()
        or not -_FARTHEST < values["first"] < _FARTHEST
        or not _SMALLEST_EXPONENT <= values["exponent"] <= 128
    ):
        raise ValueError(f"the histogram of {numbers['name']!r} is none")
    return Observed(**values, **arrays)
