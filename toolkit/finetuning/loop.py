"""The training loop: AdamW, linear warm-up and cosine, best epoch by a held-out share of the training split.

AdamW is Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019); the cosine is theirs too, "SGDR" (2017), without
restarts; the warm-up is Goyal et al., "Accurate, Large Minibatch SGD" (2017); label smoothing is Szegedy et al., "Rethinking
the Inception Architecture" (2016).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.config import Finetune
from toolkit.dataset import Dataset
from toolkit.errors import InputRejected, StageFailed

if TYPE_CHECKING:
    import torch

Step = Callable[[Dataset], "torch.Tensor"]
Progress = Callable[[int, int, str], None]
_CLIP_NORM = 1.0
_REPORT_SECONDS = 0.5
_VALIDATION_BATCH = 256


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training rows gave.

    Attributes:
        epoch: Counted from 1.
        train_loss: Mean over the pass, with label smoothing.
        validation_loss: Cross-entropy on the held-out rows, without smoothing.
        validation_accuracy: Share of held-out rows that are right, 0..1.
        learning_rate: That of the pass's last step.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float


@dataclass
class Trainer:
    """One training run of one model on one device.

    Attributes:
        model: The model, already on its device; holds the best epoch's weights after :meth:`run`.
        logits: Computes ``[n x c]`` logits of a batch, on the device.
        settings: Epochs, batch size, learning rate and so on.
        keep_eval: Modules that stay in evaluation mode, such as frozen batch norm.
        device: Name of the device.
        progress: Callback ``(step, steps, note)``.
    """

    model: torch.nn.Module
    logits: Step
    settings: Finetune
    keep_eval: Sequence[torch.nn.Module]
    device: str
    progress: Progress
    _done: int = field(default=0, init=False)
    _total: int = field(default=0, init=False)
    _reported: float = field(default=0.0, init=False)

    def run(self, data: Dataset, train: np.ndarray, validation: np.ndarray, seed: int) -> list[Epoch]:
        """Trains and leaves the best epoch's weights in the model.

        The best epoch has the highest validation accuracy; of equal ones the lowest loss wins, then the earliest.

        Args:
            data: Samples with labels; may be memory-mapped, one batch is read at a time.
            train: Rows to learn from.
            validation: Rows to choose the epoch by.
            seed: Seed of the order of rows.

        Raises:
            StageFailed: The loss or a gradient is NaN or Inf.
        """
        import torch

        generator = np.random.default_rng(seed)
        optimizer = torch.optim.AdamW(parameter_groups(self.model, self.settings.weight_decay), lr=self.settings.learning_rate)
        self._done, self._total = 0, self.settings.epochs * len(batches(train, self.settings.batch_size))
        history: list[Epoch] = []
        weights: dict[str, torch.Tensor] = {}
        for epoch in range(1, self.settings.epochs + 1):
            train_loss = self._pass(data, generator.permutation(train), optimizer, history)
            loss, accuracy = self.evaluate(data, validation)
            if not math.isfinite(loss):
                raise self._diverged(f"validation loss is {loss}", f"after epoch {epoch}")
            history.append(Epoch(epoch, train_loss, loss, accuracy, optimizer.param_groups[0]["lr"]))
            if best(history) == epoch:
                weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(weights)
        self.progress(self._total, self._total, f"best epoch {best(history)}/{self.settings.epochs}")
        return history

    def evaluate(self, data: Dataset, rows: np.ndarray) -> tuple[float, float]:
        """Returns the mean cross-entropy and the share of right answers, in evaluation mode."""
        import torch

        self.model.eval()
        loss, right = 0.0, 0
        with torch.no_grad():
            for start in range(0, len(rows), _VALIDATION_BATCH):
                batch = data.take(rows[start : start + _VALIDATION_BATCH])
                logits, label = self.logits(batch), self._label(batch)
                loss += float(torch.nn.functional.cross_entropy(logits, label, reduction="sum"))
                right += int((logits.argmax(dim=1) == label).sum())
        return loss / len(rows), right / len(rows)

    def _pass(self, data: Dataset, order: np.ndarray, optimizer: torch.optim.Optimizer, history: Sequence[Epoch]) -> float:
        """Trains on every row once and returns the mean loss."""
        self.model.train()
        for module in self.keep_eval:
            module.eval()
        epoch, summed = len(history) + 1, 0.0
        for step, rows in enumerate(batches(order, self.settings.batch_size), start=1):
            rate = self.settings.learning_rate * schedule(self._done, self._total, self.settings.warmup)
            loss = self._step(data.take(rows), optimizer, rate, f"epoch {epoch}, step {step}")
            summed += loss * len(rows)
            self._done += 1
            self._report(f"epoch {epoch}/{self.settings.epochs} loss {loss:.3f}" + _last(history))
        return summed / len(order)

    def _step(self, batch: Dataset, optimizer: torch.optim.Optimizer, rate: float, where: str) -> float:
        import torch

        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(self.logits(batch), self._label(batch), label_smoothing=self.settings.label_smoothing)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._diverged(f"loss is {value}", where)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP_NORM))
        if not math.isfinite(norm):
            raise self._diverged(f"the gradient's norm is {norm}", where)
        optimizer.step()
        return value

    def _label(self, batch: Dataset) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.array(batch.label)).to(self.device)

    def _report(self, note: str) -> None:
        now = time.monotonic()
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            self.progress(self._done, self._total, note)

    def _diverged(self, what: str, where: str) -> StageFailed:
        rate = self.settings.learning_rate
        hint = f"lower finetune.learning_rate, now {rate:g}; a tenth of it is a good next try"
        return StageFailed(f"training diverged: {what}", where=where, hint=hint)


def best(history: Sequence[Epoch]) -> int:
    """Returns the number of the best epoch: highest accuracy, then lowest loss, then earliest."""
    return min(history, key=lambda one: (-one.validation_accuracy, one.validation_loss, one.epoch)).epoch


def schedule(step: int, steps: int, warmup: float) -> float:
    """Returns the factor on the peak learning rate: a line up to 1 in the first share of steps, then half a cosine towards 0.

    Args:
        step: Counted from 0.
        steps: All steps of the run.
        warmup: Share of steps that warm up, 0..1.
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def batches(order: np.ndarray, size: int) -> list[np.ndarray]:
    """Cuts rows into batches; a single row left over joins the batch before, because batch norm cannot learn from one value."""
    cuts = [order[start : start + size] for start in range(0, len(order), size)]
    if size > 1 and len(cuts) > 1 and len(cuts[-1]) == 1:
        last = cuts.pop()
        cuts[-1] = np.concatenate([cuts[-1], last])
    return cuts


def hold_out(label: np.ndarray, seed: int, every: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Splits rows into training and validation, every class in its share.

    Rows are sorted by class, shuffled inside each, and every tenth is held out (systematic sampling), so that each class
    gives its tenth give or take one. The first row of every class is always trained on.

    Args:
        label: Class of every row ``[n] int64``.
        seed: Seed of the shuffling.
        every: One of how many rows is held out.

    Returns:
        Training rows and validation rows, ascending.

    Raises:
        InputRejected: No class has two samples.
    """
    generator = np.random.default_rng(seed)
    shuffled = [generator.permutation(np.flatnonzero(label == one)) for one in np.unique(label)]
    candidates = np.concatenate([rows[1:] for rows in shuffled])
    if not len(candidates):
        raise InputRejected(
            f"no class has two samples among {len(label)}", where="train split", hint="fine-tuning holds out a tenth to choose the best epoch"
        )
    every = min(every, len(candidates))
    held = np.sort(candidates[every // 2 :: every])
    return np.setdiff1d(np.arange(len(label)), held), held


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups trainable parameters: biases and norm scales (one axis or none) are not decayed."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wide = [parameter for parameter in trainable if parameter.ndim > 1]
    narrow = [parameter for parameter in trainable if parameter.ndim <= 1]
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in ((wide, weight_decay), (narrow, 0.0)) if parameters]


def _last(history: Sequence[Epoch]) -> str:
    return f" val {100 * history[-1].validation_accuracy:.1f} %" if history else ""
