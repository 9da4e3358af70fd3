"""A damaged file, said the same way by every reader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit import intake
from toolkit.errors import InputRejected


@contextmanager
def reading(model: Path, format: str, *kinds: type[Exception]) -> Iterator[None]:
    """Asks whether a model's bytes may be parsed, then lets a block read them.

    Args:
        model: The model file or folder.
        format: Its format.
        kinds: What the block raises where the structure of the file makes no sense.

    Raises:
        InputRejected: The file must not be parsed, or the block raised one of ``kinds``.
    """
    intake.check_model(model, format)
    try:
        yield
    except kinds as error:
        told = f"it lacks {error}" if isinstance(error, KeyError) else next(iter(str(error).splitlines()), "") or type(error).__name__
        what = f"is not a usable {format} file, its structure is damaged: {told}"
        raise InputRejected(what, where=str(model), hint="download or convert the model again") from error
