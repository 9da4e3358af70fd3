"""PyTorch to TFLite through litert-torch, without TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toolkit import pt2
from toolkit.artifact import Signature
from toolkit.errors import StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Route

if TYPE_CHECKING:
    import torch


class TorchLiteRT:
    """Writes a ``.tflite`` file with one signature; 64-bit integer inputs become 32-bit ones."""

    name = "torch_litert"
    version = 2
    source = "pt2"
    format = "tflite"
    modules: tuple[str, ...] = ("torch", "litert_torch")
    distributions: tuple[str, ...] = ("torch", "litert-torch", "litert-converter")
    extra = "edgekit[torch,litert]"
    preload = pt2.PRELOAD

    def convert(self, program: Path, out: Path, signature: Signature) -> None:
        """Converts a ``.pt2`` program.

        Args:
            program: The exported program; it takes the signature's inputs by keyword.
            out: The ``.tflite`` file to write.
            signature: Inputs and outputs, with static shapes.

        Raises:
            InputRejected: The program is damaged.
            StageFailed: An operator has no TFLite counterpart.
        """
        import litert_torch

        loaded = pt2.load(program)
        inputs = pt2.blank_inputs(signature)
        try:
            litert_torch.convert(_frozen(loaded), sample_kwargs=inputs).export(str(out))
        except CODE_ERRORS as error:
            raise StageFailed(
                f"litert-torch cannot convert the program: {first_line(error)}", where="torch_litert", hint="replace that operator in the model"
            ) from error


ROUTE: Route = TorchLiteRT()


def _frozen(exported: torch.export.ExportedProgram) -> torch.nn.Module:
    """Marks an exported module as inference-only; its own ``eval()`` raises, and its mode was fixed when it was captured.

    The library traces the module anew and names tensors after the modules it passes. Interpreted node by node, with each node's
    notes kept, the trace passes the layers of the user's model, and a tensor is named ``layer:features.0.0;``.
    """
    import torch
    from torch.utils import _pytree as pytree  # the public torch.export.ExportedProgram.call_spec is made of these

    module = exported.module()
    spec = exported.call_spec.in_spec
    positional, named_ones = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    # Keyword inputs go by their own names, as placeholders may be spelled in another way; positional ones have no other.
    order: dict[str, int] = {exported.graph_signature.user_inputs[place]: place for place in positional} | named_ones
    for node in module.graph.nodes:
        if node.op == "call_function":
            node.meta["nn_module_stack"] = {"layer": ("", f"layer:{_layer(node)}")}

    class Program(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
        def __init__(self) -> None:
            super().__init__()
            self.program = module
            for part in self.modules():
                part.training = False

        def forward(self, **named: torch.Tensor) -> dict[str, torch.Tensor]:
            inputs = [named[name] for name in sorted(order, key=order.__getitem__)]
            with torch.fx.traceback.preserve_node_meta():
                return self.program.graph.process_outputs(torch.fx.Interpreter(self.program).run(*inputs, enable_io_processing=False))

    return Program()


def _layer(node: torch.fx.Node) -> str:
    """Path of the innermost module around a node; empty for one of the model itself."""
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return paths[-1] if paths else ""
