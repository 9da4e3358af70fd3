"""Networks that are trained to real accuracy on handwritten digits, each in minutes of one core, and kept as files.

python -m benchmarks.quantization.models NAME FOLDER
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parents[2] / "../shared/data/mnist_12k.npz"
SEED = 0
EVALUATION, CALIBRATION, SEARCH = 2000, 256, 512


@dataclass(frozen=True)
class Recipe:
    """How a network is made and trained.

    Attributes:
        build: Makes it.
        pixels: Width and height of its pictures.
        epochs: Passes over the training samples.
        rate: Peak learning rate.
        batch: Samples of a step.
    """

    build: Callable[[], Any]
    pixels: int
    epochs: int
    rate: float
    batch: int = 64


def _torchvision(name: str) -> Callable[[], Any]:
    def build() -> Any:
        import torchvision

        return getattr(torchvision.models, name)(num_classes=10)

    return build


def _vit() -> Any:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=32, patch_size=4, embed_dim=128, depth=6, num_heads=4, num_classes=10)


RECIPES = {
    "mobilenet_v3_small": Recipe(_torchvision("mobilenet_v3_small"), 64, 5, 2e-3),
    "mobilenet_v2": Recipe(_torchvision("mobilenet_v2"), 48, 3, 2e-3),
    "efficientnet_b0": Recipe(_torchvision("efficientnet_b0"), 48, 3, 2e-3),
    "resnet18": Recipe(_torchvision("resnet18"), 48, 2, 1e-3),
    "vit": Recipe(_vit, 32, 8, 1e-3),
}


def splits(pixels: int) -> dict[str, dict[str, np.ndarray]]:
    """The digits ``[n x 3 x h x w] float32, -1..1``: ``train``, ``calibration``, ``search`` and ``eval``, none in two of them."""
    import torch

    with np.load(DATA) as archive:
        keys = sorted(archive.files, key=lambda name: archive[name].ndim)
        label, pictures = archive[keys[0]].astype(np.int64), archive[keys[-1]]
    order = np.random.default_rng(SEED).permutation(len(label))
    ends = np.cumsum([EVALUATION, CALIBRATION, SEARCH])
    parts = dict(zip(("eval", "calibration", "search", "train"), np.split(order, ends), strict=True))
    grey = torch.from_numpy(pictures.reshape(-1, 1, 28, 28).astype(np.float32)) / 127.5 - 1
    sized = torch.nn.functional.interpolate(grey, size=(pixels, pixels), mode="bilinear", align_corners=False)
    whole = sized.expand(-1, 3, -1, -1).numpy()
    return {name: {"image": np.ascontiguousarray(whole[rows]), "label": label[rows]} for name, rows in parts.items()}


def trained(name: str, folder: Path) -> Any:
    """Returns a trained network, in inference mode; trains it where the folder has not kept it."""
    import torch

    torch.manual_seed(SEED)
    recipe = RECIPES[name]
    model, kept = recipe.build(), folder / f"{name}.pt"
    if not kept.exists():
        _train(model, recipe)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), kept)
    model.load_state_dict(torch.load(kept, weights_only=True))
    return model.eval()


def _train(model: Any, recipe: Recipe) -> None:
    import torch

    data = splits(recipe.pixels)["train"]
    image, label = torch.from_numpy(data["image"]), torch.from_numpy(data["label"])
    steps = recipe.epochs * (len(label) // recipe.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps)
    generator = torch.Generator().manual_seed(SEED)
    model.train()
    for _ in range(recipe.epochs):
        started, order = time.monotonic(), torch.randperm(len(label), generator=generator)
        for rows in order[: len(label) // recipe.batch * recipe.batch].split(recipe.batch):
            loss = torch.nn.functional.cross_entropy(model(image[rows]), label[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"loss {loss.item():.3f}, {time.monotonic() - started:.0f} s", flush=True)


def accuracy(model: Any, data: dict[str, np.ndarray]) -> float:
    """Share of right answers."""
    import torch

    with torch.no_grad():
        scores = torch.cat([model(part) for part in torch.from_numpy(data["image"]).split(100)])
    return float((scores.argmax(1).numpy() == data["label"]).mean())


def main() -> None:
    """Trains one network."""
    import torch

    parser = argparse.ArgumentParser(description="Train a network on handwritten digits.")
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = trained(given.name, given.folder)
    print(f"{given.name}: {accuracy(model, splits(RECIPES[given.name].pixels)['eval']):.4f} of {EVALUATION}")


if __name__ == "__main__":
    main()
