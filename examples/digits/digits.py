"""Handwritten digits, 8 x 8 pixels: data that scikit-learn ships inside its package, and a small network for them."""

import numpy as np
from torch import nn

HELD_OUT = 900  # of 1797: enough to see a change of one percentage point
FEW = 10  # labelled samples of each digit, where there are few


def load():
    """Returns the two splits, ``image`` [n x 1 x 8 x 8] float32 in 0..1 and ``label`` [n]. Nothing is downloaded."""
    # Imported here, as training and capturing import this file too and need the network alone.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, np.newaxis]
    # A digit that occurs twice must not end up on both sides of the split.
    _, first = np.unique(images.reshape(len(images), -1), axis=0, return_index=True)
    rows = np.sort(first)
    train, held_out = train_test_split(rows, test_size=HELD_OUT, stratify=digits.target[rows], random_state=0)
    return {name: {"image": images[chosen], "label": digits.target[chosen]} for name, chosen in (("train", train), ("eval", held_out))}


def few():
    """Returns the same held-out split, and ten samples of each digit to learn from, drawn by the project's seed."""
    splits = load()
    label = splits["train"]["label"]
    # Edgekit has set NumPy's global generator to the project's seed.
    rows = np.concatenate([np.random.permutation(np.flatnonzero(label == digit))[:FEW] for digit in range(10)])
    return {"train": {name: column[rows] for name, column in splits["train"].items()}, "eval": splits["eval"]}


def build():
    """Returns the untrained network: three convolutions, one pooling, two dense layers."""
    return nn.Sequential(
        *convolution(1, 32),
        *convolution(32, 64),
        nn.MaxPool2d(2),
        *convolution(64, 64),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(64 * 4 * 4, 96),
        nn.ReLU(),
        nn.Linear(96, 10),
    )


def convolution(channels_in, channels_out):
    """Returns 3 x 3 convolution, batch norm and ReLU, the trio that every converter folds into one operator."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()
