"""Brain MRI slices, and MobileNetV1 0.25x with weights from natural pictures.

Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications" (2017).
"""

import os
from pathlib import Path

import numpy as np
from torch import nn
from torch.nn import functional as F

from toolkit.errors import SetupError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
SIZE = 128  # pixels, both ways
HELD_OUT = 150  # of each class
ALIKE = 0.96  # correlation of two thumbnails from which on one of them shows what the other does
# Channels and stride of the thirteen pairs of a depthwise and a pointwise convolution.
PAIRS = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1))


def load():
    """Returns the two splits: ``image`` [n x 1 x 128 x 128] float32 in -1..1, and ``label`` [n].

    Files are numbered by patient as far as can be seen, so the last of each class are held out instead of random ones. Slices of one
    patient that are still on both sides look alike: those leave the training split.
    """
    files = [sorted((folder() / name).glob("*.jpg")) for name in CLASSES]
    images = np.stack([picture(file, SIZE) for one in files for file in one])
    label = np.repeat(np.arange(len(CLASSES)), [len(one) for one in files])
    held = np.concatenate([np.arange(len(one)) >= len(one) - HELD_OUT for one in files])
    thumbnails = np.stack([picture(file, 32).ravel() for one in files for file in one])
    seen = (correlation(thumbnails, thumbnails[held]) > ALIKE).any(axis=1)
    return {name: {"image": images[rows], "label": label[rows]} for name, rows in (("train", ~held & ~seen), ("eval", held))}


def pretrained():
    """Returns the network with the ImageNet weights of all layers but the last, which starts anew."""
    from safetensors.torch import load_file

    model, weights = untrained(), load_file(backbone())
    # A slice is grey: the sum of a filter over red, green and blue gives what three equal channels would.
    weights["features.0.conv.weight"] = weights["features.0.conv.weight"].sum(dim=1, keepdim=True)
    model.load_state_dict({name: weights.get(name, tensor) if name.startswith("features") else tensor for name, tensor in model.state_dict().items()})
    return model


def untrained():
    """Returns the same network with random weights."""
    return MobileNet(len(CLASSES))


class MobileNet(nn.Module):
    """MobileNetV1 of a quarter of the channels, for grey pictures [n x 1 x h x w]."""

    def __init__(self, classes):
        super().__init__()
        layers, channels = [Layer(1, 8, 3, stride=2)], 8
        for wide, stride in PAIRS:
            layers += [Layer(channels, channels, 3, stride, groups=channels), Layer(channels, wide, 1)]
            channels = wide
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, image):
        return self.classifier(self.dropout(self.features(image).mean(dim=(2, 3))))


class Layer(nn.Module):
    """Convolution, batch norm and ReLU6, padded as TensorFlow does it: at the right and the bottom where the stride is two."""

    def __init__(self, channels_in, channels_out, kernel, stride=1, groups=1):
        super().__init__()
        padding = kernel // 2 if stride == 1 else 0
        self.pad = stride == 2
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, eps=1e-3)

    def forward(self, x):
        return F.relu6(self.bn(self.conv(F.pad(x, (0, 1, 0, 1)) if self.pad else x)))


def folder():
    """Returns the folder with one folder of pictures for each class: that of ``BRAIN_MRI``."""
    return given("BRAIN_MRI", SHARED / "medical" / "brain_mri_train", "the folder with the pictures: glioma, meningioma, notumor, pituitary")


def backbone():
    """Returns the ``.safetensors`` file with the ImageNet weights: that of ``MOBILENET``."""
    name = "mobilenet_v1_0.25_224_imagenet_torch.safetensors"
    return given("MOBILENET", SHARED / "backbones" / name, "the weights: see the README of this example")


def given(variable, default, what):
    """Returns the path that an environment variable names, or the default."""
    path = Path(os.environ.get(variable, default))
    if not path.exists():
        raise SetupError("does not exist", where=str(path), hint=f"set the environment variable {variable} to {what}")
    return path


def picture(file, size):
    """Reads a picture as grey values ``[1 x size x size] float32`` in -1..1."""
    from PIL import Image

    with Image.open(file) as opened:
        grey = opened.convert("L").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(grey, np.float32)[np.newaxis] / 127.5 - 1


def correlation(these, those):
    """Returns the correlation of each of these rows with each of those."""
    these, those = (rows - rows.mean(axis=1, keepdims=True) for rows in (these, those))
    return (these / np.linalg.norm(these, axis=1, keepdims=True)) @ (those / np.linalg.norm(those, axis=1, keepdims=True)).T
