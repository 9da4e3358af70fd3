"""Do these samples fit this model? Asked before a library sees them: several accept wrong shapes, NaN and Inf without a word.

And random samples that do, made from a signature alone where there are none.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from toolkit.artifact import Signature, TensorSpec
from toolkit.dataset import Dataset
from toolkit.errors import InputRejected

# A plain conversion of one into the other would give other pictures, without a word.
_QUANTIZED = "give what the model takes: for integers round(real / scale) + zero point, with the file's own scale; or export it with float inputs"
_RANDOM_SAMPLES = 16
_CHUNK_BYTES = 16 << 20  # looked at together: columns may be memory-mapped and larger than memory


def check_columns(data: Dataset, signature: Signature) -> None:
    """Holds a data set against a model's inputs.

    Integers of another width are accepted when every value fits, because converters narrow ``int64`` inputs to ``int32``.

    Args:
        data: Columns ``[n x ...]`` named like the inputs.
        signature: The model's inputs; their first axis is the batch.

    Raises:
        InputRejected: Names, per-sample shapes or dtypes differ, or a column holds NaN or Inf.
    """
    expected = {spec.name: spec for spec in signature.inputs}
    if set(data.columns) != set(expected):
        raise InputRejected(
            f"columns are {sorted(data.columns)}, the model's inputs are {sorted(expected)}",
            where=data.where,
            hint="name the arrays like the model's inputs",
        )
    for name, spec in expected.items():
        _check_shape(data.columns[name], spec, data.where)
        _check_dtype(data.columns[name], spec, data.where)
        _check_finite(data.columns[name], name, data.where)


def check_named_like(samples: Dataset, examples: Mapping[str, np.ndarray]) -> None:
    """Holds samples against inputs that a model is known to take; some of them may be left out, none renamed.

    Args:
        samples: Columns ``[n x ...]``.
        examples: Plausible inputs by name, ``[n x ...]``; sizes of a sample may be others, the number of axes and the kind of number not.

    Raises:
        InputRejected: A name is unknown, or a column of another kind.
    """
    columns = samples.columns
    unknown = [name for name in columns if name not in examples]
    if unknown or not columns:
        hint = "name the arrays like the model's inputs"
        raise InputRejected(f"columns are {sorted(columns)}, the model's inputs are {sorted(examples)}", where=samples.where, hint=hint)
    for name, column in columns.items():
        made = examples[name]
        if column.ndim != made.ndim or column.dtype.kind != made.dtype.kind:
            found, wanted = (f"[{' x '.join(map(str, one.shape[1:]))}] {one.dtype}" for one in (column, made))
            hint = "prepare the samples with the transform the model was trained with"
            raise InputRejected(f"column {name!r} has samples of {found}, the model takes {wanted} or the like", where=samples.where, hint=hint)


def random_samples(signature: Signature, seed: int = 0) -> Dataset:
    """Makes samples from a signature alone: uniform 0..1 for floats, zero for whole numbers, 1 for free sizes."""
    generator = np.random.default_rng(seed)
    columns = {}
    for spec in signature.inputs:
        shape = (_RANDOM_SAMPLES, *(size if isinstance(size, int) else 1 for size in spec.shape[1:]))
        floating = np.dtype(spec.dtype).kind == "f"
        columns[spec.name] = (generator.random(shape) if floating else np.zeros(shape)).astype(spec.dtype)
    return Dataset(columns, None, "random samples")


def one_sample(data: Dataset, row: int, signature: Signature) -> dict[str, np.ndarray]:
    """Returns one sample as a batch of one, in the inputs' order and dtypes; ``data`` must have been checked."""
    return {spec.name: np.ascontiguousarray(data.columns[spec.name][row : row + 1], dtype=np.dtype(spec.dtype)) for spec in signature.inputs}


def _check_shape(column: np.ndarray, spec: TensorSpec, where: str) -> None:
    found, wanted = column.shape[1:], spec.shape[1:]
    if len(found) != len(wanted) or any(isinstance(size, int) and size != have for size, have in zip(wanted, found, strict=True)):
        raise InputRejected(
            f"column {spec.name!r} has samples of shape {list(found)}, the model's input takes {list(wanted)}",
            where=where,
            hint=_shape_hint(found, wanted),
        )


def _shape_hint(found: tuple[int, ...], wanted: tuple[int | str, ...]) -> str:
    """Says what turns one shape into the other, where it is only the layout that differs."""

    def fits(shape: tuple[int, ...]) -> bool:
        return len(shape) == len(wanted) and all(isinstance(size, str) or size == have for size, have in zip(wanted, shape, strict=True))

    axes = list(range(1, len(found) + 1))
    if len(found) > 1 and fits((found[-1], *found[:-1])):
        return f"the samples have their channels last, the model takes them first: numpy.transpose(x, {(0, axes[-1], *axes[:-1])})"
    if len(found) > 1 and fits((*found[1:], found[0])):
        return f"the samples have their channels first, the model takes them last: numpy.transpose(x, {(0, *axes[1:], 1)})"
    places = [axis for axis in range(len(wanted)) if fits((*found[:axis], 1, *found[axis:]))]
    if places:
        return f"an axis of size 1 is missing: numpy.expand_dims(x, {places[0] + 1})"
    return "prepare the samples with the transform the model was trained with"


def _check_dtype(column: np.ndarray, spec: TensorSpec, where: str) -> None:
    wanted = np.dtype(spec.dtype)
    if column.dtype == wanted:
        return
    if column.dtype.kind in "iu" and wanted.kind in "iu":
        limits = np.iinfo(wanted)
        if int(column.min()) >= limits.min and int(column.max()) <= limits.max:
            return
        found = f"{column.dtype} values from {int(column.min())} to {int(column.max())}"
    else:
        found = str(column.dtype)
    same_kind = column.dtype.kind == wanted.kind
    hint = f"convert it with .astype({str(wanted)!r})" if same_kind else _QUANTIZED
    raise InputRejected(f"column {spec.name!r} is {found}, the model's input is {wanted}", where=where, hint=hint)


def _check_finite(column: np.ndarray, name: str, where: str) -> None:
    if column.dtype.kind not in "fc":
        return
    rows = max(1, _CHUNK_BYTES // max(1, column[:1].nbytes))
    for start in range(0, len(column), rows):
        chunk = np.asarray(column[start : start + rows])
        bad = ~np.isfinite(chunk).reshape(len(chunk), -1).all(axis=1)
        if bad.any():
            raise InputRejected(
                f"column {name!r} has NaN or Inf in sample {start + int(bad.argmax())}", where=where, hint="remove or mend that sample"
            )
