"""A captured program as litert-torch traces it: in inference mode, with the user's layers, layout and batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolkit.artifact import Signature, TensorSpec
from toolkit.convert import torch_programs, torch_transposed
from toolkit.errors import StageFailed
from toolkit.factory import CODE_ERRORS, first_line

if TYPE_CHECKING:
    import torch

_WHERE = "torch_litert"
_TOLERANCE = 1e-4
_IMAGE_AXES = 4
_GUARDS = "_guards_fn"


class Trace:
    """A program that can be traced for several batch sizes.

    Attributes:
        module: What to trace; it takes the signature's inputs by keyword and gives the program's outputs.
        images: Inputs that have their channels last there.
    """

    def __init__(self, program: torch.export.ExportedProgram, signature: Signature, *, channels_last: bool = False) -> None:
        self._signature = signature
        self.images = tuple(spec.name for spec in signature.inputs if len(spec.shape) == _IMAGE_AXES) if channels_last else ()
        self.module = _frozen(program, self.images)

    def inputs(self, batch: int, *, random: bool = False) -> dict[str, torch.Tensor]:
        """Returns inputs of one batch size, by name: zeros, or values that differ from row to row.

        Raises:
            StageFailed: A size other than the batch is free.
        """
        return {spec.name: self._blank(spec, batch, random) for spec in self._signature.inputs}

    def _blank(self, spec: TensorSpec, batch: int, random: bool) -> torch.Tensor:
        import torch

        sizes = [batch, *spec.shape[1:]]
        free = [size for size in sizes if isinstance(size, str)]
        if free:
            raise StageFailed(f"size {free[0]!r} of input {spec.name!r} is free", where=_WHERE, hint="give that size a number for TFLite")
        if spec.name in self.images:
            sizes = [sizes[0], sizes[2], sizes[3], sizes[1]]
        dtype = getattr(torch, spec.dtype)
        if not random:
            return torch.zeros(sizes, dtype=dtype)
        values = torch.rand(sizes, generator=torch.Generator().manual_seed(0))
        return values if dtype.is_floating_point else (values > 0.5).to(dtype)  # 0 and 1 are in every vocabulary

    def check_batch(self, size: int) -> None:
        """Makes sure that the program computes every sample of a larger batch as it computes it alone.

        Raises:
            StageFailed: It does not: the batch size that it was captured with is written into it.
        """
        import torch

        given = self.inputs(size, random=True)
        problem = ""
        try:
            with torch.no_grad():
                together = self.module(**given)
                alone = [self.module(**{name: value[row : row + 1] for name, value in given.items()}) for row in range(size)]
            for name, found in _named(together).items():
                wanted = torch.cat([_named(one)[name] for one in alone])
                if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
                    problem = f"output {name!r} of a sample depends on the others"
        except CODE_ERRORS as error:
            problem = first_line(error)
        if problem:
            raise StageFailed(
                f"the program does not work for a batch of {size}: {problem}",
                where=_WHERE,
                hint="capture it with a free batch size, and use x.shape[0] where the model has the number 1",
            )


def _named(outputs: Any) -> dict[str, torch.Tensor]:
    if isinstance(outputs, dict):
        return outputs
    return {f"output_{place}": value for place, value in enumerate(outputs if isinstance(outputs, (tuple, list)) else [outputs])}


def _frozen(exported: torch.export.ExportedProgram, images: tuple[str, ...]) -> torch.nn.Module:
    """Marks an exported module as inference-only; its own ``eval()`` raises, and its mode was fixed when it was captured.

    The library traces the module anew and names tensors after the modules it passes. Interpreted node by node, with each node's
    notes kept, the trace passes the layers of the user's model, and a tensor is named ``layer:features.0.0;``.
    """
    import torch

    module = exported.module()
    names = torch_programs.input_names(exported)
    for node in module.graph.nodes:
        if node.op == "call_function":
            node.meta["nn_module_stack"] = {"layer": ("", f"layer:{torch_programs.layer(node)}")}

    class Interpreter(torch.fx.Interpreter):  # type: ignore[misc]  # torch is not followed by the type checker
        def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if torch_transposed.is_transposed(target):
                return torch_transposed.convolve(*args, **kwargs)
            return super().call_function(target, args, kwargs)

        def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            # Guards hold inputs against the captured sizes; check_batch knows better whether the program works at another one.
            return None if target == _GUARDS else super().call_module(target, args, kwargs)

    class Program(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
        def __init__(self) -> None:
            super().__init__()
            self.program = module
            for part in self.modules():
                part.training = False

        def forward(self, **named: torch.Tensor) -> Any:
            inputs = [named[name].permute(0, 3, 1, 2) if name in images else named[name] for name in names]
            with torch.fx.traceback.preserve_node_meta():
                return self.program.graph.process_outputs(Interpreter(self.program).run(*inputs, enable_io_processing=False))

    return Program()
