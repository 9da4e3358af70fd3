"""One view of a float ONNX or TFLite file for everything that repairs weights before they are quantized.

Only stored numbers are edited: weights, biases, and the scales and shifts of norms. So every repair gives a float file of the same graph, and the
quantizer needs to know nothing of it. A layer is in the view when its weights are its own; biases that several layers share are told apart when
the file is opened.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from toolkit.errors import InputRejected
from toolkit.factory import CODE_ERRORS, first_line

Kind = Literal["conv", "depthwise", "dense"]
Activation = Literal["none", "relu", "relu6", "other"]


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its input, one entry for each spatial axis.

    Attributes:
        strides: Step of the kernel.
        dilations: Distance between its taps.
        pads: Zeros before and behind; ``None`` where they depend on sizes that are free.
    """

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...] | None


@dataclass(frozen=True)
class Weighted:
    """A layer with stored float weights of its own.

    Attributes:
        name: As :class:`toolkit.contents.Layer` names it.
        kind: ``depthwise`` convolutions have one input channel for each group.
        weight: Name of the weights, for :meth:`Network.array`.
        bias: Name of the biases, of as many elements as the layer has outputs; ``None`` where it has none.
        output_axis: Axis of the weights along which outputs lie.
        input_axis: Axis along which inputs lie, those of one group; ``None`` for depthwise.
        groups: Number of groups; of a depthwise convolution the number of input channels.
        input: Tensor that it reads.
        output: Tensor with its biases added, before the activation.
        activation: What follows at once and is read in its place.
        activated: Tensor behind the activation; ``output`` where there is none, and where the file fuses both in one operator.
        channel_axis: Axis of the channels in ``input`` and ``output``: 1, or -1 for the last one.
        geometry: How a convolution walks; ``None`` for dense layers.
    """

    name: str
    kind: Kind
    weight: str
    bias: str | None
    output_axis: int
    input_axis: int | None
    groups: int
    input: str
    output: str
    activation: Activation
    activated: str
    channel_axis: int = -1
    geometry: Geometry | None = None

    @property
    def fused(self) -> bool:
        """Whether the tensor before the activation is not in the file."""
        return self.activation != "none" and self.activated == self.output


@dataclass(frozen=True)
class Norm:
    """A norm's last step, or another product with stored numbers, one for each element of the last axis.

    Attributes:
        name: The operator's name.
        input: Tensor that is normalized; of a norm that the file spells out, the tensor that the scale is multiplied with.
        output: Tensor behind scale and shift.
        scale: Name of the factors ``[c]``, for :meth:`Network.array`.
        shift: Name of the summands ``[c]``; ``None`` where there are none.
    """

    name: str
    input: str
    output: str
    scale: str
    shift: str | None


@dataclass(frozen=True)
class Reader:
    """One operator of the main graph.

    Attributes:
        name: The node's name, or that of its first output where nodes have no names.
        operator: The operator in the format's own words.
        inputs: Names of what it reads, stored numbers included; empty for an input that is left out.
        outputs: Names of what it computes.
        role: What it does to channels, the same word in both formats; see :mod:`toolkit.quantization.channels`.
        attributes: What that depends on: ``axis``, ``perm`` and so on; ``zeros`` of a padding are those before and behind each axis.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    role: str = "other"
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Stored(Protocol):
    """The file behind a network: what an adapter of a format must do."""

    format: str
    layers: tuple[Weighted, ...]
    norms: tuple[Norm, ...]
    nodes: tuple[Reader, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: dict[str, tuple[int | None, ...]]
    constants: frozenset[str]

    def array(self, name: str) -> np.ndarray:
        """Numbers that are stored under a name."""

    def store(self, name: str, array: np.ndarray) -> None:
        """Replaces them."""

    def save(self, out: Path) -> None:
        """Writes the file."""


class Network:
    """A float model whose weights can be edited.

    Attributes:
        format: ``onnx`` or ``tflite``.
        layers: Layers with weights of their own, in the order of the file.
        norms: Products with stored factors along the last axis.
        nodes: All operators of the main graph, in the order of the file, which is that of their execution.
        inputs: Names of the graph's inputs.
        outputs: Names of its outputs.
        shapes: Sizes of the tensors, as far as the file tells; ``None`` for a free one.
        constants: Names of all tensors that the file stores.
    """

    def __init__(self, file: Stored) -> None:
        self._file = file
        self.format = file.format
        self.layers, self.norms, self.nodes = file.layers, file.norms, file.nodes
        self.inputs, self.outputs = file.inputs, file.outputs
        self.shapes, self.constants = file.shapes, file.constants
        self._writers = {name: node for node in self.nodes for name in node.outputs if name}
        self._readers: dict[str, list[Reader]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                self._readers.setdefault(name, []).append(node)

    def array(self, name: str) -> np.ndarray:
        """A copy of stored numbers.

        Raises:
            KeyError: Nothing is stored under this name.
        """
        return np.array(self._file.array(name))

    def store(self, name: str, array: np.ndarray) -> None:
        """Replaces stored numbers by others of the same shape; they become of the stored type.

        Raises:
            KeyError: Nothing is stored under this name.
            ValueError: The shape is another, or a number that was finite would not be.
        """
        before = self._file.array(name)
        if array.shape != before.shape:
            raise ValueError(f"{name} has the shape {list(before.shape)}, not {list(array.shape)}")
        with np.errstate(over="ignore"):
            after = np.ascontiguousarray(array, dtype=before.dtype)
        if not (np.isfinite(after) | ~np.isfinite(before)).all():
            raise ValueError(f"{name} would not be finite")
        self._file.store(name, after)

    def readers(self, tensor: str) -> list[Reader]:
        """Operators that read a tensor, each once."""
        return self._readers.get(tensor, [])

    def writer(self, tensor: str) -> Reader | None:
        """The operator that computes a tensor; ``None`` for inputs and stored numbers."""
        return self._writers.get(tensor)

    def save(self, out: Path) -> None:
        """Writes the model with its edits.

        Raises:
            InputRejected: It is too large for its format.
        """
        self._file.save(out)


def open_network(model: Path) -> Network:
    """Opens a float file.

    Args:
        model: An ``.onnx`` or ``.tflite`` file.

    Raises:
        InputRejected: It is of another format, or damaged.
    """
    suffix = model.suffix.lower()
    try:
        if suffix == ".onnx":
            from toolkit.quantization.network_onnx import OnnxFile

            return Network(OnnxFile(model))
        if suffix == ".tflite":
            from toolkit.quantization.network_tflite import TfliteFile

            return Network(TfliteFile(model))
    except (struct.error, *CODE_ERRORS) as error:
        what = f"is not a readable {suffix[1:]} model: {first_line(error)}"
        raise InputRejected(what, where=model.name, hint="convert the model again") from error
    raise InputRejected("weights can be edited in .onnx and .tflite files only", where=str(model), hint="convert the model to one of them first")


def activation_of(readers: Sequence[Reader]) -> tuple[Activation, str] | None:
    """The activation that alone reads a tensor, and the tensor behind it."""
    if len(readers) != 1 or readers[0].attributes.get("activation") is None:
        return None
    return readers[0].attributes["activation"], readers[0].outputs[0]
