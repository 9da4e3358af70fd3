"""Goldens: the inputs, outputs and envelope of a model in one small file, and what a run must not differ from them by."""

from __future__ import annotations

import io
import json
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from toolkit.artifact import Frozen, Signature, TensorSpec
from toolkit.errors import InputRejected
from toolkit.figures import Variant
from toolkit.measure.outputs import gaps, labels
from toolkit.mistakes import NAME_PATTERN

MAX_BYTES = 5_000_000
"""A golden lives in a repository. Inputs and outputs together take no more than this before they are compressed."""

_HEADERS = 1 << 20  # room beside the arrays for their headers and the document
_MOST_THREADS = 1024
# What a damaged or hostile archive was seen to raise in zipfile, zlib, NumPy and json. RuntimeError holds RecursionError, NotImplementedError.
_DAMAGE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class Golden(Frozen):
    """What a golden says beside its arrays.

    Attributes:
        schema_version: Version of this layout; ``schema`` in JSON.
        model: Name of the model file.
        sha256: Its digest.
        signature: Its inputs and outputs.
        target: The target whose settings the default way has.
        runtime: The runtime.
        threads: Threads of one inference.
        versions: Versions of the runtime's distributions.
        cpu: The CPU that the outputs were recorded on.
        n: Number of samples.
        rows: Their rows in the data that they were taken from.
        labelled: Outputs that label samples.
        max_abs: The envelope: largest difference of any variant, by output. Zero allows nothing but equal values.
        flipped: Samples (0 to n - 1) that a variant labels differently.
        variants: What the envelope was measured from.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    model: str
    sha256: str
    signature: Signature
    target: Annotated[str, Field(pattern=NAME_PATTERN)]
    runtime: str
    threads: Annotated[int, Field(gt=0, le=_MOST_THREADS)]
    versions: dict[str, str]
    cpu: str
    n: Annotated[int, Field(gt=0)]
    rows: tuple[int, ...]
    labelled: tuple[str, ...]
    max_abs: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    flipped: tuple[int, ...]
    variants: tuple[Variant, ...]

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Golden:
        if not set(self.labelled) <= set(self.max_abs):
            raise ValueError("it labels samples by outputs that it does not have")
        if not all(0 <= sample < self.n for sample in self.flipped) or len(self.rows) != self.n:
            raise ValueError("it names samples that it does not have")
        measured = {name: max((one.max_abs.get(name, 0.0) for one in self.variants), default=0.0) for name in self.max_abs}
        if measured != self.max_abs:
            raise ValueError("its envelope is not the largest of its variants")
        return self


@dataclass(frozen=True)
class Recorded:
    """A golden with its arrays.

    Attributes:
        golden: What it says.
        inputs: The samples ``[n x ...]``, by input name.
        outputs: The default way's outputs ``[n x ...]``, by output name.
    """

    golden: Golden
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Deviation:
    """One output of a run beside the golden's.

    Attributes:
        output: Its name.
        allowed: The envelope's largest difference.
        difference: The largest difference found.
        sample: The sample it is in.
        element: Where in the sample.
        expected: The golden's value there.
        found: The run's value there.
        flips: Samples whose label changed although no variant changes it: ``(sample, expected, found)``.
    """

    output: str
    allowed: float
    difference: float
    sample: int
    element: tuple[int, ...]
    expected: float
    found: float
    flips: tuple[tuple[int, int, int], ...]

    @property
    def within(self) -> bool:
        """Whether the envelope allows it."""
        return self.difference <= self.allowed and not self.flips


def compare(recorded: Recorded, found: Mapping[str, np.ndarray]) -> list[Deviation]:
    """Holds the outputs of a run against a golden, by name; the shapes must be the golden's.

    Raises:
        InputRejected: An output has another shape.
    """
    return [_deviation(recorded.golden, name, np.asarray(expected), np.asarray(found[name])) for name, expected in recorded.outputs.items()]


def check_signature(golden: Golden, signature: Signature, where: str) -> None:
    """Makes sure that a model takes and gives what a golden's did; batch sizes and names of free sizes may differ.

    Raises:
        InputRejected: It does not.
    """
    for side in ("inputs", "outputs"):
        wanted, found = ({_shown(spec) for spec in getattr(one, side)} for one in (golden.signature, signature))
        if wanted != found:
            message = f"the model's {side} are {', '.join(sorted(found))}; the golden's are {', '.join(sorted(wanted))}"
            raise InputRejected(message, where=where, hint="give the model that the golden is of, or make a new one: edgekit golden update")


def pack(recorded: Recorded) -> bytes:
    """Returns the bytes of a golden's file; equal goldens have equal bytes.

    Raises:
        InputRejected: The arrays take more than :data:`MAX_BYTES`, or the envelope is too wide to tell anything.
    """
    if problem := _senseless(recorded):
        hint = "look at the ways with: edgekit envelope; leave out the samples on which the model is unstable"
        raise InputRejected(f"cannot have a golden: {problem}", where=recorded.golden.model, hint=hint)
    columns = [*recorded.inputs.values(), *recorded.outputs.values()]
    size_bytes = sum(column.nbytes for column in columns)
    if size_bytes > MAX_BYTES:
        raise InputRejected(
            f"{recorded.golden.n} samples take {size_bytes:,} bytes with their outputs, at most {MAX_BYTES:,} go into a golden",
            where=recorded.golden.model,
            hint="take fewer samples",
        )
    document = {**recorded.golden.model_dump(mode="json", by_alias=True), "arrays": [list(recorded.inputs), list(recorded.outputs)]}
    arrays: Any = {f"array_{number}": np.ascontiguousarray(column) for number, column in enumerate(columns)}
    stream = io.BytesIO()
    np.savez_compressed(stream, golden=np.array(json.dumps(document, sort_keys=True)), **arrays)
    return stream.getvalue()


def unpack(file: Path) -> Recorded:
    """Reads a golden's file. It may come from anybody: pickles are refused, as are arrays beyond the size of a golden.

    Raises:
        InputRejected: It is missing, or no golden.
    """
    try:
        with file.open("rb") as stream:
            _check_size(stream)
            with np.load(stream, allow_pickle=False) as archive:
                return _assemble(archive)
    except OSError as error:
        raise InputRejected(f"cannot be read: {error.strerror or error}", where=str(file), hint="make it: edgekit golden update") from error
    except _DAMAGE as error:
        said = _first_problem(error) if isinstance(error, ValidationError) else (str(error).splitlines() or [type(error).__name__])[0]
        raise InputRejected(f"is not a golden: {said}", where=str(file), hint="make it again: edgekit golden update") from error


def _deviation(golden: Golden, name: str, expected: np.ndarray, found: np.ndarray) -> Deviation:
    if expected.shape != found.shape:
        message = f"output {name!r} is {list(found.shape)}, the golden's is {list(expected.shape)}"
        raise InputRejected(message, where=golden.model, hint="make a new golden: edgekit golden update")
    gap = gaps(expected, found)
    place = tuple(int(axis) for axis in np.unravel_index(int(gap.argmax()), gap.shape)) if gap.size else (0,)
    return Deviation(
        output=name,
        allowed=golden.max_abs[name],
        difference=float(gap.max(initial=0.0)),
        sample=place[0],
        element=place[1:],
        expected=float(expected[place]) if gap.size else 0.0,
        found=float(found[place]) if gap.size else 0.0,
        flips=_flips(golden, expected, found) if name in golden.labelled else (),
    )


def _flips(golden: Golden, expected: np.ndarray, found: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    before, now = labels(expected), labels(found)
    if before is None or now is None:
        return ()
    changed = (int(sample) for sample in np.flatnonzero(before != now))
    return tuple((sample, int(before[sample]), int(now[sample])) for sample in changed if sample not in golden.flipped)


def _shown(spec: TensorSpec) -> str:
    sizes = " x ".join(str(size) if isinstance(size, int) else "?" for size in spec.shape[1:])
    return f"{spec.name} [n{' x ' if sizes else ''}{sizes}] {spec.dtype}"


def _check_size(stream: Any) -> None:
    with zipfile.ZipFile(stream) as archive:
        size_bytes = sum(entry.file_size for entry in archive.infolist())
    if size_bytes > MAX_BYTES + _HEADERS:
        raise ValueError(f"it holds {size_bytes:,} bytes, at most {MAX_BYTES:,} go into one")
    stream.seek(0)


def _assemble(archive: Mapping[str, np.ndarray]) -> Recorded:
    document = json.loads(str(archive["golden"]))
    inputs, outputs = document.pop("arrays")
    columns = {(side, name): None for side, names in enumerate((inputs, outputs)) for name in names}
    arrays = dict(zip(columns, (archive[f"array_{number}"] for number in range(len(columns))), strict=True))
    golden = Golden.model_validate(document)
    if any(not array.ndim or len(array) != golden.n or array.dtype.kind not in "biuf" for array in arrays.values()):
        raise ValueError(f"its arrays do not have {golden.n} rows of numbers each")
    if set(outputs) != set(golden.max_abs) or not inputs or not outputs:
        raise ValueError("its arrays are not those that its document names")
    recorded = Recorded(golden, {name: arrays[0, name] for name in inputs}, {name: arrays[1, name] for name in outputs})
    if problem := _senseless(recorded):
        raise ValueError(problem)
    return recorded


def _senseless(recorded: Recorded) -> str:
    """Says why a golden could never fail: an envelope as wide as the values themselves takes zeros for the answer; empty when it can."""
    for name, output in recorded.outputs.items():
        allowed = recorded.golden.max_abs[name]
        if output.ndim == 1 and name in recorded.golden.labelled:
            continue  # labels are held by themselves; the distance between two classes is no measure
        magnitude = np.abs(output.astype(np.float64))
        largest = float(magnitude.max(initial=0.0, where=np.isfinite(magnitude)))
        if allowed >= largest and allowed > 0:
            return f"the envelope of output {name!r}, {allowed:.6g}, is as wide as its values, which reach {largest:.6g}, so that it could never fail"
    return ""


def _first_problem(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(map(str, found["loc"]))
    return f"its document has the wrong fields: {f'{key}: ' if key else ''}{found['msg'].removeprefix('Value error, ')}"
