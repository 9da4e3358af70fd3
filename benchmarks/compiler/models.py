"""The models: those of the coverage table that PyTorch has, and what they lack."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks.compiler import networks
from benchmarks.coverage.models import Inputs, Model
from benchmarks.coverage.models import models as of_coverage

COLLECTED = ("deeplabv3_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large#head")
OWN = ("unet", "detector_nms", "speech_lstm", "speech_gru", "super_resolution")


def models() -> dict[str, Model]:
    """Returns all rows, by name."""
    rows = [
        *(row for row in of_coverage().values() if row.framework == "torch"),
        *(Model(f"torchvision:{name}", "torch", partial(_collected, name)) for name in COLLECTED),
        *(Model(f"own:{name}", "torch", partial(_own, name)) for name in OWN),
    ]
    return {row.name: row for row in rows}


def _collected(name: str) -> tuple[Any, Inputs]:
    """A model of Edgekit's own collection, where it leaves out what only training needs."""
    from toolkit.collections.torchvision import COLLECTION

    built = COLLECTION.build(name)
    repeated = {key: np.concatenate([values, values[:, ..., ::-1]])[:4] for key, values in built.examples.items()}
    return _plain(built.model), {key: np.ascontiguousarray(values) for key, values in repeated.items()}


def _own(name: str) -> tuple[Any, Inputs]:
    """One of our networks with statistics that fit its samples."""
    from toolkit.collections.examples import settle

    model, inputs = networks.built(name)
    settle(model.eval(), next(iter(inputs.values()))[:1])
    return model, inputs


def _plain(model: Any) -> Any:
    """Makes a module that returns a tuple in place of a dictionary, as all peers take."""
    import torch

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Any) -> Any:
            found = self.model(image)
            return tuple(found[name] for name in found if name != "aux") if isinstance(found, dict) else found

    return Plain().eval()
