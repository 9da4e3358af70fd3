"""Reads and writes a model's weights as ``.safetensors``: strict when reading, the same bytes for the same weights when writing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import InputRejected
from toolkit.factory import first_line

if TYPE_CHECKING:
    import torch

_LISTED = 10


def load_weights(model: torch.nn.Module, file: Path) -> None:
    """Loads weights into a freshly built model; every tensor must be there with its shape and dtype.

    Args:
        model: The model, changed in place.
        file: A ``.safetensors`` file. Of tensors that share memory it may hold only one.

    Raises:
        InputRejected: The file is damaged, a tensor is missing, unknown, of another shape or dtype, or not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputRejected(
            f"is not a readable safetensors file: {first_line(error)}", where=str(file), hint="write it with safetensors.torch.save_file"
        ) from error
    expected = model.state_dict()
    problems = _mismatches(expected, found)
    if problems:
        shown = "; ".join(problems[:_LISTED]) + (f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else "")
        raise InputRejected(f"{len(problems)} tensors do not fit the model: {shown}", where=str(file), hint=_hint(expected, found))
    broken = [name for name, tensor in found.items() if _broken(tensor, expected[name])]
    if broken:
        raise InputRejected(f"tensor {broken[0]} has NaN or Inf ({len(broken)} such tensors)", where=str(file), hint="start from weights that work")
    model.load_state_dict(found, strict=False)  # compared above; strict would insist on both names of a shared tensor


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
        return f"{differs}; to start it afresh, load the other tensors in the model factory and drop model.weights"
    return "build the model that these weights were saved from"
