"""Low-rank adaptation: the head learns, and beside it only two thin matrices for each of some layers, which are added to them at the end.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2022), as PEFT has it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from toolkit.errors import ConfigError, MissingExtra
from toolkit.finetuning.blocks import Block, blocks
from toolkit.mistakes import nearest
from toolkit.training import Finetune

if TYPE_CHECKING:
    import torch

_LISTED = 12


def attach(model: torch.nn.Module, settings: Finetune) -> None:
    """Puts low-rank updates beside layers of a model, and lets only them and its head learn.

    What is frozen already stays so: a layer with a frozen weight gets an update that does not learn.

    Args:
        model: The model, changed in place. It computes what it computed before, until it learns.
        settings: ``lora_rank``, ``lora_alpha`` (twice the rank without it) and ``lora_targets`` (without them what PEFT knows of the
            architecture; all layers of a transformer that it does not know).

    Raises:
        ConfigError: No layer has such a name, or none was named, and PEFT does not know the architecture.
        MissingExtra: PEFT is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingExtra('strategy "lora" needs PEFT', where="finetune.strategy", hint='pip install "edgekit[finetune]"') from error

    head = blocks(model)[-1]
    open_ = {id(one) for one in model.parameters() if one.requires_grad}
    excluded = [*_inside(model, head), *_unreachable(model)]
    config = peft.LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha or 2 * settings.lora_rank,
        target_modules=list(settings.lora_targets) or _known(model),
        exclude_modules="|".join(map(re.escape, excluded)) or None,
    )
    candidates = [name for name, module in model.named_modules() if _is_linear(module) and name not in excluded]
    try:
        peft.inject_adapter_in_model(config, model)
    except ValueError as error:
        raise _no_target(model, settings.lora_targets, candidates) from error
    for parameter in head.parameters:
        parameter.requires_grad_(id(parameter) in open_)
    for _, layer in _adapted(model):
        if open_.isdisjoint(id(one) for one in layer.get_base_layer().parameters() if one.ndim > 1):  # biases are not updated
            for parameter in layer.parameters():
                parameter.requires_grad_(False)


def merge(model: torch.nn.Module) -> None:
    """Adds the updates to the weights that they belong to, and takes them away: the model has the modules that it had before :func:`attach`.

    Args:
        model: The model, changed in place. Its outputs stay what they are, up to rounding.
    """
    adapted = _adapted(model)
    inner = tuple(f"{name}." for name, _ in adapted)
    for name, layer in adapted:
        if name.startswith(inner):  # a part of attention, which merges its parts itself
            continue
        if hasattr(layer, "unload_and_optionally_merge_module"):  # of attention, which is more than a matrix
            model.set_submodule(name, layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None))
            continue
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def _known(model: torch.nn.Module) -> str | None:
    """PEFT's word for all layers, for a transformer of which its table says nothing; ``None`` leaves it to the table."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TABLE

    kind = getattr(getattr(model, "config", None), "model_type", None)
    return "all-linear" if kind and kind not in TABLE and hasattr(model, "get_output_embeddings") else None


def _adapted(model: torch.nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def _inside(model: torch.nn.Module, head: Block) -> list[str]:
    """Names of the modules that the head is made of, which learn themselves."""
    own = {id(one) for one in head.parameters}
    found = [(name, [id(one) for one in module.parameters()]) for name, module in model.named_modules() if name]
    return [name for name, parameters in found if parameters and own.issuperset(parameters)]


def _unreachable(model: torch.nn.Module) -> list[str]:
    """Names of layers that PyTorch's attention takes the weights of without calling them, so that what is beside them is never computed."""
    import torch

    attentions = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.MultiheadAttention)]
    return [f"{name}.{inner}" for name, module in attentions for inner, _ in module.named_children()]


def _is_linear(module: Any) -> bool:
    """Whether it is a matrix; GPT-2's are called ``Conv1D``."""
    import torch

    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def _no_target(model: torch.nn.Module, targets: tuple[str, ...], candidates: list[str]) -> ConfigError:
    ends = list(dict.fromkeys(name.rpartition(".")[2] if "." in name else name for name in candidates))
    listed = ", ".join(ends[:_LISTED]) + (f" and {len(ends) - _LISTED} more" if len(ends) > _LISTED else "")
    if targets:
        what = f"no layer that can have a low-rank update is called {' or '.join(map(repr, targets))}"
        return ConfigError(what, where="finetune.lora_targets", hint=f"{nearest(targets[0], ends)}; there is {listed}" if listed else "")
    what = f"PEFT does not know which layers of a {type(model).__name__} get low-rank updates"
    hint = (
        f"name them, or their ends: lora_targets = {ends[:2]}; there is {listed}"
        if ends
        else 'it has no fully connected layer below its head: strategy = "last"'
    )
    return ConfigError(what, where="finetune.lora_targets", hint=hint.replace("'", '"'))
