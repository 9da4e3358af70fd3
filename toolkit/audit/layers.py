"""Which layer of the user's model an operator comes from, as far as the names in a file tell.

Converters write it in different places: into the operators' names, into notes beside them, into the names of weights, or
into the names of computed tensors. All of them name a layer as PyTorch does, for example ``features.3.conv.0``.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Sequence

_WRAPPER = "model"
_PARAMETER = re.compile(r"((?:[A-Za-z_]\w*|\d+)(?:\.\w+)*)\.[A-Za-z_]\w*")
_PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_QUANTIZED = re.compile(r"_(quantized|scale|zero_point|QuantizeLinear|DequantizeLinear|transposed|packed|dq|output|cast|merged|\d+)+$")


def from_scopes(note: str) -> str:
    """Reads ``pkg.torch.onnx.name_scopes``, a list such as ``['', 'features', 'features.0', 'conv2d']`` that ends in the operator."""
    try:
        scopes = ast.literal_eval(note)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ""
    return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 else ""


def from_node_name(name: str) -> str:
    """Reads a node's name: ``features.0.0/Conv``, or ``/features/features.0/features.0.0/Conv`` as the older exporter wrote it."""
    head, *parts = name.split("/")
    if head:
        return head if parts and _PATH.fullmatch(head) else ""
    # A part names its module from the last module that is no plain container: conv.0 lies beside conv, not inside it.
    outer, last = "", ""
    for part in parts[:-1]:
        if not (last and part.startswith(f"{last}.")):
            outer = _join(outer, last)
        last = part
    return _join(outer, last)


def _join(outer: str, inner: str) -> str:
    return f"{outer}.{inner}" if outer and inner else outer or inner


def from_weight(name: str) -> str:
    """Reads the name of a stored weight: ``features.0.0.weight`` and ``features.0.0.weight_quantized`` belong to ``features.0.0``."""
    match = _PARAMETER.fullmatch(_QUANTIZED.sub("", name))
    return match[1] if match else ""


def from_tensor_names(listed: Sequence[Sequence[str]], multiplies: Sequence[bool]) -> list[str]:
    """Chooses one layer for each operator out of those that :func:`fused` found in its tensor's name.

    A tensor of fused operators carries the names of all of them, and of layers that merely share a constant with it. So of
    several names the one that the fewest multiplying operators carry is taken, of equals the innermost, and of those the last.
    """
    carried = Counter(layer for layers, counts in zip(listed, multiplies, strict=True) if counts for layer in set(layers))
    return [_own(layers, carried) for layers in listed]


def _own(layers: Sequence[str], carried: Counter[str]) -> str:
    best = ""
    for layer in layers:
        if not best or (-carried[layer], layer.count(".")) >= (-carried[best], best.count(".")):
            best = layer
    return best


def fused(name: str) -> list[str]:
    """Returns the layers that a TFLite tensor's name lists; none where it is another converter's.

    Each is either the path itself, ``layer:features.0.0``, or a chain of classes with the last part of each one's name,
    ``torchvision.models.mobilenetv2.MobileNetV2/torch.nn.modules.container.Sequential_features/...``.
    """
    parts = [part for part in re.split(r";+", name) if part and not part.isdigit()] if ";" in name else []
    found = [part.removeprefix("layer:") if part.startswith("layer:") else _from_classes(part) for part in parts]
    return [layer for layer in found if layer]


def _from_classes(chain: str) -> str:
    """Joins what follows the classes: ``a.Net/b.Sequential_features/c.Conv2d_0`` is ``features.0``."""
    names = [link.rpartition(".")[2].partition("_")[2] for link in chain.split("/")[1:]]
    return ".".join(name for name in names if name)


def without_wrapper(layers: Iterable[str]) -> list[str]:
    """Drops the module around the user's model, which has the name ``model`` for whoever captured it, where every layer lies in it."""
    given = list(layers)
    if all(layer.split(".")[0] == _WRAPPER for layer in given if layer) and any(given):
        return [layer.partition(".")[2] for layer in given]
    return given
