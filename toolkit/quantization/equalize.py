"""Cross-layer equalization (Nagel et al. 2019, arXiv 1906.04721, section 4.1), over a whole network at once.

A tensor has one scale for all of its channels, so a channel that is a thousand times larger than its neighbours leaves them a handful of steps.
Scaling a channel where it is written and dividing it out where it is read changes nothing in float. The factor is chosen so that the range of a
channel where it is written equals its range where it is read, which gives both ends half of what there is to gain.

Two things differ from the paper. Units (:mod:`toolkit.quantization.channels`) carry a factor across residual sums, concatenations, gates and
depthwise layers. And the range where a channel is written counts its bias: a channel whose weights have died, as the penalty on weights leaves them
in many trained networks, is constant but not zero, and would otherwise be blown up until it alone fills the range.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from toolkit.quantization.channels import FIXED, Site, Units, find_units
from toolkit.quantization.network import Network
from toolkit.quantization.statistics import Statistics

_ROUNDS = 100
_CONVERGED = 0.01
_DAMPING = 0.7
_MOST = 30.0
"""Largest exponent of a factor: beyond 10^9 float32 would soon overflow."""
_TINY = 2.0**-60
_LEAST_CHANGE = 0.05
_BIAS_SHARE = 0.25
"""What a bias counts against a weight: an output is a sum of many products, and some four times the largest weight."""


def equalize(network: Network, statistics: Statistics | None = None) -> list[str]:
    """Gives each channel the same range where it is written and where it is read; the float outputs stay the same.

    Args:
        network: The float network; its weights and biases are changed.
        statistics: What its channels do on real samples. With them, the range where a channel is written is what it was seen to be, which was
            measured to be worth 1 dB; without, it is that of the weights.

    Returns:
        What was done, a sentence each; nothing where no channel can be scaled, or all are equal already.
    """
    units = find_units(network)
    exponents = _Ranges(network, units, statistics).balanced()
    changed = np.abs(exponents) > _LEAST_CHANGE
    if not changed.any():
        return []
    units.scale(network, 2.0**exponents)
    layers = {site.layer.name for site in units.sites if site.layer and changed[site.units].any()}
    factors = 2.0 ** exponents[changed]
    source = "seen on samples" if statistics else "of its weights"
    return [
        f"{changed.sum()} channels of {len(layers)} layers are scaled by {factors.min():.3g} to {factors.max():.3g} between the layers that write "
        f"and those that read them, by the range {source}; the network computes the same"
    ]


class _Ranges:
    """Ranges of all units where they are written and where they are read, as powers of two."""

    def __init__(self, network: Network, units: Units, statistics: Statistics | None) -> None:
        self._units = units
        self._sites = [site for site in units.sites if site.factors]
        self._sizes = {site.constant: _log2(_largest_tap(site, network.array(site.constant))) for site in self._sites}
        self._together = {name: [site for site in self._sites if site.constant == name] for name in self._sizes}
        self._biases = {site.constant: _log2(network.array(site.constant) * _BIAS_SHARE) for site in units.sites if not site.factors}
        self._shifts = {site.constant: site for site in units.sites if not site.factors}
        self._seen = _seen(units, statistics) if statistics else None

    def balanced(self) -> np.ndarray:
        """Exponents ``[count]`` of the factors that make both ranges of each unit equal."""
        exponents = np.zeros(self._units.count)
        for _ in range(_ROUNDS):
            written = self._written(exponents) if self._seen is None else self._seen + exponents
            step = (self._read(exponents) - written) / 2
            step = _DAMPING * np.where(np.isfinite(step), step, 0.0)
            step[FIXED] = 0.0
            exponents = np.clip(exponents + step, -_MOST, _MOST)
            if np.abs(step).max() < _CONVERGED:
                break
        return exponents

    def _written(self, exponents: np.ndarray) -> np.ndarray:
        """Mean over the writers of a unit of its largest weight or bias; NaN where nothing writes it."""
        mean = _Mean(self._units.count)
        for site, sizes in self._scaled(exponents, 1):
            largest = self._largest(site, sizes)
            bias = self._shifts.get(site.layer.bias or "") if site.layer else None
            if bias is not None:
                np.maximum.at(largest, bias.units.reshape(-1), (self._biases[bias.constant] + exponents[bias.units]).reshape(-1))
            mean.add(largest)
        return mean.value()

    def _read(self, exponents: np.ndarray) -> np.ndarray:
        """Mean over the readers of a unit of its largest weight.

        With statistics the size of a weight is its share of the largest one that goes into the same output, as every output has a scale.
        """
        mean = _Mean(self._units.count)
        for site, sizes in self._scaled(exponents, -1):
            if self._seen is None:
                mean.add(self._largest(site, sizes))
                continue
            outputs = site.layer.output_axis if site.layer else int(np.argmax(sizes.shape))
            others = tuple(axis for axis in range(sizes.ndim) if axis != outputs)
            most = sizes.max(axis=others, keepdims=True)
            largest = self._largest(site, np.where(np.isfinite(most), sizes - np.where(np.isfinite(most), most, 0.0), -np.inf))
            found = np.isfinite(largest)
            mean.add(largest - largest[found].mean() if found.any() else largest)
        return mean.value()

    def _scaled(self, exponents: np.ndarray, power: int) -> Iterator[tuple[Site, np.ndarray]]:
        """Weights with the factors so far, at every site of one kind."""
        for site in self._sites:
            if site.power == power:
                sizes = self._sizes[site.constant]
                for other in self._together[site.constant]:
                    sizes = sizes + other.power * exponents[other.units]
                yield site, sizes

    def _largest(self, site: Site, sizes: np.ndarray) -> np.ndarray:
        """The largest weight of each unit; minus infinity where it has none but zeros."""
        largest = np.full(self._units.count, -np.inf)
        alike = tuple(axis for axis, size in enumerate(site.units.shape) if size == 1)
        np.maximum.at(largest, site.units.reshape(-1), sizes.max(axis=alike).reshape(-1))
        return largest


class _Mean:
    """Mean over layers of what each says of the units that it knows."""

    def __init__(self, count: int) -> None:
        self._total, self._count = np.zeros(count), np.zeros(count)

    def add(self, values: np.ndarray) -> None:
        known = np.isfinite(values)
        self._total[known] += values[known]
        self._count[known] += 1

    def value(self) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.where(self._count > 0, self._total / self._count, np.nan)


def _largest_tap(site: Site, weight: np.ndarray) -> np.ndarray:
    """The largest weight between an input and an output, as all taps of a kernel are scaled alike."""
    kept = (site.layer.output_axis, site.layer.input_axis) if site.layer else range(weight.ndim)
    found: np.ndarray = np.abs(weight).max(axis=tuple(axis for axis in range(weight.ndim) if axis not in kept), keepdims=True)
    return found


def _log2(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = np.abs(values.astype(np.float64))
        found: np.ndarray = np.where(sizes > _TINY, np.log2(sizes), -np.inf)
    return found


def _seen(units: Units, statistics: Statistics) -> np.ndarray:
    """Mean over the tensors of a unit of its largest value, relative to that of the tensor's other channels; NaN where it was not seen."""
    mean = _Mean(units.count)
    for name, (_, numbers) in units.tensors.items():
        observed = statistics.tensors.get(name)
        if observed is None or observed.channel_low is None or observed.channel_high is None or len(observed.channel_low) != len(numbers):
            continue
        sizes = _log2(np.maximum(-observed.channel_low, observed.channel_high))
        known = np.isfinite(sizes) & (numbers != FIXED)
        if not known.any():
            continue
        largest = np.full(units.count, -np.inf)
        np.maximum.at(largest, numbers[known], sizes[known] - sizes[known].mean())
        mean.add(largest)
    return mean.value()
