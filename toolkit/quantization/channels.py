"""Which channels of a network can be scaled without changing what it computes, and which stored numbers then change.

A factor for a channel of one tensor is a factor for the same channel of every tensor that it reaches through operators which turn inputs of
twice the size into outputs of twice the size: ReLU, pooling, means, sums of two tensors, depthwise neighbours' inputs and so on. Such channels
are one *unit*. A unit's factor multiplies the weights that write it and divides the weights that read it. Any other operator, and the network's
inputs and outputs, fix the units that they meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

import numpy as np

from toolkit.quantization.channel_labels import input_units, one_axis, placed, ranked, reshaped, together
from toolkit.quantization.network import Network, Norm, Reader, Weighted

FIXED = 0
"""The unit of everything that cannot be scaled."""


@dataclass(frozen=True)
class Site:
    """Stored numbers that change with units.

    Attributes:
        constant: Their name, for :meth:`toolkit.quantization.network.Network.array`.
        units: The unit of each number, of a shape that broadcasts to theirs.
        power: 1 where a unit's factor multiplies them, -1 where it divides them.
        factors: Whether what is read is multiplied with them; otherwise they are added to it.
        layer: The layer whose weights they are; ``None`` for biases and the numbers of other operators.
    """

    constant: str
    units: np.ndarray
    power: int
    factors: bool
    layer: Weighted | None = None


@dataclass(frozen=True)
class Units:
    """All units of a network.

    Attributes:
        count: Number of units, :data:`FIXED` included.
        tensors: Axis of the channels and the unit of each, by tensor; tensors without channels that can be scaled are left out.
        sites: Everything that changes.
    """

    count: int
    tensors: dict[str, tuple[int, np.ndarray]]
    sites: tuple[Site, ...]

    def scale(self, network: Network, factors: np.ndarray) -> None:
        """Applies a factor ``[count]`` to each unit; that of :data:`FIXED` must be 1."""
        by_constant: dict[str, list[Site]] = {}
        for site in self.sites:
            by_constant.setdefault(site.constant, []).append(site)
        for name, sites in by_constant.items():
            array = network.array(name)
            product = np.ones(1)
            for site in sites:
                product = product * factors[site.units] ** site.power
            if not (product == 1).all():
                with np.errstate(invalid="ignore"):  # numbers that are NaN stay so
                    network.store(name, array * product)


def find_units(network: Network) -> Units:
    """Follows the channels of a network from layer to layer."""
    return _Walk(network).units()


class _Walk:
    """One pass over the operators.

    Labels are joined as it goes; units are what they were joined to. The labels of a tensor are an array of its rank whose axes are as long
    as the tensor's, or 1 where all along an axis have the same.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._layers = {layer.name: layer for layer in network.layers}
        self._norms = {norm.name: norm for norm in network.norms}
        self._parents = [FIXED]
        self._labels: dict[str, np.ndarray] = {}
        self._sites: list[Site] = []
        self._roles: dict[str, Callable[[Reader], None]] = {
            "same": self._same, "window": self._window, "add": self._add, "mul": self._mul, "divide": self._divide,
            "concat": self._concat, "split": self._split, "slice": self._slice, "transpose": self._transpose, "reshape": self._reshape,
            "reduce": self._reduce, "batch_norm": self._batch_norm,
        }  # fmt: skip

    def units(self) -> Units:
        for node in self._network.nodes:
            layer, norm = self._layers.get(node.name), self._norms.get(node.name)
            if layer is not None and layer.weight in node.inputs:
                self._layer(node, layer)
            elif norm is not None and norm.scale in node.inputs and self._is_fixed(norm.input):
                self._norm(node, norm)
            else:
                self._roles.get(node.role, self._other)(node)
        self._fix(self._network.outputs)
        roots = np.array([self._root(label) for label in range(len(self._parents))])
        used = np.concatenate([[FIXED], *(roots[one.units].reshape(-1) for one in self._sites)])
        kept, numbers = np.unique(np.where(np.isin(roots, used), roots, FIXED), return_inverse=True)
        sites = [Site(one.constant, numbers[one.units], one.power, one.factors, one.layer) for one in self._sites]
        tensors = {name: one_axis(numbers[labels]) for name, labels in self._labels.items()}
        return Units(
            len(kept),
            {name: found for name, found in tensors.items() if found and found[1].any()},
            tuple(site for site in sites if site.units.any()),
        )

    def _root(self, label: int) -> int:
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = self._parents[label]
        return label

    def _join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Makes labels one unit, pair by pair."""
        pairs = np.unique(np.stack([side.reshape(-1) for side in np.broadcast_arrays(one, other)]), axis=1)
        for left, right in pairs.T.tolist():
            left, right = self._root(left), self._root(right)
            self._parents[max(left, right)] = min(left, right)  # so that what is joined to FIXED is fixed

    def _fix(self, tensors: Iterable[str]) -> None:
        for name in tensors:
            if name in self._labels:
                self._join(self._labels[name], np.array(FIXED))

    def _is_fixed(self, tensor: str) -> bool:
        """Whether nothing before a tensor can be scaled."""
        return tensor not in self._labels or all(self._root(int(label)) == FIXED for label in np.unique(self._labels[tensor]))

    def _fresh(self, shape: tuple[int, ...]) -> np.ndarray:
        labels = np.arange(len(self._parents), len(self._parents) + prod(shape))
        self._parents.extend(labels.tolist())
        return labels.reshape(shape)

    def _shape(self, tensor: str) -> tuple[int | None, ...]:
        return self._network.shapes.get(tensor, ())

    def _set(self, tensor: str, labels: np.ndarray) -> bool:
        """Notes a tensor's labels where its sizes agree with them."""
        shape = self._shape(tensor)
        if len(shape) != labels.ndim or any(size not in (1, known) for size, known in zip(labels.shape, shape, strict=True)):
            return False
        self._labels[tensor] = labels
        return True

    def _pass(self, node: Reader, data: str, labels: np.ndarray) -> None:
        """Hands labels on to the first output; what else the operator reads is fixed."""
        self._fix(name for name in node.inputs if name != data)
        if not self._set(node.outputs[0], labels):
            self._fix([data])

    def _along(self, tensor: str, axis: int) -> np.ndarray | None:
        """A label for each place along one axis of a tensor; those that differ elsewhere are joined."""
        labels = self._labels[tensor]
        size = self._shape(tensor)[axis]
        if size is None:
            return None
        rows = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
        self._join(rows, rows[:, :1])
        return np.broadcast_to(rows[:, 0], size)

    def _other(self, node: Reader) -> None:
        self._fix(node.inputs)

    def _layer(self, node: Reader, layer: Weighted) -> None:
        weight = [size or 0 for size in self._shape(layer.weight)]
        if layer.input in self._labels:
            read = self._along(layer.input, layer.channel_axis)
            units = None if read is None else input_units(layer, weight, read)
            if units is None:
                self._fix([layer.input])
            else:
                self._sites.append(Site(layer.weight, units, -1, True, layer))
        labels, rank = self._fresh((weight[layer.output_axis],)), len(self._shape(node.outputs[0]))
        axis = layer.channel_axis % max(rank, 1)
        if node.attributes.get("fused", "none") not in ("none", "relu") or not self._set(node.outputs[0], placed(labels, axis, rank)):
            return
        self._sites.append(Site(layer.weight, placed(labels, layer.output_axis, len(weight)), 1, True, layer))
        if layer.bias is not None and layer.bias in node.inputs:
            self._sites.append(Site(layer.bias, labels, 1, False))

    def _norm(self, node: Reader, norm: Norm) -> None:
        """What a norm reads is fixed, and its own scale makes channels of what it writes."""
        self._fix(name for name in node.inputs if name not in self._network.constants)
        sizes = self._shape(norm.scale) or (0,)
        fresh, rank = self._fresh((sizes[-1] or 0,)), len(self._shape(node.outputs[0]))
        stored = [norm.scale, *([norm.shift] if norm.shift in node.inputs and norm.shift else [])]
        fit = len(fresh) > 1 and all(self._fitting(name, fresh) is not None for name in stored)
        if not fit or not self._set(node.outputs[0], placed(fresh, rank - 1, rank)):
            return
        self._sites += [Site(name, fresh, 1, name == norm.scale) for name in stored]

    def _same(self, node: Reader) -> None:
        if node.inputs[0] in self._labels:
            self._pass(node, node.inputs[0], self._labels[node.inputs[0]])
        else:
            self._fix(node.inputs)

    def _window(self, node: Reader) -> None:
        """Pools and the like, which mix places of one channel."""
        data = node.inputs[0]
        if data not in self._labels:
            self._fix(node.inputs)
            return
        axis, rank = node.attributes["channels"], len(self._shape(data))
        labels = self._along(data, axis)
        if labels is None:
            self._fix([data])
        else:
            self._pass(node, data, placed(labels, axis % rank, rank))

    def _add(self, node: Reader) -> None:
        computed = [name for name in node.inputs if name and name not in self._network.constants]
        rank = len(self._shape(node.outputs[0]))
        if not computed or any(name not in self._labels for name in computed):
            self._fix(computed)
            return
        parts = together([ranked(self._labels[name], rank) for name in computed])
        stored = [name for name in node.inputs if name in self._network.constants]
        if not parts or not all(self._shifts(name, parts[0]) for name in stored) or not self._set(node.outputs[0], parts[0]):
            self._fix(computed)
            return
        for part in parts[1:]:
            self._join(parts[0], part)

    def _shifts(self, constant: str, labels: np.ndarray) -> bool:
        """Has stored summands follow the channels that they are added to; returns whether they can."""
        if not self._network.array(constant).any():
            return True
        units = self._fitting(constant, labels)
        if units is None:
            return False
        self._sites.append(Site(constant, units, 1, False))
        return True

    def _fitting(self, constant: str, labels: np.ndarray) -> np.ndarray | None:
        """Labels for the numbers of a constant with one reader; ``None`` where a number meets several."""
        shape = self._shape(constant)
        own = len(self._network.readers(constant)) == 1 and constant not in self._network.outputs
        missing = labels.ndim - len(shape)
        if not own or missing < 0 or prod(labels.shape[:missing]) > 1:
            return None
        units: np.ndarray = labels.reshape(labels.shape[missing:])
        fits = [size in (1, known) for size, known in zip(units.shape, shape, strict=True)]
        return units if all(fits) else None

    def _mul(self, node: Reader) -> None:
        computed = [name for name in node.inputs if name not in self._network.constants]
        moving = [name for name in dict.fromkeys(computed) if name in self._labels]
        if len(computed) == 2 and computed[0] == computed[1]:
            self._fix(computed)
        elif moving and len(computed) == 1:
            self._times(node, moving[0])
        elif moving:
            # Of two that could move, the smaller one is the gate.
            self._broadcast(node, max(moving, key=lambda name: prod(size or 1 for size in self._shape(name))))

    def _broadcast(self, node: Reader, data: str) -> None:
        self._pass(node, data, ranked(self._labels[data], len(self._shape(node.outputs[0]))))

    def _times(self, node: Reader, data: str) -> None:
        """A product with stored numbers: where there is one for each channel, it reads one unit and writes another."""
        labels = ranked(self._labels[data], len(self._shape(node.outputs[0])))
        constant = next(name for name in node.inputs if name != data)
        read = self._fitting(constant, labels)
        fresh = self._fresh(labels.shape)
        if read is None or not self._set(node.outputs[0], fresh):
            self._broadcast(node, data)
            return
        self._sites += [Site(constant, fresh.reshape(read.shape), 1, True), Site(constant, read, -1, True)]

    def _divide(self, node: Reader) -> None:
        self._fix(node.inputs[1:])
        if node.inputs[0] in self._labels:
            self._broadcast(node, node.inputs[0])

    def _concat(self, node: Reader) -> None:
        if not any(name in self._labels for name in node.inputs):
            return
        rank = len(self._shape(node.outputs[0]))
        axis = (node.attributes["axis"] or 0) % max(rank, 1)
        shapes = [self._shape(name) for name in node.inputs]
        sizes = [shape[axis] if axis < len(shape) else None for shape in shapes]
        parts = [self._labels.get(name, np.full([1] * rank, FIXED)) for name in node.inputs]
        if None in sizes or any(part.ndim != rank for part in parts):
            self._fix(node.inputs)
            return
        common = [max(part.shape[other] for part in parts) for other in range(rank)]
        spread = [np.broadcast_to(part, [*common[:axis], size or 1, *common[axis + 1 :]]) for part, size in zip(parts, sizes, strict=True)]
        if not self._set(node.outputs[0], np.concatenate(spread, axis=axis)):
            self._fix(node.inputs)

    def _split(self, node: Reader) -> None:
        data, axis = node.inputs[node.attributes.get("data", 0)], node.attributes["axis"]
        labels = self._labels.get(data)
        if labels is None or axis is None:
            self._fix([data])
            return
        start = 0
        for output in node.outputs:
            shape = self._shape(output)
            stop = start + (shape[axis] or 0 if shape else 0)
            part = labels if labels.shape[axis] == 1 else np.moveaxis(np.moveaxis(labels, axis, 0)[start:stop], 0, axis)
            if not self._set(output, part):
                self._fix([data])
            start = stop

    def _slice(self, node: Reader) -> None:
        labels, cuts = self._labels.get(node.inputs[0]), node.attributes.get("cuts")
        if labels is None or cuts is None:
            self._fix(node.inputs)
            return
        places = [slice(None)] * labels.ndim
        for axis, cut in cuts.items():
            if labels.shape[axis] > 1:
                places[axis % labels.ndim] = slice(*cut)
        self._pass(node, node.inputs[0], labels[tuple(places)])

    def _transpose(self, node: Reader) -> None:
        if node.inputs[0] in self._labels:
            self._pass(node, node.inputs[0], np.transpose(self._labels[node.inputs[0]], node.attributes.get("perm")))

    def _reshape(self, node: Reader) -> None:
        data, output = node.inputs[0], node.outputs[0]
        if data not in self._labels:
            return
        moved = reshaped(self._labels[data], self._shape(data), self._shape(output))
        if moved is None or not self._set(output, moved):
            self._fix([data])

    def _reduce(self, node: Reader) -> None:
        labels = self._labels.get(node.inputs[0])
        if labels is None:
            return
        axes = tuple(axis % labels.ndim for axis in node.attributes["axes"] or range(labels.ndim))
        if any(labels.shape[axis] > 1 for axis in axes):
            self._fix([node.inputs[0]])
        else:
            self._pass(node, node.inputs[0], labels if node.attributes["keepdims"] else labels.squeeze(axes))

    def _batch_norm(self, node: Reader) -> None:
        data, *stored = node.inputs
        rank, read = len(self._shape(data)), None
        if data in self._labels:
            read = self._along(data, 1)
        fresh = self._fresh(((self._shape(stored[0]) or (0,))[0] or 0,))
        usable = all(self._fitting(name, fresh) is not None for name in stored[:3])
        if not usable or (read is None and data in self._labels) or not self._set(node.outputs[0], placed(fresh, 1, rank)):
            self._fix([data])
            return
        self._sites += [Site(stored[0], fresh, 1, True), Site(stored[1], fresh, 1, False)]
        if read is not None:
            self._sites += [Site(stored[0], read, -1, True), Site(stored[2], read, 1, False)]
