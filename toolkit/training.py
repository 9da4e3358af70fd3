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
        augment: How pictures ``[n x c x h x w]`` are varied while training: ``flip`` (left and right), ``crop`` (down to two thirds of the
            area), ``rotate`` (up to 15 degrees), ``brightness`` (up to a fifth of the spread), ``erase`` (a patch of up to a quarter).
        mixup: Concentration of the beta distribution that pairs of samples are mixed by; 0 mixes none.
        cutmix: Likewise for patches of pictures; with both, each batch draws one of them.
        balance: How classes of different sizes are treated: ``weights`` in the loss, a ``sampler`` that draws all alike, or not at all.
        strategy: What is trained: everything (``full``), the ``head``, the ``last`` blocks and the head, ``gradual``: the head first, then
            one block after the other from the end; ``lora``: the head and low-rank updates of a transformer; ``qat``: everything, while
            weights and activations are rounded as int8 will round them.
        blocks: How many blocks ``last`` trains beside the head.
        lora_rank: Rank of the updates of ``lora``, which are merged into the weights at the end.
        lora_alpha: Their scale, over the rank; twice the rank by default.
        lora_targets: Names of the layers that get one, or their ends; those that PEFT knows for the architecture by default.
        freeze: Glob patterns of parameter names that stay as they are, whatever the strategy.
        average: Decay of a moving average over the weights of all steps, which is what is kept then; ``None`` for none.
        teacher: Whose answers are learned beside the labels: ``start``, which is the model itself before its training, or a factory
            ``module:function`` of the project.
        teacher_weight: Share of the loss that is the teacher's, 0..1.
        temperature: By which the logits of both are divided where they are compared.
        patience: Epochs without a better one after which training ends; ``None`` to run them all.
        threads: CPU threads of one training step. Fixed, as another number may give other weights; for networks as small
            as a digit classifier, 1 is as fast as more, and does not suffer from neighbours.
        device: ``auto`` takes a GPU when there is one.
        precision: What a GPU computes in: ``auto`` takes ``bfloat16`` where it has it, and ``float16`` on older ones. A CPU takes ``float32``.
        compile: Whether ``torch.compile`` makes the training step: ``auto`` on a GPU, where it pays.
    """

    epochs: Count = 10
    batch_size: Count = 32
    accumulate: Count = 1
    learning_rate: Positive = 1e-3
    layer_decay: Annotated[Number, Field(gt=0, le=1)] = 1.0
    weight_decay: Annotated[Number, Field(ge=0)] = 0.01
    warmup: Fraction = 0.1
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    augment: tuple[Literal["flip", "crop", "rotate", "brightness", "erase"], ...] = ()
    mixup: Annotated[Number, Field(ge=0)] = 0.0
    cutmix: Annotated[Number, Field(ge=0)] = 0.0
    balance: Literal["none", "weights", "sampler"] = "none"
    strategy: Literal["full", "head", "last", "gradual", "lora", "qat"] = "full"
    blocks: Count = 1
    lora_rank: Count = 8
    lora_alpha: Positive | None = None
    lora_targets: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    average: Annotated[Number, Field(gt=0, lt=1)] | None = None
    teacher: str | None = None
    teacher_weight: Fraction = 0.5
    temperature: Positive = 2.0
    patience: Count | None = None
    threads: Count = 2
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: Literal["auto", "always", "never"] = "auto"

    @model_validator(mode="after")
    def _fit(self) -> Finetune:
        # A stage is handed all settings, so that what counts is whether one differs from its default.
        changed = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        if self.blocks != 1 and self.strategy != "last":
            raise ValueError('blocks goes with strategy = "last"')
        if self.strategy != "lora" and {"lora_rank", "lora_alpha", "lora_targets"} & changed:
            raise ValueError('lora_rank, lora_alpha and lora_targets go with strategy = "lora"')
        if not self.teacher and {"teacher_weight", "temperature"} & changed:
            raise ValueError("teacher_weight and temperature go with a teacher")
        if len(set(self.augment)) < len(self.augment):
            raise ValueError("augment must not repeat")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate takes a step's samples in {self.accumulate} parts, but batch_size is {self.batch_size}")
        return self
