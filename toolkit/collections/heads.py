"""A model's last layer, and another one in its place for other classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolkit.errors import ConfigError

if TYPE_CHECKING:
    import torch

AUXILIARY = ("aux1", "aux2", "AuxLogits")
"""What GoogLeNet and Inception have beside the last layer, for training from nothing; Szegedy et al., "Going Deeper with Convolutions" (2015)."""


def name_of(model: torch.nn.Module, classes: int) -> str:
    """Returns the name of the last layer that has one output for each class: fully connected, or a convolution of 1 x 1 as SqueezeNet's.

    Args:
        model: The model; where its tensors are does not matter, nor whether they are real.
        classes: How many it tells apart.

    Raises:
        ConfigError: There is none.
    """
    import torch

    found = ""
    for name, module in model.named_modules():
        linear = isinstance(module, torch.nn.Linear) and module.out_features == classes
        pointwise = isinstance(module, torch.nn.Conv2d) and module.out_channels == classes and set(module.kernel_size) == {1}
        if name and (linear or pointwise):
            found = name
    if not found:
        what = f"{type(model).__name__} has no last layer with one output for each of its {classes} classes"
        raise ConfigError(what, where="model.name", hint="build it in a factory of your own: model.factory")
    return found


def replace(model: torch.nn.Module, name: str, classes: int) -> list[dict[str, Any]]:
    """Puts a layer of the same kind for another number of classes in the place of one, and drops auxiliary heads.

    Weights are drawn as PyTorch does it for such a layer (He et al., "Delving Deep into Rectifiers" (2015), uniform), a bias is zero.
    One that has as many outputs already stays.

    Args:
        model: The model, changed in place.
        name: Name of the layer.
        classes: How many outputs the new one has.

    Returns:
        Which tensors are new: ``name``, ``file`` and ``model``, the shapes before and now.
    """
    import torch

    drop_auxiliary(model)
    old = model.get_submodule(name)
    if _outputs(old) == classes:
        return []
    bias = old.bias is not None
    if isinstance(old, torch.nn.Linear):
        new: torch.nn.Module = torch.nn.Linear(old.in_features, classes, bias=bias, device=old.weight.device)
    else:
        assert isinstance(old, torch.nn.Conv2d)
        new = torch.nn.Conv2d(old.in_channels, classes, kernel_size=1, stride=old.stride, bias=bias, device=old.weight.device)  # type: ignore[arg-type]
    if bias:
        torch.nn.init.zeros_(new.bias)
    model.set_submodule(name, new)
    if hasattr(model, "num_classes"):  # SqueezeNet and Inception note it
        model.num_classes = classes
    before = {key: list(tensor.shape) for key, tensor in old.state_dict().items()}
    return [{"name": f"{name}.{key}", "file": before[key], "model": list(tensor.shape)} for key, tensor in new.state_dict().items()]


def drop_auxiliary(model: torch.nn.Module) -> None:
    """Takes auxiliary heads away, so that the model gives one output while it is trained too."""
    if getattr(model, "aux_logits", False):
        for name in AUXILIARY:
            if hasattr(model, name):
                setattr(model, name, None)
        model.aux_logits = False


def _outputs(layer: torch.nn.Module) -> int:
    return int(layer.out_features if hasattr(layer, "out_features") else layer.out_channels)
