"""The blocks of a model, from its inputs to its head, and which of them are trained when."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.training import Finetune

if TYPE_CHECKING:
    import torch


_FRESH = "began_afresh"


@dataclass(frozen=True)
class Block:
    """A part of a model that is trained or left alone as a whole.

    Attributes:
        name: Its name in the model, such as ``features.3`` or ``bert.encoder.layer.0``; empty for parameters of the model itself.
        parameters: Its parameters; those that an earlier block has too are that block's.
    """

    name: str
    parameters: tuple[torch.nn.Parameter, ...]


def blocks(model: torch.nn.Module) -> list[Block]:
    """Takes a model apart, in the order in which its modules are registered, which is that of its layers in all collections.

    Lists of layers are taken apart, and so is what holds one on the way to it; what is in a list is one block, and so is everything else.
    The last block is the head; what before it begins afresh too, as some transformers have a layer of their own before the last one, is
    part of it.
    """
    found: list[Block] = []
    seen: set[int] = set()
    for name, parameters in _parts(model, "", below=False):
        fresh = tuple({id(one): one for one in parameters if id(one) not in seen}.values())
        seen.update(map(id, fresh))
        if fresh:
            found.append(Block(name, fresh))
    return _with_fresh(found, model)


def mark_fresh(model: torch.nn.Module, names: Iterable[str]) -> None:
    """Notes which parameters of a model did not come with its weights, for :func:`blocks`."""
    setattr(model, _FRESH, frozenset(names))


def _with_fresh(found: list[Block], model: torch.nn.Module) -> list[Block]:
    """Makes one block of the last one and those right before it of which nothing came with the weights."""
    names: frozenset[str] = getattr(model, _FRESH, frozenset())
    fresh = {id(one) for name, one in model.named_parameters(remove_duplicate=False) if name in names}
    first = len(found) - 1
    while first > 0 and fresh.issuperset(map(id, found[first - 1].parameters)):
        first -= 1
    joined = tuple(one for block in found[first:] for one in block.parameters)
    return [*found[:first], Block(found[-1].name, joined)] if found else []


def trained(found: list[Block], settings: Finetune, epoch: int) -> list[Block]:
    """Returns the blocks that a strategy trains in an epoch, counted from 1.

    ``gradual`` begins with the head and has reached the first block when half of the epochs are over; Howard and Ruder, "Universal
    Language Model Fine-tuning for Text Classification" (2018), thaw one block with each epoch.
    """
    counts = {"full": len(found), "lora": len(found), "qat": len(found), "head": 1, "last": 1 + settings.blocks}
    if settings.strategy == "gradual":
        reached = math.ceil(settings.epochs / 2)
        counts["gradual"] = 1 + math.ceil((len(found) - 1) * (epoch - 1) / max(1, reached - 1)) if epoch < reached else len(found)
    return found[-counts[settings.strategy] :]


def _parts(module: torch.nn.Module, name: str, *, below: bool) -> Iterator[tuple[str, list[torch.nn.Parameter]]]:
    """Yields parameters by part; what a module that is taken apart has itself comes before its parts."""
    import torch

    is_list = isinstance(module, torch.nn.Sequential | torch.nn.ModuleList)
    if name and not (_has_parts(module) if is_list else not below and _holds_layers(module)):
        yield name, list(module.parameters())
        return
    yield name, list(module.parameters(recurse=False))
    for child, inner in module.named_children():
        yield from _parts(inner, f"{name}.{child}" if name else child, below=below or is_list)


def _has_parts(layers: torch.nn.Module) -> bool:
    return any(any(True for _ in layer.children()) for layer in layers.children())


def _holds_layers(module: torch.nn.Module) -> bool:
    import torch

    return any(isinstance(one, torch.nn.Sequential | torch.nn.ModuleList) and _has_parts(one) for one in module.modules())
