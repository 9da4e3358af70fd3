"""Where samples come from: the table ``[data]`` of a project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from toolkit.artifact import Frozen
from toolkit.limits import Count, Number, Positive
from toolkit.mistakes import FactoryName

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Image(Frozen):
    """How a picture becomes numbers: decoded, turned upright, resized, cut, and ``(value / 255 - mean) / std``.

    Attributes:
        size: Height and width in pixels; one number for both.
        resize: ``crop`` brings the shorter side to the size and cuts the middle out, ``pad`` brings the longer side there and fills up with the
            mean, ``stretch`` changes the proportions. Bilinear, antialiased.
        channels: 3 for RGB, 1 for grey.
        mean: By channel, of values 0..1; ImageNet's by default, 0.5 for grey.
        std: Likewise.
        column: Name of the model's input.
    """

    size: Count | tuple[Count, Count] = 224
    resize: Literal["crop", "pad", "stretch"] = "crop"
    channels: Literal[1, 3] = 3
    mean: tuple[Number, ...] = ()
    std: tuple[Positive, ...] = ()
    column: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.-]*$")] = "image"

    @model_validator(mode="after")
    def _by_channel(self) -> Image:
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (0, self.channels):
                raise ValueError(f"{name} has {len(getattr(self, name))} numbers, and pictures have {self.channels} channels")
        return self

    def resolved(self) -> dict[str, Any]:
        """Returns everything that decides the numbers, with defaults filled in."""
        mean, std = (_IMAGENET_MEAN, _IMAGENET_STD) if self.channels == 3 else ((0.5,), (0.5,))
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return {
            "height": height,
            "width": width,
            "resize": self.resize,
            "channels": self.channels,
            "mean": list(self.mean or mean),
            "std": list(self.std or std),
            "column": self.column,
        }


class Data(Frozen):
    """Where samples come from: a factory in the project, or files.

    A file is ``.npz`` or a folder of ``.npy`` files, which hold the model's inputs; a folder of pictures ``<class>/*.jpg``; a table of
    texts (``.csv``, ``.tsv``, ``.jsonl``, ``.parquet``); or a folder that Hugging Face ``datasets`` saved.

    Attributes:
        factory: ``module:function`` returning ``{"train": columns, "eval": columns}``.
        train: The training split.
        eval: The held-out split; without one, a share of the training split becomes it, which is written down in ``split.json``.
        eval_share: That share; every class gives its own.
        depends: Files and folders that the factory reads and that lie outside the project's folder, or that the model does
            not depend on. Everything else in the project's folder counts for the data and for the model alike.
        classes: Names of the classes, by index; those that the files name, sorted, by default.
        text: The column of a table that holds the text, or the two of a pair.
        label: The column that holds the class, by name or index.
        group: A column, or for pictures a regular expression that finds a part of the file's name: what is equal there, as a patient is,
            stays on one side when the split is made.
        tokenizer: Folder or hub id of the tokenizer; that of the model's folder by default.
        max_length: Tokens of a sample; longer texts are cut, shorter ones filled up.
        image: How pictures become numbers.
    """

    factory: FactoryName | None = None
    train: Path | None = None
    eval: Path | None = None
    eval_share: Annotated[Number, Field(gt=0, lt=1)] = 0.2
    depends: tuple[Path, ...] = ()
    classes: tuple[str, ...] = ()
    text: str | tuple[str, str] | None = None
    label: str = "label"
    group: str | None = None
    tokenizer: str | None = None
    max_length: Count = 128
    image: Image = Image()

    @model_validator(mode="after")
    def _one_origin(self) -> Data:
        if bool(self.factory) == bool(self.eval or self.train):
            raise ValueError("give either factory, or train and eval files")
        if self.factory and (self.text or self.group or self.tokenizer or self.image != Image()):
            raise ValueError("text, group, tokenizer and image are for files; a factory prepares its samples itself")
        if self.eval and self.group:
            raise ValueError("group decides how a split is made, and eval gives one")
        return self

    def reading(self) -> dict[str, Any]:
        """Returns how files are read, for a stage."""
        texts = [self.text] if isinstance(self.text, str) else list(self.text or ())
        return {
            "text": texts,
            "label": self.label,
            "group": self.group,
            "eval_share": self.eval_share,
            "max_length": self.max_length,
            "image": self.image.resolved(),
        }
