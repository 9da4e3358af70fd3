"""SmoothQuant (Xiao et al. 2022, arXiv 2211.10438): outliers behind a norm are moved from activations into the weights that read them.

Every channel behind a norm is divided by a factor, which is taken into the norm's own scale and shift and multiplied into the weights. The float
outputs stay the same. Where something else than layers reads the norm's output, such as the residual sum behind a norm in BERT, its channels
cannot be scaled (:mod:`toolkit.quantization.channels`) and are left alone.
"""

from __future__ import annotations

import numpy as np

from toolkit.quantization.channels import FIXED, Units, find_units
from toolkit.quantization.network import Network
from toolkit.quantization.statistics import Statistics

_TINY = 1e-8
_LEAST_CHANGE = 0.01


def smooth(network: Network, statistics: Statistics, *, alpha: float = 0.5) -> list[str]:
    """Divides each channel behind a norm by ``max|x|**alpha / max|w|**(1 - alpha)``, up to one factor for all channels of a tensor.

    Args:
        network: The float network; norms and weights are changed.
        statistics: Ranges of the channels that layers read, from real samples.
        alpha: How much of the range is moved: nothing at 0, all of it at 1.

    Returns:
        What was done, a sentence each; nothing where no norm can be scaled.
    """
    units = find_units(network)
    norms = {norm.scale: norm for norm in network.norms}
    own = np.zeros(units.count, bool)
    for site in units.sites:
        if site.constant in norms and site.factors:
            own[site.units.reshape(-1)] = True
    own[FIXED] = False
    ranges, weights = _activations(units, statistics), _weights(network, units)
    usable = own & (ranges > _TINY) & (weights > _TINY)
    if not usable.any():
        return []
    strength = np.zeros(units.count)
    strength[usable] = alpha * np.log(ranges[usable]) - (1 - alpha) * np.log(weights[usable])
    factors = np.exp(-_centered(units, strength, usable))
    if np.abs(np.log(factors)).max() < _LEAST_CHANGE:
        return []
    units.scale(network, factors)
    changed = sum(1 for norm in norms.values() if usable[_units_of(units, norm.scale)].any())
    return [f"{usable.sum()} channels behind {changed} norms are divided by {1 / factors[usable].max():.3g} to {1 / factors[usable].min():.3g}"]


def _activations(units: Units, statistics: Statistics) -> np.ndarray:
    """Largest magnitude of each unit's channel in any tensor that was observed ``[count]``."""
    found = np.zeros(units.count)
    for name, (_, numbers) in units.tensors.items():
        observed = statistics.tensors.get(name)
        if observed is None or observed.channel_low is None or observed.channel_high is None or len(observed.channel_low) != len(numbers):
            continue
        np.maximum.at(found, numbers, np.maximum(-observed.channel_low, observed.channel_high))
    return found


def _weights(network: Network, units: Units) -> np.ndarray:
    """Largest weight that reads each unit ``[count]``."""
    found = np.zeros(units.count)
    for site in units.sites:
        if site.layer is not None and site.power == -1:
            sizes = np.abs(network.array(site.constant))
            alike = tuple(axis for axis, size in enumerate(site.units.shape) if size == 1)
            np.maximum.at(found, site.units.reshape(-1), sizes.max(axis=alike).reshape(-1))
    return found


def _centered(units: Units, strength: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Strengths less their mean in each tensor: one factor for all channels changes nothing but the size of numbers."""
    found = strength.copy()
    for _, numbers in units.tensors.values():
        inside = np.unique(numbers)[usable[np.unique(numbers)]]
        if len(inside):
            found[inside] = strength[inside] - strength[inside].mean()
    return np.where(usable, found, 0.0)


def _units_of(units: Units, constant: str) -> np.ndarray:
    return np.concatenate([site.units.reshape(-1) for site in units.sites if site.constant == constant] or [np.zeros(1, int)])
