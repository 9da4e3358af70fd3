"""Several processes that train one model, each on its share of every batch: those that ``accelerate launch`` starts.

What they learn is what one process learns from the whole batches: losses are weighed by each one's share, and gradients are added up. Two things
differ: batch norm sees one share at a time, and dropout draws other numbers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.errors import MissingExtra

if TYPE_CHECKING:
    import torch

    from toolkit.finetuning.calling import Caller


class Alone:
    """The only process: everything is its own share."""

    rank = 0
    count = 1
    device = ""

    def share(self, samples: int) -> tuple[np.ndarray, float]:
        """Returns the rows of a batch that are this process's, and what they count: 0 where it has none of its own, but must take part."""
        return np.arange(samples), 1.0

    def follow(self, caller: Caller) -> None:
        """Makes gradients of what is trained now those of all processes."""

    def adding(self, *, last: bool) -> AbstractContextManager[Any]:
        """A context for a part of the share; gradients are exchanged after the last one."""
        return nullcontext()

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Adds up numbers over all processes."""
        return list(numbers)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Adds up a tensor over all processes."""
        return value


class Together:
    """One of several processes.

    Args:
        device: Name of the device they train on; each takes one of its own where there are several.
    """

    def __init__(self, device: str) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs

        self._accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
        self.rank = int(self._accelerator.process_index)
        self.count = int(self._accelerator.num_processes)
        self.device = str(self._accelerator.device)
        self._wrapped: Any = None
        self._learning: frozenset[int] = frozenset()

    def share(self, samples: int) -> tuple[np.ndarray, float]:
        """See :meth:`Alone.share`."""
        rows = np.array_split(np.arange(samples), self.count)[self.rank]
        return (rows, 1.0) if len(rows) else (np.arange(1), 0.0)

    def follow(self, caller: Caller) -> None:
        """See :meth:`Alone.follow`."""
        learning = frozenset(id(one) for one in caller.model.parameters() if one.requires_grad)
        if learning != self._learning:
            caller.wrap(caller.model)  # so that the old one is gone, and with it what it does to gradients
            self._wrapped, self._learning = self._accelerator.prepare_model(caller.model), learning
            caller.wrap(self._wrapped)

    def adding(self, *, last: bool) -> AbstractContextManager[Any]:
        """See :meth:`Alone.adding`."""
        return nullcontext() if last else self._accelerator.no_sync(self._wrapped)

    def total(self, numbers: Sequence[float]) -> list[float]:
        """See :meth:`Alone.total`."""
        import torch

        return self._accelerator.reduce(torch.tensor(numbers, dtype=torch.float32, device=self.device), "sum").tolist()

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """See :meth:`Alone.sum`."""
        return self._accelerator.reduce(value, "sum")


def count() -> int:
    """How many processes train, as ``accelerate launch`` and ``torchrun`` tell their children; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0, the one that writes."""
    return int(os.environ.get("RANK", "0"))


def join(device: str, expected: int) -> Alone | Together:
    """Returns the processes that train this model.

    Args:
        device: Name of the device they train on.
        expected: How many there are.

    Raises:
        MissingExtra: There are several, and accelerate is not installed.
    """
    if expected == 1:
        return Alone()
    try:
        return Together(device)
    except ModuleNotFoundError as error:
        raise MissingExtra("training in several processes needs accelerate", hint='pip install "edgekit[finetune]"') from error
