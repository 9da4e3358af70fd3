"""The training loop: AdamW, linear warm-up and cosine, best epoch by a held-out share of the training split.

AdamW is Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019); the cosine is theirs too, "SGDR" (2017), without
restarts; the warm-up is Goyal et al., "Accurate, Large Minibatch SGD" (2017); label smoothing is Szegedy et al., "Rethinking
the Inception Architecture" (2016); a learning rate for each block is Howard and Ruder's, "Universal Language Model Fine-tuning for Text
Classification" (2018).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected, StageFailed
from toolkit.finetuning.blocks import Block, blocks, trained
from toolkit.finetuning.checkpoint import Checkpoint, Position
from toolkit.training import Finetune

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
        learning_rate: That of the pass's last step, of the blocks nearest to the output.
        trained: How many blocks of the model learned.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    trained: int


@dataclass
class Trainer:
    """One training run of one model on one device.

    Attributes:
        model: The model, already on its device; holds the best epoch's weights after :meth:`run`.
        logits: Computes ``[n x c]`` logits of a batch, on the device.
        settings: Epochs, batch size, learning rate and so on.
        keep_eval: Modules that stay in evaluation mode, such as frozen batch norm; those of blocks that do not learn are added to them.
        device: Name of the device.
        progress: Callback ``(step, steps, note)``.
        checkpoint: Where to write from time to time how far it is, and to go on from; nothing is kept without one.
    """

    model: torch.nn.Module
    logits: Step
    settings: Finetune
    keep_eval: Sequence[torch.nn.Module]
    device: str
    progress: Progress
    checkpoint: Checkpoint | None = None
    _kept: dict[str, Any] = field(default_factory=dict, init=False)
    _total: int = field(default=0, init=False)
    _reported: float = field(default=0.0, init=False)
    _weight: torch.Tensor | None = field(default=None, init=False)
    _average: torch.optim.swa_utils.AveragedModel | None = field(default=None, init=False)

    def run(self, data: Dataset, train: np.ndarray, validation: np.ndarray, seed: int) -> list[Epoch]:
        """Trains and leaves the best epoch's weights in the model.

        The best epoch has the highest validation accuracy; of equal ones the lowest loss wins, then the earliest. Where weights are
        averaged, it is the average that is judged and kept.

        Args:
            data: Samples with labels; may be memory-mapped, one batch is read at a time.
            train: Rows to learn from.
            validation: Rows to choose the epoch by.
            seed: Seed of the order of rows.

        Raises:
            ConfigError: What the strategy trains is frozen.
            StageFailed: The loss or a gradient is NaN or Inf.
        """
        import torch

        generator, parts = np.random.default_rng(seed), blocks(self.model)
        open_ = {id(one) for one in self.model.parameters() if one.requires_grad}
        groups = parameter_groups(self.model, self.settings.weight_decay, parts, self.settings.layer_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.settings.learning_rate)
        self._prepare(np.asarray(data.label)[train])
        self._total = self.settings.epochs * len(batches(train, self.settings.batch_size))
        self._kept = {"model": self.model, "optimizer": optimizer} | ({"average": self._average} if self._average is not None else {})
        at = (self.checkpoint.read(self._kept, generator) if self.checkpoint else None) or Position()
        history = [Epoch(**one) for one in at.history]
        for epoch in range(at.epoch, self.settings.epochs + 1):
            learning = trained(parts, self.settings, epoch)
            at.order = self._order(data, train, generator) if at.order is None else at.order
            train_loss = self._pass(data, at, optimizer, self._thaw(learning, open_), generator)
            with self._averaged():
                loss, accuracy = self.evaluate(data, validation)
                if not math.isfinite(loss):
                    raise self._diverged(f"validation loss is {loss}", f"after epoch {epoch}")
                rate = max(group["lr"] for group in optimizer.param_groups)
                history.append(Epoch(epoch, train_loss, loss, accuracy, rate, len(learning)))
                better = best(history) == epoch
                weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()} if better else at.weights
            at = Position(epoch + 1, done=at.done, history=[asdict(one) for one in history], weights=weights)
            if self.settings.patience is not None and epoch - best(history) >= self.settings.patience:
                break
        self.model.load_state_dict(at.weights)
        self.progress(self._total, self._total, f"best epoch {best(history)}/{len(history)}")
        return history

    def _prepare(self, label: np.ndarray) -> None:
        """Weighs the classes, and begins the moving average, where either is asked for."""
        import torch
        from torch.optim import swa_utils

        if self.settings.balance == "weights":
            self._weight = torch.from_numpy(class_weights(label).astype(np.float32)).to(self.device)
        if self.settings.average is not None:
            self._average = swa_utils.AveragedModel(self.model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(self.settings.average), use_buffers=True)

    def _thaw(self, learning: Sequence[Block], open_: set[int]) -> list[torch.nn.Module]:
        """Lets these blocks learn and no others; returns the modules whose statistics must not move meanwhile."""
        import torch

        chosen = {id(one) for block in learning for one in block.parameters} & open_
        if not chosen:
            names = ", ".join(repr(block.name) for block in learning)
            told = f'strategy "{self.settings.strategy}" trains {names} alone, which freeze keeps as it is'
            raise ConfigError(told, where="finetune", hint="name less in freeze, or choose another strategy")
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) in chosen)
        norms = [module for module in self.model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
        still = [one for one in norms if list(one.parameters()) and not any(parameter.requires_grad for parameter in one.parameters())]
        return [*self.keep_eval, *still]

    def _order(self, data: Dataset, train: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Returns the rows of one pass: each once, or, by the sampler, drawn so that every class comes up equally often."""
        if self.settings.balance != "sampler":
            return generator.permutation(train)
        label = np.asarray(data.label)[train]
        share = class_weights(label)[label]
        return generator.choice(train, size=len(train), p=share / share.sum())

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Puts the averaged weights into the model meanwhile."""
        if self._average is None:
            yield
            return
        own = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(self._average.module.state_dict())
        try:
            yield
        finally:
            self.model.load_state_dict(own)

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

    def _pass(
        self, data: Dataset, at: Position, optimizer: torch.optim.Optimizer, kept: Sequence[torch.nn.Module], generator: np.random.Generator
    ) -> float:
        """Trains on every row once, those that a checkpoint has behind it left out, and returns the mean loss."""
        assert at.order is not None
        self.model.train()
        for module in kept:
            module.eval()
        for step, rows in enumerate(batches(at.order, self.settings.batch_size), start=1):
            if step <= at.step:
                continue
            rate = self.settings.learning_rate * schedule(at.done, self._total, self.settings.warmup)
            loss = self._step(data.take(rows), optimizer, rate, f"epoch {at.epoch}, step {step}")
            at.summed += loss * len(rows)
            at.step, at.done = step, at.done + 1
            self._report(at, f"epoch {at.epoch}/{self.settings.epochs} loss {loss:.3f}")
            if self.checkpoint is not None and self.checkpoint.due():
                self.checkpoint.write(at, self._kept, generator)
        return at.summed / len(at.order)

    def _step(self, batch: Dataset, optimizer: torch.optim.Optimizer, rate: float, where: str) -> float:
        import torch

        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        optimizer.zero_grad(set_to_none=True)
        value, whole = 0.0, self._mass(batch)
        for rows in np.array_split(np.arange(len(batch)), min(self.settings.accumulate, len(batch))):
            part = batch.take(slice(int(rows[0]), int(rows[-1]) + 1))
            loss = self._loss(part) * (self._mass(part) / whole)
            value += float(loss.detach())
            if not math.isfinite(value):
                raise self._diverged(f"loss is {value}", where)
            loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP_NORM))
        if not math.isfinite(norm):
            raise self._diverged(f"the gradient's norm is {norm}", where)
        optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self.model)
        return value

    def _loss(self, part: Dataset) -> torch.Tensor:
        """Mean of the loss over some samples, by their weights."""
        import torch

        logits, weight = self.logits(part), self._weight
        if weight is not None:  # a model may have outputs for classes that nobody has seen
            weight = torch.nn.functional.pad(weight, (0, logits.shape[1] - len(weight)), value=1.0)
        return torch.nn.functional.cross_entropy(logits, self._label(part), weight, label_smoothing=self.settings.label_smoothing)

    def _mass(self, batch: Dataset) -> float:
        """What a batch counts for: how many samples it has, or what they weigh."""
        return float(len(batch)) if self._weight is None else float(self._weight[self._label(batch)].sum())

    def _label(self, batch: Dataset) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.array(batch.label)).to(self.device)

    def _report(self, at: Position, note: str) -> None:
        now = time.monotonic()
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            last = f" val {100 * at.history[-1]['validation_accuracy']:.1f} %" if at.history else ""
            self.progress(at.done, self._total, note + last)

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


def class_weights(label: np.ndarray) -> np.ndarray:
    """Returns what one sample of each class weighs so that all classes weigh the same, ``n / (classes * samples of it)``.

    King and Zeng, "Logistic Regression in Rare Events Data" (2001). A class without samples weighs one.
    """
    counts = np.bincount(label)
    present = counts > 0
    return np.where(present, len(label) / (present.sum() * np.maximum(counts, 1)), 1.0)


def parameter_groups(model: torch.nn.Module, weight_decay: float, parts: Sequence[Block] = (), layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Groups trainable parameters: biases and norm scales (one axis or none) are not decayed.

    Each group has a ``factor`` on the learning rate: 1 for the last block, and ``layer_decay`` less for each block before it.
    """
    place = {id(one): len(parts) - 1 - number for number, block in enumerate(parts) for one in block.parameters} if layer_decay < 1 else {}
    groups: dict[tuple[int, bool], list[torch.nn.Parameter]] = {}
    for one in model.parameters():
        if one.requires_grad:
            groups.setdefault((place.get(id(one), 0), one.ndim > 1), []).append(one)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], not item[0][1]))
    return [{"params": found, "weight_decay": weight_decay if wide else 0.0, "factor": layer_decay**back} for (back, wide), found in ordered]
