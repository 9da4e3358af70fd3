"""What the routes out of captured PyTorch programs share: the names they keep, the user's layers, and what stands in the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from toolkit.artifact import Signature
from toolkit.errors import InputRejected, StageFailed
from toolkit.plugins import Obstacle

if TYPE_CHECKING:
    import torch

_WRAPPER = "model"
_VOLUME_AXES = 5
_EVAL = "call model.eval() before the model is captured"
# Operators with an argument that says "as in training": its position and its name.
_TRAINING_FLAGS = {
    **dict.fromkeys(("dropout", "alpha_dropout", "feature_dropout", "native_dropout"), (2, "train")),
    **dict.fromkeys(("batch_norm", "_batch_norm_impl_index", "native_batch_norm"), (5, "training")),
}
_RANDOM = {"rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "bernoulli", "multinomial", "normal_functional", "uniform"}
_OUTSIDE = "keep this step outside of the graph: return its inputs, and do it on the outputs"
_DECLARE = "declare the rewrite {0}: --rewrite {0}; or {1}"
_HINTS = {
    **dict.fromkeys(("nonzero", "unique", "_unique2", "unique_dim", "masked_select", "nms"), _OUTSIDE),
    **dict.fromkeys(("sort", "argsort", "topk", "kthvalue", "median"), _DECLARE.format("sort-ranks", _OUTSIDE)),
    **dict.fromkeys(("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"), _DECLARE.format("resize-matmul", "resize without antialiasing")),
    **dict.fromkeys(("upsample_bicubic2d", "_upsample_nearest_exact2d"), _DECLARE.format("resize-matmul", "resize bilinearly")),
    **dict.fromkeys(("stft", "fft_rfft", "_fft_r2c"), _DECLARE.format("dft-matmul", "compute the spectrum outside of the graph")),
    "adaptive_max_pool2d": _DECLARE.format("max-pool-windows", "pool by a kernel of fixed size"),
    **dict.fromkeys(_RANDOM, f"{_EVAL}, or take the random numbers as an input"),
}
_ELEMENTARY = "write that layer with elementary operators, or keep it outside of the graph"


def input_names(program: torch.export.ExportedProgram) -> list[str]:
    """Returns the names of a program's inputs in its own order: keyword inputs by their keywords, others by their parameters.

    Raises:
        InputRejected: An input is not one tensor.
    """
    positional, named = program.call_spec.in_spec.children()
    if positional.num_leaves != positional.num_children or named.num_leaves != named.num_children:
        raise InputRejected("takes nested inputs, expected one tensor per input", hint="capture a model whose forward takes plain tensors")
    own = [str(name) for name in program.graph_signature.user_inputs]
    return own[: positional.num_leaves] + [str(name) for name in (named.context or [])]


def output_names(program: torch.export.ExportedProgram) -> list[str]:
    """Returns the names of a program's outputs in its own order: a dictionary's keys, else ``output_0`` and so on.

    Raises:
        InputRejected: The outputs are nested.
    """
    spec = program.call_spec.out_spec
    if spec.num_leaves > 1 and spec.num_leaves != spec.num_children:
        raise InputRejected("gives nested outputs, expected tensors, a tuple or a dictionary of tensors", hint="capture a model with plain outputs")
    return [str(name) for name in spec.context] if spec.type is dict else [f"output_{index}" for index in range(spec.num_leaves)]


def check_names(program: torch.export.ExportedProgram, signature: Signature, where: str) -> None:
    """Makes sure that a program has the inputs and outputs of a signature, in any order.

    Raises:
        InputRejected: It has others.
    """
    sides = (("inputs", input_names(program), signature.inputs), ("outputs", output_names(program), signature.outputs))
    for side, found, specs in sides:
        wanted = [spec.name for spec in specs]
        if sorted(found) != sorted(wanted):
            raise InputRejected(f"the program has the {side} {found}, expected {wanted}", where=where, hint="capture the model again")


def layer(node: torch.fx.Node) -> str:
    """Path of the innermost module around a node; empty for one of the model itself."""
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return paths[-1] if paths else ""


def user_layer(node: torch.fx.Node) -> str:
    """Path of the layer in the user's model, without the module that the capture put around it."""
    return without_wrapper(layer(node))


def without_wrapper(path: str) -> str:
    """Drops the module that the capture put around the user's model from a layer's path."""
    head, _, rest = path.partition(".")
    return rest if head == _WRAPPER else path


def volume_obstacles(program: torch.export.ExportedProgram, reason: str, *, strided: bool) -> list[Obstacle]:
    """Returns a program's transposed convolutions over three axes: no mobile runtime has a kernel for them.

    Args:
        program: The program, its operators split or not.
        reason: What is wrong with them, as a part of a sentence.
        strided: Only those that enlarge; without a stride such a one is a plain convolution of the mirrored kernel.
    """
    said, hint = f"{reason} when it is transposed over three axes", "enlarge with torch.nn.functional.interpolate, then convolve"
    found = [node for node in calls(program) if _is_volume(node) and not (strided and set(_stride(node)) == {1})]
    return list(dict.fromkeys(Obstacle(str(node.target), user_layer(node), said, hint) for node in found))


def refusal(cannot: str, found: Sequence[Obstacle], where: str) -> StageFailed:
    """Returns the error that names the first obstacle and counts the others."""
    first, more = found[0], f"; and {len(found) - 1} more" if len(found) > 1 else ""
    place = f" (layer {first.layer})" if first.layer else ""
    return StageFailed(f"{cannot}: {first.operator}{place} {first.reason}{more}", where=where, hint=first.hint)


def training_obstacles(program: torch.export.ExportedProgram) -> list[Obstacle]:
    """Returns the layers of a program that work as in training: their outputs are random, or depend on the rest of the batch."""
    found = [Obstacle(str(node.target), user_layer(node), "works as in training", _EVAL) for node in calls(program) if _trains(node)]
    return list(dict.fromkeys(found))


def refuse_training(program: torch.export.ExportedProgram, where: str) -> None:
    """Refuses a program that was captured in training mode.

    Raises:
        StageFailed: It was; the message names the first layer.
    """
    found = training_obstacles(program)
    if found:
        first = found[0]
        raise StageFailed(
            f"the program was captured in training mode: {first.operator} of layer {first.layer or '(the model itself)'} {first.reason}",
            where=where,
            hint=first.hint,
        )


def obstacles(program: torch.export.ExportedProgram, supported: Callable[[Any], bool], reason: str) -> list[Obstacle]:
    """Returns the operators of a decomposed program that a route cannot convert, each once for every layer that has it.

    Args:
        program: The program, its operators split as the route splits them.
        supported: Whether the route can convert an operator.
        reason: What is wrong with the others, as a part of a sentence.
    """
    return list(dict.fromkeys(obstacle(node.target, node, reason) for node in calls(program) if not supported(node.target)))


def obstacle(operator: Any, node: torch.fx.Node, reason: str) -> Obstacle:
    """Returns an operator as an obstacle in the layer of a node."""
    return Obstacle(str(operator), user_layer(node), reason, _HINTS.get(base_name(operator), _ELEMENTARY))


def hint(operators: Iterable[str]) -> str:
    """Returns what to do about operators, by names such as ``_fft_r2c``: of the first of them that more than replacing it is known of."""
    return next((_HINTS[name] for name in operators if name in _HINTS), "replace that operator in the model")


def complex_operators(program: torch.export.ExportedProgram) -> list[str]:
    """Returns the names of the operators that give complex numbers."""
    return [base_name(node.target) for node in calls(program) if getattr(node.meta.get("val"), "is_complex", bool)()]


def base_name(operator: Any) -> str:
    """``conv2d`` for ``aten.conv2d.default``."""
    return str(operator.overloadpacket.__name__)


def plain_name(operator: Any) -> str:
    """``hardswish`` for ``aten.hardswish_.default``, too, which writes into its input; empty for what is no PyTorch operator."""
    name = base_name(operator) if hasattr(operator, "overloadpacket") else ""
    return name.removesuffix("_") if name.endswith("_") and not name.endswith("__") else name


def place(node: torch.fx.Node) -> str:
    """``encoder.0.act/gelu``: the layer in the user's model around a node, and its operator; of an input or a constant its name."""
    return "/".join(part for part in (user_layer(node), plain_name(node.target) or node.name) if part)


def layers_of(program: torch.export.ExportedProgram, words: str) -> str:
    """Returns the layers whose operators a library's message names, as the end of a sentence; empty when it names none."""
    named = [node for node in calls(program) if str(node.target) in words or f" {base_name(node.target)} " in f" {words} "]
    layers = list(dict.fromkeys(user_layer(node) or "the model itself" for node in named))
    if not layers:
        return ""
    more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
    return f" (layer {layers[0]}{more})"


def free_sizes(signature: Signature) -> Iterator[tuple[str, int, str]]:
    """Yields input, axis and name of every size that is free at run time."""
    for spec in signature.inputs:
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str):
                yield spec.name, axis, size


def calls(program: torch.export.ExportedProgram) -> Iterable[torch.fx.Node]:
    """Every call of a PyTorch operator, those inside of branches and loops included; plain Python functions are left out."""
    import torch

    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    return [node for graph in graphs for node in graph.nodes if node.op == "call_function" and hasattr(node.target, "overloadpacket")]


def _trains(node: torch.fx.Node) -> bool:
    flag = _TRAINING_FLAGS.get(base_name(node.target))
    if flag is None:
        return False
    position, name = flag
    if position > 2 and len(node.args) > 3 and node.args[3] is None:
        return False  # a normalisation that keeps no statistics computes them from its input in inference, too
    return (node.args[position] if len(node.args) > position else node.kwargs.get(name)) is True


def _is_volume(node: torch.fx.Node) -> bool:
    if base_name(node.target) == "conv_transpose3d":
        return True
    return base_name(node.target) == "convolution" and node.args[6] is True and node.args[0].meta["val"].dim() == _VOLUME_AXES


def _stride(node: torch.fx.Node) -> list[int]:
    return list(node.args[3]) if len(node.args) > 3 else [1]
