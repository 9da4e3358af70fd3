"""Which operator of a SavedModel a tensor comes out of, past all calls of functions. Nothing is loaded or run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from toolkit.savedmodel_messages import Function, MetaGraph, Node

CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
# What takes its first input for a choice, and hands the others to a function.
_BRANCHES = {"If", "StatelessIf", "Case", "StatelessCase"}
_MAX_DEPTH = 100
_MAX_HOPS = 1000


@dataclass
class Scope:
    """A function at one place where it is called; the main graph is the outermost.

    Attributes:
        function: The function.
        outer: Where it is called; ``None`` around the main graph.
        given: The tensors in the outer scope that its arguments stand for; some may be unknown.
    """

    function: Function
    outer: Scope | None = None
    given: tuple[str, ...] = ()
    depth: int = 0
    _inner: dict[tuple[str, str], Scope] = field(default_factory=dict)

    def inner(self, node: Node, function: Function) -> Scope:
        """Enters a function that a node calls.

        Raises:
            ValueError: Functions call each other without an end.
        """
        if self.depth >= _MAX_DEPTH:
            raise ValueError(f"its functions are nested more than {_MAX_DEPTH} deep")
        given = node.inputs[1:] if node.kind in _BRANCHES else node.inputs
        return self._inner.setdefault((node.name, function.name), Scope(function, self, given, self.depth + 1))


class Graph:
    """Follows tensors through the functions of one graph."""

    def __init__(self, meta: MetaGraph) -> None:
        self._functions = meta.functions
        self.main = Scope(meta.main)

    def source(self, tensor: str, scope: Scope) -> tuple[Node, Scope] | None:
        """Finds the node that computes a tensor, past all calls; ``None`` where a function's argument is not known.

        Raises:
            ValueError: It leads in a circle.
            KeyError: There is no such node.
        """
        for _ in range(_MAX_HOPS):
            name, _, port = tensor.partition(":")
            arguments = scope.function.arguments
            if scope.outer is not None and name in arguments:
                place = arguments.index(name)
                if place >= len(scope.given):
                    return None
                tensor, scope = scope.given[place], scope.outer
                continue
            node = scope.function.nodes[name]
            called = self.called(node)
            if called is None:
                return node, scope
            scope = scope.inner(node, called)
            tensor = called.returns[int(port.rpartition(":")[2] or 0)]
        raise ValueError(f"the tensor {tensor!r} comes out of a circle of calls")

    def called(self, node: Node) -> Function | None:
        """Returns the function that a node does nothing but call."""
        if node.kind in CALLS:
            return self._functions[next(node.functions(), "")]
        return self._functions.get(node.kind)

    def bodies(self, node: Node, scope: Scope) -> Iterator[Scope]:
        """Enters the functions that an operator runs: the body of a loop, the branches of a choice."""
        for name in node.functions():
            if name in self._functions:
                yield scope.inner(node, self._functions[name])
