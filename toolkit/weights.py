"""Reads and writes a model's weights as ``.safetensors``: strict when reading, the same bytes for the same weights when writing.

Only where a model is fine-tuned, parts of it may begin afresh, and the weights may be a pickle of plain tensors.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import InputRejected
from toolkit.factory import CODE_ERRORS, first_line

if TYPE_CHECKING:
    import torch

SUFFIX = ".safetensors"
PICKLES = (".pth", ".pt")
_LISTED = 10
_WRAPPED = ("state_dict", "model")


def load_weights(model: torch.nn.Module, file: Path) -> None:
    """Loads weights into a freshly built model; every tensor must be there with its shape and dtype.

    Args:
        model: The model, changed in place.
        file: A ``.safetensors`` file. Of tensors that share memory it may hold only one.

    Raises:
        InputRejected: The file is damaged, a tensor is missing, unknown, of another shape or dtype, or not finite.
    """
    found, expected = _read(file), model.state_dict()
    _refuse(_mismatches(expected, found), expected, found, file)
    _check_finite(expected, found, file)
    model.load_state_dict(found, strict=False)  # compared above; strict would insist on both names of a shared tensor


def start_from(model: torch.nn.Module, file: Path, afresh: Callable[[str], bool]) -> list[dict[str, Any]]:
    """Loads weights to fine-tune a model from; some of its parts may keep the numbers they were built with.

    Args:
        model: The model, changed in place.
        file: A ``.safetensors`` file, or a ``.pth`` or ``.pt`` pickle of plain tensors by name.
        afresh: Says by a tensor's name whether its shape may differ, and whether only the file or only the model may have it.

    Returns:
        What was not taken from the file: ``name``, ``file`` and ``model``, the shapes there, ``None`` where it is not there.

    Raises:
        InputRejected: The file is damaged, or a tensor that may not begin afresh is missing, unknown, of another shape or dtype, or not
            finite.
    """
    found, expected = (_unpickled(file) if file.suffix in PICKLES else _read(file)), model.state_dict()
    shapes = {name: (_shape(found.get(name)), _shape(expected.get(name))) for name in [*expected, *(name for name in found if name not in expected)]}
    replaced = {name for name, (there, here) in shapes.items() if there != here and afresh(name)}
    kept = {name: tensor for name, tensor in found.items() if name not in replaced}
    wanted = {name: tensor for name, tensor in expected.items() if name not in replaced}
    _refuse(_mismatches(wanted, kept), expected, found, file)
    _check_finite(wanted, kept, file)
    model.load_state_dict(kept, strict=False)
    return [{"name": name, "file": shapes[name][0], "model": shapes[name][1]} for name in shapes if name in replaced]


def save_weights(model: torch.nn.Module, file: Path) -> None:
    """Writes ``model.state_dict()``; of several names for the same tensor the first is kept.

    ``safetensors.torch.save_model`` notes the dropped names in metadata whose order changes from call to call, so it cannot
    give the same bytes twice.
    """
    from safetensors.torch import save_file

    kept: dict[tuple[object, ...], tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        kept.setdefault(_identity(name, tensor), (name, tensor))
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in kept.values()}, file)


def _read(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputRejected(
            f"is not a readable safetensors file: {first_line(error)}", where=str(file), hint="write it with safetensors.torch.save_file"
        ) from error


def _unpickled(file: Path) -> dict[str, torch.Tensor]:
    """Reads a pickle as tensors alone: nothing else that is in it is run."""
    import torch

    hint = "save plain tensors where you trust the file: torch.save(model.state_dict(), file), or safetensors.torch.save_file"
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (*CODE_ERRORS, EOFError, pickle.UnpicklingError) as error:
        raise InputRejected(f"holds more than plain tensors, or is damaged: {first_line(error)}", where=str(file), hint=hint) from error
    inside = next((found[key] for key in _WRAPPED if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)), found)
    if not isinstance(inside, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in inside.values()):
        raise InputRejected(f"holds a {type(found).__name__}, expected tensors by name", where=str(file), hint=hint)
    return {str(name): tensor.detach() for name, tensor in inside.items()}


def _refuse(problems: list[str], expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], file: Path) -> None:
    if problems:
        shown = "; ".join(problems[:_LISTED]) + (f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else "")
        raise InputRejected(f"{len(problems)} tensors do not fit the model: {shown}", where=str(file), hint=_hint(expected, found))


def _check_finite(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], file: Path) -> None:
    broken = [name for name, tensor in found.items() if name in expected and _broken(tensor, expected[name])]
    if broken:
        raise InputRejected(f"tensor {broken[0]} has NaN or Inf ({len(broken)} such tensors)", where=str(file), hint="start from weights that work")


def _shape(tensor: torch.Tensor | None) -> list[int] | None:
    return None if tensor is None else list(tensor.shape)


def _identity(name: str, tensor: torch.Tensor) -> tuple[object, ...]:
    """Equal for names of one and the same tensor. Empty tensors have no memory to tell them apart by."""
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype) if tensor.numel() else (name,)


def _mismatches(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> list[str]:
    present = {_identity(name, tensor) for name, tensor in expected.items() if name in found}
    missing = [name for name, tensor in expected.items() if name not in found and _identity(name, tensor) not in present]
    unknown = [name for name in found if name not in expected]
    other = [name for name in expected if name in found and _spec(found[name]) != _spec(expected[name])]
    return [
        *(f"{name}: not in the file, model {_spec(expected[name])}" for name in missing),
        *(f"{name}: file {_spec(found[name])}, not in the model" for name in unknown),
        *(f"{name}: file {_spec(found[name])}, model {_spec(expected[name])}" for name in other),
    ]


def _spec(tensor: torch.Tensor) -> str:
    return f"[{' x '.join(str(size) for size in tensor.shape)}] {str(tensor.dtype).removeprefix('torch.')}"


def _broken(tensor: torch.Tensor, built: torch.Tensor) -> bool:
    """Whether a value is NaN or Inf. An infinity that the model is built with may stay: a stored mask has some."""
    import torch

    if not tensor.is_floating_point():
        return False
    return bool((~torch.isfinite(tensor) & (tensor != built.to(tensor.device))).any())


def _hint(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> str:
    differing = [name for name in expected if name in found and found[name].shape != expected[name].shape]
    layers = {name.rpartition(".")[0] for name in differing}
    # A head for another number of classes differs in the first size of its weight and bias, and in nothing else.
    if set(expected) == set(found) and len(layers) == 1 and all(found[name].shape[1:] == expected[name].shape[1:] for name in differing):
        differs = f"only layer {layers.pop()!r} differs, as it does with another number of classes"
        return f"{differs}; fine-tuning starts it afresh"
    return "build the model that these weights were saved from"
