"""Where samples come from: the table ``[data]`` of a project."""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

from toolkit.artifact import Frozen
from toolkit.mistakes import FactoryName


class Data(Frozen):
    """Where samples come from: a factory in the project, or two files.

    Attributes:
        factory: ``module:function`` returning ``{"train": columns, "eval": columns}``.
        train: ``.npz`` file or folder of ``.npy`` files with the training split.
        eval: Likewise with the held-out split.
        depends: Files and folders that the factory reads and that lie outside the project's folder, or that the model does
            not depend on. Everything else in the project's folder counts for the data and for the model alike.
        classes: Names of the classes, by index.
    """

    factory: FactoryName | None = None
    train: Path | None = None
    eval: Path | None = None
    depends: tuple[Path, ...] = ()
    classes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_origin(self) -> Data:
        if bool(self.factory) == bool(self.eval):
            raise ValueError("give either factory, or eval (and train) files")
        return self
