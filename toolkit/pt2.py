"""Loads captured PyTorch programs (``.pt2``) for everyone who needs one: routes, the runtime, the reader."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit import intake
from toolkit.artifact import Signature
from toolkit.errors import InputRejected, StageOutOfMemory
from toolkit.factory import CODE_ERRORS, first_line

if TYPE_CHECKING:
    import torch

# What every PyTorch stage imports: the second is most of the time, and comes along with any optimizer or export.
PRELOAD = ("torch", "torch._dynamo")
_ONLY_WEIGHTS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def load(program: Path) -> torch.export.ExportedProgram:
    """Reads a ``.pt2`` file, after asking whether its bytes may be parsed.

    Raises:
        InputRejected: The file is damaged, or may run code when it is loaded.
        StageOutOfMemory: The process may not have the memory that the program needs.
    """
    import torch

    intake.check_model(program, "pt2")
    try:
        with _only_weights():
            return torch.export.load(program)
    except MemoryError as error:
        raise StageOutOfMemory(f"loading the program ran out of memory: {first_line(error)}", where=program.name) from error
    except (*CODE_ERRORS, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise InputRejected(f"is not a readable .pt2 program: {first_line(error)}", where=program.name, hint="capture the model again") from error


@contextmanager
def _only_weights() -> Iterator[None]:
    """Makes every ``torch.load`` inside refuse pickled code, also where PyTorch itself asks for the opposite."""
    before = os.environ.get(_ONLY_WEIGHTS)
    os.environ[_ONLY_WEIGHTS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ONLY_WEIGHTS]
        else:
            os.environ[_ONLY_WEIGHTS] = before


def blank_inputs(signature: Signature) -> dict[str, torch.Tensor]:
    """Returns zeros of the signature's shapes: tracing a static program needs sizes and dtypes, not values."""
    import torch

    return {spec.name: torch.zeros([int(size) for size in spec.shape], dtype=getattr(torch, spec.dtype)) for spec in signature.inputs}
