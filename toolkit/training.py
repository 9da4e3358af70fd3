"""How a model is adapted to data: the table ``[finetune]`` of a project."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from toolkit.artifact import Frozen
from toolkit.limits import Count, Fraction, Number, Positive


class Finetune(Frozen):
    """How the model is adapted to the training split.

    Attributes:
        epochs: Passes over the training split.
        batch_size: Samples of one step.
        accumulate: Parts that a step's samples are taken in, one after the other, where they do not fit into memory at once.
        learning_rate: Peak learning rate of AdamW.
        layer_decay: Factor on the learning rate from one block of the model to the one before it; 1 trains all alike.
        weight_decay: Decoupled weight decay.
        warmup: Share of all steps in which the learning rate rises to its peak; a cosine brings it down after.
        label_smoothing: Mass moved from the right class to all of them.
        balance: How classes of different sizes are treated: ``weights`` in the loss, a ``sampler`` that draws all alike, or not at all.
        strategy: What is trained: everything (``full``), the ``head``, the ``last`` blocks and the head, or ``gradual``: the head first, then
            one block after the other from the end.
        blocks: How many blocks ``last`` trains beside the head.
        freeze: Glob patterns of parameter names that stay as they are, whatever the strategy.
        average: Decay of a moving average over the weights of all steps, which is what is kept then; ``None`` for none.
        patience: Epochs without a better one after which training ends; ``None`` to run them all.
        threads: CPU threads of one training step. Fixed, as another number may give other weights; for networks as small
            as a digit classifier, 1 is as fast as more, and does not suffer from neighbours.
        device: ``auto`` takes a GPU when there is one.
    """

    epochs: Count = 10
    batch_size: Count = 32
    accumulate: Count = 1
    learning_rate: Positive = 1e-3
    layer_decay: Annotated[Number, Field(gt=0, le=1)] = 1.0
    weight_decay: Annotated[Number, Field(ge=0)] = 0.01
    warmup: Fraction = 0.1
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    balance: Literal["none", "weights", "sampler"] = "none"
    strategy: Literal["full", "head", "last", "gradual"] = "full"
    blocks: Count = 1
    freeze: tuple[str, ...] = ()
    average: Annotated[Number, Field(gt=0, lt=1)] | None = None
    patience: Count | None = None
    threads: Count = 2
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"

    @model_validator(mode="after")
    def _fit(self) -> Finetune:
        if self.blocks != 1 and self.strategy != "last":
            raise ValueError('blocks goes with strategy = "last"')
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate takes a step's samples in {self.accumulate} parts, but batch_size is {self.batch_size}")
        return self
