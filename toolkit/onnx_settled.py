"""Gives an ONNX graph the one order and the one set of names that its structure has.

tf2onnx walks sets of strings and numbers what it makes by counters and memory addresses, so that the same model gives other bytes
in every process. Here nodes are put in the order in which the outputs need them, and what such a number made different is named anew.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# What tf2onnx and TensorFlow add to a name to make it unique: a counter, a memory address, a function's digest.
_NUMBERED = re.compile(r"__\d+|(?<=[a-z])\d{9,}|function_[0-9a-f]{16}_\d+_?")


@contextmanager
def steady_merging() -> Iterator[None]:
    """Makes tf2onnx keep, of nodes that compute the same, the first by name; by itself it keeps any of them."""
    from tf2onnx.optimizer.merge_duplicated_nodes_optimizer import MergeDuplicatedNodesOptimizer as Optimizer

    merge = Optimizer._merge_nodes_that_are_duplicated

    def merge_in_order(self: Any, nodes: list[Any], graph: Any) -> None:
        merge(self, sorted(nodes, key=lambda node: (_NUMBERED.sub("", node.name), node.name)), graph)

    Optimizer._merge_nodes_that_are_duplicated = merge_in_order
    try:
        yield
    finally:
        Optimizer._merge_nodes_that_are_duplicated = merge


def settle(model: Any) -> None:
    """Orders the nodes and initializers of an ``onnx.ModelProto``, and of the graphs inside, and renames numbered nodes and tensors.

    Names of inputs and outputs stay; so do those of nodes and tensors after a layer of the user's model. The graph's note, which names
    the file that it was made of, is dropped.
    """
    model.graph.ClearField("doc_string")
    for node in model.graph.node:
        for inner in _graphs(node):
            _part_outputs(inner)
    _order(model.graph)
    names = _Names({value.name for value in (*model.graph.input, *model.graph.output)})
    _collect(model.graph, names)
    _rename(model.graph, names.new)


class _Names:
    """New names by old ones, in the order in which they were met."""

    def __init__(self, fixed: set[str]) -> None:
        self.new = {name: name for name in fixed}
        self._used = set(fixed)

    def add(self, name: str, meant: str = "") -> None:
        if not name or name in self.new:
            return
        base = meant or _NUMBERED.sub("", name) or "node"
        chosen, count = base, 1
        while chosen in self._used:
            count += 1
            chosen = f"{base}_{count}"
        self._used.add(chosen)
        self.new[name] = chosen


def _part_outputs(graph: Any) -> None:
    """Gives a value that is several outputs of a loop's body a copy for each but the first; tf2onnx makes any of them the copies."""
    for node in graph.node:
        for inner in _graphs(node):
            _part_outputs(inner)
    makers = {node.output[0]: node for node in graph.node if node.output}
    source: dict[str, str] = {}
    for name in makers:
        found = name
        while found in makers and makers[found].op_type == "Identity" and makers[found].input[0] in makers:
            found = makers[found].input[0]
        if found != name:
            source[name] = found
    for node in graph.node:
        _read(node, source)
    seen: Counter[str] = Counter()
    for value in graph.output:
        name = value.name = source.get(value.name, value.name)
        seen[name] += 1
        if seen[name] > 1:
            value.name = f"{makers[name].name if name in makers else name}/copy_{seen[name]}"
            graph.node.add(op_type="Identity", input=[name], output=[value.name], name=value.name)


def _read(node: Any, source: Mapping[str, str]) -> None:
    """Makes a node, and the graphs inside of it, read other tensors."""
    node.input[:] = [source.get(name, name) for name in node.input]
    for inner in _graphs(node):
        for one in inner.node:
            _read(one, source)
        for value in inner.output:
            value.name = source.get(value.name, value.name)


def _order(graph: Any) -> None:
    for node in graph.node:
        for inner in _graphs(node):
            _order(inner)
    made_by = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    order: list[int] = []
    seen: set[int] = set()
    pending = [(made_by[value.name], False) for value in reversed(graph.output) if value.name in made_by]
    while pending:
        place, ready = pending.pop()
        if ready:
            order.append(place)
        elif place not in seen:
            seen.add(place)
            pending.append((place, True))
            pending += [(made_by[name], False) for name in reversed(_needs(graph.node[place])) if made_by.get(name, place) not in seen]
    nodes = [_copy(graph.node[place]) for place in order]
    initializers = {tensor.name: _copy(tensor) for tensor in graph.initializer}
    kept = dict.fromkeys(name for node in nodes for name in _needs(node) if name in initializers)
    kept.update(dict.fromkeys(value.name for value in graph.output if value.name in initializers))
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers[name] for name in kept)


def _needs(node: Any) -> list[str]:
    """Names that a node reads, those that the graphs inside of it take from around them included."""
    found = [name for name in node.input if name]
    for graph in _graphs(node):
        own = {value.name for value in (*graph.input, *graph.initializer)} | {name for inner in graph.node for name in inner.output}
        found += [name for inner in graph.node for name in _needs(inner) if name not in own]
        found += [value.name for value in graph.output if value.name not in own]
    return found


def _collect(graph: Any, names: _Names) -> None:
    constants = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        names.add(value.name)
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in constants:  # equal ones were made one, under the name of any: what reads it first is certain
                names.add(name, f"{_NUMBERED.sub('', node.name)}/constant_{place}")
        for place, name in enumerate(node.output):  # a value that is two outputs of a loop has the name of either: its node's is certain
            names.add(name, f"{_NUMBERED.sub('', node.name)}:{place}")
        for inner in _graphs(node):
            _collect(inner, names)
    for value in graph.output:
        names.add(value.name)


def _rename(graph: Any, new: dict[str, str]) -> None:
    used = _Names(set())
    graph.name = _NUMBERED.sub("", graph.name) or "body"
    for node in graph.node:
        used.add(node.name)
        node.name = used.new.get(node.name, "")
        if not node.domain:
            node.ClearField("domain")  # written or left out, it means the same
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
        for inner in _graphs(node):
            _rename(inner, new)
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = new.get(value.name, value.name)


def _graphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _copy(message: Any) -> Any:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied
