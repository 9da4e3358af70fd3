"""Lint of calibration samples, before anything runs: what would ruin activation ranges is refused, what is only suspicious is noted.

Quantizers accept NaN, images in 0..255 where the model saw 0..1, random noise, or one sample 200 times; the int8 model is then wrong without
a word. Columns may be memory-mapped: all of this together reads them about once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from toolkit.dataset import Dataset, pieces, release
from toolkit.errors import InputRejected
from toolkit.samples.checks import check_finite, class_counts
from toolkit.samples.randomness import FEWEST_POSITIONS, is_drawn_uniformly, is_noise

Ranges = Mapping[str, Sequence[float]]

_MAGNITUDE = 10.0
_BYTE = 255.0
_UNLIKE_BYTES = 16.0  # standardized pixels stay well below
_MOST_REFERENCE = 256
_KEY_VALUES = 64
_NAMED = 5
_MASK = re.compile(r"mask", re.IGNORECASE)
_ATTENTION = re.compile(r"(attention|input|encoder|decoder)_?mask", re.IGNORECASE)
_NOT_TOKENS = re.compile(r"type|position|segment|length", re.IGNORECASE)
_TOKENS = re.compile(r"(^|input_?|token_?)ids$|tokens?$", re.IGNORECASE)  # lang_ids and the like may be one number
_REAL = "give samples of what the model will see: noise takes other ranges; where noise is what it takes, set allow_noise = true in the recipe"
_PREPARE = "prepare calibration samples like the training samples, for example divide 8-bit images by 255"


def finite_ranges(data: Dataset) -> dict[str, list[float]]:
    """Returns the smallest and largest value of every column as ``[low, high]``, from one pass.

    Raises:
        InputRejected: One holds NaN or Inf; the message names column and first sample.
    """
    found = {}
    for name, column in data.columns.items():
        ends = np.array([(rows.min(), rows.max()) for _, rows in pieces(column)], dtype=np.float64)
        if not np.isfinite(ends).all():
            check_finite(data)
        found[name] = [float(ends[:, 0].min()), float(ends[:, 1].max())]
    return found


def check_range(found: Ranges, allowed: Sequence[float] | None, where: str) -> None:
    """Holds ranges against what the recipe declares.

    Raises:
        InputRejected: A column leaves it.
    """
    if allowed is None:
        return
    low, high = allowed
    for name, (smallest, largest) in found.items():
        if smallest < low or largest > high:
            message = f"column {name!r} has values {smallest:g}..{largest:g}, the recipe says {low:g}..{high:g}"
            raise InputRejected(message, where=where, hint=_PREPARE)


def check_apart(data: Dataset, evaluation: Dataset) -> list[str]:
    """Makes sure that no calibration sample is evaluated on, by content.

    A few values of each sample are compared first, and digests of whole samples only where those are the same.

    Returns:
        Notes: why nothing could be compared.

    Raises:
        InputRejected: Samples are in both.
    """
    if _shapes(data) != _shapes(evaluation):
        return [f"evaluation samples have other columns ({_told(evaluation)}): not compared with those of calibration ({_told(data)})"]
    known: dict[bytes, list[int]] = {}
    for row, key in enumerate(_keys(evaluation)):
        known.setdefault(key, []).append(row)
    shared = []
    for row, key in enumerate(_keys(data)):
        if key in known:
            digest = _digest(data, row)
            shared += [(row, twin) for twin in known[key] if _digest(evaluation, twin) == digest][:1]
    if shared:
        row, twin = shared[0]
        raise InputRejected(
            f"{len(shared)} of {len(data)} calibration samples are evaluation samples too; the first is sample {row}, "
            f"which is evaluation sample {twin}",
            where=data.where,
            hint="remove them from one of the two: ranges that fit the evaluation samples make int8 look better than it is",
        )
    return []


def check_chosen(chosen: Dataset, *, allow_noise: bool = False) -> list[str]:
    """Looks at the samples that ranges will come from.

    Args:
        chosen: The samples.
        allow_noise: Whether the model takes noise, as a generator of pictures does.

    Returns:
        Notes on what is only suspicious.

    Raises:
        InputRejected: They repeat each other, carry no signal, are noise, or are all padding.
    """
    _check_repeats(chosen)
    signals = _signal_columns(chosen)
    notes = [note for name in signals for note in _check_constant(chosen, name)]
    for name, column in chosen.columns.items():
        if column.dtype.kind in "iub":
            notes += _check_mask(chosen, name) if _MASK.search(name) else _check_tokens(chosen, name, lone=name in signals, allow_noise=allow_noise)
        elif not allow_noise and not _MASK.search(name) and is_noise(column):
            size = " x ".join(map(str, column.shape[1:]))
            message = f"column {name!r} is random noise: the values of [{size}] do not depend on their neighbours, their place or their sample"
            raise InputRejected(message, where=chosen.where, hint=_REAL)
    return notes


def check_like(chosen: Dataset, reference: Dataset, called: str) -> list[str]:
    """Holds the samples against others that are known to be right: each float column must be of the same order of magnitude.

    The median over samples of the largest absolute value is compared, which single outliers do not move.

    Args:
        chosen: The calibration samples.
        reference: Samples that the model was trained, compared or evaluated on.
        called: What those are, for messages.

    Returns:
        Notes on ranges that are shifted.

    Raises:
        InputRejected: They differ by a factor of 10 or more.
    """
    rows = np.unique(np.linspace(0, len(reference) - 1, min(len(reference), _MOST_REFERENCE)).astype(np.int64))
    notes = []
    for name in sorted(set(chosen.columns) & set(reference.columns)):
        if chosen.columns[name].dtype.kind != "f" and reference.columns[name].dtype.kind != "f":
            continue
        ours, theirs = _ends(chosen.columns[name]), _ends(reference.columns[name], rows)
        size, right = (float(np.median(np.abs(ends).max(axis=1))) for ends in (ours, theirs))
        found, wanted = (f"{ends[:, 0].min():.4g}..{ends[:, 1].max():.4g}" for ends in (ours, theirs))
        if right > 0 and not 1 / _MAGNITUDE < size / right < _MAGNITUDE:
            times = (
                f"{size / right:.3g} times as large as"
                if size > right
                else f"{right / size:.3g} times smaller than"
                if size
                else "mostly zero, unlike"
            )
            message = f"column {name!r} has values {found}, {times} the {called} samples, which have {wanted}"
            raise InputRejected(message, where=chosen.where, hint=_PREPARE)
        if float(np.median(theirs[:, 0])) < 0 <= ours[:, 0].min():
            notes.append(f"column {name!r} has values {found}, none below zero; the {called} samples have {wanted}")
    return notes


def check_bytes(chosen: Dataset) -> list[str]:
    """Notes float pictures in the range of bytes; whether the model takes them so, nothing here can tell."""
    notes = []
    for name, column in chosen.columns.items():
        if column.dtype.kind == "f" and _looks_like_signal(column):
            ends = _ends(column)
            low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
            if low >= 0 and _UNLIKE_BYTES < high <= _BYTE:
                known = "nothing says which range the model takes; set value_range in the recipe, or give evaluation samples"
                notes.append(f"column {name!r} has values {low:g}..{high:g}, like pixels that were not scaled: {known}")
    return notes


def check_classes(label: np.ndarray | None, known: Sequence[int], names: Sequence[str] = (), where: str = "") -> list[str]:
    """Makes sure that the chosen samples show the classes.

    Args:
        label: Labels of the chosen samples; where samples have no classes, nothing is checked.
        known: Every class that the model tells apart.
        names: Their names by index.
        where: For the message.

    Returns:
        Notes: the classes that are missing.

    Raises:
        InputRejected: More than half of those that so many samples could show are missing.
    """
    counts = class_counts(label)
    if not counts or label is None:
        return []
    missing = [one for one in known if not counts.get(one)]
    possible = min(len(known), len(label)) if label.ndim == 1 else len(known)
    told = ", ".join(repr(names[one]) if one < len(names) else str(one) for one in missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
    if (len(known) - len(missing)) * 2 < possible:
        message = f"the calibration samples show {len(known) - len(missing)} of {len(known)} classes; missing are {told}"
        raise InputRejected(message, where=where, hint="give samples of every class: activations of the others would be clipped")
    return [f"{len(missing)} of {len(known)} classes have no calibration sample: {told}"] if missing else []


def _check_repeats(data: Dataset) -> None:
    """Refuses samples that cannot show what activations look like."""
    distinct = len({_digest(data, row) for row in range(len(data))})
    if len(data) > 1 and distinct == 1:
        raise InputRejected(f"all {len(data)} calibration samples are identical", where=data.where, hint="give real samples")
    if (len(data) - distinct) * 2 > len(data):
        raise InputRejected(
            f"{len(data) - distinct} of {len(data)} calibration samples repeat another one, expected at most half",
            where=data.where,
            hint="give more different samples",
        )


def _check_constant(data: Dataset, name: str) -> list[str]:
    """Refuses a column whose samples never vary inside; some such samples are noted."""
    column = data.columns[name]
    if column[0].size < 2:
        return []
    flat = np.flatnonzero(np.equal(*_ends(column).T))
    if len(flat) == len(data):
        found = f"column {name!r}: every one of the {len(data)} calibration samples is constant"
        raise InputRejected(found, where=data.where, hint="check the code that prepares samples")
    return [f"column {name!r}: {len(flat)} of {len(data)} calibration samples are constant, the first is sample {flat[0]}"] if len(flat) else []


def _check_mask(data: Dataset, name: str) -> list[str]:
    """A mask that is all zero hides the whole sample. Of other masks than attention's, some mark what is hidden instead."""
    if not _ATTENTION.search(name):
        return []
    hidden = np.flatnonzero(_ends(data.columns[name])[:, 1] == 0)
    return _few(data, hidden, f"column {name!r} is all zero", "so that nothing is attended to", "set it to 1 where there is a token")


def _check_tokens(data: Dataset, name: str, *, lone: bool, allow_noise: bool) -> list[str]:
    column = data.columns[name]
    if column.dtype.kind == "b" or column.ndim != 2 or column.shape[1] < FEWEST_POSITIONS or _NOT_TOKENS.search(name):
        return []
    if not allow_noise and is_drawn_uniformly(column):
        low, high = int(column.min()), int(column.max())
        message = f"column {name!r} is random: whole numbers {low}..{high} that are all equally frequent, as in no text"
        raise InputRejected(message, where=data.where, hint=_REAL)
    if lone or not _TOKENS.search(name):
        return []
    padding = np.flatnonzero(np.equal(*_ends(column).T))
    return _few(data, padding, f"column {name!r} repeats one token", "as if all of it were padding", "leave empty texts out")


def _few(data: Dataset, rows: np.ndarray, what: str, why: str, hint: str) -> list[str]:
    """Refuses what holds for more than half of the samples, and notes it where it holds for some."""
    found = f"{what} in {len(rows)} of {len(data)} calibration samples, {why}; the first is sample {rows[0] if len(rows) else ''}"
    if len(rows) * 2 > len(data):
        raise InputRejected(found, where=data.where, hint=hint)
    return [found] if len(rows) else []


def _signal_columns(data: Dataset) -> list[str]:
    """Names the columns that must vary inside a sample: the float ones, or a lone one. Masks and token types may be all ones."""
    floats = [name for name, column in data.columns.items() if column.dtype.kind == "f" and not _MASK.search(name)]
    return floats or (list(data.columns) if len(data.columns) == 1 else [])


def _looks_like_signal(column: np.ndarray) -> bool:
    return sum(size >= FEWEST_POSITIONS for size in column.shape[1:]) >= 2


def _ends(column: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Smallest and largest value of each sample ``[n x 2]``."""
    if rows is not None:
        return np.array([(column[row].min(), column[row].max()) for row in rows], np.float64)
    parts = ((part.reshape(len(part), -1).min(axis=1), part.reshape(len(part), -1).max(axis=1)) for _, part in pieces(column))
    return np.concatenate([np.stack(ends, axis=1) for ends in parts]).astype(np.float64)


def _shapes(data: Dataset) -> dict[str, tuple[int, ...]]:
    return {name: column.shape[1:] for name, column in data.columns.items()}


def _told(data: Dataset) -> str:
    return ", ".join(f"{name!r} {list(shape)}" for name, shape in sorted(_shapes(data).items()))


def _keys(data: Dataset) -> Iterator[bytes]:
    """A few values of every sample, columns in the order of their names; no more of a mapped file is read."""
    names = sorted(data.columns)
    places = {name: np.unique(np.linspace(0, data.columns[name][0].size - 1, _KEY_VALUES).astype(np.int64)) for name in names}
    for start in range(0, len(data), _MOST_REFERENCE):
        blocks = {name: data.columns[name][start : start + _MOST_REFERENCE] for name in names}
        picked = [_alike(block.reshape(len(block), -1)[:, places[name]]).view(np.uint8) for name, block in blocks.items()]
        for name in names:
            release(data.columns[name])
        yield from (row.tobytes() for row in np.concatenate(picked, axis=1))


def _digest(data: Dataset, row: int) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(data.columns):
        digest.update(_alike(data.columns[name][row]).tobytes())
    return digest.digest()


def _alike(values: np.ndarray) -> np.ndarray:
    """The same bytes for the same sample, whether it was stored in single or double precision; zero has one sign."""
    floating = values.dtype.kind == "f"
    return np.ascontiguousarray(values.astype(np.float32) + np.float32(0) if floating else values.astype(np.int64))
