"""What the runtimes say when they fail. Only failures come through here, so that a working inference pays nothing for it."""

from __future__ import annotations

from pathlib import Path

from toolkit.artifact import Signature, TensorSpec
from toolkit.errors import InputRejected, StageFailed, StageOutOfMemory, ToolkitError
from toolkit.plugins import Arrays

_OUT_OF_MEMORY = ("bad_alloc", "failed to allocate", "cannot allocate", "can't allocate", "out of memory", "not enough memory")


def cannot_open(model: Path, runtime: str, error: BaseException) -> ToolkitError:
    """Explains why a model file could not be loaded: too big for this process, or damaged."""
    reason = _first_line(error)
    if is_out_of_memory(error):
        return StageOutOfMemory(
            f"{runtime} ran out of memory while loading: {reason}", where=str(model), hint="raise the memory limit or use a smaller model"
        )
    return InputRejected(
        f"is not a model that {runtime} can load: {reason}", where=str(model), hint="make the file again; it is damaged or of another format"
    )


def cannot_run(signature: Signature, inputs: Arrays, runtime: str, error: BaseException) -> ToolkitError:
    """Explains why an inference failed: inputs that do not fit the signature, else the runtime itself."""
    problem = misfit(signature, inputs)
    if problem:
        return InputRejected(problem, where=f"{runtime} inputs", hint=f"give {', '.join(map(str, signature.inputs))}")
    reason = _first_line(error)
    if is_out_of_memory(error):
        return StageOutOfMemory(f"{runtime} ran out of memory: {reason}", hint="raise the memory limit or use a smaller model")
    return StageFailed(f"{runtime} failed: {reason}", hint="see the stage's log for the runtime's own messages")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocation failed; the runtimes tell it in words only."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def misfit(signature: Signature, inputs: Arrays) -> str:
    """Returns the first way in which arrays do not fit a signature, or nothing."""
    expected = {spec.name: spec for spec in signature.inputs}
    missing = [name for name in expected if name not in inputs]
    extra = [name for name in inputs if name not in expected]
    if missing or extra:
        return f"found inputs {', '.join(map(repr, inputs)) or 'none'}, expected {', '.join(map(repr, expected))}"
    for name, spec in expected.items():
        array = inputs[name]
        if array.dtype.name != spec.dtype or not _shape_fits(spec, array.shape):
            return f"input {name!r} is [{' x '.join(map(str, array.shape))}] {array.dtype}, expected {spec}"
    return ""


def _shape_fits(spec: TensorSpec, shape: tuple[int, ...]) -> bool:
    return len(shape) == len(spec.shape) and all(isinstance(want, str) or want == size for want, size in zip(spec.shape, shape, strict=True))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
