"""Small networks for what the collections have no plain model of: transposed convolutions, suppression of boxes, recurrence, pixel shuffling.

They take samples by position and have random weights, like the models of the collections.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from benchmarks.coverage.models import SAMPLES, Inputs

KEPT = 20
"""Boxes that the detector returns, whatever the picture."""


def built(name: str) -> tuple[Any, Inputs]:
    """Returns a network, as it is made, and samples for it."""
    import torch

    torch.manual_seed(0)
    return {"unet": _unet, "detector_nms": _detector, "speech_lstm": _speech_lstm, "speech_gru": _speech_gru, "super_resolution": _larger}[name]()


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(SAMPLES, *shape)).astype(np.float32)


def _block(given: int, made: int, stride: int = 1) -> Any:
    from torch import nn

    return nn.Sequential(nn.Conv2d(given, made, 3, stride, 1, bias=False), nn.BatchNorm2d(made), nn.ReLU())


def _unet() -> tuple[Any, Inputs]:
    import torch
    from torch import nn

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = (16, 32, 64, 128)
            self.down = nn.ModuleList(nn.Sequential(_block(a, b), _block(b, b)) for a, b in itertools.pairwise((3, *widths)))
            self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in itertools.pairwise(widths))
            self.join = nn.ModuleList(_block(2 * a, a) for a in widths[:-1])
            self.pool, self.last = nn.MaxPool2d(2), nn.Conv2d(widths[0], 4, 1)

        def forward(self, image: Any) -> Any:
            x, seen = self.down[0](image), []
            for down in self.down[1:]:
                seen.append(x)
                x = down(self.pool(x))
            for up, join, before in zip(reversed(self.up), reversed(self.join), reversed(seen), strict=True):
                x = join(torch.cat([up(x), before], 1))
            return self.last(x)

    return UNet(), {"image": _normal(3, 128, 128)}


def _detector() -> tuple[Any, Inputs]:
    """A one-stage detector whose suppression is in the graph: ``torchvision.ops.nms``, which ONNX has as NonMaxSuppression.

    How many boxes it keeps depends on the picture; filled up with empty ones and cut, there are always as many.
    """
    import torch
    import torchvision
    from torch import nn

    grid, anchors = 10, 3

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(_block(3, 16, 2), _block(16, 32, 2), _block(32, 64, 2), _block(64, 64, 2))
            self.head = nn.Conv2d(64, anchors * 5, 1)
            places = (torch.arange(grid) + 0.5) / grid
            y, x = torch.meshgrid(places, places, indexing="ij")
            self.register_buffer("centers", torch.stack([x, y], -1)[:, :, None].expand(grid, grid, anchors, 2).reshape(-1, 2).clone())

        def forward(self, image: Any) -> tuple[Any, Any]:
            found = self.head(self.body(image)).permute(0, 2, 3, 1).reshape(-1, 5)
            center, half = self.centers + 0.1 * torch.tanh(found[:, :2]), 0.15 * torch.sigmoid(found[:, 2:4])
            boxes, scores = torch.cat([center - half, center + half], 1), torch.sigmoid(found[:, 4])
            kept = torchvision.ops.nms(boxes, scores, 0.5)
            kept = torch.cat([kept, kept.new_full((KEPT,), len(boxes))])[:KEPT]
            boxes, scores = torch.cat([boxes, boxes.new_zeros(1, 4)]), torch.cat([scores, scores.new_zeros(1)])
            return boxes[kept][None], scores[kept][None]

    return Detector(), {"image": _normal(3, 16 * grid, 16 * grid)}


def _speech_lstm() -> tuple[Any, Inputs]:
    return _speech("LSTM")


def _speech_gru() -> tuple[Any, Inputs]:
    return _speech("GRU")


def _speech(kind: str) -> tuple[Any, Inputs]:
    """Letters from mel features: two convolutions, two recurrent layers in both directions, and a probability for each letter."""
    from torch import nn

    class Speech(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolutions = nn.Sequential(nn.Conv1d(80, 96, 3, 2, 1), nn.ReLU(), nn.Conv1d(96, 96, 3, 1, 1), nn.ReLU())
            self.recurrent = getattr(nn, kind)(96, 64, num_layers=2, bidirectional=True, batch_first=True)
            self.letters = nn.Linear(128, 29)

        def forward(self, mel: Any) -> Any:
            states, _ = self.recurrent(self.convolutions(mel).transpose(1, 2))
            return self.letters(states).log_softmax(-1)

    return Speech(), {"mel": _normal(80, 100)}


def _larger() -> tuple[Any, Inputs]:
    from torch import nn

    class Larger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 32, 5, 1, 2)
            self.body = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Conv2d(32, 32, 3, 1, 1), nn.PReLU(32))))
            self.last, self.shuffle = nn.Conv2d(32, 3 * 9, 3, 1, 1), nn.PixelShuffle(3)

        def forward(self, image: Any) -> Any:
            x = self.first(image)
            return self.shuffle(self.last(x + self.body(x)))

    return Larger(), {"image": _normal(3, 64, 64)}
