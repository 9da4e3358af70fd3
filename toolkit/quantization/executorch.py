"""ExecuTorch programs in int8: torchao's PT2E rounds the captured PyTorch program as XNNPACK computes, and a route lowers that.

A ``.pte`` program is compiled and cannot be quantized any more, so this quantizer starts from the ``.pt2`` program that it came from.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit import plugins, pt2
from toolkit.artifact import Signature
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected, StageFailed, ToolkitError
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Quantizer

if TYPE_CHECKING:
    import torch

_LEAST_SCALE = 2.0**-24


class ExecuTorchQuantizer:
    """Static int8, and dynamic int8 for dense layers, with XNNPACK's kernels."""

    name = "executorch"
    version = 1
    source = "pt2"
    format = "pte"
    schemes: tuple[str, ...] = ("static_wi8_ai8", "dynamic_wi8")
    needs_calibration: tuple[str, ...] = ("static_wi8_ai8",)
    methods: tuple[str, ...] = ("min_max", "mse")
    modules: tuple[str, ...] = ("torch", "torchao", "executorch")
    distributions: tuple[str, ...] = ("torch", "torchao", "executorch")
    extra = "edgekit[torch,executorch]"
    preload = pt2.PRELOAD

    def quantize(self, model: Path, out: Path, *, scheme: str, calibration: Dataset | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the quantized program.

        Args:
            model: The float ``.pte`` file, or the captured program itself.
            out: The ``.pte`` file to write.
            scheme: One of ``schemes``.
            calibration: Finite samples that fit the program's inputs; needed by ``static_wi8_ai8``.
            options: ``program``: the captured ``.pt2`` program, for fixed sizes, that the model was converted from. ``per_channel``: a scale
                for every output channel of a weight (default) or one for the whole tensor. ``method``: ``min_max``, or ``mse`` for the
                library's own search of the smallest squared error, which takes seconds for each sample.

        Returns:
            ``kept_float``, names of layers that stay float, and ``why``.

        Raises:
            ConfigError: Dynamic int8 of a convolutional network.
            InputRejected: There is no captured program, or it is damaged.
            StageFailed: PyTorch or ExecuTorch cannot quantize it.
        """
        source = Path(options.get("program", model))
        if source.suffix != ".pt2":
            raise InputRejected("is no captured program", where=source.name, hint="give the .pt2 file that it was made from")
        program = pt2.load(source)
        signature = plugins.reader("pt2").read(source).signature
        _check(program, signature, scheme)
        try:
            rounded = _rounded(program, _config(scheme, options), calibration)
            with tempfile.TemporaryDirectory(prefix=".quantize-", dir=out.parent) as folder:
                again = _captured(rounded, program, Path(folder) / "rounded.pt2")
                plugins.routes(self.source, self.format)[0].convert(again, out, signature)
        except ToolkitError:
            raise
        except CODE_ERRORS as error:
            raise StageFailed(f"cannot quantize the program to {scheme}: {first_line(error)}", where="torchao", hint="try another scheme") from error
        layers = plugins.reader(self.format).read(out).layers
        kept = [layer.name for layer in layers if layer.weight_dtype == "float32"] if scheme == "dynamic_wi8" else []
        return {"kept_float": kept, "why": f"{len(kept)} that are no dense layers" if kept else ""}


QUANTIZER: Quantizer = ExecuTorchQuantizer()


def _check(program: torch.export.ExportedProgram, signature: Signature, scheme: str) -> None:
    free = [size for spec in signature.inputs for size in spec.shape if isinstance(size, str)]
    if free:
        what = f"has the free size {free[0]!r}, and PT2E quantizes programs of fixed sizes"
        raise StageFailed(what, where="torchao", hint="capture the model without free sizes")
    operators = Counter(str(node.target).split(".")[1] for node in program.graph.nodes if node.op == "call_function")
    convolutions = sum(count for name, count in operators.items() if name.startswith("conv"))
    if scheme == "dynamic_wi8" and convolutions >= operators["linear"] + operators["addmm"] + operators["mm"]:
        raise ConfigError(
            f"dynamic_wi8 for pte is for dense layers, and this is a convolutional network ({convolutions} convolutions)",
            where="scheme",
            hint="use static_wi8_ai8 with calibration samples",
        )


def _config(scheme: str, options: Mapping[str, Any]) -> Any:
    """How XNNPACK's integers are found.

    The library keeps every scale of weights above 2^-12, which rounds small weights to nothing; and its histograms, which take seconds for
    each sample, are only taken where they are asked for.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import get_symmetric_quantization_config
    from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver

    per_channel = bool(options.get("per_channel", True))
    usual = get_symmetric_quantization_config(is_per_channel=per_channel, is_dynamic=scheme == "dynamic_wi8")
    weight = (PerChannelMinMaxObserver if per_channel else MinMaxObserver).with_args(eps=_LEAST_SCALE)
    found = replace(usual, weight=replace(usual.weight, observer_or_fake_quant_ctr=weight))
    if scheme == "dynamic_wi8" or options.get("method", "min_max") != "min_max":
        return found
    spec = replace(usual.input_activation, observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=_LEAST_SCALE))
    return replace(found, input_activation=spec, output_activation=spec)


def _rounded(program: torch.export.ExportedProgram, config: Any, calibration: Dataset | None) -> torch.fx.GraphModule:
    """The program with every rounding that XNNPACK's integers mean."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    prepared = prepare_pt2e(_with_integer_scalars(program.module()), XNNPACKQuantizer().set_global(config))
    with torch.no_grad():
        for batch in calibration.batches(1) if calibration else [_sample(program)]:
            prepared(**{name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in batch.items()})
    converted = convert_pt2e(prepared)
    assert isinstance(converted, torch.fx.GraphModule)
    return converted


def _with_integer_scalars(module: Any) -> Any:
    """Keeps whole numbers that are added to indices what they are: the quantizer would make float tensors of them, and indices float."""
    import torch

    scalar = {torch.ops.aten.add.Tensor: torch.ops.aten.add.Scalar, torch.ops.aten.mul.Tensor: torch.ops.aten.mul.Scalar}
    for node in module.graph.nodes:
        if node.target in scalar and not node.meta["val"].dtype.is_floating_point and isinstance(node.args[1], (int, float)):
            node.target = scalar[node.target]
    module.recompile()
    return module


def _captured(module: torch.fx.GraphModule, program: torch.export.ExportedProgram, path: Path) -> Path:
    """Captures a rounded program like the one it was made of."""
    import torch

    example = {name: torch.from_numpy(values) for name, values in _sample(program).items()}
    torch.export.save(torch.export.export(module, (), example, strict=False), path)
    return path


def _sample(program: torch.export.ExportedProgram) -> dict[str, np.ndarray]:
    """A sample of zeros in the program's own sizes and types."""
    names = pt2.input_names(program)
    return {name: np.zeros(tuple(node.meta["val"].shape), _dtype(node)) for name, node in zip(names, pt2.input_nodes(program), strict=True)}


def _dtype(node: torch.fx.Node) -> np.dtype[Any]:
    return np.dtype(str(node.meta["val"].dtype).removeprefix("torch."))
