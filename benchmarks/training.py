"""Training speed: Edgekit's loop against a bare PyTorch loop, on the same model and batches, in turns in one process.

The bare loop clears gradients, computes, goes back and steps, with the same optimizer, and looks at no loss. Ours also schedules the learning
rate, cuts gradients, watches for NaN and reports. On a GPU both compute in bfloat16 and are compiled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.figures import Figure, ratios, turns

LEAST = 0.95
PER_ROUND = 5
BLOCK_SECONDS = 1.5
THREADS = 1
LEAST_STEPS = 9
LEARNING_RATE = 1e-4
Loop = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """A model, and samples of one size.

    Attributes:
        name: Its name in the table.
        build: Makes the model.
        columns: Makes that many samples.
        batch_size: Samples of one step on a CPU; a GPU takes eight times as many.
    """

    name: str
    build: Callable
    columns: Callable[[int], dict[str, np.ndarray]]
    batch_size: int


def measure(rounds: int) -> list[Figure]:
    """Compares both loops on a convolutional network for digits, one of MobileNet's kind, and a text encoder."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(THREADS)
    return [figure for case in _cases() for figure in _compare(case, device, rounds)]


def _cases() -> list[Case]:
    pictures = lambda channels, side: lambda count: {"image": np.random.default_rng(0).normal(size=(count, channels, side, side)).astype(np.float32)}  # noqa: E731
    words = lambda count: {"ids": np.random.default_rng(0).integers(0, 1000, (count, 32))}  # noqa: E731
    return [
        Case("digits", _digits, pictures(1, 8), 32),
        Case("separable", _separable, pictures(3, 64), 16),
        Case("encoder", _encoder, words, 16),
    ]


def _digits():
    from torch import nn

    trio = lambda before, after: (nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())  # noqa: E731
    return nn.Sequential(*trio(1, 32), *trio(32, 64), nn.MaxPool2d(2), *trio(64, 64), nn.Flatten(), nn.Linear(1024, 96), nn.ReLU(), nn.Linear(96, 10))


def _separable():
    """MobileNetV1 at a quarter of its width."""
    from torch import nn

    layers, before = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()], 8
    for after, stride in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1)):
        layers += [nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False), nn.BatchNorm2d(before), nn.ReLU()]
        layers += [nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def _encoder():
    """Four layers of width 128."""
    import torch
    from torch import nn

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(1000, 128)
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(128, 4, 512, dropout=0.1, batch_first=True) for _ in range(4))
            self.head = nn.Linear(128, 10)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            hidden = self.words(ids)
            for layer in self.layers:
                hidden = layer(hidden)
            return self.head(hidden.mean(dim=1))

    return Encoder()


def _compare(case: Case, device: str, rounds: int) -> list[Figure]:
    from toolkit.dataset import Dataset

    size = case.batch_size * (8 if device == "cuda" else 1)
    steps = max(LEAST_STEPS, round(BLOCK_SECONDS * _bare(case, _data(case, 8 * size), size, device)() / size))
    data = _data(case, steps * size)
    loops: dict[str, Loop] = {"ours": _ours(case, Dataset(data["columns"], data["label"]), size, device), "bare": _bare(case, data, size, device)}
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for name in loops:
        loops[name]()  # what is compiled, and memory that is taken once
    for name in turns(list(loops), rounds * PER_ROUND):
        rates[name].append(loops[name]() / size)
    what = f"steps per second over the bare loop's, {device}, batch {size}, {steps} steps a block"
    return [
        Figure(f"training.{case.name}", "x", ratios(rates["ours"], rates["bare"]), what, at_least=LEAST),
        Figure(f"training.{case.name}.bare", "ms", [1e3 / rate for rate in rates["bare"]], "the bare loop, milliseconds a step"),
    ]


def _data(case: Case, count: int) -> dict:
    return {"columns": case.columns(count), "label": np.random.default_rng(1).integers(0, 10, count)}


def _ours(case: Case, data, size: int, device: str) -> Loop:
    import torch

    from toolkit.finetuning import calling, loop, precision
    from toolkit.training import Finetune

    torch.manual_seed(0)
    caller = calling.Caller(case.build().to(device), list(data.columns), device)
    if device == "cuda":
        caller.compile(required=True)
    settings = Finetune(epochs=1, batch_size=size, learning_rate=LEARNING_RATE)
    rows = np.arange(len(data))

    def run() -> float:
        trainer = loop.Trainer(caller, settings, precision=precision.choose("auto", device))
        trainer.run(data, rows, rows[:1], 0)
        return trainer.samples_per_second

    return run


def _bare(case: Case, data: dict, size: int, device: str) -> Loop:
    import torch

    torch.manual_seed(0)
    model = case.build().to(device)
    forward = torch.compile(model) if device == "cuda" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=device == "cuda")
    label = data["label"]
    order = np.random.default_rng(0).permutation(len(label))

    def run() -> float:
        model.train()
        started = 0.0
        for start in range(0, len(order), size):
            started = time.perf_counter() if start == size else started  # the first step does not count on either side
            rows = order[start : start + size]
            inputs = [torch.from_numpy(column[rows]).to(device) for column in data["columns"].values()]
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = torch.nn.functional.cross_entropy(forward(*inputs), torch.from_numpy(label[rows]).to(device))
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return (len(order) - size) / (time.perf_counter() - started)

    return run
