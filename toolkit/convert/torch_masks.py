"""Masks of attention in numbers that survive float16 and int8.

A mask of minus infinity, or of the most negative float32, overflows in float16. A row that is masked throughout then has no largest
score, and its softmax is 0/0, NaN; a quantizer finds no scale for such numbers at all. Half of float16's most negative number,
-32752, weighs nothing after ``exp`` just as well, and leaves room for the score that it is added to. A row that is masked throughout
gets equal weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from toolkit.convert import torch_programs

if TYPE_CHECKING:
    import torch

LOWEST = -32752.0
_SOFTMAX = {"softmax": 0, "_softmax": 0, "_safe_softmax": 0, "log_softmax": 0, "_log_softmax": 0, "scaled_dot_product_attention": 3}
# What a mask passes on its way to the scores. Products with weights are not among them: behind those are the scores themselves.
_CARRIERS = {
    *("add", "sub", "rsub", "mul", "where", "masked_fill", "expand", "expand_as", "view", "reshape", "unsqueeze", "squeeze", "slice", "select"),
    *("to", "_to_copy", "type_as", "clone", "alias", "detach", "contiguous", "permute", "transpose", "triu", "tril", "repeat", "cat", "copy"),
    *("full", "full_like", "new_full", "scalar_tensor", "lift_fresh_copy", "minimum", "maximum", "lift_fresh", "index", "bitwise_not", "fill"),
}


def make_finite(program: torch.export.ExportedProgram) -> tuple[torch.export.ExportedProgram, list[str]]:
    """Raises every number below -32752 that a mask puts in the place of a score; returns the new program, and the places.

    Attention whose mask is of booleans, or causal, puts minus infinity itself: it gets numbers.
    """
    import torch

    places = [torch_programs.place(node) for node in torch_programs.calls(program) if _hides(node)]
    if not places and not any(_changes(program)):
        return program, []
    own = program.run_decompositions({torch.ops.aten.scaled_dot_product_attention.default: _attend})
    for node, argument in list(_changes(own)):
        places.append(torch_programs.place(node))
        if argument is None:
            _raise_stored(own, node)
        else:
            node.update_arg(argument, LOWEST)
    own.graph_module.recompile()
    return own, places


def _hides(node: torch.fx.Node) -> bool:
    """Whether a node is attention that makes a mask of its own."""
    import torch

    if torch_programs.plain_name(node.target) != "scaled_dot_product_attention":
        return False
    args, named = torch.fx.node.map_arg((node.args, node.kwargs), lambda one: one.meta["val"])
    return _is_own(*args, **named)


def _is_own(query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False, **named: Any) -> bool:
    return is_causal or (attn_mask is not None and str(attn_mask.dtype) == "torch.bool")


def _attend(query: torch.Tensor, key: torch.Tensor, *args: Any, **named: Any) -> Any:
    """Attention with a mask of numbers in the place of its own."""
    import torch

    if not _is_own(query, key, *args, **named):
        return NotImplemented
    value, seen, dropout = (*args, *(None, 0.0)[len(args) - 1 :])[:3]
    seen, dropout = named.pop("attn_mask", seen), named.pop("dropout_p", dropout)
    named.pop("is_causal", None)
    if seen is None:
        seen = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    mask = torch.where(seen, 0.0, LOWEST)
    return torch.ops.aten.scaled_dot_product_attention.default(query, key, value, mask, dropout, False, **named)


def _changes(program: torch.export.ExportedProgram) -> Iterator[tuple[torch.fx.Node, int | None]]:
    """Yields the nodes to change: with the position of a number among its arguments, or none where it is a stored tensor."""
    for node in _of_masks(program):
        if node.op == "placeholder":
            stored = _stored(program, node)
            if stored is not None and stored.is_floating_point() and bool((stored < LOWEST).any()):
                yield node, None
        for position, value in enumerate(node.args):
            if isinstance(value, int | float) and not isinstance(value, bool) and value < LOWEST:
                yield node, position


def _of_masks(program: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    """Everything that reaches a softmax by operators that may carry a mask, in the graph's order."""
    softmaxes = [node for node in torch_programs.calls(program) if torch_programs.plain_name(node.target) in _SOFTMAX]
    waiting = [value for node in softmaxes for value in _scores(node)]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        carries = node.op == "call_function" and torch_programs.plain_name(node.target) in _CARRIERS
        if carries or node.op == "placeholder":
            seen.add(node)
            waiting += node.all_input_nodes
    return [node for node in program.graph.nodes if node in seen]


def _scores(node: torch.fx.Node) -> list[torch.fx.Node]:
    position = _SOFTMAX[torch_programs.plain_name(node.target)]
    given = node.args[position] if len(node.args) > position else node.kwargs.get("attn_mask")
    return [given] if hasattr(given, "all_input_nodes") else []


def _stored(program: torch.export.ExportedProgram, node: torch.fx.Node) -> torch.Tensor | None:
    name = _target(program, node)
    found = program.state_dict.get(name, program.constants.get(name))
    return found if hasattr(found, "is_floating_point") else None


def _target(program: torch.export.ExportedProgram, node: torch.fx.Node) -> str:
    return next((str(spec.target) for spec in program.graph_signature.input_specs if getattr(spec.arg, "name", None) == node.name), "")


def _raise_stored(program: torch.export.ExportedProgram, node: torch.fx.Node) -> None:
    """Puts a new tensor in the place of a stored one; the old one may belong to another program, too."""
    name = _target(program, node)
    home = program.state_dict if name in program.state_dict else program.constants
    home[name] = home[name].detach().clamp(min=LOWEST)
