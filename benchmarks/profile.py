"""Profiles held against the clock: do the operators add up to what an inference takes, and is their layer known?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure, Skipped

LEAST, MOST = 0.9, 1.1
KNOWN = 0.9
SECONDS = 1.0
SAMPLES = 64
TARGETS = {"onnx": "desktop-ort", "tflite": "desktop-litert"}
VOCABULARY, SEQUENCE = 1000, 64


def measure(rounds: int) -> list[Figure]:
    """Profiles an untrained MobileNetV2 and an untrained DistilBERT on both runtimes, in float and in int8."""
    found: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as scratch:
        for name, build, scheme in (("mobilenet_v2", _mobilenet, "static_wi8_ai8"), ("distilbert", _distilbert, "dynamic_wi8")):
            try:
                for file, samples in _files(name, build, scheme, Path(scratch)):
                    found += _figures(file, samples, rounds, Path(scratch))
            except Skipped as reason:
                print(f"profile: {name} left out: {reason}")
    return found


def _figures(model: Path, samples: dict[str, np.ndarray], rounds: int, scratch: Path) -> list[Figure]:
    import toolkit
    from toolkit.store import Store

    store, target = Store(scratch / "cache"), TARGETS[model.suffix[1:]]
    profiles = [toolkit.profile(model, target=target, data=samples, seconds=SECONDS, store=store) for _ in range(rounds)]
    shares = [sum(one.share for one in profile.operators if one.layer) for profile in profiles]
    totals = [profile.total_ms / profile.latency_ms for profile in profiles]
    name = f"profile.{model.name}"
    return [
        Figure(f"{name}.total", "x", totals, "sum of all operators over the latency without recording", at_least=LEAST, at_most=MOST),
        Figure(f"{name}.layers", "x", shares, "share of the time whose layer is known", at_least=KNOWN),
        Figure(f"{name}.latency", "ms", [profile.latency_ms for profile in profiles], "median latency without recording"),
    ]


def _files(
    name: str, build: Callable[[], tuple[Any, dict[str, np.ndarray]]], scheme: str, scratch: Path
) -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
    """Exports a model to both formats, and quantizes each file."""
    try:
        model, samples = build()
    except ImportError as error:
        raise Skipped(str(error)) from None
    import toolkit
    from toolkit.store import Store

    store = Store(scratch / "cache")
    for format in TARGETS:
        whole = scratch / f"{name}.float32.{format}"
        toolkit.export(model, {key: values[:8] for key, values in samples.items()}, format=format, name=name, output=whole, store=store)
        yield whole, samples
        small = scratch / f"{name}.{scheme}.{format}"
        toolkit.quantize(whole, scheme=scheme, calibration=samples, samples=len(next(iter(samples.values()))), output=small, store=store)
        yield small, samples


def _mobilenet() -> tuple[Any, dict[str, np.ndarray]]:
    import torch
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    mosaics = np.random.default_rng(0).random((SAMPLES, 3, 28, 28), dtype=np.float32).repeat(8, 2).repeat(8, 3)
    return mobilenet_v2(weights=None).eval(), {"image": mosaics}


def _distilbert() -> tuple[Any, dict[str, np.ndarray]]:
    import torch
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    class Logits(torch.nn.Module):
        """Takes and gives tensors alone."""

        def __init__(self) -> None:
            super().__init__()
            config = DistilBertConfig(vocab_size=VOCABULARY, dim=256, hidden_dim=1024, n_layers=4, n_heads=4, num_labels=4)
            self.model = DistilBertForSequenceClassification(config)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    torch.manual_seed(0)
    words = np.minimum(np.random.default_rng(0).zipf(1.3, (SAMPLES, SEQUENCE)), VOCABULARY - 1)
    return Logits().eval(), {"input_ids": words, "attention_mask": np.ones_like(words)}
