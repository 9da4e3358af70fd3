"""The training loop for Keras models on TensorFlow: the same recipe as :mod:`toolkit.finetuning.loop`, with Keras' own AdamW.

AdamW is Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019); label smoothing is Szegedy et al., "Rethinking the Inception
Architecture" (2016).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, StageFailed
from toolkit.finetuning import keras_parts
from toolkit.finetuning.blocks import Block, trained
from toolkit.finetuning.checkpoint import Position
from toolkit.finetuning.keras_checkpoint import KerasCheckpoint
from toolkit.finetuning.keras_parts import KerasCaller
from toolkit.finetuning.loop import Epoch, Pace, Progress, best, duration
from toolkit.finetuning.recipe import batches, class_weights, schedule
from toolkit.training import Finetune

_CLIP_NORM = 1.0
_EPSILON = 1e-8
_REPORT_SECONDS = 0.5
_VALIDATION_BATCH = 256


@dataclass
class KerasTrainer:
    """One training run of one Keras model.

    Attributes:
        caller: Computes the logits of a batch; its model is trained, and holds the best epoch's weights after :meth:`run`.
        settings: Epochs, batch size, learning rate and so on.
        classes: How many outputs a sample has.
        progress: Callback ``(step, steps, note)``.
        checkpoint: Where to write from time to time how far it is, and to go on from; nothing is kept without one.
        pace: How fast samples were trained on.
        trainable: How many numbers learn in the last epoch.
    """

    caller: KerasCaller
    settings: Finetune
    classes: int
    progress: Progress = lambda *_: None
    checkpoint: KerasCheckpoint | None = None
    pace: Pace = field(default_factory=Pace, init=False)
    trainable: int = field(default=0, init=False)
    _total: int = field(default=0, init=False)
    _reported: float = field(default=0.0, init=False)
    _masses: np.ndarray | None = field(default=None, init=False)
    _average: list[Any] = field(default_factory=list, init=False)
    _optimizers: list[tuple[Any, list[Any]]] = field(default_factory=list, init=False)
    _gradients: Callable[..., Any] = field(default=lambda *_: None, init=False)
    _change: Callable[..., Any] = field(default=lambda *_: None, init=False)
    _judge: Callable[..., Any] = field(default=lambda *_: None, init=False)

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
        model, generator = self.caller.model, np.random.default_rng(seed)
        parts, found = keras_parts.blocks(model), keras_parts.norms(model)
        open_ = keras_parts.freeze(model, self.settings.freeze)
        self._prepare(np.asarray(data.label)[train], len(train), parts, open_)
        at = (self.checkpoint.read(self._state(), generator) if self.checkpoint else None) or Position()
        history, count = [Epoch(**one) for one in at.history], 0
        for epoch in range(at.epoch, self.settings.epochs + 1):
            learning = trained(parts, self.settings, epoch)
            if len(learning) != count:
                self._thaw(learning, open_, found)
                count = len(learning)
            at.order = self._order(data, train, generator) if at.order is None else at.order
            train_loss = self._pass(data, at, generator)
            with self._averaged():
                loss, accuracy = self.evaluate(data, validation)
                if not math.isfinite(loss):
                    raise self._diverged(f"validation loss is {loss}", f"after epoch {epoch}")
                history.append(Epoch(epoch, train_loss, loss, accuracy, self._rate(at.done - 1), len(learning)))
                weights = {str(place): one for place, one in enumerate(model.get_weights())} if best(history) == epoch else at.weights
            at = Position(epoch + 1, done=at.done, history=[asdict(one) for one in history], weights=weights)
            if self.settings.patience is not None and epoch - best(history) >= self.settings.patience:
                break
        model.set_weights(list(at.weights.values()))
        self.progress(self._total, self._total, f"best epoch {best(history)}/{len(history)}")
        return history

    def evaluate(self, data: Dataset, rows: np.ndarray) -> tuple[float, float]:
        """Returns the mean cross-entropy and the share of right answers, in inference mode."""
        losses, answers = self._answers(data, rows)
        return float(losses.mean()), float(np.mean(answers == np.asarray(data.label)[rows]))

    def confusion(self, data: Dataset, rows: np.ndarray) -> np.ndarray:
        """Counts what the rows of each class are taken for, ``[class x answer] int64``."""
        _, answers = self._answers(data, rows)
        label = np.asarray(data.label)[rows]
        return np.bincount(label * self.classes + answers, minlength=self.classes**2).reshape(self.classes, self.classes)

    def _answers(self, data: Dataset, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the cross-entropy and the answer of every row."""
        found = []
        for start in range(0, len(rows), _VALIDATION_BATCH):
            batch = data.take(rows[start : start + _VALIDATION_BATCH])
            found.append([part.numpy() for part in self._judge(self.caller.tensors(batch), np.asarray(batch.label))])
        losses, answers = zip(*found, strict=True)
        return np.concatenate(losses).astype(np.float64), np.concatenate(answers)

    def _prepare(self, label: np.ndarray, rows: int, parts: Sequence[Block], open_: Sequence[Any]) -> None:
        """Counts the steps, weighs the classes, begins the moving average, and makes the optimizers."""
        import keras
        import tensorflow as tf

        self._total = self.settings.epochs * len(batches(np.arange(rows), self.settings.batch_size))
        if self.settings.balance == "weights":
            found = class_weights(label).astype(np.float32)
            self._masses = np.pad(found, (0, self.classes - len(found)), constant_values=1.0)  # outputs for classes that nobody has seen
        if self.settings.average is not None:
            self._average = [tf.Variable(one.value) for one in self.caller.model.weights]
        self._judge = tf.function(self._judged, reduce_retracing=True)
        for variables in _together(parts, self.settings, open_):
            optimizer = keras.optimizers.AdamW(self.settings.learning_rate, weight_decay=self.settings.weight_decay, epsilon=_EPSILON)
            # Keras decays what has no axis named; biases and the scales of norms have one axis at most.
            optimizer.exclude_from_weight_decay(var_list=[one for one in variables if len(one.shape) < 2])
            optimizer.build(variables)
            self._optimizers.append((optimizer, variables))

    def _state(self) -> dict[str, list[Any]]:
        """Everything that decides how training goes on; the states of dropout are among the model's variables."""
        optimizers = [variable for optimizer, _ in self._optimizers for variable in optimizer.variables]
        return {"model": list(self.caller.model.variables), "optimizer": optimizers, "average": self._average}

    def _thaw(self, learning: Sequence[Block], open_: Sequence[Any], found: Sequence[tuple[Any, set[int]]]) -> None:
        """Lets these blocks learn and no others, and makes the functions of a step anew: batch norms that stand still are other code."""
        import tensorflow as tf

        asked, allowed = [one for block in learning for one in block.parameters], set(map(id, open_))
        chosen = {id(one) for one in asked if id(one) in allowed}
        if not chosen:
            names = ", ".join(repr(block.name) for block in learning)
            told = f'strategy "{self.settings.strategy}" trains {names} alone, which freeze keeps as it is'
            raise ConfigError(told, where="finetune", hint="name less in freeze, or choose another strategy")
        learned = [(optimizer, own) for optimizer, own in self._optimizers if id(own[0]) in chosen]
        variables = [one for _, own in learned for one in own]
        keras_parts.settle(found, variables)
        self.trainable = sum(math.prod(one.shape) for one in variables)

        def gradients(inputs: Any, label: Any, mass: Any) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([one.value for one in variables])
                loss = self._loss(inputs, label) / mass
            gradient = tape.gradient(loss, [one.value for one in variables], unconnected_gradients="zero")
            return loss, [tf.convert_to_tensor(one) for one in gradient]

        def change(gradient: Any, rate: Any, fresh: Any) -> Any:
            cut, norm = tf.clip_by_global_norm(gradient, _CLIP_NORM)
            place = 0
            for optimizer, own in learned:
                optimizer.learning_rate.assign(rate)
                optimizer.apply(cut[place : place + len(own)], own)
                place += len(own)
            self._move_average(fresh)
            return norm

        self._gradients, self._change = tf.function(gradients, reduce_retracing=True), tf.function(change)

    def _loss(self, inputs: Any, label: Any) -> Any:
        """Sum of the loss over some samples, each by its class's weight and smoothed as PyTorch does: classes keep their weights in it."""
        import tensorflow as tf

        smooth = self.settings.label_smoothing
        target = (1 - smooth) * tf.one_hot(label, self.classes) + smooth / self.classes
        if self._masses is not None:
            target *= self._masses
        return -tf.reduce_sum(target * tf.nn.log_softmax(self.caller.logits(inputs, learning=True)))

    def _judged(self, inputs: Any, label: Any) -> Any:
        import tensorflow as tf

        logits = self.caller.logits(inputs, learning=False)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits), tf.argmax(logits, axis=1)

    def _move_average(self, fresh: Any) -> None:
        """Moves the average a step; the first step's weights begin it."""
        import tensorflow as tf

        decay = tf.where(fresh, 0.0, self.settings.average or 0.0)
        for kept, weight in zip(self._average, self.caller.model.weights if self._average else (), strict=True):
            share = tf.cast(decay, kept.dtype)
            kept.assign(share * kept + (1 - share) * tf.convert_to_tensor(weight.value))

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Puts the averaged weights into the model meanwhile."""
        if not self._average:
            yield
            return
        model = self.caller.model
        own = model.get_weights()
        model.set_weights([one.numpy() for one in self._average])
        try:
            yield
        finally:
            model.set_weights(own)

    def _order(self, data: Dataset, train: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Returns the rows of one pass: each once, or, by the sampler, drawn so that every class comes up equally often."""
        if self.settings.balance != "sampler":
            return generator.permutation(train)
        label = np.asarray(data.label)[train]
        share = class_weights(label)[label]
        return generator.choice(train, size=len(train), p=share / share.sum())

    def _pass(self, data: Dataset, at: Position, generator: np.random.Generator) -> float:
        """Trains on every row once, those that a checkpoint has behind it left out, and returns the mean loss."""
        assert at.order is not None
        for step, rows in enumerate(batches(at.order, self.settings.batch_size), start=1):
            if step <= at.step:
                continue
            loss = self._step(data.take(rows), at.done, f"epoch {at.epoch}, step {step}")
            at.step, at.done, at.summed = step, at.done + 1, at.summed + loss * len(rows)
            self.pace.count(len(rows))
            self._report(at, loss)
            if self.checkpoint is not None and self.checkpoint.due():
                self.checkpoint.write(at, self._state(), generator)
        self.pace.pause()
        return at.summed / len(at.order)

    def _step(self, batch: Dataset, done: int, where: str) -> float:
        """Changes the weights once and returns the loss; the batch is taken in the parts that ``accumulate`` asks for."""
        import tensorflow as tf

        mass, loss, gradient = self._mass(batch), 0.0, None
        for rows in np.array_split(np.arange(len(batch)), min(self.settings.accumulate, len(batch))):
            part = batch.take(rows) if len(rows) < len(batch) else batch
            more, found = self._gradients(self.caller.tensors(part), tf.constant(part.label), tf.constant(mass, tf.float32))
            gradient = found if gradient is None else [one + other for one, other in zip(gradient, found, strict=True)]
            loss += float(more)
        norm = float(self._change(gradient, tf.constant(self._rate(done), tf.float32), tf.constant(done == 0)))
        if not math.isfinite(loss):
            raise self._diverged(f"loss is {loss}", where)
        if not math.isfinite(norm):
            raise self._diverged(f"the gradient's norm is {norm}", where)
        return loss

    def _rate(self, done: int) -> float:
        return self.settings.learning_rate * schedule(done, self._total, self.settings.warmup)

    def _mass(self, batch: Dataset) -> float:
        """What a batch counts for: how many samples it has, or what they weigh."""
        return float(len(batch)) if self._masses is None else float(self._masses[np.asarray(batch.label)].sum())

    def _report(self, at: Position, loss: float) -> None:
        now = time.monotonic()
        if now - self._reported < _REPORT_SECONDS:
            return
        self._reported = now
        told = [f"epoch {at.epoch}/{self.settings.epochs} loss {loss:.3f}"]
        told += [f"val {100 * at.history[-1]['validation_accuracy']:.1f} %"] if at.history else []
        rate = self.pace.samples_per_second
        if rate:
            left = (self._total - at.done) * self.settings.batch_size / rate
            told += [f"{rate:,.0f} samples/s, {duration(left)} left"]
        self.progress(at.done, self._total, " ".join(told))

    def _diverged(self, what: str, where: str) -> StageFailed:
        rate = self.settings.learning_rate
        hint = f"lower finetune.learning_rate, now {rate:g}; a tenth of it is a good next try"
        return StageFailed(f"training diverged: {what}", where=where, hint=hint)


def _together(parts: Sequence[Block], settings: Finetune, open_: Sequence[Any]) -> list[list[Any]]:
    """Groups weights by the epoch in which they begin to learn: each group counts its own steps, which Adam's moments need."""
    allowed, seen = set(map(id, open_)), set[int]()
    found = []
    for epoch in range(1, settings.epochs + 1):
        asked = [one for block in trained(list(parts), settings, epoch) for one in block.parameters]
        fresh = [one for one in asked if id(one) in allowed and id(one) not in seen]
        seen.update(map(id, fresh))
        found += [fresh] if fresh else []
    return found
