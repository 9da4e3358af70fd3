"""What a live model computes on its examples, one sample at a time; the same checks in every framework."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from toolkit.errors import InputRejected
from toolkit.plugins import Arrays
from toolkit.sources.naming import check_names

# Two runs of the same sample may differ by rounding when threads share a sum; random layers differ by far more.
_REPEAT_TOLERANCE = 1e-5


def check_examples(examples: Arrays) -> None:
    """Looks at inputs before a model gets them.

    Args:
        examples: Inputs by name, ``[n x ...]``.

    Raises:
        InputRejected: A name is not a Python identifier, there is no sample, or the inputs differ in their number of samples.
    """
    check_names("input", examples)
    lengths = {name: len(column) if column.ndim else 0 for name, column in examples.items()}
    if not lengths or min(lengths.values()) < 1 or len(set(lengths.values())) > 1:
        what = f"examples need at least one sample and equal lengths, found {lengths}"
        raise InputRejected(what, where="examples", hint="stack samples along the first axis")


def samples(examples: Arrays) -> list[dict[str, np.ndarray]]:
    """Returns each sample by itself, ``[1 x ...]``, as copies: arrays may be mapped read-only, and a model may write into its input."""
    count = len(next(iter(examples.values())))
    return [{name: np.array(column[row : row + 1]) for name, column in examples.items()} for row in range(count)]


def described(sample: Mapping[str, np.ndarray]) -> str:
    """Returns names, shapes and element types of a sample, as messages show them."""
    return ", ".join(f"{name} {list(value.shape)} {value.dtype}" for name, value in sample.items())


def check_batch(shapes: Mapping[str, Sequence[int]], batches: Iterable[int] = (1,)) -> None:
    """Makes sure that outputs have the batch as their first axis.

    Args:
        shapes: Shape of each output, by name.
        batches: Sizes of the inputs' first axes.

    Raises:
        InputRejected: One has not.
    """
    sizes = set(batches)
    for name, shape in shapes.items():
        if not len(shape) or shape[0] not in sizes:
            given = "one sample" if sizes == {1} else f"a batch of {max(sizes)}"
            raise InputRejected(f"output {name!r} of {given} has shape {list(shape)}", where="outputs", hint="return the batch as first axis")


def joined(again: Mapping[str, np.ndarray], rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Joins the outputs of all samples, after comparing two runs of the first one.

    Args:
        again: Outputs of the first sample, from another run of it.
        rows: Outputs of every sample, ``[1 x ...]`` by name.

    Returns:
        Outputs by name, ``[n x ...]``.

    Raises:
        InputRejected: The two runs differ, or samples lead to outputs of different shapes.
    """
    for name, value in again.items():
        first = rows[0][name]
        if value.shape != first.shape or not np.allclose(value, first, rtol=0, atol=_REPEAT_TOLERANCE * _largest(value), equal_nan=True):
            what = f"output {name!r} differs when the same sample runs twice"
            raise InputRejected(what, where="model", hint="remove randomness and state from the inference path")
    for name in again:
        shapes = list(dict.fromkeys(row[name].shape for row in rows))
        if len(shapes) > 1:
            what = f"output {name!r} has shape {list(shapes[0])} for one sample and {list(shapes[1])} for another"
            raise InputRejected(what, where="outputs", hint="return outputs whose size does not depend on the values of the inputs")
    return {name: np.concatenate([row[name] for row in rows]) for name in again}


def _largest(value: np.ndarray) -> float:
    finite = np.abs(value[np.isfinite(value)])
    return float(finite.max()) if finite.size else 0.0
