"""Free sizes: what a model computes at other sizes than the samples', so that parity can show every free size at work.

Besides the samples as given, a source whose sizes are free is run on batches made of them: a few rows at once, and cut to about
a half, to two and to one. Sizes with bounds stay between them and are shown at both ends, as far as that computes no more than the
samples themselves. Each lies below ``expected/variants/<k>`` as ``inputs/<name>.npy``, ``outputs/<name>.npy`` and ``sizes.json``
(``{"batch": 2, "sequence": 8}``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import sizes as notation
from toolkit.artifact import Signature, TensorSpec
from toolkit.errors import ConfigError, InputRejected, StageFailed
from toolkit.plugins import Arrays

VARIANTS = "variants"
SIZES = "sizes.json"
LEAST = 3
"""Sizes at which every free size must be shown, or all of them where its bounds leave fewer."""
MOST_WORK = 64
"""Samples as large as those given, which the largest sizes may be worth: as many as parity runs anyway."""

Run = Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]]
Axes = Mapping[str, Mapping[int, str]]
Dynamic = Mapping[str, Mapping[Any, str]]  # as asked for: with bounds; axes are numbers, or texts where they came through JSON
Sizes = dict[str, int]
Bounds = Mapping[str, notation.FreeSize]


@dataclass(frozen=True)
class Variant:
    """One batch of other sizes.

    Attributes:
        sizes: The free sizes by name.
        inputs: What the model was given, by name.
        outputs: What it gave, by name.
    """

    sizes: Sizes
    inputs: Arrays
    outputs: Arrays


def axes(dynamic: Dynamic) -> dict[str, dict[int, str]]:
    """Returns the names of free sizes by input and axis, without their bounds."""
    return {name: {axis: notation.read(text).name for axis, text in free.items()} for name, free in numbered(dynamic).items()}


def numbered(dynamic: Dynamic) -> dict[str, dict[int, str]]:
    """Returns free sizes as they were asked for, by input and axis, whether the axes came as numbers or, through JSON, as text."""
    return {name: dict(sorted((int(axis), text) for axis, text in free.items())) for name, free in dynamic.items()}


def bounds(dynamic: Dynamic) -> dict[str, notation.FreeSize]:
    """Returns the free sizes by name, with the bounds that each may have."""
    found = [notation.read(text) for free in dynamic.values() for text in free.values()]
    return {size.name: size for size in found}


def facts(dynamic: Dynamic) -> dict[str, Any]:
    """Returns what a manifest says of the bounds: ``{"bounds": {"batch": [1, 8]}}``, with ``None`` for an end that has none."""
    known = {name: [size.least, size.most] for name, size in bounds(dynamic).items() if size.is_bounded}
    return {"bounds": known} if known else {}


def check_source(source: Any, dynamic: Dynamic) -> None:
    """Makes sure that a source can leave sizes free, and keep to their bounds, where that is asked for.

    Raises:
        ConfigError: It cannot.
    """
    known = getattr(source, "options", ())
    if dynamic and "dynamic" not in known:
        hint = "leave dynamic out; every program of this source has fixed sizes"
        raise ConfigError(f"source {source.name!r} does not know free sizes", where="convert.dynamic", hint=hint)
    if facts(dynamic) and "bounds" not in known:
        hint = "name the sizes without bounds"
        raise ConfigError(f"source {source.name!r} does not know bounds of free sizes", where="convert.dynamic", hint=hint)


def check(dynamic: Dynamic, columns: Arrays) -> None:
    """Holds the free sizes that were asked for against the samples.

    Raises:
        ConfigError: An input or an axis does not exist, axes of the samples that shall have equal sizes differ, or the samples' own
            size lies outside of the bounds.
    """
    known = bounds(dynamic)
    seen: dict[str, tuple[str, int]] = {}
    for name, free in axes(dynamic).items():
        if name not in columns:
            what = f"there is no input {name!r}; found {', '.join(columns)}"
            raise ConfigError(what, where="convert.dynamic", hint="name inputs as the samples do")
        for axis, size in free.items():
            if not 0 <= axis < columns[name].ndim:
                hint = "axis 0 is the batch, 1 the first axis of a sample"
                raise ConfigError(f"input {name!r} has {columns[name].ndim} axes, found axis {axis}", where="convert.dynamic", hint=hint)
            place, length = f"axis {axis} of {name!r}", columns[name].shape[axis]
            if seen.setdefault(size, (place, length))[1] != length:
                before, other = seen[size]
                what = f"{place} and {before} are both called {size!r}, but have the sizes {length} and {other}"
                raise ConfigError(what, where="convert.dynamic", hint="give sizes that differ names of their own")
            if axis and length not in known[size]:
                what = f"{place} is {length} in the samples, outside of {known[size]}"
                raise ConfigError(what, where="convert.dynamic", hint="give samples of such a size, or wider bounds")


def record(run: Run, columns: Arrays, expected: Arrays, dynamic: Dynamic, folder: Path) -> Signature:
    """Runs the source at several sizes, writes what it gave, and returns the signature with names at the free axes.

    Args:
        run: Gives the outputs of one batch of any size; the live model, or a session of the source's file.
        columns: The samples, ``[n x ...]`` by input.
        expected: What the source gave for them one by one, ``[n x ...]`` by output.
        dynamic: Free sizes by input and axis, with their bounds.
        folder: The folder ``expected``.

    Raises:
        ConfigError: As :func:`check`.
        InputRejected: The source does not take a free size at three sizes, or an output's number of axes depends on them.
        ParityFailed: The captured program computes something else than the live model at one of the sizes.
    """
    check(dynamic, columns)
    free = axes(dynamic)
    found = _gather(run, columns, free, bounds(dynamic))
    for place, variant in enumerate(found):
        _write(variant, folder / VARIANTS / str(place))
    inputs = tuple(_input(name, column, free.get(name, {})) for name, column in columns.items())
    given = _given_sizes(columns, free) | dict.fromkeys(_batch_names(free), 1)
    outputs = tuple(_output(name, [(given, (1, *column.shape[1:]))], found, str(column.dtype)) for name, column in expected.items())
    return Signature(inputs=inputs, outputs=outputs)


def batch(columns: Arrays, free: Axes, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Makes a batch of the samples: the first rows, every free axis cut to its size, or continued from its start where too short."""
    made = {}
    for name, column in columns.items():
        names = free.get(name, {})
        rows = sizes[names[0]] if 0 in names else 1
        part = np.take(column, range(rows), axis=0, mode="wrap")
        for axis, size in names.items():
            part = np.take(part, range(sizes[size]), axis=axis, mode="wrap") if axis else part
        made[name] = np.ascontiguousarray(part)
    return made


def _gather(run: Run, columns: Arrays, free: Axes, known: Bounds) -> list[Variant]:
    """Runs what shall be run; sizes that the source refuses are passed over as long as enough others remain."""
    found: list[Variant] = []
    refusal = ""
    given = _given_sizes(columns, free)
    for sizes in _schedule(given, _batch_names(free), known, found):
        try:
            inputs = batch(columns, free, sizes)
            outputs = dict(run({name: column.copy() for name, column in inputs.items()}))
            if all(_finite(column) for column in outputs.values()):
                found.append(Variant(sizes, inputs, outputs))
            else:
                refusal = f"an output is not finite at {_words(sizes)}"
        except (InputRejected, StageFailed) as error:
            refusal = f"at {_words(sizes)} it says: {error.message}"
            if any(size == known[name].most for name, size in sizes.items()):
                hint = "give bounds that the model keeps to"
                raise InputRejected(f"the model refuses sizes within the bounds: {refusal}", where="convert.dynamic", hint=hint) from error
    for name in given:
        shown = _shown(found, name)
        if len(shown) < _needed(known[name]):
            what = f"takes the free size {name!r} only at {', '.join(map(str, sorted(shown))) or 'none of the sizes tried'}; {refusal}"
            hint = "leave that size fixed, or give samples of which a part is a sample too"
            raise InputRejected(f"the model {what}", where=f"convert.dynamic, size {name!r}", hint=hint)
    return found


def _schedule(given: Sizes, batches: set[str], known: Bounds, found: list[Variant]) -> Iterator[Sizes]:
    """Yields the sizes to try: a handful of each, no two alike at once; both ends; then more for names that were refused too often."""
    usual = {
        name: _within(known[name], *([1, 2, 3] if name in batches else [length // 2, 2, 1, length])) or [length] for name, length in given.items()
    }
    for turn in range(max(map(len, usual.values()))):
        yield {name: choices[(turn + place) % len(choices)] for place, (name, choices) in enumerate(usual.items())}
    for ends in _ends({**given, **dict.fromkeys(batches, 1)}, known):
        if not any(variant.sizes == ends for variant in found):
            yield ends
    for name, length in given.items():
        others = (4, 5) if name in batches else (length, length - 1, length * 3 // 4, length + 1, length // 2)
        for size in _within(known[name], *others):
            if len(_shown(found, name)) < _needed(known[name]) and size not in _shown(found, name):
                yield {other: 2 if other in batches else given[other] for other in given} | {name: size}


def _ends(one: Sizes, known: Bounds) -> Iterator[Sizes]:
    """Yields the least sizes, and the largest that are worth the work: all of them together, else one by one.

    Args:
        one: The sizes of one sample as given.
        known: The bounds of each.
    """
    if not any(size.is_bounded for size in known.values()):
        return
    yield {name: known[name].least if known[name].is_bounded else size for name, size in one.items()}
    largest = {name: known[name].most or size for name, size in one.items()}
    apart = [{**one, name: min(size, one[name] * MOST_WORK)} for name, size in largest.items() if size != one[name]]
    yield from [largest] if _work(largest, one) <= MOST_WORK else apart


def _work(sizes: Sizes, one: Sizes) -> float:
    return math.prod(sizes[name] / one[name] for name in one)


def _needed(size: notation.FreeSize) -> int:
    return LEAST if size.most is None else min(LEAST, size.most - size.least + 1)


def _within(limits: notation.FreeSize, *choices: int) -> list[int]:
    """Moves sizes between the bounds, and leaves those out that are then there already."""
    raised = [max(size, limits.least) for size in choices if size > 0]
    return list(dict.fromkeys(min(size, limits.most or size) for size in raised))


def _shown(found: list[Variant], name: str) -> set[int]:
    return {variant.sizes[name] for variant in found}


def _given_sizes(columns: Arrays, free: Axes) -> Sizes:
    return {size: columns[name].shape[axis] for name, names in free.items() for axis, size in names.items()}


def _batch_names(free: Axes) -> set[str]:
    return {names[0] for names in free.values() if 0 in names}


def _words(sizes: Sizes) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def _finite(column: np.ndarray) -> bool:
    return column.dtype.kind != "f" or bool(np.isfinite(column).all())


def _write(variant: Variant, folder: Path) -> None:
    for side, columns in (("inputs", variant.inputs), ("outputs", variant.outputs)):
        (folder / side).mkdir(parents=True)
        for name, column in columns.items():
            np.save(folder / side / f"{name}.npy", column, allow_pickle=False)
    (folder / SIZES).write_text(json.dumps(variant.sizes), encoding="utf-8")


def _input(name: str, column: np.ndarray, names: Mapping[int, str]) -> TensorSpec:
    fixed = (1, *column.shape[1:])
    return TensorSpec(name=name, dtype=str(column.dtype), shape=tuple(names.get(axis, size) for axis, size in enumerate(fixed)))


def _output(name: str, given: list[tuple[Sizes, tuple[int, ...]]], found: list[Variant], dtype: str) -> TensorSpec:
    """Names the axes of an output by the free size that they follow, or ``<output>_<axis>`` where they follow none exactly."""
    seen = given + [(variant.sizes, variant.outputs[name].shape) for variant in found]
    ranks = {len(shape) for _, shape in seen}
    if len(ranks) > 1:
        what = f"output {name!r} has {' or '.join(map(str, sorted(ranks)))} axes, depending on the sizes of the inputs"
        raise InputRejected(what, where="convert.dynamic", hint="give the output the same number of axes always, or leave the sizes fixed")
    shape = []
    for axis in range(ranks.pop()):
        lengths = [shape[axis] for _, shape in seen]
        like = [size for size in seen[0][0] if lengths == [sizes[size] for sizes, _ in seen]]
        shape.append(lengths[0] if len(set(lengths)) == 1 else like[0] if like else f"{name}_{axis}")
    return TensorSpec(name=name, dtype=dtype, shape=tuple(shape))
