"""Core ML packages for those who need them: the route that writes one, and the reader. None can be executed off Apple's systems."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from toolkit import intake
from toolkit.errors import InputRejected

SPEC = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
# What coremltools imports when it finds it: TensorFlow beside PyTorch ends the process, the others cost seconds.
_UNUSED = ("tensorflow", "sklearn", "torchvision", "torchaudio", "xgboost")


def library() -> Any:
    """Imports coremltools with PyTorch alone of all the frameworks that it looks for."""
    found = sys.modules.get("coremltools")
    if found is not None:
        return found
    with _hidden(*_UNUSED), _quiet():
        import coremltools

        return coremltools


def messages() -> Any:
    """Imports the messages of Core ML's format alone, past the package that holds them: milliseconds instead of many seconds."""
    if "coremltools" in sys.modules:
        from coremltools.proto import Model_pb2

        return Model_pb2
    place = find_spec("coremltools")
    bare = ModuleType("coremltools")
    bare.__path__ = list(place.submodule_search_locations or ()) if place else []
    sys.modules["coremltools"] = bare
    try:
        return import_module("coremltools.proto.Model_pb2")
    finally:
        del sys.modules["coremltools"]


def read_spec(model: Path) -> Any:
    """Reads the specification of a package, a ``Model`` message of Core ML's format.

    Raises:
        InputRejected: It is missing, damaged, or empty.
    """
    intake.check_model(model, "mlpackage")
    from google.protobuf.message import DecodeError

    spec, hint = messages().Model(), "export the model again"
    try:
        spec.ParseFromString((model / SPEC).read_bytes())
    except (OSError, DecodeError) as error:
        raise InputRejected(f"is not a usable mlpackage: {SPEC} cannot be read: {error}", where=str(model), hint=hint) from error
    if not spec.specificationVersion or spec.WhichOneof("Type") is None:
        raise InputRejected(f"is not a usable mlpackage: {SPEC} holds no model", where=str(model), hint=hint)
    return spec


@contextmanager
def _hidden(*modules: str) -> Iterator[None]:
    """Makes imports of modules fail inside, as if they were not installed."""
    before = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(dict.fromkeys(modules))  # type: ignore[arg-type]  # None is Python's own mark of a module that must not be found
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)
        sys.modules.update(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what coremltools says of versions it was not tested with, and of Apple's libraries that are not here."""
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
