"""TensorFlow's graphs as messages: what is not needed is left out, and names depend on the graph alone."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

_CALLS = ("PartitionedCall", "StatefulPartitionedCall", "SymbolicGradient", "RemoteCall")


def pruned(graph: Any, kept: Sequence[str]) -> Any:
    """Returns a copy without what the named tensors do not need."""
    known_nodes = {node.name: node for node in graph.node}
    pending, needed = [node_of(name) for name in kept], set()
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            pending.extend(node_of(source.removeprefix("^")) for source in known_nodes[name].input)
    result = type(graph)(versions=graph.versions)
    result.node.extend(node for node in graph.node if node.name in needed)
    known = {function.signature.name: function for function in graph.library.function}
    called = [call.name for node in result.node for call in _calls(node)]
    for name in called:  # grows while it is read
        if name in known:
            function = result.library.function.add()
            function.CopyFrom(known.pop(name))
            called += [call.name for node in function.node_def for call in _calls(node)]
    return result


def _calls(node: Any) -> Iterator[Any]:
    for _, value in sorted(node.attr.items()):
        yield from (*([value.func] if value.HasField("func") else []), *value.list.func)


def stands_alone(graph: Any, variables: Collection[str]) -> bool:
    """Whether a graph has nothing left to inline or to freeze: no calls and none of the operators of ``variables``."""
    functions = {function.signature.name for function in graph.library.function}
    return not any(node.op in variables or node.op in functions or node.op in _CALLS for node in nodes(graph))


def tidy(graph: Any, kept: Sequence[str]) -> Any:
    """Drops what the named tensors do not need, devices and notes, and gives names that no counter of the process went into."""
    result = pruned(graph, kept)
    _rename_constants(result, set(map(node_of, kept)))
    for node in nodes(result):
        node.device = ""
        node.ClearField("experimental_debug_info")
        for name in [name for name in node.attr if name.startswith("_")]:
            del node.attr[name]
    for function in result.library.function:
        function.attr.clear()
        function.arg_attr.clear()
    _rename_functions(result, {function.signature.name: str(place) for place, function in enumerate(result.library.function)})
    # TensorFlow knows functions by their names alone: those of two models in one process must differ.
    digest = hashlib.sha256(result.SerializeToString(deterministic=True)).hexdigest()[:16]
    _rename_functions(result, {function.signature.name: f"function_{digest}_{function.signature.name}" for function in result.library.function})
    return result


def _rename_functions(graph: Any, names: Mapping[str, str]) -> None:
    for function in graph.library.function:
        function.signature.name = names[function.signature.name]
    for node in nodes(graph):
        for call in _calls(node):
            call.name = names.get(call.name, call.name)


def _rename_constants(graph: Any, kept: set[str]) -> None:
    """A constant that a function captured is called by a number that counts all tensors of the process."""
    counted = [node.name for node in graph.node if node.name.isdigit() and node.name not in kept]
    names = {name: f"constant_{place}" for place, name in enumerate(counted)}
    for node in graph.node:
        node.name = names.get(node.name, node.name)
        for place, source in enumerate(node.input):
            name, separator, port = source.removeprefix("^").partition(":")
            if name in names:
                node.input[place] = f"{'^' * source.startswith('^')}{names[name]}{separator}{port}"


def nodes(graph: Any) -> Iterator[Any]:
    """Yields the nodes of a graph and of its functions."""
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def node_of(tensor: str) -> str:
    """Returns the name of the node that a tensor comes out of."""
    return tensor.partition(":")[0]
