"""What the collections share: inputs made up for models without samples, random weights that make outputs vary, and is there a network?"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.weights import PICKLES, SUFFIX

SAMPLES = 8
"""How many examples are made up."""
RANDOM_WEIGHTS = "weights are random, with seed 0"
RANDOM_START = "training began with random weights, of seed 0"
_COARSE, _HEAD_SPREAD = 5, 0.02
_PROXIES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Makes everything random inside depend on ``seed``, and leaves PyTorch's, NumPy's and Python's own generators as they were."""
    import torch

    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


def images(channels: int, height: int, width: int, samples: int = SAMPLES) -> np.ndarray:
    """Makes up normalized pictures: soft patches of other places, colours and contrasts, and some noise.

    Plain noise has the same average everywhere, and a network that averages over a picture answers the same to all of it.

    Returns:
        ``[samples x channels x height x width] float32``.
    """
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(samples, channels, _COARSE, _COARSE)) * rng.uniform(0.5, 2, size=(samples, 1, 1, 1))
    rows, columns = _blend(height), _blend(width)
    soft = np.einsum("hi,ncij,wj->nchw", rows, coarse, columns)
    return (soft + 0.2 * rng.normal(size=soft.shape)).astype(np.float32)


def settle(model: Any, pictures: np.ndarray) -> None:
    """Gives a randomly initialized network the normalisation statistics of ``pictures``, and random numbers where it has a matrix of zeros.

    With the initial statistics activations shrink or grow from layer to layer until all outputs are alike; with a head of zeros,
    as some transformers begin, they are all zero.
    """
    import torch

    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=_HEAD_SPREAD)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.momentum = None  # a plain average
        module.train()  # all else stays in inference mode
    try:
        with torch.no_grad():
            model(torch.from_numpy(pictures))
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
            module.eval()


def online(host: str) -> bool:
    """Whether a host's name can be looked up; libraries for downloads try for half a minute before they give up."""
    if any(os.environ.get(name) for name in _PROXIES):
        return True
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def is_weights_file(weights: str | None, *, trained: bool = False) -> bool:
    """Whether ``weights`` is a path of a file, not a collection's name for weights: ``.safetensors``, or to train from also a pickle."""
    return weights is not None and Path(weights).suffix in ((SUFFIX, *PICKLES) if trained else (SUFFIX,))


def _blend(size: int) -> np.ndarray:
    """Weights ``[size x 5]`` of linear interpolation between five points."""
    at = np.linspace(0, _COARSE - 1, size)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(_COARSE)))
