"""Products after Einstein's convention, as transposes, sums and one product of matrices for each pair of factors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.convert.tfl.facts import FLOATS
from toolkit.convert.tfl.graph import Graph, Tensor
from toolkit.convert.tfl.lower import Call, operator
from toolkit.convert.tfl.program import FREE, Unsupported

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@operator("Einsum", dtypes=FLOATS, limits="no axis that is broadcast and summed over; no diagonal where a size is free")
def _einsum(call: Call) -> Tensor:
    values = [call.x(place) for place in range(len(call.node.inputs))]
    terms, result = _terms(call.attribute("equation"), [value.rank for value in values])
    if any(value.dtype.kind != "f" for value in values):
        raise Unsupported("multiplies matrices of integers")
    left, letters = _diagonal(call.graph, values[0], terms[0])
    for number, (value, term) in enumerate(zip(values[1:], terms[1:], strict=True), 2):
        right, own = _diagonal(call.graph, value, term)
        later = set(result).union(*terms[number:])
        left, letters = _pair(call.graph, (left, letters), (right, own), later)
    left, letters = _summed(call.graph, left, letters, set(result))
    return call.graph.transpose(left, [letters.index(letter) for letter in result])


def _terms(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Returns the letters of each factor and of the result, with letters of their own for what ``...`` stands for."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    free = [letter for letter in _LETTERS if letter not in equation]
    widths = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    most = max([width for width, term in zip(widths, terms, strict=True) if "..." in term], default=0)
    dots = "".join(free[:most])
    spelled = [term.replace("...", dots[most - width :] if "..." in term else "") for term, width in zip(terms, widths, strict=True)]
    if not arrow:
        plain = left.replace("...", "").replace(",", "")
        result = dots + "".join(sorted(letter for letter in set(plain) if plain.count(letter) == 1))
    return spelled, result.replace("...", dots)


def _diagonal(graph: Graph, value: Tensor, letters: str) -> tuple[Tensor, str]:
    """Takes the diagonal of axes of the same letter."""
    for letter in dict.fromkeys(letters):
        while letters.count(letter) > 1:
            first, second = [place for place, one in enumerate(letters) if one == letter][:2]
            size = value.shape[first]
            if FREE in value.shape:
                raise Unsupported("takes a diagonal of a tensor whose number of samples is free at run time")
            order = [first, second, *(axis for axis in range(value.rank) if axis not in (first, second))]
            rest = [value.shape[axis] for axis in order[2:]]
            rows = graph.reshape(graph.transpose(value, order), (size * size, int(np.prod(rest))))
            picked = graph.add("GATHER", [rows, graph.integers(np.arange(size) * (size + 1))], (size, rows.shape[1]), axis=0, batchDims=0)
            value = graph.reshape(picked, (size, *rest))
            letters = letter + "".join(letters[axis] for axis in order[2:])
    return value, letters


def _summed(graph: Graph, value: Tensor, letters: str, kept: set[str]) -> tuple[Tensor, str]:
    """Sums over the axes whose letter nobody needs any more."""
    gone = [place for place, letter in enumerate(letters) if letter not in kept]
    if not gone:
        return value, letters
    shape = [size for place, size in enumerate(value.shape) if place not in gone]
    return graph.add("SUM", [value, graph.integers(gone)], shape, keepDims=False), "".join(letter for letter in letters if letter in kept)


def _pair(graph: Graph, left: tuple[Tensor, str], right: tuple[Tensor, str], later: set[str]) -> tuple[Tensor, str]:
    """Multiplies two factors: ``[batch x rows x inner] @ [batch x inner x columns]``."""
    one, first = _summed(graph, *left, later | set(right[1]))
    two, second = _summed(graph, *right, later | set(first))
    shared = [letter for letter in first if letter in second]
    batch, inner = [letter for letter in shared if letter in later], [letter for letter in shared if letter not in later]
    rows, columns = [letter for letter in first if letter not in shared], [letter for letter in second if letter not in shared]
    sizes = _sizes((one, first), (two, second))
    if any(value.shape[letters.index(letter)] != sizes[letter] for value, letters in ((one, first), (two, second)) for letter in inner):
        raise Unsupported("broadcasts an axis that it sums over")
    if not inner:
        return _outer(graph, (one, first), (two, second), [*batch, *rows, *columns])
    own = [{**sizes, **dict(zip(letters, value.shape, strict=True))} for value, letters in ((one, first), (two, second))]
    given = [_grouped(graph, one, first, (batch, rows, inner), own[0]), _grouped(graph, two, second, (batch, inner, columns), own[1])]
    lead = [max(own[0][letter], own[1][letter]) if FREE not in (own[0][letter], own[1][letter]) else FREE for letter in batch]
    shape = (*lead, given[0].shape[-2], given[1].shape[-1])
    if batch:
        made = graph.add("BATCH_MATMUL", given, shape, adjX=False, adjY=False)
    else:
        made = graph.add("FULLY_CONNECTED", [given[0], graph.transpose(given[1], (1, 0)), None], shape, keepNumDims=False)
    letters = "".join([*batch, *rows, *columns])
    return graph.reshape(made, [sizes[letter] for letter in letters]), letters


def _sizes(*factors: tuple[Tensor, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for value, letters in factors:
        for letter, size in zip(letters, value.shape, strict=True):
            found[letter] = size if found.get(letter, 1) == 1 else found[letter]
    return found


def _grouped(graph: Graph, value: Tensor, letters: str, groups: tuple[list[str], list[str], list[str]], sizes: dict[str, int]) -> Tensor:
    """Brings a factor to its batch and two axes."""
    batch, first, second = groups
    moved = graph.transpose(value, [letters.index(letter) for letter in (*batch, *first, *second)])
    merged = [
        FREE if any(sizes[letter] == FREE for letter in group) else int(np.prod([sizes[letter] for letter in group])) for group in (first, second)
    ]
    return graph.reshape(moved, [*(sizes[letter] for letter in batch), *merged])


def _outer(graph: Graph, left: tuple[Tensor, str], right: tuple[Tensor, str], letters: list[str]) -> tuple[Tensor, str]:
    """A product that sums over nothing."""
    operands = []
    for value, own in (left, right):
        order = [own.index(letter) for letter in letters if letter in own]
        moved = graph.transpose(value, order)
        sizes = iter(moved.shape)
        operands.append(graph.reshape(moved, [next(sizes) if letter in own else 1 for letter in letters]))
    return graph.binary("MUL", *operands), "".join(letters)
