"""Finds what several ONNX operators spell out and one kernel of TFLite computes: GELU, hard-swish, and the NaN guard of attention.

It works on the typed graph before layouts are chosen. What a pattern leaves without a reader is dropped later, with all dead operators.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isclose, pi, sqrt

import numpy as np

from toolkit.convert.tfl.program import Node, Program, Type

_MOST_FACTORS = 4  # a product that spells out an activation has no more operators than these
_CLOSE = 1e-4
# Stands for minus infinity in masks: any finite score added to it is lost, and a row of nothing else has no NaN as its softmax.
_MASKED = np.float32(-1e30)
# What a mask is made by, of another mask as its first input.
_CARRYING = {"Unsqueeze", "Squeeze", "Expand", "Reshape", "Transpose", "Slice", "Identity", "Cast", "Concat"}
_MASK_DEPTH = 12


def apply(program: Program) -> None:
    """Replaces what it finds, in place."""
    pass_ = _Pass(program)
    for node in list(program.nodes):
        if node.kind == "Erf":
            pass_.exact_gelu(node)
        elif node.kind == "Tanh":
            pass_.tanh_gelu(node)
        elif node.kind in ("HardSigmoid", "Clip"):
            pass_.hard_swish(node)
        elif node.kind == "Where":
            pass_.nan_guard(node)


class _Pass:
    """One walk over a program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.makers = {name: node for node in program.nodes for name in node.outputs if name}
        self.readers: dict[str, list[Node]] = {}
        for node in program.nodes:
            for name in node.inputs:
                self.readers.setdefault(name, []).append(node)
        self.masks: dict[str, tuple[str, str]] = {}

    def exact_gelu(self, erf: Node) -> None:
        """``0.5 x (1 + erf(x / sqrt 2))``, in any order of its factors."""
        for x, factor in self.peeled(erf.inputs[0]):
            if isclose(factor, 1 / sqrt(2), rel_tol=_CLOSE):
                self.gelu(self.one_more(erf.outputs[0]), x, "none")

    def tanh_gelu(self, tanh: Node) -> None:
        """``0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³)))``, Hendrycks and Gimpel, https://arxiv.org/abs/1606.08415."""
        for inner, factor in self.peeled(tanh.inputs[0]):
            x = self.cubic(inner) if isclose(factor, sqrt(2 / pi), rel_tol=_CLOSE) else None
            if x is not None:
                self.gelu(self.one_more(tanh.outputs[0]), x, "tanh")

    def gelu(self, gate: str | None, x: str, approximate: str) -> None:
        end = self.product(gate, x, 0.5) if gate is not None else None
        if end is not None:
            self.become(end, "Gelu", x, {"approximate": approximate})

    def hard_swish(self, gate: Node) -> None:
        """``x clip(x + 3, 0, 6) / 6``, also where the gate is a HardSigmoid; Howard et al., https://arxiv.org/abs/1905.02244."""
        if gate.kind == "HardSigmoid":
            slope, middle = gate.attributes.get("alpha", 0.2), gate.attributes.get("beta", 0.5)
            x, scale = (gate.inputs[0], 1.0) if isclose(slope, 1 / 6, rel_tol=_CLOSE) and middle == 0.5 else (None, 0.0)
        else:
            bounds = [self.scalar(name) if name else None for name in [*gate.inputs[1:], "", ""][:2]]
            x, scale = (self.less(gate.inputs[0], 3.0), 1 / 6) if bounds == [0.0, 6.0] else (None, 0.0)
        end = self.product(gate.outputs[0], x, scale) if x is not None else None
        if end is not None and x is not None:
            self.become(end, "HardSwish", x, {})

    def nan_guard(self, where: Node) -> None:
        """Zeros in place of the NaN that a softmax makes of rows that are masked as a whole.

        PyTorch writes ``Where(IsNaN(y), 0, y)`` behind every masked softmax, which no delegate takes. With a large number in place of minus
        infinity there is no NaN, and one product with zeros and ones, which all layers share, does the rest. Where nothing is masked
        there is nothing to guard: what is infinite for another reason gives NaN, then, as in the rest of the model.
        """
        asked, zero, kept = where.inputs
        test, softmax = self.makers.get(asked), self.makers.get(kept)
        if test is None or test.kind != "IsNaN" or test.inputs[0] != kept or self.scalar(zero) != 0.0 or softmax is None or softmax.kind != "Softmax":
            return
        rank = len(self.program.types[kept].shape)
        total = self.makers.get(softmax.inputs[0])
        if total is None or softmax.version < 13 or softmax.attributes.get("axis", -1) % rank != rank - 1:
            return
        if total.kind == "Add":
            masks = [name for name in total.inputs if self.is_mask(name)]
            scores = [name for name in total.inputs if name not in masks]
            if len(masks) == 1 and self.is_product(scores[0]):
                harmless = self.has_rows(masks[0]) or self.is_mask(masks[0], finite=True)
                self.become(where, "Identity", kept, {}) if harmless else self.shared_guard(where, total, masks[0])
        elif self.is_product(softmax.inputs[0]):
            self.become(where, "Identity", kept, {})

    def is_product(self, name: str) -> bool:
        """Whether a value is a matrix product, or a multiple of one."""
        maker = self.makers.get(self.peeled(name)[-1][0])
        return maker is not None and maker.kind == "MatMul"

    def has_rows(self, mask: str) -> bool:
        """Whether a mask is known, and leaves something of every row."""
        content = self.program.constants.get(mask)
        return content is not None and content.ndim > 0 and bool(np.isfinite(content.max(axis=-1)).all())

    def shared_guard(self, where: Node, total: Node, mask: str) -> None:
        bounded, rows = self.bounded(mask, total)
        total.inputs = [bounded if name == mask else name for name in total.inputs]
        where.kind, where.version, where.inputs = "Mul", 14, [where.inputs[2], rows]

    def bounded(self, mask: str, before: Node) -> tuple[str, str]:
        """Returns a mask without infinities, and one for each row of which something is left, else zero; made once for all who read it."""
        if mask not in self.masks:
            type = self.program.type(mask)
            row, flags = Type(type.dtype, (*type.shape[:-1], 1)), Type(np.dtype(np.bool_), type.shape)
            lowest, infinite = self.constant(_MASKED, type), self.constant(np.float32(-np.inf), type)
            axes = self.constant(np.full(1, -1), Type(np.dtype(np.int64), (1,)))
            choice = self.makers.get(mask)
            if choice is not None and choice.kind == "Where" and [self.scalar(name) for name in choice.inputs[1:]] == [0.0, -np.inf]:
                return self.chosen(mask, choice.inputs[0], before, axes)
            self.insert(before, "Max", [mask, lowest], f"{mask}/bounded", type)
            self.insert(before, "Greater", [mask, infinite], f"{mask}/kept", flags)
            self.insert(before, "Cast", [f"{mask}/kept"], f"{mask}/ones", type, to=1)
            self.insert(before, "ReduceMax", [f"{mask}/ones", axes], f"{mask}/rows", row, version=18)
            self.masks[mask] = f"{mask}/bounded", f"{mask}/rows"
        return self.masks[mask]

    def chosen(self, mask: str, kept: str, before: Node, axes: str) -> tuple[str, str]:
        """The same for a mask that is a choice between zero and minus infinity: products and sums of ones, which delegates take."""
        type = Type(self.program.type(mask).dtype, self.program.type(kept).shape)
        far = self.constant(-_MASKED, type)
        self.insert(before, "Cast", [kept], f"{mask}/ones", type, to=1)
        self.insert(before, "Mul", [f"{mask}/ones", far], f"{mask}/far", type)
        self.insert(before, "Sub", [f"{mask}/far", far], f"{mask}/bounded", type)
        self.insert(before, "ReduceMax", [f"{mask}/ones", axes], f"{mask}/rows", Type(type.dtype, (*type.shape[:-1], 1)), version=18)
        self.masks[mask] = f"{mask}/bounded", f"{mask}/rows"
        return self.masks[mask]

    def insert(self, before: Node, kind: str, inputs: list[str], output: str, type: Type, version: int = 13, **attributes: int) -> None:
        node = Node(kind, version, output, inputs, [output], attributes)
        self.program.nodes.insert(self.program.nodes.index(before), node)
        self.program.types[output], self.makers[output] = type, node

    def constant(self, content: np.generic | np.ndarray, like: Type) -> str:
        name = f"{np.asarray(content).tolist()}/{like.dtype}"
        self.program.constants[name] = np.asarray(content, like.dtype)
        return name

    def is_mask(self, name: str, depth: int = _MASK_DEPTH, *, finite: bool = False) -> bool:
        """Whether a value is a choice between constants, perhaps finite ones, so that it has nothing of the scores."""
        if name in self.program.constants:
            return not finite or bool(np.isfinite(self.program.constants[name]).all())
        node = self.makers.get(name)
        if node is None or not depth:
            return False
        if node.kind == "Where":
            return all(self.is_mask(one, depth - 1, finite=finite) for one in node.inputs[1:])
        return node.kind in _CARRYING and self.program.type(name).dtype.kind == "f" and self.is_mask(node.inputs[0], depth - 1, finite=finite)

    def become(self, node: Node, kind: str, x: str, attributes: dict[str, object]) -> None:
        """Lets a node compute its output from one value."""
        node.kind, node.version, node.inputs, node.attributes = kind, 20, [x], attributes

    def one_more(self, name: str) -> str | None:
        """Returns what a value plus one is called."""
        return next((node.outputs[0] for node in self.readers.get(name, ()) if node.kind == "Add" and self.other(node, name) == 1.0), None)

    def less(self, name: str, number: float) -> str | None:
        """Returns the value that is the given one less a number."""
        node = self.makers.get(name)
        if node is None or node.kind != "Add":
            return None
        return next((one for one in node.inputs if self.other(node, one) == number), None)

    def cubic(self, name: str) -> str | None:
        """Returns ``x`` of ``x + 0.044715 x³``, or of ``x (1 + 0.044715 x²)``."""
        node = self.makers.get(name)
        if node is None or node.kind not in ("Add", "Mul") or len(node.inputs) != 2:
            return None
        for x, rest in (node.inputs, node.inputs[::-1]):
            bent = rest if node.kind == "Add" else self.less(rest, 1.0)
            power = 3 if node.kind == "Add" else 2
            if bent and any(isclose(by, 0.044715, rel_tol=_CLOSE) and self.powers(base, x) == power for base, by in self.peeled(bent)):
                return x
        return None

    def powers(self, name: str, x: str) -> float:
        """How often ``x`` is a factor of a value that has no other; 0 where it has."""
        if name == x:
            return 1
        node = self.makers.get(name)
        if node is not None and node.kind == "Pow" and node.inputs[0] == x:
            return self.scalar(node.inputs[1]) or 0
        if node is None or node.kind != "Mul":
            return 0
        parts = [self.powers(one, x) for one in node.inputs]
        return sum(parts) if all(parts) else 0

    def product(self, gate: str, x: str, scale: float) -> Node | None:
        """Returns the node that makes ``gate * x * scale``, whatever the order of the products."""
        open_ends: list[tuple[str, bool, float]] = [(gate, False, 1.0)]
        for _ in range(_MOST_FACTORS):
            found = [step for end in open_ends for step in self.multiplied(*end, x)]
            for node, has_x, by in found:
                if has_x and isclose(by, scale, rel_tol=_CLOSE):
                    return node
            open_ends = [(node.outputs[0], has_x, by) for node, has_x, by in found]
        return None

    def multiplied(self, name: str, has_x: bool, scale: float, x: str) -> Iterator[tuple[Node, bool, float]]:
        """Yields what multiplies a value by numbers or, once, by ``x``."""
        for node in self.readers.get(name, ()):
            if node.kind not in ("Mul", "Div") or len(node.inputs) != 2 or node.inputs[0] == node.inputs[1]:
                continue
            number = self.other(node, name)
            if number is not None and (node.kind == "Mul" or node.inputs[0] == name):
                yield node, has_x, scale * number if node.kind == "Mul" else scale / number
            elif node.kind == "Mul" and not has_x:
                rest = next(one for one in node.inputs if one != name)
                yield from ((node, True, scale * factor) for base, factor in self.peeled(rest) if base == x)

    def peeled(self, name: str) -> Sequence[tuple[str, float]]:
        """Returns the value itself, and what it is a multiple of, with the factor."""
        found = [(name, 1.0)]
        for _ in range(_MOST_FACTORS):
            node = self.makers.get(found[-1][0])
            if node is None or node.kind not in ("Mul", "Div") or len(node.inputs) != 2:
                break
            left, right = node.inputs
            number = self.scalar(right)
            if number is not None and number != 0:
                found.append((left, found[-1][1] * number if node.kind == "Mul" else found[-1][1] / number))
            elif node.kind == "Mul" and (number := self.scalar(left)) is not None:
                found.append((right, found[-1][1] * number))
            else:
                break
        return found

    def other(self, node: Node, name: str) -> float | None:
        """The number that is the other of a node's two inputs."""
        rest = [one for one in node.inputs if one != name]
        return self.scalar(rest[0]) if len(rest) == 1 and len(node.inputs) == 2 else None

    def scalar(self, name: str) -> float | None:
        content = self.program.constants.get(name)
        return float(content.reshape(-1)[0]) if content is not None and content.size == 1 else None
