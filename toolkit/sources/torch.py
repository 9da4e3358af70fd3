"""PyTorch: captures an ``nn.Module`` with ``torch.export`` as a ``.pt2`` program for one sample.

The program takes its inputs by the names of the examples and returns a dict of named outputs, so that names survive
every later conversion.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit import pt2
from toolkit.errors import InputRejected, ParityFailed, StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Arrays, Source
from toolkit.sources import naming, recording, torch_faults, torch_sizes, variants
from toolkit.stats.signal import sqnr_db
from toolkit.weights import load_weights

if TYPE_CHECKING:
    import torch

# The captured program and the live model run the same kernels: they differ by rounding, or not at all.
_CAPTURED_DB = 60.0


class TorchSource:
    """Captures ``torch.nn.Module``."""

    name = "torch"
    version = 3
    format = "pt2"
    framework = "torch"
    modules: tuple[str, ...] = ("torch",)
    distributions: tuple[str, ...] = ("torch",)
    extra = "edgekit[torch]"
    preload = pt2.PRELOAD
    options: tuple[str, ...] = ("dynamic", "bounds")

    def accepts(self, model: object) -> bool:
        """Whether ``model`` is an ``nn.Module``; never imports torch, because a live module has done so already."""
        return "torch" in sys.modules and isinstance(model, sys.modules["torch"].nn.Module)

    def prepare(self, model: Any, weights: Path | None) -> Any:
        """Loads a ``.safetensors`` file into a freshly built model, if there is one, and puts it in inference mode.

        Raises:
            InputRejected: The file is damaged, or its tensors are not exactly the model's, or not finite.
        """
        if weights is not None:
            load_weights(model, weights)
        return model.eval()

    def capture(
        self, model: Any, examples: Arrays, out: Path, *, outputs: tuple[str, ...] = (), dynamic: Mapping[str, Mapping[int, str]] | None = None
    ) -> dict[str, np.ndarray]:
        """Writes the program to ``out`` and returns the live model's outputs, computed one sample at a time.

        Inputs are passed by keyword when ``forward`` has parameters of all the examples' names, otherwise by position in
        the examples' order. Outputs are named by ``outputs``, else by the keys of a returned dict, else ``output_0`` and
        so on; where the model returns a dict, ``outputs`` may also choose some of its keys. Nothing is moved or changed.

        Args:
            model: The live module, on the CPU and in inference mode.
            examples: Inputs by name, ``[n x ...]``.
            out: The ``.pt2`` file to write.
            outputs: Names of the outputs, in order.
            dynamic: Sizes that stay free, by input and axis, each a name, perhaps with bounds (``sequence<=128``); equal names are equal
                sizes.

        Returns:
            Outputs by name, ``[n x ...]``.

        Raises:
            ConfigError: ``dynamic`` names an input or an axis that does not exist, or bounds that leave the examples out.
            InputRejected: The model is in training mode, not on the CPU, not float32, not deterministic, or keeps state; names do
                not fit; an output is not a tensor with the batch first; or the model fixes a size that shall be free.
            StageFailed: The model raises on the examples, or ``torch.export`` cannot capture it.
        """
        import torch

        torch_faults.check_model(model)
        recording.check_examples(examples)
        free = variants.axes(dynamic or {})
        variants.check(dynamic or {}, examples)
        named = _named(model, tuple(examples), outputs)
        with torch.inference_mode():
            expected = _live_outputs(named, [_tensors(sample) for sample in recording.samples(examples)])
        _export(named, _sample_of(examples, free), free, variants.bounds(dynamic or {}), out)
        return expected

    def runner(self, model: Any, program: Path, examples: Arrays, *, outputs: tuple[str, ...] = ()) -> variants.Run:
        """Returns a function that runs the live model on a batch of any size, and holds the captured program against it.

        Args:
            model: The live module that was captured.
            program: What :meth:`capture` wrote.
            examples: Inputs by name, as they were given to it.
            outputs: Names of the outputs, as they were given to it.
        """
        named = _named(model, tuple(examples), outputs)
        captured = pt2.load(program).module()
        return lambda inputs: _run_both(named, captured, inputs)

    def input_names(self, model: Any) -> tuple[str, ...]:
        """Returns the names of the inputs that may be given by position, in order."""
        return naming.positional(inspect.signature(model.forward).parameters.values())

    def notes(self, model: Any) -> tuple[str, ...]:
        """Returns what is worth knowing about a live model, a sentence each: modules that stand in two places, and tied weights."""
        return torch_faults.notes(model)


SOURCE: Source = TorchSource()


def _named(model: torch.nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> torch.nn.Module:
    """Wraps a model so that it takes ``inputs`` by keyword and returns a dict."""
    import torch

    takes = inspect.signature(model.forward).parameters.values()
    by_keyword = naming.by_keyword(takes, inputs, called="forward", where=f"{type(model).__name__}.forward")
    naming.check_chosen(outputs)

    class Named(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.training = False
            self.written: list[str] = []  # inputs that the model writes into; it gets copies, so that callers keep theirs

        def forward(self, **named: torch.Tensor) -> dict[str, torch.Tensor]:
            values = {name: named[name].clone() if name in self.written else named[name] for name in inputs}
            result = self.model(**values) if by_keyword else self.model(*values.values())
            found = naming.named_outputs(result, outputs, is_tensor=lambda value: isinstance(value, torch.Tensor))
            return _apart(found, values)

    # Parameters of these names, not a dict: torch.export writes its checks of sizes in terms of the parameters.
    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in inputs]
    own = inspect.Signature([inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), *parameters])
    Named.forward.__signature__ = own  # type: ignore[attr-defined]  # inspect.signature documents it
    return Named()


def _apart(outputs: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """Copies an output that is an input or another output: converters would merge the two, and one name would be lost."""
    seen = [id(value) for value in inputs.values()]
    made = {}
    for name, value in outputs.items():
        made[name] = value.clone() if id(value) in seen else value
        seen.append(id(value))
    return made


def _tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}


def _live_outputs(named: torch.nn.Module, samples: list[dict[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    given = {name: value.clone() for name, value in samples[0].items()}
    again = _run(named, given)
    named.written = torch_faults.changed_inputs(samples[0], given)
    buffers = torch_faults.Buffers(named.model)  # after the first run, which may fill caches for good
    rows = [_run(named, sample) for sample in samples]
    buffers.check_unchanged()
    return recording.joined(again, rows)


def _run(named: torch.nn.Module, sample: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    try:
        result = named(**sample)
    except CODE_ERRORS as error:
        shapes = ", ".join(f"{name} {list(value.shape)} {value.dtype}" for name, value in sample.items())
        raise StageFailed(f"the model raised {first_line(error)}", where=f"forward on {shapes}", hint="give samples the model accepts") from error
    recording.check_batch({name: value.shape for name, value in result.items()}, [value.shape[0] for value in sample.values()])
    return {name: value.numpy() for name, value in result.items()}


def _run_both(named: torch.nn.Module, captured: Any, inputs: Arrays) -> dict[str, np.ndarray]:
    import torch

    tensors = _tensors(inputs)
    with torch.inference_mode():
        live = _run(named, {name: value.clone() for name, value in tensors.items()})
        try:
            found = {name: value.numpy() for name, value in captured(**tensors).items()}
        except CODE_ERRORS as error:
            raise InputRejected(f"the captured program refuses it: {first_line(error)}", where="torch.export") from error
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
    for name, value in live.items():
        if found[name].shape != value.shape or sqnr_db(value, found[name]) < _CAPTURED_DB:
            what = f"torch.export captured another computation: output {name!r} differs from the live model's"
            raise ParityFailed(what, where=shapes, hint="leave that size fixed; forward decides something by it")
    return live


def _sample_of(examples: Arrays, free: variants.Axes) -> dict[str, torch.Tensor]:
    """What the program is captured for: one sample, but two of everything where a size is free, as a 1 would become a constant."""
    names = {size: examples[name].shape[axis] if axis else 2 for name, sizes in free.items() for axis, size in sizes.items()}
    return _tensors(variants.batch(examples, free, {size: max(2, length) for size, length in names.items()}))


def _export(named: torch.nn.Module, sample: dict[str, torch.Tensor], free: variants.Axes, bounds: variants.Bounds, out: Path) -> None:
    import torch
    from torch._export.error import ExportError, InternalError
    from torch._export.verifier import SpecViolationError

    try:
        # no_grad, not inference_mode: inference tensors cannot be saved for tracing.
        with torch.no_grad():
            program = torch_sizes.export(named, sample, free, bounds)
            _forget_origin(program, sample)
            with out.open("wb") as file:  # not by its name, which would become part of the archive's bytes
                torch.export.save(program, file, extra_files={pt2.FREE_SIZES: json.dumps(free)} if free else None)
    except (*CODE_ERRORS, ExportError, InternalError, SpecViolationError) as error:
        raise StageFailed(
            f"torch.export cannot capture the model: {first_line(error)}",
            where=type(named.model).__name__,
            hint="move data-dependent Python code out of forward, or write it with torch.where and torch.cond",
        ) from error


def _forget_origin(program: torch.export.ExportedProgram, sample: dict[str, torch.Tensor]) -> None:
    """Drops source paths and the user's sample, which the program would carry along as its example."""
    import torch

    program._example_inputs = ((), {name: torch.zeros_like(value) for name, value in sample.items()})
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
