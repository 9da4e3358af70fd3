"""Fourier transforms of real numbers as products with the matrices that define them, and complex numbers as pairs of real ones.

Mobile formats have no complex numbers, and no fast transform. For frames of a few hundred samples, as before a classifier of sounds, the
product with ``cos`` and ``-sin`` of the discrete Fourier transform (DFT) costs about as much as a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from toolkit.convert import torch_programs

if TYPE_CHECKING:
    import torch

LONGEST = 4096
"""The matrix has half of the square of this many numbers; a longer transform would be most of the file."""
# What moves complex numbers about without computing with them: what is done to the number is done to both of its parts.
_MOVES = {"slice", "select", "transpose", "permute", "squeeze", "unsqueeze", "view", "reshape", "clone", "alias", "flatten", "narrow", "expand", "t"}
_SCALES = {"mul", "div"}


def to_products(program: torch.export.ExportedProgram) -> tuple[torch.export.ExportedProgram, list[str]]:
    """Replaces the transforms of a program, and the complex numbers that come out of them; returns the new program, and the places.

    Raises:
        NotImplementedError: Something is done to the complex numbers that has no counterpart in pairs of real ones here.
    """
    import torch

    places = [torch_programs.place(node) for node in torch_programs.calls(program) if _fits(node)]
    if not places:
        return program, []
    rules: dict[Any, Callable[..., Any]] = {
        torch.ops.aten.stft.default: _stft,
        torch.ops.aten.fft_rfft.default: _rfft,
        torch.ops.aten._fft_r2c.default: _r2c,
    }
    own = program.run_decompositions(rules)
    _to_pairs(own.graph)
    own.graph_module.recompile()
    return own.run_decompositions({}), places


def _fits(node: torch.fx.Node) -> bool:
    import torch

    rules: dict[str, Callable[..., bool]] = {"stft": _frames_fit, "fft_rfft": _row_fits, "_fft_r2c": _core_fits}
    rule = rules.get(torch_programs.plain_name(node.target))
    args, named = torch.fx.node.map_arg((node.args, node.kwargs), lambda one: one.meta["val"])
    return rule is not None and rule(*args, **named)


def _frames_fit(x: Any, n_fft: int, *args: Any, onesided: bool | None = None, return_complex: bool | None = None, **named: Any) -> bool:
    given = dict(zip(("hop_length", "win_length", "window", "normalized", "onesided", "return_complex"), args, strict=False))
    one_side, as_complex = given.get("onesided", onesided), given.get("return_complex", return_complex)
    return isinstance(x.shape[-1], int) and n_fft <= LONGEST and one_side is not False and as_complex is True and not x.is_complex()


def _row_fits(x: Any, n: int | None = None, dim: int = -1, norm: str | None = None) -> bool:
    size = x.shape[dim]
    return isinstance(size, int) and size <= LONGEST and n in (None, size) and x.is_floating_point()


def _core_fits(x: Any, dim: Any, normalization: int, onesided: bool) -> bool:
    return len(dim) == 1 and onesided and _row_fits(x, None, dim[0])


def _stft(
    x: torch.Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: torch.Tensor | None = None,
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
    **named: Any,
) -> Any:
    """The short-time transform: ``[n x samples]`` to ``[n x bins x frames]``, complex; arguments as of ``torch.stft``."""
    import torch

    if not _frames_fit(x, n_fft, onesided=onesided, return_complex=return_complex):
        return NotImplemented
    frames = _framed(x, n_fft, hop_length or n_fft // 4)
    if window is not None:
        missing = n_fft - window.shape[0]
        frames = frames * torch.nn.functional.pad(window, [missing // 2, missing - missing // 2])
    elif win_length not in (None, n_fft):
        return NotImplemented
    scale = 1 / math.sqrt(n_fft) if normalized else 1.0
    return _product(frames, scale).transpose(-1, -2)


def _framed(x: torch.Tensor, size: int, hop: int) -> torch.Tensor:
    """Returns overlapping pieces of the last axis, ``[... x frames x size]``, by one look-up: a slice for each would be many operators."""
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    count = (x.shape[-1] - size) // hop + 1
    with _disable_current_modes():
        places = (torch.arange(count).unsqueeze(1) * hop + torch.arange(size)).flatten()
    return torch.index_select(x, -1, places).reshape(*x.shape[:-1], count, size)


def _rfft(x: torch.Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Any:
    if not _row_fits(x, n, dim, norm):
        return NotImplemented
    size = x.shape[dim]
    scale = {"forward": 1 / size, "ortho": 1 / math.sqrt(size)}.get(norm or "backward", 1.0)
    return _product(x.movedim(dim, -1), scale).movedim(-1, dim)


def _r2c(x: torch.Tensor, dim: Any, normalization: int, onesided: bool) -> Any:
    """PyTorch's own operator below all of them; its normalization 1 is by the root of the size, 2 by the size."""
    if not _core_fits(x, dim, normalization, onesided):
        return NotImplemented
    return _rfft(x, None, dim[0], ("backward", "ortho", "forward")[normalization])


def _product(x: torch.Tensor, scale: float) -> torch.Tensor:
    """``X[k] = scale * sum over t of x[t] (cos(2 pi k t / n) - i sin(2 pi k t / n))`` for ``k`` up to ``n / 2``, along the last axis."""
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    size = x.shape[-1]
    with _disable_current_modes():
        turns = torch.outer(torch.arange(size), torch.arange(size // 2 + 1)).remainder(size).to(torch.float64) * (2 * math.pi / size)
        cosine, sine = (scale * torch.cos(turns)).to(x.dtype), (-scale * torch.sin(turns)).to(x.dtype)
    return torch.complex(torch.matmul(x, cosine), torch.matmul(x, sine))


def _to_pairs(graph: torch.fx.Graph) -> None:
    """Follows every complex number from where it is made to where it becomes real again, and computes both of its parts."""
    import torch

    pairs: dict[torch.fx.Node, tuple[torch.fx.Node, torch.fx.Node]] = {}
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.complex.default:
            pairs[node] = (node.args[0], node.args[1])
        elif any(value in pairs for value in node.all_input_nodes):
            _part(graph, node, pairs)
    graph.eliminate_dead_code()


def _part(graph: torch.fx.Graph, node: torch.fx.Node, pairs: dict[torch.fx.Node, tuple[torch.fx.Node, torch.fx.Node]]) -> None:
    import torch

    aten = torch.ops.aten
    name = torch_programs.plain_name(node.target)
    given, *others = node.args
    if given not in pairs or any(other in pairs for other in others if isinstance(other, torch.fx.Node)):
        raise NotImplementedError(f"{name or node.op} of complex numbers, in {torch_programs.place(node)}, is not known in real ones")

    def call(operator: Any, *args: Any, **named: Any) -> torch.fx.Node:
        made = graph.call_function(operator, args, named)
        made.meta = {key: value for key, value in node.meta.items() if key != "val"}
        return made

    real, imaginary = pairs[given]
    with graph.inserting_before(node):
        if name in _MOVES | _SCALES:
            pairs[node] = tuple(call(node.target, part, *others, **node.kwargs) for part in (real, imaginary))
        elif name in ("abs", "absolute"):
            squares = call(aten.add.Tensor, *(call(aten.mul.Tensor, part, part) for part in (real, imaginary)))
            node.replace_all_uses_with(call(aten.sqrt.default, squares))
        elif name == "angle":
            node.replace_all_uses_with(call(aten.atan2.default, imaginary, real))
        elif name in ("real", "imag"):
            node.replace_all_uses_with(real if name == "real" else imaginary)
        elif name == "view_as_real":
            node.replace_all_uses_with(call(aten.stack.default, [real, imaginary], -1))
        else:
            raise NotImplementedError(f"{name or node.op} of complex numbers, in {torch_programs.place(node)}, is not known in real ones")
