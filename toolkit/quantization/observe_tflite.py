"""What the tensors of a TFLite model hold, at about the cost of running it.

The model runs as a copy with more outputs. Reductions inside the graph read every tensor while it is still in the cache, and XNNPACK has kernels
for them, so that the copy stays one delegated graph and two numbers for each tensor leave it. For histograms a tensor leaves whole, and
:data:`VALUES` of its numbers are looked at: of each sample others, chosen by what the sample computes, so that shards merge to what one pass sees.

Every range includes zero, so that nobody looks for the smallest value of what a ReLU gives: it is told as zero.

ai-edge-quantizer knows tensors by their names. Where a file gives one name to several, they are observed together.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from toolkit.dataset import Dataset
from toolkit.errors import InputRejected, StageFailed
from toolkit.quantization import tflite_file
from toolkit.quantization.statistics import Seen
from toolkit.quantization.tflite_taps import Fixed, Runner, Tapped, sources

VALUES = 2048
"""Numbers of a tensor that a histogram takes from one sample; of a tensor up to twice that size it takes all.

On a trained MobileNetV1 and 128 pictures this moved ranges, against all numbers, by at most 0.1 % in the median over the tensors, and at most by 2 %
(percentile), 1 % (MSE) and 16 % (entropy, which twice as many numbers leave as it is).
"""

_SIDE_BY_SIDE = 64  # numbers that are taken at once: one alone costs as much as the line of the cache that it lies in
_CHANNELS = ("REDUCE_MAX", "REDUCE_MIN", "MEAN")


class Taps:
    """Runs a float model and tells what its tensors hold.

    Attributes:
        tensors: Names of the tensors that are observed.
    """

    def __init__(self, model: Path, tensors: Sequence[str] | None, histograms: bool, channels: Sequence[str], *, inputs: Iterable[str] = ()) -> None:
        """Loads the copy that runs.

        Args:
            model: The float ``.tflite`` file.
            tensors: Names of computed float32 tensors; ``None`` takes those that carry a scale in static int8.
            histograms: Tell values as well.
            channels: Names of tensors of which every channel, on the last axis, is told as well.
            inputs: Names of the samples' columns, by which one of several signatures is chosen; the first without them.

        Raises:
            InputRejected: The model is damaged, has no such tensor or signature, or two of its tensors share a name in ``channels``.
            StageFailed: The interpreter cannot run the copy.
        """
        tapped = Tapped(model, inputs)
        self._columns = tuple(tapped.inputs)
        self._outputs = {one: tapped.name(one) for one in tapped.outputs}
        by_channel = tuple(tapped.only(name) for name in dict.fromkeys(channels))
        whole = tuple(one for one in tapped.find(tensors) if one not in by_channel)
        self._numbers = (*whole, *by_channel)
        self._names = tuple(tapped.name(one) for one in self._numbers)
        self.tensors = tuple(dict.fromkeys(self._names))
        self._sources = self._numbers if histograms else ()
        self._ends: _InGraph | _InNumpy
        try:
            self._ends = _InGraph(tapped, whole, by_channel)
            self._runner = Runner(tapped, (*self._ends.outputs, *self._sources))
        except StageFailed:  # as for tensors whose rank is known only while the model runs
            tapped.forget()
            self._ends = _InNumpy(whole, by_channel)
            self._runner = Runner(tapped, self._ends.outputs)
        self._channel_names = self._names[len(whole) :]

    def run(self, batch: Mapping[str, np.ndarray]) -> dict[str, Seen]:
        """Runs samples one after the other, which keeps what a layer computes in the cache.

        Args:
            batch: ``[n x ...]`` for each input of the model.

        Raises:
            InputRejected: The samples do not fit the model.
            StageFailed: The model cannot be run on them, or computes NaN.
        """
        samples = _samples(batch, self._columns)
        ends = np.empty((len(samples), 2, len(self._numbers)), np.float32)
        values = _Values(len(samples))
        channels = _Channels()
        for row, sample in enumerate(samples):
            self._runner.run(sample)
            ends[row], vectors = self._ends.read(self._runner)
            self._check(ends[row])
            channels.add(vectors)
            values.add(row, self._runner, self._sources, zlib.crc32(ends[row].tobytes()))
        return self._told(ends, values, channels)

    def _check(self, ends: np.ndarray) -> None:
        bad = [name for name, finite in zip(self._names, ~np.isnan(ends).any(axis=0), strict=True) if not finite]
        # A reduction may drop a NaN, so that only what is computed from it tells.
        bad += [name for number, name in self._outputs.items() if np.isnan(self._runner.view(number)).any()]
        if bad:
            raise StageFailed(f"the model computes NaN in {bad[0]!r} on a calibration sample", where="calibration", hint="check the samples' range")

    def _told(self, ends: np.ndarray, values: _Values, channels: _Channels) -> dict[str, Seen]:
        vectors = dict(zip(self._channel_names, channels.told(), strict=True))
        columns: dict[str, list[int]] = {}
        for column, name in enumerate(self._names):
            columns.setdefault(name, []).append(column)
        return {
            name: Seen(
                low=ends[:, 1, own].min(axis=1),
                high=ends[:, 0, own].max(axis=1),
                values=values.told(own) if self._sources else None,
                **vectors.get(name, {}),
            )
            for name, own in columns.items()
        }


def fetch(model: Path, samples: Dataset, tensors: Sequence[str], *, rows: int) -> dict[str, np.ndarray]:
    """Computes tensors on the first samples.

    Args:
        model: The float ``.tflite`` file.
        samples: Samples by input.
        tensors: Names of computed float32 tensors.
        rows: How many samples to run.

    Returns:
        ``[rows x ...]`` float32 by name; a tensor's own first axis is left out where it is 1, as that of a batch is.

    Raises:
        InputRejected: The model is damaged or has no such tensor, or several of one name; or the samples do not fit it.
        StageFailed: The interpreter cannot run it.
    """
    tapped = Tapped(model, samples.columns)
    numbers = {name: tapped.only(name) for name in tensors}
    runner = Runner(tapped, tuple(numbers.values()))
    found: dict[str, list[np.ndarray]] = {name: [] for name in numbers}
    for sample in _samples(samples.take(slice(rows)).columns, tuple(tapped.inputs)):
        runner.run(sample)
        for name, number in numbers.items():
            values = runner.copy(number)
            found[name].append(values[0] if values.ndim and len(values) == 1 else values)
    return {name: np.stack(kept) for name, kept in found.items()}


def carriers(model: Path, *, inputs: Iterable[str] = ()) -> tuple[str, ...]:
    """Names of the tensors that carry a scale of their own in static int8, which are those that :class:`Taps` observes by default.

    Args:
        model: The float ``.tflite`` file.
        inputs: Names of the samples' columns, by which one of several signatures is chosen; the first without them.

    Raises:
        InputRejected: The model is damaged, or takes other columns.
    """
    tapped = Tapped(model, inputs)
    return tuple(dict.fromkeys(tapped.name(one) for one in tapped.find(None)))


def complete(model: Path, ranges: Mapping[str, Fixed]) -> dict[str, Fixed]:
    """Adds the ranges of tensors that need no observation: those with the range of another one, and those whose range the format fixes.

    A subgraph that computes the same as another one, as those for several batch sizes do, takes its ranges.

    Args:
        model: The float ``.tflite`` file.
        ranges: Range of each tensor of :func:`carriers` by name.

    Raises:
        InputRejected: The model is damaged.
    """
    content = tflite_file.read(model)
    full = dict(ranges)
    known: dict[tuple[int, ...], list[str]] = {}
    others = []
    for number, graph in enumerate(content.subgraphs):
        found = sources(content, number)
        names = {one: tflite_file.text(graph.tensors[one].name) for one in found}
        for one, source in found.items():
            given = source if isinstance(source, tuple) else ranges.get(names[source])
            if given is not None:
                full.setdefault(names[one], given)
        kinds = tuple(int(operator.opcodeIndex) for operator in graph.operators or ())
        if any(name in ranges for name in names.values()):
            known.setdefault(kinds, list(names.values()))
        else:
            others.append((kinds, list(names.values())))
    for kinds, theirs in others:
        for name, twin in zip(theirs, known.get(kinds, ()), strict=False):
            if twin in full:
                full.setdefault(name, full[twin])
    return full


def some_values(tensor: np.ndarray, place: int) -> np.ndarray:
    """Picks :data:`VALUES` numbers of a tensor, in short runs that are spread evenly over it; of a small one all.

    Args:
        tensor: Any shape, float32.
        place: Any whole number; where the runs begin.

    Returns:
        A view of the tensor.
    """
    flat = tensor.reshape(-1)
    size = flat.size
    if size <= 2 * VALUES:
        return flat
    wanted = VALUES // _SIDE_BY_SIDE
    runs, rest = divmod(size, _SIDE_BY_SIDE)
    step = runs // wanted
    last = (wanted - 1) * step
    begin = (place >> 1) % (runs - last)
    offset = rest if place & 1 else 0  # so that numbers behind the last whole run have their turn
    return flat[offset : size - rest + offset].reshape(runs, _SIDE_BY_SIDE)[begin : begin + last + 1 : step]


class _Values:
    """Values of one batch for histograms."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._kept: list[np.ndarray] = []

    def add(self, row: int, runner: Runner, sources: Sequence[int], place: int) -> None:
        for column, number in enumerate(sources):
            picked = some_values(runner.view(number), place)
            if row == 0:
                self._kept.append(np.empty((self._samples, *picked.shape), np.float32))
            if picked.shape != self._kept[column].shape[1:]:
                raise StageFailed("the size of a tensor depends on the sample's values", where="calibration", hint="observe it without a histogram")
            self._kept[column][row] = picked

    def told(self, columns: Sequence[int]) -> np.ndarray:
        parts = [self._kept[column].reshape(-1) for column in columns]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class _InGraph:
    """Largest and smallest values, computed by the graph itself."""

    def __init__(self, tapped: Tapped, whole: Sequence[int], by_channel: Sequence[int]) -> None:
        if not all(tapped.shape(one) for one in by_channel):
            raise StageFailed("the number of channels is known only while the model runs", where="calibration")
        self._signed = [column for column, one in enumerate(whole) if not tapped.at_least_zero(one)]
        largest = [tapped.reduce("REDUCE_MAX", one) for one in whole]
        smallest = [tapped.reduce("REDUCE_MIN", whole[column]) for column in self._signed]
        self._ends = tapped.join(largest + smallest) if whole else None
        self._whole = len(whole)
        parts = [tapped.reduce(kind, one, channels=True) for kind in _CHANNELS for one in by_channel]
        self._joined = tapped.join(parts, vectors=True) if parts else None
        self._sizes = [tapped.shape(one)[-1] for one in by_channel]
        self.outputs = tuple(one for one in (self._ends, self._joined) if one is not None)

    def read(self, runner: Runner) -> tuple[np.ndarray, list[np.ndarray]]:
        ends = np.zeros((2, self._whole), np.float32)
        if self._ends is not None:
            told = runner.copy(self._ends)
            ends[0], ends[1, self._signed] = told[: self._whole], told[self._whole :]
        if self._joined is None:
            return ends, []
        table = runner.copy(self._joined).reshape(3, -1)
        if table.shape[1] != sum(self._sizes):
            hint = "give the model a fixed number of channels"
            raise StageFailed("the number of channels depends on the sample", where="calibration", hint=hint)
        begins = np.cumsum([0, *self._sizes[:-1]])
        of_vectors = np.stack([np.maximum.reduceat(table[0], begins), np.minimum.reduceat(table[1], begins)])
        return np.concatenate([ends, of_vectors], axis=1), [table[:, begin : begin + size] for begin, size in zip(begins, self._sizes, strict=True)]


class _InNumpy:
    """The same, computed of tensors that leave the graph."""

    def __init__(self, whole: Sequence[int], by_channel: Sequence[int]) -> None:
        self.outputs = (*whole, *by_channel)
        self._by_channel = by_channel

    def read(self, runner: Runner) -> tuple[np.ndarray, list[np.ndarray]]:
        views = [runner.view(one) for one in self.outputs]
        ends = np.array([[view.max() for view in views], [view.min() for view in views]], np.float32)
        vectors = [np.atleast_1d(runner.view(one)) for one in self._by_channel]
        tables = [vector.reshape(-1, vector.shape[-1]) for vector in vectors]
        return ends, [np.stack([table.max(axis=0), table.min(axis=0), table.mean(axis=0)]) for table in tables]


class _Channels:
    """Each channel's largest and smallest value and mean over samples."""

    def __init__(self) -> None:
        self._samples = 0
        self._tables: list[np.ndarray] = []

    def add(self, tables: list[np.ndarray]) -> None:
        self._samples += 1
        if not self._tables:
            self._tables = [table.astype(np.float64) for table in tables]
            return
        for known, table in zip(self._tables, tables, strict=True):
            np.maximum(known[0], table[0], out=known[0])
            np.minimum(known[1], table[1], out=known[1])
            known[2] += table[2]

    def told(self) -> list[dict[str, np.ndarray]]:
        tables = [(table / [[1], [1], [self._samples]]).astype(np.float32) for table in self._tables]
        return [{"channel_high": high, "channel_low": low, "channel_mean": mean} for high, low, mean in tables]


def _samples(batch: Mapping[str, np.ndarray], columns: Sequence[str]) -> list[dict[str, np.ndarray]]:
    missing = [name for name in columns if name not in batch]
    if missing:
        raise InputRejected(f"samples have no column {missing[0]!r}", where="calibration", hint="name columns like the model's inputs")
    return [{name: batch[name][row : row + 1] for name in columns} for row in range(len(batch[columns[0]]))]
