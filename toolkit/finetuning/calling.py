"""How a batch gets into a model, and its logits out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.errors import InputRejected, SetupError, StageFailed
from toolkit.factory import CODE_ERRORS, first_line

if TYPE_CHECKING:
    import torch

    from toolkit.dataset import Dataset

Inputs = dict[str, "torch.Tensor"]


@dataclass
class Caller:
    """Feeds a model: by keyword when its forward knows the columns' names, else in their order.

    Attributes:
        model: The model, on its device.
        columns: Names of the columns it takes.
        device: Name of the device.
        outputs: Names of its outputs, where it returns several by name; the first has the logits.
        notes: What happened that a user should know.
    """

    model: torch.nn.Module
    columns: Sequence[str]
    device: str
    outputs: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    _forward: Callable[..., Any] | None = field(default=None, init=False)
    _compile: bool = field(default=False, init=False)
    _must_compile: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._by_keyword = set(self.columns) <= set(inspect.signature(self.model.forward).parameters)

    def compile(self, *, required: bool) -> None:
        """Makes one program of the model's forward pass when it is first called.

        Args:
            required: Whether it is an error where that does not work; the model runs as it is otherwise.
        """
        self._compile, self._must_compile = True, required
        self.wrap(self.model)

    def wrap(self, wrapped: torch.nn.Module) -> None:
        """Calls something around the model instead of the model, such as what talks to other processes."""
        import torch

        self._forward = torch.compile(wrapped) if self._compile else wrapped

    def tensors(self, batch: Dataset) -> Inputs:
        """Returns a batch's columns as tensors on the device."""
        import torch

        return {name: torch.from_numpy(np.array(batch.columns[name])).to(self.device, non_blocking=True) for name in self.columns}

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        """Returns the logits ``[n x c]``.

        Raises:
            SetupError: The model cannot be compiled here, and must be.
        """
        import torch

        if not self._compile:
            return self._logits(self._run(self._forward or self.model, inputs))
        try:
            return self._logits(self._run(self._forward or self.model, inputs))
        except torch._dynamo.exc.TorchDynamoException as error:
            if self._must_compile:
                told = f"torch.compile does not work for this model here: {first_line(error)}"
                raise SetupError(told, where="finetune.compile", hint='set it to "auto" or "never"') from error
            self.notes.append(f"torch.compile does not work for this model here, so it runs as it is: {first_line(error)}")
            self._forward, self._compile = None, False
            return self._logits(self._run(self.model, inputs))

    def _run(self, forward: Callable[..., Any], inputs: Inputs) -> Any:
        return forward(**inputs) if self._by_keyword else forward(*inputs.values())

    def _logits(self, found: Any) -> torch.Tensor:
        """Takes the logits from what a model returns: the first of the named outputs, so that what is trained is what is measured."""
        import torch

        if isinstance(found, torch.Tensor):
            return found
        if isinstance(found, Mapping) and self.outputs and self.outputs[0] in found:
            return found[self.outputs[0]]
        if hasattr(found, "logits"):
            return found.logits
        return next(value for value in found.values() if value is not None) if isinstance(found, Mapping) else found[0]


def check_logits(caller: Caller, sample: Dataset, labels: int, classes: Any) -> int:
    """Runs the model on a few samples, so that a misfit is told before training instead of as a framework's riddle.

    Args:
        caller: The model.
        sample: A few samples.
        labels: How many classes the labels have at least.
        classes: Names of the classes, of which there must be as many as outputs; or how many there are at least.

    Returns:
        How many logits a sample has.

    Raises:
        StageFailed: The model does not take the samples.
        InputRejected: It does not give one logit for each class.
    """
    import torch

    inputs = ", ".join(f"{name} {list(column.shape)} {column.dtype}" for name, column in sample.columns.items())
    caller.model.eval()
    try:
        with torch.no_grad():
            shape = list(caller(caller.tensors(sample)).shape)
    except CODE_ERRORS as error:
        raise StageFailed(f"the model raised {first_line(error)}", where=f"forward on {inputs}", hint="give samples the model accepts") from error
    least = max(labels, classes if isinstance(classes, int) else 0)
    named = 0 if isinstance(classes, int) else len(classes or ())
    if len(shape) != 2 or shape[0] != len(sample) or shape[1] < least or shape[1] != (named or shape[1]):
        expected = f"[{len(sample)}, {named or f'{least} or more'}]"
        found = f"logits of {len(sample)} samples have shape {shape}, expected {expected}"
        raise InputRejected(found, where=type(caller.model).__name__, hint="give the model one output per class")
    return int(shape[1])
