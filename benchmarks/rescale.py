"""The collapse case: a model that computes the same, whose channels differ in size from layer to layer, as those of badly conditioned checkpoints do.

python -m benchmarks.rescale model.onnx rescaled.onnx --spread 4
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from toolkit.quantization.channels import FIXED, find_units
from toolkit.quantization.network import open_network

SPREAD = 4.0


def rescale(model: Path, out: Path, *, spread: float = SPREAD, seed: int = 0) -> int:
    """Writes a model whose channels are scaled between layers wherever that changes nothing.

    Args:
        model: A float ``.onnx`` or ``.tflite`` file.
        out: The file to write, of the same format.
        spread: Factors are ``2 ** u``, where ``u`` is uniform between ``-spread`` and ``spread``.
        seed: Seed of the factors.

    Returns:
        How many channels were scaled; those that several tensors share count once.

    Raises:
        InputRejected: The file is damaged.
    """
    network = open_network(model)
    units = find_units(network)
    factors = 2.0 ** np.random.default_rng(seed).uniform(-spread, spread, units.count)
    factors[FIXED] = 1.0
    units.scale(network, factors)
    network.save(out)
    return units.count - 1


def main() -> None:
    """Rescales one file."""
    parser = argparse.ArgumentParser(description="Scale the channels of a model between layers; it computes the same.")
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--spread", type=float, default=SPREAD)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"{rescale(given.model, given.out, spread=given.spread, seed=given.seed)} channels scaled")


if __name__ == "__main__":
    main()
