"""Loads TorchScript archives (``.torchscript``, ``.pt``) for those who need one: the runtime and the routes.

An archive names its inputs but says nothing about their shapes, unless it was traced; its outputs have names only where it
returns a dict or a named tuple.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit import intake
from toolkit.artifact import Signature, TensorSpec
from toolkit.errors import InputRejected, StageOutOfMemory
from toolkit.factory import CODE_ERRORS, first_line

if TYPE_CHECKING:
    import torch

FORMAT = "torchscript"
PRELOAD = ("torch", "torch._dynamo")
_TRACED = "traced_inputs.pkl"
# PyTorch's storages by the element type they hold; each tensor of a trace names one.
_DTYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


def load(archive: Path) -> torch.jit.ScriptModule:
    """Reads an archive, after asking whether its bytes may be loaded.

    Raises:
        InputRejected: The file is damaged, could touch files, or was saved in training mode.
        StageOutOfMemory: The process may not have the memory that the model needs.
    """
    import torch

    intake.check_model(archive, FORMAT)
    try:
        with quiet():
            module = torch.jit.load(str(archive), map_location="cpu")
    except MemoryError as error:
        raise StageOutOfMemory(f"loading the model ran out of memory: {first_line(error)}", where=archive.name) from error
    except CODE_ERRORS as error:
        hint = "save the model again with torch.jit.save, or better: torch.export.save to .pt2"
        raise InputRejected(f"is not a readable TorchScript archive: {first_line(error)}", where=archive.name, hint=hint) from error
    training = [name or "the model" for name, part in module.named_modules() if getattr(part, "training", False)]
    if training:
        what = f"was saved in training mode (first: {training[0]})"
        raise InputRejected(what, where=archive.name, hint="call model.eval() before torch.jit.trace or torch.jit.script")
    return module


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves out PyTorch's word that all of TorchScript is deprecated, which whoever has an archive cannot help."""
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=kind, message="(?s).*torch.(jit|onnx).*")
        for message in ("no signature found", "You are using the legacy TorchScript-based"):
            warnings.filterwarnings("ignore", message=message)
        yield


def input_names(module: torch.jit.ScriptModule) -> tuple[list[str], list[str]]:
    """Returns the names of the inputs that must be given, and of those that may be.

    Raises:
        InputRejected: One that must be given is no tensor, or there is no ``forward``.
    """
    schema = getattr(getattr(module, "forward", None), "schema", None)
    if schema is None:
        raise InputRejected("has no method forward", hint="save a module, not a function")
    needed, optional = [], []
    for argument in schema.arguments[1:]:
        kind = str(argument.type)
        if kind == "Tensor" and not argument.has_default_value():
            needed.append(argument.name)
        elif kind in ("Tensor", "Optional[Tensor]") and argument.has_default_value():
            optional.append(argument.name)
        elif not argument.has_default_value():
            raise InputRejected(f"takes {argument.name!r} as {kind}, expected tensors alone", hint="save a model whose forward takes plain tensors")
    return needed, optional


def traced_inputs(archive: Path, names: list[str]) -> dict[str, np.ndarray] | None:
    """Returns zeros of the shapes that a model was traced with, by input; ``None`` for one that was not traced."""
    with zipfile.ZipFile(archive) as members:
        found = [name for name in members.namelist() if name.partition("/")[2] == _TRACED]
        if not found:
            return None
        with members.open(found[0]) as file:
            try:
                values = _Shapes(file).load()["forward"]
            except (pickle.UnpicklingError, KeyError, TypeError, ValueError, AttributeError, IndexError):
                return None
    usable = isinstance(values, list) and len(values) == len(names) and all(isinstance(value, np.ndarray) for value in values)
    return dict(zip(names, values, strict=True)) if usable else None


def named_outputs(result: Any) -> dict[str, Any]:
    """Names what a model returned: by a dict's or named tuple's own names, else ``output_0`` and so on.

    Raises:
        InputRejected: Something in it is no tensor.
    """
    import torch

    if isinstance(result, Mapping):
        found = {str(name): value for name, value in result.items()}
    elif hasattr(result, "_asdict"):
        found = dict(result._asdict())
    else:
        found = {f"output_{place}": value for place, value in enumerate(result if isinstance(result, tuple | list) else [result])}
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            hint = "save a model that returns tensors, a tuple or a dictionary of tensors"
            raise InputRejected(f"output {name!r} is a {type(value).__name__}, not a tensor", hint=hint)
    return found


def plain(module: torch.jit.ScriptModule, inputs: Mapping[str, torch.Tensor], outputs: Sequence[str]) -> torch.jit.ScriptModule:
    """Returns a module that takes tensors by position and returns a tuple, which is all that exporters understand.

    The archive's own code is called as it is, with its branches and loops.

    Args:
        module: The archive's module.
        inputs: An example of each input, in the order in which they shall be taken.
        outputs: Names of the outputs in the order in which they shall be returned, see :func:`named_outputs`.
    """
    import torch

    class Plain(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = named_outputs(self.module(**dict(zip(inputs, arrays, strict=True))))
            return tuple(found[name] for name in outputs)

    with quiet(), torch.no_grad():
        return torch.jit.trace(Plain().eval(), tuple(inputs.values()), strict=False)


def returns_plainly(module: torch.jit.ScriptModule) -> bool:
    """Whether a module returns a tensor, or a tuple without names of its own."""
    kind = str(module.forward.schema.returns[0].type)
    return kind == "Tensor" or kind.startswith(("Tuple[", "(", "Tensor"))


class _Shapes(pickle.Unpickler):  # finds nothing but the functions below
    """Reads the inputs of a trace, whose values are not in the archive, as zeros."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        known: dict[str, Callable[..., Any]] = {"restore_type_tag": _first, "_rebuild_tensor_v2": _zeros, "OrderedDict": _nothing}
        if name in known:
            return known[name]
        if name in _DTYPES:
            return _storages[name]
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a tensor")

    def persistent_load(self, told: Any) -> str:
        return str(told[1]())


def _first(value: Any, tag: str) -> Any:
    return value


def _nothing(*parts: Any) -> None:
    return None


def _zeros(dtype: str, offset: int, shape: tuple[int, ...], *rest: Any) -> np.ndarray:
    # A view of a single zero: a size is only a number here, whatever the file claims.
    return np.broadcast_to(np.zeros((), np.dtype(dtype)), shape)


def _storage(dtype: str) -> Callable[[], str]:
    return lambda: dtype


_storages = {name: _storage(dtype) for name, dtype in _DTYPES.items()}


def contract_example(folder: Path) -> tuple[Path, Signature, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Writes a small traced archive, and returns its path, signature, inputs and expected outputs ``[n x ...]``."""
    import torch

    torch.manual_seed(1)
    convolution, head = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Linear(4 * 16 + 2, 3)

    class Net(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.head = convolution, head

        def forward(self, picture: torch.Tensor, extra: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            seen = torch.nn.functional.hardswish(self.convolution(picture)).flatten(1)
            logits = self.head(torch.cat([seen, extra], dim=1))
            return logits.softmax(-1), logits

    rng = np.random.default_rng(2)
    inputs = {"picture": rng.normal(size=(4, 1, 4, 4)).astype(np.float32), "extra": rng.normal(size=(4, 2)).astype(np.float32)}
    model, path = Net().eval(), folder / f"model.{FORMAT}"
    with quiet(), torch.no_grad():
        torch.jit.save(torch.jit.trace(model, tuple(torch.from_numpy(column[:1]) for column in inputs.values())), str(path))
        rows = [model(*(torch.from_numpy(column[row : row + 1]) for column in inputs.values())) for row in range(4)]
    expected = {f"output_{place}": np.concatenate([row[place].numpy() for row in rows]) for place in range(2)}
    return path, Signature(inputs=_specs(inputs), outputs=_specs(expected)), inputs, expected


def _specs(columns: Mapping[str, np.ndarray]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=name, dtype=str(column.dtype), shape=(1, *column.shape[1:])) for name, column in columns.items())
