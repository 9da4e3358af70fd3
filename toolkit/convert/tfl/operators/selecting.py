"""Operators whose results are as long as the data makes them: TFLite's ``WHERE`` finds the places, and the size of what follows is free."""

from __future__ import annotations

import itertools

import numpy as np

from toolkit.convert.tfl.graph import Graph, Tensor
from toolkit.convert.tfl.lower import Call, operator
from toolkit.convert.tfl.program import FREE, TYPINGS, Node, Program, Type, Unsupported

_MOST_LISTS = 128  # of boxes and a class each, which are gone through one after the other


def places_of(graph: Graph, truths: Tensor) -> Tensor:
    """Returns where a tensor is true: ``[places x axes]``."""
    return graph.cast(graph.add("WHERE", [truths], (FREE, truths.rank), np.int64), np.int32)


def _free_places(node: Node, program: Program) -> list[Type]:
    given = program.type(node.inputs[0])
    if FREE in given.shape:
        raise Unsupported("looks for places in a tensor whose size is free at run time")
    return [Type(np.dtype(np.int64), (len(given.shape) or 1, FREE))]


TYPINGS["NonZero"] = _free_places


@operator("NonZero", limits="known sizes; the number of results is free, so it must come first in what is made of them")
def _non_zero(call: Call) -> Tensor:
    graph, value = call.graph, call.x(0)
    full = value if value.rank else graph.reshape(value, (1,))
    truths = full if full.dtype == np.bool_ else graph.binary("NOT_EQUAL", full, graph.constant(0, full.dtype), np.bool_)
    return graph.transpose(places_of(graph, truths), (1, 0))


def _boxes_types(node: Node, program: Program) -> list[Type]:
    for name in node.inputs[:2]:
        if FREE in program.type(name).shape:
            raise Unsupported("suppresses boxes whose number, or that of the samples, is free at run time")
    return [Type(np.dtype(np.int64), (FREE, 3))]


TYPINGS["NonMaxSuppression"] = _boxes_types


@operator("NonMaxSuppression", limits="known sizes and settings; samples times classes at most 128; the number of results is free")
def _suppress(call: Call) -> Tensor:
    """Goes through each sample and class by itself; what is kept is then put together."""
    graph, boxes, scores = call.graph, _corners(call), call.x(1)
    samples, classes, count = scores.shape
    if samples * classes > _MOST_LISTS:
        raise Unsupported(f"suppresses boxes of {samples * classes} samples and classes, more than {_MOST_LISTS}")
    most = min(int(call.number(2, "most", 0)), count)
    if most <= 0:
        raise Unsupported("keeps no box at all: it has no max_output_boxes_per_class")
    settings = [graph.constant(most, np.int32), graph.constant(_above(call.number(3, "overlap", 0.0))), graph.constant(_least(call))]
    kept, found = [], []
    for sample, kind in itertools.product(range(samples), range(classes)):
        own = graph.reshape(graph.slice(boxes, (sample, 0, 0), (1, count, 4)), (count, 4))
        rated = graph.reshape(graph.slice(scores, (sample, kind, 0), (1, 1, count)), (count,))
        places, number = graph.add_many("NON_MAX_SUPPRESSION_V4", [own, rated, *settings], [((most,), np.int32), ((), np.int32)])
        found.append(places)
        kept.append(graph.binary("LESS", graph.integers(range(most)), number, np.bool_))
    total = most * len(kept)
    rows = graph.reshape(places_of(graph, _joined(graph, kept, total)), (FREE,))
    origins = np.repeat(np.indices((samples, classes), np.int32).reshape(2, -1).T, most, 0)
    columns = [
        graph.add("GATHER", [graph.constant(origins), rows], (FREE, 2), axis=0, batchDims=0),
        graph.add("GATHER", [graph.reshape(_joined(graph, found, total), (total, 1)), rows], (FREE, 1), axis=0, batchDims=0),
    ]
    return graph.add("CONCATENATION", columns, (FREE, 3), axis=1)


def _joined(graph: Graph, parts: list[Tensor], total: int) -> Tensor:
    return parts[0] if len(parts) == 1 else graph.add("CONCATENATION", parts, (total,), axis=0)


def _corners(call: Call) -> Tensor:
    """Returns boxes by two of their corners; the order of their axes makes no difference."""
    graph, boxes = call.graph, call.x(0)
    if not call.attribute("center_point_box", 0):
        return boxes
    shape = (*boxes.shape[:2], 2)
    middle, half = graph.slice(boxes, (0, 0, 0), shape), graph.binary("MUL", graph.slice(boxes, (0, 0, 2), shape), graph.constant(np.float32(0.5)))
    ends = [graph.binary(kind, middle, half) for kind in ("SUB", "ADD")]
    return graph.add("CONCATENATION", ends, boxes.shape, axis=2)


def _above(overlap: float) -> np.ndarray:
    """The kernel drops boxes whose overlap is the limit, ONNX only those above it.

    Raises:
        Unsupported: There is nothing above it: the kernel gives wrong places then.
    """
    if overlap >= 1:
        raise Unsupported("keeps boxes that cover each other wholly: its iou_threshold is 1")
    return np.asarray(np.nextafter(np.float32(overlap), np.float32(2)), np.float32)


def _least(call: Call) -> np.ndarray:
    return np.asarray(call.number(4, "least", np.finfo(np.float32).min), np.float32)
