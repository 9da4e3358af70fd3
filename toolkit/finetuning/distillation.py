"""Knowledge distillation: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import ConfigError, InputRejected
from toolkit.factory import load_factory
from toolkit.finetuning.calling import Caller

if TYPE_CHECKING:
    import torch

    from toolkit.finetuning.calling import Inputs

START = "start"


@dataclass(frozen=True)
class Teacher:
    """A model whose answers are learned beside the labels.

    Attributes:
        caller: The model, in evaluation mode.
        weight: Share of the loss that is its own, 0..1.
        temperature: By which the logits of both are divided.
    """

    caller: Caller
    weight: float
    temperature: float

    def loss(self, logits: torch.Tensor, inputs: Inputs, own: torch.Tensor) -> torch.Tensor:
        """Returns the loss from the labels together with the teacher's.

        The teacher's is the Kullback-Leibler divergence at the temperature, times its square, by which gradients at all temperatures are alike.

        Args:
            logits: Those of the model that learns, ``[n x c]``.
            inputs: What they were computed from.
            own: The loss from the labels.
        """
        import torch

        with torch.no_grad():
            wanted = torch.log_softmax(self.caller(inputs).float() / self.temperature, dim=1)
        found = torch.log_softmax(logits / self.temperature, dim=1)
        apart = torch.nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
        return (1 - self.weight) * own + self.weight * self.temperature**2 * apart


def teacher_of(spec: str, student: Caller, project: Path, weight: float, temperature: float) -> Teacher:
    """Makes a teacher.

    Args:
        spec: ``start`` for the student as it is, or a factory ``module:function`` of the project.
        student: Who will learn; the teacher gets the same inputs.
        project: The project's folder.
        weight: Share of the loss that is the teacher's.
        temperature: See :class:`Teacher`.

    Raises:
        ConfigError: There is no such factory, or it returns no PyTorch model.
        StageFailed: The factory raises.
    """
    import torch

    model = copy.deepcopy(student.model) if spec == START else load_factory(project, spec)()
    if not isinstance(model, torch.nn.Module):
        told = f"returned a {type(model).__name__}, expected a torch.nn.Module"
        raise ConfigError(told, where=f"finetune.teacher {spec}", hint="return the teacher with its weights")
    model.to(student.device).eval().requires_grad_(False)
    return Teacher(Caller(model, student.columns, student.device, student.outputs), weight, temperature)


def check_alike(teacher: Teacher, inputs: Inputs, classes: int) -> None:
    """Makes sure that teacher and student have the same classes.

    Raises:
        InputRejected: They have not.
    """
    import torch

    with torch.no_grad():
        found = int(teacher.caller(inputs).shape[-1])
    if found != classes:
        hint = "give a teacher that was trained for the same classes"
        raise InputRejected(f"the teacher has {found} outputs, the model {classes}", where="finetune.teacher", hint=hint)
