"""The training loop: AdamW, linear warm-up and cosine, best epoch by a held-out share of the training split.

AdamW is Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019); label smoothing is Szegedy et al., "Rethinking the Inception
Architecture" (2016). :mod:`toolkit.finetuning.recipe` has the schedule and what rows make a batch.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, StageFailed
from toolkit.finetuning import variation
from toolkit.finetuning.blocks import Block, blocks, trained
from toolkit.finetuning.calling import Caller
from toolkit.finetuning.checkpoint import Checkpoint, Position
from toolkit.finetuning.distillation import Teacher
from toolkit.finetuning.precision import Precision
from toolkit.finetuning.processes import Alone
from toolkit.finetuning.recipe import batches, class_weights, parameter_groups, schedule
from toolkit.training import Finetune

if TYPE_CHECKING:
    import torch

    from toolkit.finetuning.processes import Together
    from toolkit.finetuning.rounding import Rounding

Progress = Callable[[int, int, str], None]
_REPORT_SECONDS = 0.5
_VALIDATION_BATCH = 256


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training rows gave.

    Attributes:
        epoch: Counted from 1.
        train_loss: Mean over the pass, as it was trained: with label smoothing, mixed labels and the teacher's part.
        validation_loss: Cross-entropy on the held-out rows, without any of these.
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
        caller: Computes the logits of a batch; its model is trained, and holds the best epoch's weights after :meth:`run`.
        settings: Epochs, batch size, learning rate and so on.
        keep_eval: Modules that stay in evaluation mode, such as frozen batch norm; those of blocks that do not learn are added to them.
        progress: Callback ``(step, steps, note)``.
        checkpoint: Where to write from time to time how far it is, and to go on from; nothing is kept without one.
        precision: What the forward pass computes in.
        teacher: Whose answers are learned beside the labels.
        rounding: Rounds weights and activations as int8 will.
        processes: Who else trains the same model; each takes its share of every batch.
        samples_per_second: How many samples were trained on in a second, once :meth:`run` is over; its first steps and the validation
            do not count.
    """

    caller: Caller
    settings: Finetune
    keep_eval: Sequence[torch.nn.Module] = ()
    progress: Progress = lambda *_: None
    checkpoint: Checkpoint | None = None
    precision: Precision = field(default_factory=lambda: Precision("float32", "cpu"))
    teacher: Teacher | None = None
    rounding: Rounding | None = None
    processes: Alone | Together = field(default_factory=Alone)
    samples_per_second: float = field(default=0.0, init=False)
    _kept: dict[str, Any] = field(default_factory=dict, init=False)
    _total: int = field(default=0, init=False)
    _reported: float = field(default=0.0, init=False)
    _masses: np.ndarray | None = field(default=None, init=False)
    _weight: torch.Tensor | None = field(default=None, init=False)
    _average: torch.optim.swa_utils.AveragedModel | None = field(default=None, init=False)
    _unread: deque[tuple[torch.Tensor, int, str]] = field(default_factory=deque, init=False)
    _loss_read: float = field(default=math.nan, init=False)
    _parts: int = field(default=1, init=False)
    _pace: Pace = field(default_factory=lambda: Pace(), init=False)

    def run(self, data: Dataset, train: np.ndarray, validation: np.ndarray, seed: int) -> list[Epoch]:
        """Trains and leaves the best epoch's weights in the model.

        The best epoch has the highest validation accuracy; of equal ones the lowest loss wins, then the earliest. Where weights are
        averaged, it is the average that is judged and kept.

        Args:
            data: Samples with labels; may be memory-mapped, one batch is read at a time.
            train: Rows to learn from.
            validation: Rows to choose the epoch by.
            seed: Seed of the order of rows, and of how samples are varied.

        Raises:
            ConfigError: What the strategy trains is frozen.
            StageFailed: The loss or a gradient is NaN or Inf, or one sample alone needs more memory than the GPU has.
        """
        import torch

        model, generator = self.caller.model, np.random.default_rng(seed)
        parts = blocks(model)
        open_ = {id(one) for one in model.parameters() if one.requires_grad}
        groups = parameter_groups(model, self.settings.weight_decay, parts, self.settings.layer_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.settings.learning_rate, fused=not self.caller.device.startswith("mps"))
        self._prepare(np.asarray(data.label)[train], len(train), optimizer)
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
                weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()} if better else at.weights
            at = Position(epoch + 1, done=at.done, history=[asdict(one) for one in history], weights=weights)
            if self.settings.patience is not None and epoch - best(history) >= self.settings.patience:
                break
        model.load_state_dict(at.weights)
        self.samples_per_second = self._pace.samples_per_second
        self.progress(self._total, self._total, f"best epoch {best(history)}/{len(history)}")
        return history

    def _prepare(self, label: np.ndarray, rows: int, optimizer: torch.optim.Optimizer) -> None:
        """Counts the steps, weighs the classes, and begins the moving average, where either is asked for."""
        import torch
        from torch.optim import swa_utils

        model, self._parts = self.caller.model, self.settings.accumulate
        self._total = self.settings.epochs * len(batches(np.arange(rows), self.settings.batch_size))
        if self.settings.balance == "weights":
            self._masses = class_weights(label).astype(np.float32)
            self._weight = torch.from_numpy(self._masses).to(self.caller.device)
        if self.settings.average is not None:
            self._average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(self.settings.average), use_buffers=True)
        parts = {"model": model, "optimizer": optimizer, "average": self._average, "rounding": self.rounding, "scaler": self.precision.scaler}
        self._kept = {name: part for name, part in parts.items() if part is not None}

    def _thaw(self, learning: Sequence[Block], open_: set[int]) -> list[torch.nn.Module]:
        """Lets these blocks learn and no others; returns the modules whose statistics must not move meanwhile."""
        import torch

        model = self.caller.model
        chosen = {id(one) for block in learning for one in block.parameters} & open_
        if not chosen:
            names = ", ".join(repr(block.name) for block in learning)
            told = f'strategy "{self.settings.strategy}" trains {names} alone, which freeze keeps as it is'
            raise ConfigError(told, where="finetune", hint="name less in freeze, or choose another strategy")
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in chosen)
        self.processes.follow(self.caller)
        norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
        if self.settings.strategy == "qat":  # int8 has the statistics folded into weights, which must not move under their rounding
            return [*self.keep_eval, *norms]
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
        model = self.caller.model
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self._average.module.state_dict())
        try:
            yield
        finally:
            model.load_state_dict(own)

    def evaluate(self, data: Dataset, rows: np.ndarray) -> tuple[float, float]:
        """Returns the mean cross-entropy and the share of right answers, in evaluation mode."""
        mine = rows[self.processes.rank :: self.processes.count]
        losses, answers = self._answers(data, mine)
        right = float(np.count_nonzero(answers == np.asarray(data.label)[mine]))
        loss, right = self.processes.total([float(losses.sum()), right])
        return loss / len(rows), right / len(rows)

    def confusion(self, data: Dataset, rows: np.ndarray, classes: int) -> np.ndarray:
        """Counts what the rows of each class are taken for, ``[class x answer] int64``."""
        _, answers = self._answers(data, rows)
        label = np.asarray(data.label)[rows]
        return np.bincount(label * classes + answers, minlength=classes**2).reshape(classes, classes)

    def _answers(self, data: Dataset, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the cross-entropy and the answer of every row."""
        import torch

        self.caller.model.eval()
        losses, answers = [np.zeros(0)], [np.zeros(0, np.int64)]
        with torch.no_grad():
            for start in range(0, len(rows), _VALIDATION_BATCH):
                batch = data.take(rows[start : start + _VALIDATION_BATCH])
                logits = self._logits(self.caller.tensors(batch), learning=False)
                losses.append(torch.nn.functional.cross_entropy(logits, self._label(batch), reduction="none").cpu().numpy())
                answers.append(logits.argmax(dim=1).cpu().numpy())
        return np.concatenate(losses), np.concatenate(answers)

    def _pass(
        self, data: Dataset, at: Position, optimizer: torch.optim.Optimizer, kept: Sequence[torch.nn.Module], generator: np.random.Generator
    ) -> float:
        """Trains on every row once, those that a checkpoint has behind it left out, and returns the mean loss."""
        assert at.order is not None
        self.caller.model.train()
        for module in kept:
            module.eval()
        for step, rows in enumerate(batches(at.order, self.settings.batch_size), start=1):
            if step <= at.step:
                continue
            rate = self.settings.learning_rate * schedule(at.done, self._total, self.settings.warmup)
            self._step(data.take(rows), optimizer, rate, f"epoch {at.epoch}, step {step}", generator)
            at.step, at.done = step, at.done + 1
            self._read(at, keep=1)
            self._pace.count(len(rows))
            self._report(at)
            if self.checkpoint is not None and self.checkpoint.due():
                self._read(at, keep=0)
                self.checkpoint.write(at, self._kept, generator)
        self._read(at, keep=0)
        self._pace.pause()
        return at.summed / len(at.order)

    def _read(self, at: Position, keep: int) -> None:
        """Adds up the losses of past steps; the last ``keep`` are left, so that a GPU is not waited for."""
        while len(self._unread) > keep:
            values, rows, where = self._unread.popleft()
            loss, norm = values.tolist()
            if not math.isfinite(loss):
                raise self._diverged(f"loss is {loss}", where)
            if not math.isfinite(norm):
                raise self._diverged(f"the gradient's norm is {norm}", where)
            self._loss_read = loss
            at.summed += loss * rows

    def _step(self, batch: Dataset, optimizer: torch.optim.Optimizer, rate: float, where: str, generator: np.random.Generator) -> None:
        """Changes the weights once. Where the GPU's memory does not do for it, the batch is taken in more parts, from then on."""
        import torch

        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        while True:
            optimizer.zero_grad(set_to_none=True)
            try:
                loss = self._gradients(batch, generator)
                norm = self.precision.step(optimizer, self.caller.model.parameters())
                break
            except torch.OutOfMemoryError as error:
                if self._parts >= len(batch) or self.processes.count > 1:
                    hint = "use a smaller model or smaller samples" if self.processes.count == 1 else "raise finetune.accumulate"
                    raise StageFailed("the GPU has too little memory for one part of a batch", where=where, hint=hint) from error
            self._parts = min(2 * self._parts, len(batch))
            torch.cuda.empty_cache()
            told = f"out of memory: a batch of {len(batch)} is taken in {self._parts} parts from {where} on"
            self.caller.notes.append(told)
            self.progress(0, self._total, told)
        self._unread.append((torch.stack([loss, norm.to(loss.dtype)]), len(batch), where))
        if self._average is not None:
            self._average.update_parameters(self.caller.model)

    def _gradients(self, batch: Dataset, generator: np.random.Generator) -> torch.Tensor:
        """Adds up the gradients of a batch's mean loss, and returns that loss of this process's share."""
        whole, (mine, factor) = self._mass(batch), self.processes.share(len(batch))
        cuts = np.array_split(mine, min(self._parts, len(mine)))
        losses = []
        for number, rows in enumerate(cuts, start=1):
            part = batch.take(rows)
            with self.processes.adding(last=number == len(cuts)):
                loss = self._loss(part, generator) * (factor * self._mass(part) / whole)
                self.precision.backward(loss * self.processes.count)  # gradients are averaged over the processes
            losses.append(loss.detach())
        return self.processes.sum(sum(losses[1:], start=losses[0]))

    def _loss(self, part: Dataset, generator: np.random.Generator) -> torch.Tensor:
        """Mean of the loss over some samples, by their weights."""
        inputs = self.caller.tensors(part)
        if self.settings.augment:
            inputs = variation.augment(inputs, self.settings.augment, generator)
        mixed, label = variation.mix(inputs, self.settings, generator), self._label(part)
        logits = self._logits(mixed.inputs, learning=True)
        loss = self._entropy(logits, label)
        if mixed.partner is not None:
            loss = mixed.share * loss + (1 - mixed.share) * self._entropy(logits, label[mixed.partner])
        return loss if self.teacher is None else self.teacher.loss(logits, mixed.inputs, loss)

    def _logits(self, inputs: Any, *, learning: bool) -> torch.Tensor:
        with self.precision.computing(), nullcontext() if self.rounding is None else self.rounding.active(learning=learning):
            return self.caller(inputs).float()

    def _entropy(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        import torch

        weight = self._weight
        if weight is not None:  # a model may have outputs for classes that nobody has seen
            weight = torch.nn.functional.pad(weight, (0, logits.shape[1] - len(weight)), value=1.0)
        return torch.nn.functional.cross_entropy(logits, label, weight, label_smoothing=self.settings.label_smoothing)

    def _mass(self, batch: Dataset) -> float:
        """What a batch counts for: how many samples it has, or what they weigh."""
        return float(len(batch)) if self._masses is None else float(self._masses[np.asarray(batch.label)].sum())

    def _label(self, batch: Dataset) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.array(batch.label)).to(self.caller.device, non_blocking=True)

    def _report(self, at: Position) -> None:
        now = time.monotonic()
        if now - self._reported < _REPORT_SECONDS:
            return
        self._reported = now
        told = [f"epoch {at.epoch}/{self.settings.epochs} loss {self._loss_read:.3f}"]
        told += [f"val {100 * at.history[-1]['validation_accuracy']:.1f} %"] if at.history else []
        rate = self._pace.samples_per_second
        if rate:
            left = (self._total - at.done) * self.settings.batch_size / rate
            told += [f"{rate:,.0f} samples/s, {duration(left)} left"]
        self.progress(at.done, self._total, " ".join(told))

    def _diverged(self, what: str, where: str) -> StageFailed:
        rate = self.settings.learning_rate
        hint = f"lower finetune.learning_rate, now {rate:g}; a tenth of it is a good next try"
        return StageFailed(f"training diverged: {what}", where=where, hint=hint)


@dataclass
class Pace:
    """How fast samples are trained on. The first step of each pass does not count: something may be compiled in it."""

    samples: int = 0
    seconds: float = 0.0
    _since: float | None = None

    @property
    def samples_per_second(self) -> float:
        """How fast it went; 0 before the second step."""
        return self.samples / self.seconds if self.seconds else 0.0

    def count(self, samples: int) -> None:
        """Notes that a step of so many samples is done."""
        now = time.perf_counter()
        if self._since is not None:
            self.samples, self.seconds = self.samples + samples, self.seconds + now - self._since
        self._since = now

    def pause(self) -> None:
        """Notes that something else begins."""
        self._since = None


def best(history: Sequence[Epoch]) -> int:
    """Returns the number of the best epoch: highest accuracy, then lowest loss, then earliest."""
    return min(history, key=lambda one: (-one.validation_accuracy, one.validation_loss, one.epoch)).epoch


def duration(seconds: float) -> str:
    """Writes seconds as people say them: ``3 min 20 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
