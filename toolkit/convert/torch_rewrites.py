"""Rewrites of captured PyTorch programs: what a target cannot execute, or executes badly, in operators that it can.

They are applied only where the user declares them, before a route sees the program, so that all routes out of ``.pt2`` share them.
What they compute is in :mod:`toolkit.convert.torch_elementary`, :mod:`toolkit.convert.torch_masks` and :mod:`toolkit.convert.torch_fourier`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toolkit.convert import torch_elementary as elementary
from toolkit.convert import torch_fourier, torch_masks, torch_programs
from toolkit.errors import ConfigError, StageFailed
from toolkit.factory import CODE_ERRORS, first_line

if TYPE_CHECKING:
    import torch

Places = list[str]
"""What was changed, as ``encoder.0.act/gelu``: the layer in the user's model, and the operator."""
Changed = dict[str, Places]
"""The places that each rewrite changed; none where it found nothing."""


@dataclass(frozen=True)
class Rewrite:
    """A change that a user may declare.

    Attributes:
        does: What it does, in one line.
        apply: Returns the changed program and the places of the changes; the given program stays as it is.
    """

    does: str
    apply: Callable[[torch.export.ExportedProgram], tuple[torch.export.ExportedProgram, Places]]


def apply(program: torch.export.ExportedProgram, names: Sequence[str]) -> tuple[torch.export.ExportedProgram, Changed]:
    """Applies rewrites in the order in which they are named.

    Args:
        program: The captured program; it is not changed.
        names: Keys of ``REWRITES``.

    Returns:
        The program to convert, and the places that each rewrite changed.

    Raises:
        ConfigError: There is no rewrite of a name.
        StageFailed: PyTorch cannot trace the program with a rewrite in it.
    """
    changed: Changed = {}
    for name in dict.fromkeys(names):
        if name not in REWRITES:
            raise ConfigError(f"unknown rewrite {name!r}; known: {', '.join(REWRITES)}", hint="run: edgekit doctor")
        try:
            program, changed[name] = REWRITES[name].apply(program)
        except CODE_ERRORS as error:
            raise StageFailed(f"the rewrite {name} cannot be applied: {first_line(error)}", where=name, hint=f"leave {name} out") from error
    return program, changed


def _replacing(rules: Mapping[str, elementary.Rule]) -> Callable[[torch.export.ExportedProgram], tuple[torch.export.ExportedProgram, Places]]:
    """Returns a rewrite that computes operators by rules of its own, wherever a rule fits the operator's arguments."""

    def rewrite(program: torch.export.ExportedProgram) -> tuple[torch.export.ExportedProgram, Places]:
        places = [torch_programs.place(node) for node in torch_programs.calls(program) if _fits(node, rules)]
        if not places:
            return program, []
        return program.run_decompositions(_table(rules)), places

    return rewrite


def _fits(node: torch.fx.Node, rules: Mapping[str, elementary.Rule]) -> bool:
    import torch

    rule = rules.get(torch_programs.plain_name(node.target))
    args, named = torch.fx.node.map_arg((node.args, node.kwargs), lambda one: one.meta.get("val"))
    return rule is not None and rule.fits(*args, **named)


def _table(rules: Mapping[str, elementary.Rule]) -> dict[Any, Callable[..., Any]]:
    """PyTorch's decomposition table, in which a function that returns ``NotImplemented`` leaves the operator as it is."""
    import torch

    table: dict[Any, Callable[..., Any]] = {}
    for name, rule in rules.items():
        packet = getattr(torch.ops.aten, name)
        for operator in (getattr(packet, overload) for overload in packet.overloads()):
            if not operator._schema.is_mutable:
                table[operator] = _guarded(rule, operator)
    return table


def _guarded(rule: elementary.Rule, operator: Any) -> Callable[..., Any]:
    return lambda *args, **named: rule.build(operator, *args, **named) if rule.fits(*args, **named) else NotImplemented


REWRITES: dict[str, Rewrite] = {
    "gelu-tanh": Rewrite("exact GELU becomes its tanh approximation", _replacing(elementary.GELU)),
    "hard-swish": Rewrite(
        "hard-swish and hard-sigmoid become x * clamp(x / 6 + 1/2, 0, 1) and clamp(x / 6 + 1/2, 0, 1)", _replacing(elementary.HARD_SWISH)
    ),
    "finite-masks": Rewrite("masks of attention add -32752, which float16 can hold, instead of minus infinity", torch_masks.make_finite),
    "sort-ranks": Rewrite("sort, argsort, topk, kthvalue and median over a fixed size compare all pairs", _replacing(elementary.SORTING)),
    "resize-matmul": Rewrite("antialiased, bicubic and uneven nearest resizing become two matrix products", _replacing(elementary.RESIZING)),
    "dft-matmul": Rewrite("Fourier transforms of real numbers (rfft, stft) become products with the matrix of the DFT", torch_fourier.to_products),
    "max-pool-windows": Rewrite("adaptive max pooling takes the maximum of each window", _replacing(elementary.MAX_POOLING)),
}

OFFERED: dict[str, str] = {name: one.does for name, one in REWRITES.items()}
"""What a route out of ``.pt2`` says of its rewrites."""
