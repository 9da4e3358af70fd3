"""The table of operators on docs/onnx-to-tflite.md; ``python -m toolkit.convert.tfl.coverage`` writes it there."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.convert.tfl import lower, operators
from toolkit.convert.tfl.facts import EVERY, FLOATS, NUMBERS, SPELLED_OUT, Facts
from toolkit.convert.tfl.graph import Graph
from toolkit.convert.tfl.program import EXPANSIONS, Type, read

BEGIN, END = "<!-- operators: begin -->", "<!-- operators: end -->"
PAGE = Path(__file__).parents[3] / "docs" / "onnx-to-tflite.md"
OLDEST = 7
"""The oldest operator set whose versions are listed."""
_HEAD = ["| Operator | Versions | Element types | Channels | Limits |", "|---|---|---|---|---|"]
_LAYOUTS = {"either": "either", "channels_first": "first", "channels_last": "last"}
_ORDER = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
_INTEGERS = NUMBERS - FLOATS
_REST = "defined"  # the family of operators that ONNX's definitions stand for


@dataclass(frozen=True)
class Row:
    """One operator of the table.

    Attributes:
        kind: Its name, with its domain before it unless that is ONNX's own.
        family: The module that lowers it.
        versions: Versions of it that are accepted; empty for one of another domain.
        dtypes: Element types that are accepted.
        layout: Where the channels are while it is lowered, or what it is spelled out as.
        limits: What else must hold.
    """

    kind: str
    family: str
    versions: tuple[int, ...]
    dtypes: tuple[str, ...]
    layout: str
    limits: str

    def line(self) -> str:
        """Returns the row as the page has it."""
        versions = ", ".join(map(str, self.versions)) or "-"
        return f"| `{self.kind}` | {versions} | {_grouped(self.dtypes)} | {self.layout} | {self.limits} |"


@dataclass(frozen=True)
class Example:
    """A use of an operator that has a definition only: sizes of its inputs, those that are known, and its attributes."""

    inputs: Sequence[tuple[int, ...] | np.ndarray]
    attributes: Mapping[str, Any]
    limits: str = ""


_HEADS = (1, 2, 4, 8)
DEFINED = {
    "Attention": Example([_HEADS] * 3, {}, "known sizes; no nonpad_kv_seqlen"),
    "CausalConvWithState": Example([(1, 4, 6), (4, 1, 3)], {}, "known sizes"),
    "CenterCropPad": Example([(2, 5, 6), np.array([3, 8])], {"axes": [1, 2]}, "a constant shape"),
    "LinearAttention": Example([(1, 3, 8)] * 3, {"q_num_heads": 2, "kv_num_heads": 2}, "known sizes"),
    "NegativeLogLikelihoodLoss": Example([(3, 5), np.array([1, 0, 4])], {"reduction": "mean"}, "known sizes"),
    "RotaryEmbedding": Example([_HEADS, (1, 4, 4), (1, 4, 4)], {}, "known sizes"),
    "SoftmaxCrossEntropyLoss": Example([(3, 5), np.array([1, 0, 4])], {"reduction": "mean"}, "known sizes"),
    "SwiGLU": Example([(2, 3), (2, 3)], {}),
}
"""Operators that are left to ONNX's own definitions, with a use of each that shows that all of it can be lowered."""


def rows() -> list[Row]:
    """Returns all operators that can be converted, by family."""
    own = [_row(kind, entry.function, _LAYOUTS.get(entry.rule.__name__, "depends"), entry.facts) for kind, entry in lower.REGISTRY.items()]
    spelled = [_row(kind, expand, "spelled out", SPELLED_OUT.get(kind, Facts())) for kind, expand in EXPANSIONS.items()]
    defined = [
        Row(kind, _REST, versions(kind), dtypes(kind, Facts(FLOATS)), "definition", example.limits)
        for kind, example in DEFINED.items()
        if kind not in lower.REGISTRY and kind not in EXPANSIONS and defined_lowers(kind, example)
    ]
    return sorted([*own, *spelled, *defined], key=lambda row: (row.family == _REST, row.family, row.kind))


def _row(kind: str, function: Any, layout: str, facts: Facts) -> Row:
    return Row(kind, function.__module__.rpartition(".")[2], versions(kind, facts.since), dtypes(kind, facts), layout, facts.limits)


def versions(kind: str, since: int = 1) -> tuple[int, ...]:
    """Returns the versions of an operator that a model of operator set 7 or newer can have; none where ONNX does not know it."""
    known = [schema for schema in history().get(kind, ()) if not schema.deprecated or schema is history()[kind][0]]
    old = [schema.since_version for schema in known if schema.since_version <= OLDEST]
    return tuple(schema.since_version for schema in known if schema.since_version >= max([since, *old[-1:]]))


def dtypes(kind: str, facts: Facts) -> tuple[str, ...]:
    """Returns the element types that an operator is lowered for: those that ONNX allows, as far as its facts do."""
    return tuple(name for name in _ORDER if name in allowed(kind, facts) & facts.dtypes)


def allowed(kind: str, facts: Facts) -> frozenset[str]:
    """Returns the element types that ONNX's newest version of an operator allows, of the input that the facts are about."""
    schemas = [schema for schema in history().get(kind, ()) if schema.since_version in versions(kind)]
    return allowed_by(schemas[-1], facts.typed) if schemas else EVERY


def allowed_by(schema: Any, place: int) -> frozenset[str]:
    """Returns the element types that one version of an operator allows of an input."""
    formal = schema.inputs[min(place, len(schema.inputs) - 1)].type_str
    constraints = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}
    return frozenset(_numpy_name(text) for text in constraints.get(formal, [formal]))


def _numpy_name(text: str) -> str:
    name = text.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


@cache
def history() -> dict[str, list[Any]]:
    """All versions of ONNX's operators, oldest first."""
    from onnx import defs

    found: dict[str, list[Any]] = {}
    for schema in sorted(defs.get_all_schemas_with_history(), key=lambda schema: schema.since_version):
        if schema.domain == "":
            found.setdefault(schema.name, []).append(schema)
    return found


def example_model(kind: str, example: Example) -> Any:
    """Returns a model of one operator, of the newest operator set."""
    from onnx import TensorProto, defs, helper, numpy_helper

    names = [f"x{place}" for place in range(len(example.inputs))]
    known = {name: one for name, one in zip(names, example.inputs, strict=True) if isinstance(one, np.ndarray)}
    given = {name: one for name, one in zip(names, example.inputs, strict=True) if isinstance(one, tuple)}
    node = helper.make_node(kind, names, ["y"], **example.attributes)
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in given.items()]
    constants = [numpy_helper.from_array(array, name) for name, array in known.items()]
    graph = helper.make_graph([node], kind, inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", defs.onnx_opset_version())])


def defined_lowers(kind: str, example: Example) -> bool:
    """Whether everything that ONNX defines an operator as can be lowered; not where the ``onnx`` package does not know it."""
    if kind not in history():
        return False
    types = {f"x{place}": Type(np.dtype(np.float32), one) for place, one in enumerate(example.inputs) if isinstance(one, tuple)}
    program = read(example_model(kind, example), types, lambda name: name in lower.REGISTRY)
    graph = Graph()
    lower.lower(program, graph, {name: (graph.input(name, type.shape, type.dtype), "first") for name, type in types.items()}, {})
    return not program.problems


def _grouped(names: Sequence[str]) -> str:
    """Names element types: floats and integers in one word where all are there."""
    left = set(names)
    words = []
    for word, group in (("floats", FLOATS), ("integers", _INTEGERS)):
        if group <= left:
            words.append(word)
            left -= group
    return "all" if set(names) == EVERY else ", ".join([*words, *(name for name in _ORDER if name in left)])


def table() -> str:
    """Returns the table as Markdown, with a heading for each family."""
    import onnx

    found = rows()
    lines = [f"The versions and types are those of onnx {onnx.__version__}."]
    for family in dict.fromkeys(row.family for row in found):
        lines += ["", f"### {_title(family)}", "", *_HEAD, *(row.line() for row in found if row.family == family)]
    return "\n".join(lines) + "\n"


def _title(family: str) -> str:
    return "Operators that ONNX defines by others" if family == _REST else family.replace("_", " ").capitalize()


def filled(page: str) -> str:
    """Returns a page with the table between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"


def main() -> int:
    """Writes the table."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


assert operators  # importing it registers the operators

if __name__ == "__main__":
    sys.exit(main())
