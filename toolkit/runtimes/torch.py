"""PyTorch's own executor for captured programs: the reference that converted models are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import pt2
from toolkit.artifact import Signature, TensorSpec
from toolkit.errors import InputRejected
from toolkit.plugins import Arrays
from toolkit.runtimes import complaints

_RUNNING = (RuntimeError, ValueError, KeyError, TypeError, AttributeError, AssertionError, MemoryError)


class TorchRuntime:
    """Runs ``.pt2`` files: programs written by ``torch.export.save``."""

    name = "torch"
    version = 1
    modules: tuple[str, ...] = ("torch",)
    distributions: tuple[str, ...] = ("torch",)
    extra = "edgekit[torch]"
    preload = pt2.PRELOAD
    formats: tuple[str, ...] = ("pt2",)

    def open(self, model: Path, *, threads: int) -> TorchSession:
        """Loads a program; see :meth:`toolkit.plugins.Runtime.open`. The number of threads holds for the whole process.

        Raises:
            InputRejected: The file is missing, damaged, not a program, or could run code of its own.
            StageOutOfMemory: The process may not have the memory the model needs.
        """
        import torch

        torch.set_num_threads(threads)
        program = pt2.load(model)
        return TorchSession(program, program.module(), pt2.size_names(model, program))


class TorchSession:
    """A loaded program.

    Attributes:
        signature: Inputs and outputs of the loaded program; free sizes by the names they were captured with, else by PyTorch's symbols.
        largest_batch: The largest first axis that it was captured for; ``None`` where that has no bound.
    """

    def __init__(self, program: Any, module: Any, sizes: Mapping[str, str] | None = None) -> None:
        import torch

        positional, named = _input_names(program)
        self.signature = Signature(
            inputs=_specs(positional + named, program, program.graph_signature.user_inputs, sizes or {}),
            outputs=_specs(_output_names(program), program, program.graph_signature.user_outputs, sizes or {}),
        )
        self.largest_batch = pt2.largest_batch(program)
        self._positional, self._named = positional, named
        self._outputs = [spec.name for spec in self.signature.outputs]
        self._module = module
        self._inference_mode, self._from_numpy = torch.inference_mode, torch.from_numpy

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs one batch.

        Raises:
            InputRejected: The arrays do not fit the signature.
            StageFailed: PyTorch could not execute the program.
            StageOutOfMemory: An allocation failed.
        """
        try:
            if len(inputs) != len(self.signature.inputs):
                raise KeyError
            with self._inference_mode():
                found = self._module(
                    *[self._tensor(inputs[name]) for name in self._positional], **{name: self._tensor(inputs[name]) for name in self._named}
                )
            return dict(zip(self._outputs, [tensor.numpy() for tensor in _flat(found)], strict=True))
        except _RUNNING as error:
            raise complaints.cannot_run(self.signature, inputs, RUNTIME.name, error) from error

    def _tensor(self, array: np.ndarray) -> Any:
        # PyTorch has no read-only tensors and warns about the memory-mapped arrays of a data set.
        return self._from_numpy(array if array.flags.writeable else array.copy())


def _flat(found: Any) -> list[Any]:
    if isinstance(found, dict):
        return list(found.values())
    return list(found) if isinstance(found, (tuple, list)) else [found]


def _input_names(program: Any) -> tuple[list[str], list[str]]:
    """Returns the positional inputs' names, which are the parameters' own, and the keyword inputs' names."""
    positional, named = program.call_spec.in_spec.children()
    inputs = list(program.graph_signature.user_inputs)
    if positional.num_leaves != positional.num_children or named.num_leaves != named.num_children:
        raise InputRejected("takes nested inputs, expected one tensor per input", hint="capture a model whose forward takes plain tensors")
    return [str(name) for name in inputs[: positional.num_leaves]], [str(name) for name in (named.context or [])]


def _output_names(program: Any) -> list[str]:
    spec = program.call_spec.out_spec
    if spec.num_leaves > 1 and spec.num_leaves != spec.num_children:
        raise InputRejected("gives nested outputs, expected tensors, a tuple or a dictionary of tensors", hint="capture a model with plain outputs")
    if spec.type is dict:
        return [str(name) for name in spec.context]
    return [f"output_{index}" for index in range(spec.num_leaves)]


def _specs(names: list[str], program: Any, nodes: Sequence[Any], sizes: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    """Describes inputs or outputs by the example values that tracing left on their nodes."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    return tuple(_spec(name, values.get(node), sizes) for name, node in zip(names, nodes, strict=True))


def _spec(name: str, value: Any, sizes: Mapping[str, str]) -> TensorSpec:
    import torch

    if not isinstance(value, torch.Tensor):
        raise InputRejected(f"{name!r} is {type(value).__name__}, expected a tensor", hint="capture a model whose inputs and outputs are tensors")
    shape = tuple(pt2.size_text(size, sizes) for size in value.shape)
    return TensorSpec(name=name, dtype=str(value.dtype).removeprefix("torch."), shape=shape)


RUNTIME = TorchRuntime()
