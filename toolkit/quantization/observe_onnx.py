"""Taps of ONNX models: reductions inside of the graph, so that ONNX Runtime runs it at full speed and a few numbers of each tensor come out.

Five things keep the pass near plain inference. Only tensors that will carry a scale are looked at. Each is looked at right behind the operator
that wrote it, while it is still in the cache; samples run one after the other for the same reason. Pooling over the whole picture gives a
channel's largest value without leaving the blocked layout that ONNX Runtime has convolutions in, where any other reduction would have the tensor
copied. What is behind a ReLU has no smallest value to look for: every range includes zero, and it is told as zero. And a depthwise convolution of
one tap with a stride hands out every so manieth value for histograms in that same layout.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.dataset import Dataset
from toolkit.errors import InputRejected, StageFailed
from toolkit.quantization.onnx_taps import Graph, run
from toolkit.quantization.statistics import Seen

VALUES = 2048
"""Numbers of a tensor that a histogram takes from one sample; about as many, where strides do not give them exactly."""

_PREFIX = "edgekit_tap"
_REDUCTIONS = {"high": "ReduceMax", "low": "ReduceMin", "mean": "ReduceMean"}
_POOLED = "pooled"
_SMALL_PICTURE = 2**16
_FARTHEST = 2**62


class Taps:
    """Runs a float model and tells what its tensors hold.

    Attributes:
        tensors: Names of the tensors that are observed.
    """

    def __init__(self, model: Path, tensors: Sequence[str] | None, histograms: bool, channels: Sequence[str], *, inputs: Iterable[str] = ()) -> None:
        """Loads a copy that tells.

        Args:
            model: The float ``.onnx`` file.
            tensors: Names of float32 tensors; ``None`` takes those that carry a scale in static int8.
            histograms: Tell values as well.
            channels: Names of tensors of which every channel is told as well: axis 1 of four, else the last.
            inputs: Names of the samples' columns.

        Raises:
            InputRejected: The model is damaged, or has no such tensor.
            StageFailed: ONNX Runtime cannot run the copy.
        """
        graph = Graph(model)
        self._answers = graph.outputs()
        self._inputs = graph.inputs()
        chosen = graph.scaled() if tensors is None else tuple(tensors)
        self.tensors = tuple(dict.fromkeys([*chosen, *channels]))
        joins = _Joins(graph)
        turned = _together(graph, self.tensors, channels)
        self._taps = []
        for number, name in enumerate(self.tensors):
            self._taps.append(_tap(graph, joins, name, f"{_PREFIX}_{number}", histograms, name in channels, apart=name not in turned))
            if name in turned and name == turned[name][-1]:
                _turn(graph, joins, turned[name], self.tensors, histograms)
        self._parts = joins.close()
        own = [output for tap in self._taps for output in tap.parts.values()]
        self._told = list(dict.fromkeys(self._parts[output][0] if output in self._parts else output for output in own))
        self._names = [*self._told, *self._answers]
        self._session = graph.session(self._names)

    def run(self, batch: Mapping[str, np.ndarray]) -> dict[str, Seen]:
        """Runs samples one after the other.

        Args:
            batch: ``[n x ...]`` for each input of the model.

        Raises:
            InputRejected: The samples do not fit the model.
            StageFailed: The model cannot be run on them, or computes NaN.
        """
        count, tables = len(next(iter(batch.values()))), dict[str, np.ndarray]()
        for row, sample in enumerate(_samples(batch, self._inputs)):
            for name, array in self._row(sample):
                if name not in tables:
                    tables[name] = np.empty((count, array.size), np.float32)
                if array.size != tables[name].shape[1]:
                    hint = "observe it without a histogram"
                    raise StageFailed("the size of a tensor depends on the sample's values", where="calibration", hint=hint)
                tables[name][row] = array.reshape(-1)
        tables |= {name: tables[source][:, begin:end] for name, (source, begin, end) in self._parts.items() if source in tables}
        return {name: tap.seen(tables) for name, tap in zip(self.tensors, self._taps, strict=True)}

    def _row(self, sample: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """What one sample tells, by output."""
        found = run(self._session, self._names, sample)
        for name, array in zip(self._answers, found[len(self._told) :], strict=True):  # a maximum may drop a NaN: only what comes of it tells
            if array.dtype.kind == "f" and np.isnan(array).any():
                what = f"the model computes NaN in {name!r} on a calibration sample"
                raise StageFailed(what, where="calibration", hint="check the samples' range")
        return zip(self._told, found, strict=False)


def fetch(model: Path, samples: Dataset, tensors: Sequence[str], *, rows: int) -> dict[str, np.ndarray]:
    """Computes tensors on the first samples.

    Args:
        model: The float ``.onnx`` file.
        samples: Samples by input.
        tensors: Names of float32 tensors.
        rows: How many samples to run.

    Returns:
        ``[rows x ...] float32`` by name.

    Raises:
        InputRejected: The model is damaged, or has no such tensor; or the samples do not fit it.
        StageFailed: ONNX Runtime cannot run it.
    """
    graph = Graph(model)
    for name in tensors:
        graph.check(name)
    session = graph.session([name for name in tensors if name not in graph.inputs()])
    found: dict[str, list[np.ndarray]] = {name: [] for name in tensors}
    computed = [name for name in tensors if name not in graph.inputs()]
    for sample in _samples(samples.take(slice(rows)).columns, graph.inputs()):
        named = {**sample, **dict(zip(computed, run(session, computed, sample) if computed else (), strict=True))}
        for name, kept in found.items():
            kept.append(np.asarray(named[name], np.float32))
    return {name: np.concatenate([one if one.shape[:1] == (1,) else one[None] for one in kept]) for name, kept in found.items()}


@dataclass(frozen=True)
class _Tap:
    """What is asked of one tensor.

    Attributes:
        parts: Names of outputs by what they tell: ``high``, ``low``, ``turned`` (largest of the negative values), ``mean``, ``values``.
        by_channel: Whether each channel's are told.
    """

    parts: Mapping[str, str]
    by_channel: bool

    def seen(self, tables: Mapping[str, np.ndarray]) -> Seen:
        """Sums up some samples, of which outputs are given by name ``[n, numbers of each]``."""
        parts = {part: tables[output] for part, output in self.parts.items()}
        highs = parts["high"]
        lows = parts["low"] if "low" in parts else -parts["turned"] if "turned" in parts else np.zeros((len(highs), 1), np.float32)
        ends = lows.min(axis=1), highs.max(axis=1)
        if not self.by_channel:
            return Seen(*ends, parts.get("values"))
        least = np.broadcast_to(lows.min(axis=0), highs.shape[1:])
        return Seen(*ends, parts.get("values"), least, highs.max(axis=0), parts["mean"].mean(axis=0))


class _Joins:
    """Outputs that are put side by side in the graph, as each one that leaves it alone is copied out of the blocked layout for itself."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._lists: dict[str, list[tuple[str, int]]] = {}
        self._within: dict[str, tuple[str, int, int]] = {}

    def put(self, like: str, output: str, numbers: int) -> str:
        """Adds an output of so many numbers to those like it, which have the same size beside their channels; returns it."""
        self._lists.setdefault(like, []).append((output, numbers))
        return output

    def anchor(self, output: str, channels: int) -> None:
        """Has an output computed in its turn: the order of all operators is that of what is joined first, where nothing comes of it otherwise."""
        self.put(_POOLED, self._graph.add("GlobalMaxPool", [output], f"{output}_anchor"), channels)

    def cut(self, output: str, source: str, begin: int, end: int) -> None:
        """Names a part of another output."""
        self._within[output] = source, begin, end

    def close(self) -> dict[str, tuple[str, int, int]]:
        """Joins them, those last that the walk shall begin with; returns in which output of the graph each begins and ends."""
        found: dict[str, tuple[str, int, int]] = {}
        for like, outputs in sorted(self._lists.items(), key=lambda one: one[0] == _POOLED):
            joined = self._graph.join([name for name, _ in outputs], f"{_PREFIX}s_{like}")
            begin = 0
            for name, numbers in outputs:
                found[name] = joined, begin, begin + numbers
                begin += numbers
        for name, (source, begin, end) in self._within.items():
            joined, start, _ = found[source]
            found[name] = joined, start + begin, start + end
        return found


def _tap(graph: Graph, joins: _Joins, name: str, prefix: str, histograms: bool, by_channel: bool, *, apart: bool) -> _Tap:
    """Adds what a tensor is asked for to the graph; its ends only where it is looked at apart from others."""
    graph.check(name)
    graph.begin()
    shape = graph.shape(name)
    parts = {"high": f"{prefix}_high"} if graph.is_positive(name) else {"high": f"{prefix}_high", "low": f"{prefix}_low"}
    if not apart:
        parts = {"high": f"{prefix}_high", "turned": f"{prefix}_turned"}
    elif shape is not None and len(shape) == 4 and (by_channel or graph.joinable(name)):
        parts = _pooled(graph, joins, name, prefix, by_channel)
    else:
        axes = list(range(len(shape) - 1)) if by_channel and shape else []
        parts |= {"mean": f"{prefix}_mean"} if by_channel else {}
        for part, output in parts.items():
            graph.reduce(_REDUCTIONS[part], name, output, axes)
    if histograms:
        parts["values"] = _values(graph, joins, name, prefix) if apart else f"{prefix}_values"
    return _Tap(parts, by_channel)


def _pooled(graph: Graph, joins: _Joins, name: str, prefix: str, by_channel: bool) -> dict[str, str]:
    """What pooling tells of a picture."""
    channels = graph.joinable(name)
    parts = {"high": graph.add("GlobalMaxPool", [name], f"{prefix}_high")}
    if by_channel:
        parts["mean"] = graph.add("GlobalAveragePool", [name], f"{prefix}_mean")
    if not graph.is_positive(name):
        negative = graph.turn(name, channels, f"{prefix}_negative") if channels else graph.add("Neg", [name], f"{prefix}_negative")
        parts["turned"] = graph.add("GlobalMaxPool", [negative], f"{prefix}_turned")
    for output in parts.values() if channels else ():
        joins.put(_POOLED, output, channels)
    return parts


def _together(graph: Graph, tensors: Sequence[str], channels: Sequence[str]) -> dict[str, list[str]]:
    """Small pictures of one size that go below zero, to be turned over and pooled at once: with each, the list that it is in."""
    found: dict[tuple[int, ...], list[str]] = {}
    for name in tensors:
        graph.check(name)
        shape = graph.shape(name)
        if shape and name not in channels and graph.joinable(name) and not graph.is_positive(name) and math.prod(shape) <= _SMALL_PICTURE:
            found.setdefault(shape[2:], []).append(name)
    return {name: names for names in found.values() for name in names}


def _turn(graph: Graph, joins: _Joins, names: Sequence[str], tensors: Sequence[str], histograms: bool) -> None:
    """Adds what small pictures are asked for to the graph."""
    graph.begin()
    numbers, prefix = [tensors.index(name) for name in names], f"{_PREFIX}_with_{tensors.index(names[-1])}"
    sizes = [graph.joinable(name) for name in names]
    wide = graph.add("Concat", names, f"{prefix}_wide", axis=1) if len(names) > 1 else names[0]
    negative = graph.turn(wide, sum(sizes), f"{prefix}_negative")
    parts = {part: graph.add("GlobalMaxPool", [source], f"{prefix}_{part}") for part, source in (("high", wide), ("turned", negative))}
    each = {"high": (_POOLED, 1), "turned": (_POOLED, 1)}
    if histograms:
        parts["values"], left = _thinned(graph, wide, (1, min(sizes), *(graph.shape(names[0]) or ())[2:]), f"{prefix}_values")
        joins.anchor(parts["values"], sum(sizes))
        each["values"] = _like(left), math.prod(left)
    for part, output in parts.items():
        like, count = each[part]
        joins.put(like, output, sum(sizes) * count)
        for place, number in enumerate(numbers):
            joins.cut(f"{_PREFIX}_{number}_{part}", output, sum(sizes[:place]) * count, sum(sizes[: place + 1]) * count)


def _thinned(graph: Graph, name: str, shape: tuple[int, ...], output: str) -> tuple[str, tuple[int, int]]:
    """Takes rows and columns out of a picture, in the blocked layout too, as windows of one pixel; how many are left."""
    across = 2 ** max(0, math.ceil(math.log2(VALUES / 2 / shape[1]) / 2))
    strides = [math.ceil(side / across) for side in shape[2:]]
    height, width = ((side - 1) // stride + 1 for side, stride in zip(shape[2:], strides, strict=True))
    return graph.add("MaxPool", [name], output, kernel_shape=[1, 1], strides=strides), (height, width)


def _like(left: tuple[int, int]) -> str:
    return f"{left[0]}x{left[1]}"


def _values(graph: Graph, joins: _Joins, name: str, prefix: str) -> str:
    """Some values of a tensor: pictures lose rows and columns, all others are taken at steps."""
    output, shape = f"{prefix}_values", graph.shape(name)
    size = math.prod(shape) if shape is not None else 0
    if shape is not None and len(shape) == 4 and graph.is_blocked(name) and size > VALUES:
        thin, left = _thinned(graph, name, shape, output)
        if not graph.joinable(name):
            return thin
        joins.anchor(thin, shape[1])
        return joins.put(_like(left), thin, shape[1] * math.prod(left))
    flat = graph.add("Reshape", [name, graph.store(f"{prefix}_flat", np.array([-1], np.int64))], f"{prefix}_line")
    if 0 < size <= VALUES:
        return flat
    step = _step(graph, name, shape, prefix)
    bounds = [graph.store(f"{prefix}_{what}", np.array([value], np.int64)) for what, value in (("from", 0), ("to", _FARTHEST), ("axis", 0))]
    return graph.add("Slice", [flat, *bounds, step], output)


def _step(graph: Graph, name: str, shape: tuple[int, ...] | None, prefix: str) -> str:
    """How far apart values are taken: an odd number, so that all channels have their turn where their number is a power of two."""
    if shape is not None and all(shape):
        return graph.store(f"{prefix}_step", np.array([_odd(math.prod(shape) // VALUES, shape[-1] if shape else 1)], np.int64))
    size = graph.reduce("ReduceProd", graph.add("Shape", [name], f"{prefix}_shape"), f"{prefix}_size")
    halves = graph.add("Div", [size, graph.store(f"{prefix}_most", np.array([2 * VALUES], np.int64))], f"{prefix}_halves")
    doubled = graph.add("Add", [halves, halves], f"{prefix}_doubled")
    return graph.add("Add", [doubled, graph.store(f"{prefix}_one", np.array([1], np.int64))], f"{prefix}_step")


def _odd(step: int, channels: int) -> int:
    """The next step that has no factor in common with the number of channels."""
    step = max(step, 1)
    while math.gcd(step, channels) > 1:
        step += 1
    return step


def _samples(batch: Mapping[str, np.ndarray], inputs: Mapping[str, np.dtype]) -> Iterator[dict[str, np.ndarray]]:
    if missing := sorted(set(inputs) - set(batch)):
        raise InputRejected(f"has no column {missing[0]!r}, found {sorted(batch)}", where="samples", hint="name columns like the model's inputs")
    for row in range(len(next(iter(batch.values())))):
        yield {name: np.ascontiguousarray(batch[name][row : row + 1], dtype=dtype) for name, dtype in inputs.items()}
