"""The model that is trained: what the project's factory returns, or a model of a collection with a head for the project's classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolkit import plugins
from toolkit.columns import check_named_like
from toolkit.dataset import Dataset, load
from toolkit.errors import ConfigError
from toolkit.factory import load_factory
from toolkit.finetuning.blocks import blocks, mark_fresh
from toolkit.job import Facts, Job
from toolkit.weights import start_from

if TYPE_CHECKING:
    import torch


def build(job: Job) -> tuple[torch.nn.Module, Facts]:
    """Builds the model with the weights that training begins with.

    Args:
        job: As for :func:`toolkit.finetuning.stage.run`.

    Returns:
        The model, and ``replaced``, the tensors that are not those of the weights (``name``, and the shapes in ``file`` and ``model``), and
        ``notes``.

    Raises:
        ConfigError: The factory or the model does not exist, or is not of PyTorch.
        InputRejected: The weights or the samples do not fit the model.
        MissingExtra: What the collection needs is not installed.
        SetupError: A collection's weights are not on this machine.
        StageFailed: The factory raises.
    """
    model, replaced, notes = _by_name(job) if job.options.get("collection") else _by_factory(job)
    mark_fresh(model, [one["name"] for one in replaced])
    return model, {"replaced": replaced, "notes": [*notes, *_told(replaced)]}


def _by_name(job: Job) -> tuple[torch.nn.Module, list[dict[str, Any]], list[str]]:
    built = plugins.build(job.inputs, job.options)
    data = load(job.inputs["data"])
    check_named_like(Dataset(data.columns, None, data.where), built.examples)
    return built.model, [dict(one) for one in built.replaced], list(built.notes)


def _by_factory(job: Job) -> tuple[torch.nn.Module, list[dict[str, Any]], list[str]]:
    import torch

    spec = str(job.options["factory"])
    model = load_factory(job.inputs["project"], spec)()
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(
            f"returned a {type(model).__name__}, expected a torch.nn.Module", where=f"factory {spec}", hint="fine-tuning needs a PyTorch model"
        )
    if "weights" not in job.inputs:
        return model, [], []
    parts = blocks(model)
    # Where everything is one block, nothing tells a head from what weights are for.
    head = f"{parts[-1].name}." if len(parts) > 1 and parts[-1].name else None
    return model, start_from(model, job.inputs["weights"], lambda name: head is not None and name.startswith(head)), []


def _told(replaced: list[dict[str, Any]]) -> list[str]:
    """A sentence on what began afresh."""
    names = [one["name"] for one in replaced if one["model"] is not None]
    if not names:
        return []
    layers = sorted({name.rpartition(".")[0] or name for name in names})
    return [f"began afresh, as the weights have it for other classes or not at all: {', '.join(layers)}"]
