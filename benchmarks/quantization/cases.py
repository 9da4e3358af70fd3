"""The networks of the comparison: trained on digits (:mod:`benchmarks.quantization.models`), and pretrained ones with the data they are for.

python -m benchmarks.quantization.cases NAME FORMAT FOLDER   # writes the float file and its samples
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.figures import ROOT
from benchmarks.quantization import keywords, models

DATA = ROOT.parent / "shared" / "data"
PARTS = ("calibration", "search", "eval")
Splits = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Case:
    """A network, its weights and its samples.

    Attributes:
        data: What it is judged on, in words.
        splits: Gives ``calibration``, ``search`` and ``eval`` (and ``train``), none of which share a sample.
        model: Gives the network, trained, or its file; it may keep weights in the folder that it is given.
        recipe: Edgekit's calibration recipe.
    """

    data: str
    splits: Callable[[], Splits]
    model: Callable[[Path], Any]
    recipe: str = "image-classification"


def write(name: str, format: str, folder: Path) -> None:
    """Writes ``float.<format>`` and the samples of each part as ``<part>.npz``."""
    import toolkit
    from toolkit.store import Store

    case, parts = CASES[name], CASES[name].splits()
    model = case.model(folder.parent / "weights")
    for part in PARTS:
        columns: dict[str, Any] = dict(parts[part])
        np.savez(folder / f"{part}.npz", **columns)
    example = {column: rows[:4] for column, rows in parts["calibration"].items() if column != "label"}
    toolkit.export(model, example, format=format, output=folder / f"float.{format}", name=name.replace(" ", "-"), store=Store(folder / "store"))


def _imagenet() -> Splits:
    """250 ImageNet pictures ``[n x 3 x 224 x 224] float32`` in -1..1, the middle of each."""
    from PIL import Image

    place = DATA / "imagenet_samples_250"
    lines = [line.split(",") for line in (place / "labels.csv").read_text(encoding="utf-8").split()]
    image = np.empty((len(lines), 3, 224, 224), np.float32)
    for row, (file, _) in enumerate(lines):
        with Image.open(place / file) as opened:
            whole = np.asarray(opened.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR), np.float32)
        image[row] = whole[16:240, 16:240].transpose(2, 0, 1) / 127.5 - 1
    return _dealt({"image": image, "label": np.array([int(label) for _, label in lines])}, calibration=64, search=64)


def _mobilenet_v1(weights: Path) -> Any:
    from safetensors.torch import load_file

    mri = _example("medical-imaging", "mri")
    model = mri.MobileNet(1000)
    model.features[0] = mri.Layer(3, 8, 3, stride=2)
    model.load_state_dict(load_file(mri.backbone()))
    return model.eval()


def _cifar() -> Splits:
    """CIFAR-10 ``[n x 32 x 32 x 3] float32`` in 0..255, as MLPerf Tiny's network takes it."""
    with np.load(DATA / "cifar10" / "cifar10_train4000_lossless.npz") as file:
        columns = {"input_1": file["x"].astype(np.float32), "label": file["y"].astype(np.int64)}
    return _dealt(columns, calibration=256, search=512, most=2000)


def _resnet8(weights: Path) -> Any:
    import keras

    return keras.models.load_model(DATA / "mlperf_tiny" / "ic" / "pretrainedResnet.h5", compile=False)


def _keywords() -> Splits:
    return _dealt(keywords.load(DATA / "audio" / "speech_commands_v0.01_300"), calibration=50, search=50)


def _ds_cnn(weights: Path) -> Any:
    return DATA / "mlperf_tiny" / "kws" / "kws_ref_model"


def _mri() -> Splits:
    found = _example("medical-imaging", "mri").load()
    apart = _dealt(found["train"], calibration=128, search=200, rest="train")
    return {**apart, "eval": found["eval"]}


def _mri_model(weights: Path) -> Any:
    model, splits = _example("medical-imaging", "mri").pretrained(), _mri()
    return _tuned(model, splits["train"], weights / "mri.pt", epochs=12, batch_size=32, learning_rate=2e-3, augment=("flip",))


def _digits() -> Splits:
    found = _example("digits", "digits").load()
    return {**_dealt(found["train"], calibration=128, search=200, rest="train"), "eval": found["eval"]}


def _digits_model(weights: Path) -> Any:
    model, settings = _example("digits", "digits").build(), {"weight_decay": 0.02, "label_smoothing": 0.05}
    return _tuned(model, _digits()["train"], weights / "digits.pt", epochs=20, batch_size=32, learning_rate=3e-3, **settings)


def _sst2() -> Splits:
    sentiment = _example("sentiment", "sentiment")
    tokens, (texts, label) = sentiment.tokenizer(), sentiment.read("train.tsv")
    held, held_label = sentiment.read("dev.tsv")
    _, first = np.unique(texts, return_index=True)
    rows = first[~np.isin(texts[first], held)]
    dealt = _dealt({"text": texts[rows], "label": label[rows]}, calibration=128, search=512, most=sentiment.SENTENCES, rest="train")
    dealt["eval"] = {"text": held, "label": held_label}
    return {name: {**sentiment.encode(tokens, part["text"]), "label": part["label"]} for name, part in dealt.items()}


def _minilm(weights: Path) -> Any:
    model = _example("sentiment", "sentiment").pretrained()
    return _tuned(model, _sst2()["train"], weights / "minilm.pt", epochs=2, batch_size=32, learning_rate=1e-4)


def _tuned(model: Any, train: Mapping[str, np.ndarray], kept: Path, **settings: Any) -> Any:
    import torch

    import toolkit

    if not kept.exists():
        tuned = toolkit.finetune(model, dict(train), device="cpu", threads=1, seed=models.SEED, **settings)
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(tuned.model.state_dict(), kept)
    model.load_state_dict(torch.load(kept, weights_only=True))
    return model.eval()


def _dealt(columns: Mapping[str, np.ndarray], *, calibration: int, search: int, most: int | None = None, rest: str = "eval") -> Splits:
    """Shares samples out at random; ``rest`` names the part that gets what is left, at most so many."""
    order = np.random.default_rng(models.SEED).permutation(len(columns["label"]))
    parts = np.split(order, np.cumsum([calibration, search]))
    parts[2] = parts[2][:most]
    return {name: {column: rows[part] for column, rows in columns.items()} for name, part in zip(("calibration", "search", rest), parts, strict=True)}


def _example(folder: str, module: str) -> ModuleType:
    from importlib import import_module

    sys.path.insert(0, str(ROOT / "examples" / folder))
    try:
        return import_module(module)
    finally:
        sys.path.pop(0)


CASES = {
    **{
        name: Case(f"MNIST at {recipe.pixels} x {recipe.pixels}", partial(models.splits, recipe.pixels), partial(models.trained, name))
        for name, recipe in models.RECIPES.items()
    },
    "mobilenet_v1": Case("ImageNet, pictures of its training", _imagenet, _mobilenet_v1),
    "resnet8": Case("CIFAR-10, pictures of its training", _cifar, _resnet8),
    "ds_cnn": Case("30 spoken words, 10 of them keywords", _keywords, _ds_cnn, "audio-classification"),
    "mri": Case("brain MRI", _mri, _mri_model),
    "digits": Case("handwritten digits", _digits, _digits_model),
    "minilm": Case("SST-2", _sst2, _minilm, "text-classification"),
}
"""All networks by name."""


def main() -> None:
    """Writes one network."""
    parser = argparse.ArgumentParser(description="Write a float model and its samples.")
    parser.add_argument("name", choices=CASES)
    parser.add_argument("format")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    write(given.name, given.format, given.folder)


if __name__ == "__main__":
    main()
