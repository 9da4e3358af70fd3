"""PyTorch to OpenVINO IR through OpenVINO's own frontend, which takes an exported program as it is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import openvino_ir, pt2
from toolkit.artifact import Signature
from toolkit.convert import torch_programs, torch_rewrites
from toolkit.errors import StageFailed
from toolkit.plugins import Route

if TYPE_CHECKING:
    import torch

_NOTE = "edgekit_layer"
# What multiplies keeps its note when what follows is folded into it; with notes on all operators the fused one would keep none.
_NOTED = {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul"}
_COPIES = {"aten.clone.default", "aten.alias.default", "aten.detach.default"}
_OPERATOR = re.compile(r"\b(?:aten|prims|quantized_decomposed|torchvision)[.:]+\w+")


class TorchOpenVino:
    """Writes a folder with ``model.xml`` and ``model.bin``, in which operators are called after the layers of the user's model."""

    name = "torch_openvino"
    version = 1
    source = "pt2"
    format = "openvino"
    modules: tuple[str, ...] = ("torch", "openvino")
    distributions: tuple[str, ...] = ("torch", "openvino")
    extra = "edgekit[torch,openvino]"
    preload = pt2.PRELOAD
    warm = ("torch.export._trace",)
    options: tuple[str, ...] = ("dynamic", "rewrites")
    rewrites: Mapping[str, str] = torch_rewrites.OFFERED
    trust = 0.97

    def convert(self, program: Path, out: Path, signature: Signature, *, rewrites: Sequence[str] = ()) -> torch_rewrites.Changed:
        """Converts a ``.pt2`` program.

        Args:
            program: The exported program; it takes the signature's inputs by keyword.
            out: The folder to write.
            signature: Inputs and outputs; sizes that are free in the program stay free.
            rewrites: Names of the rewrites to apply; see :mod:`toolkit.convert.torch_rewrites`.

        Returns:
            The places that each rewrite changed.

        Raises:
            InputRejected: The program is damaged.
            StageFailed: An operator has no OpenVINO counterpart.
        """
        openvino = openvino_ir.library()
        loaded, changed = torch_rewrites.apply(pt2.load(program), rewrites)
        graphs = [loaded.graph]
        try:
            decoder, layers, places = _decoder(loaded)
            graphs.append(decoder.pt_module.graph)
            model = _with_outputs(openvino.convert_model(decoder), places)
        except openvino_ir.errors() as error:
            hint = torch_programs.hint(name.rpartition(".")[2] for name in _missing(error))
            raise StageFailed(_complaint(graphs, error), where=self.name, hint=hint) from error
        _name_after_layers(model, layers)
        openvino_ir.rename(model, _input_names(loaded), [spec.name for spec in signature.outputs])
        openvino_ir.write(model, out)
        return changed


ROUTE: Route = TorchOpenVino()


def _decoder(program: torch.export.ExportedProgram) -> tuple[Any, dict[str, str], list[int]]:
    """Returns OpenVINO's view of a program, the layer of every node in it, and where :func:`_once` left each output.

    Left to itself ``convert_model`` frees all sizes, fixed or not.
    """
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    decoder = TorchFXPythonDecoder.from_exported_program(program, dynamic_shapes=False)
    places = _once(decoder.pt_module.graph)
    decoder = TorchFXPythonDecoder(decoder.pt_module, dynamic_shapes=False)
    layers = {node.name: _layer(node) for node in decoder.pt_module.graph.nodes}

    def note(part: Any, node: Any) -> None:
        if node.get_type_name() in _NOTED and (layer := layers.get(getattr(part.pt_module, "name", ""))):
            node.get_rt_info()[_NOTE] = layer

    decoder.mark_node_callback = note
    return decoder, layers, places


def _once(graph: torch.fx.Graph) -> list[int]:
    """Leaves every output of a graph in it once, as the frontend cannot give a value two names; returns where each one went."""
    (output,) = graph.find_nodes(op="output")
    given = [_origin(value) for value in output.args[0]]
    kept = list(dict.fromkeys(given))
    output.args = (tuple(kept),)
    return [kept.index(value) for value in given]


def _origin(value: Any) -> Any:
    """The value that a copy was made of; the frontend takes them for one."""
    while str(getattr(value, "target", "")) in _COPIES:
        value = value.args[0]
    return value


def _with_outputs(model: Any, places: list[int]) -> Any:
    """Gives a model back the outputs that :func:`_once` took from it."""
    sources = [result.input(0).get_source_output() for result in model.get_results()]
    if places == list(range(len(sources))):
        return model
    return openvino_ir.library().Model([sources[place] for place in places], model.get_sinks(), model.get_parameters(), "model")


def _name_after_layers(model: Any, layers: dict[str, str]) -> None:
    """Calls every node ``features.0.0/Convolution``, as :mod:`toolkit.convert.torch_onnx` does: what later tools keep of it is its name."""
    used: Counter[str] = Counter()
    for node in model.get_ordered_ops():
        notes = node.get_rt_info()
        # The frontend calls a node after that of the program, the operator and its own type: conv2d/aten.conv2d.default/Convolution.
        layer = layers.get(node.get_friendly_name().split("/")[0], "")
        if _NOTE in notes:
            layer = str(notes[_NOTE].value)
            del notes[_NOTE]
        if layer and node.get_type_name() not in ("Parameter", "Result"):
            name = f"{layer}/{node.get_type_name()}"
            used[name] += 1
            node.set_friendly_name(name if used[name] == 1 else f"{name}_{used[name]}")


def _layer(node: torch.fx.Node) -> str:
    """Path of the innermost module around a node; empty for one of the model itself."""
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return paths[-1] if paths else ""


def _input_names(program: torch.export.ExportedProgram) -> list[str]:
    """Keyword inputs go by their own names, as placeholders may be spelled in another way; positional ones have no other."""
    positional, named = program.call_spec.in_spec.children()
    return [*map(str, program.graph_signature.user_inputs[: positional.num_leaves]), *map(str, named.context or [])]


def _complaint(graphs: Sequence[torch.fx.Graph], error: BaseException) -> str:
    """Names the operators without a counterpart, each with the first layer of the user's model that has it, before it was split or after."""
    missing = _missing(error)
    first: dict[str, str] = {}
    for node in (node for graph in graphs for node in graph.nodes):
        first.setdefault(str(node.target).rpartition(".")[0], torch_programs.user_layer(node))
    told = [f"{name} in layer {first[name]!r}" if first.get(name) else name for name in missing]
    what = f"no counterpart for {', '.join(told)}" if told else openvino_ir.reason(error)
    return f"OpenVINO cannot convert the program: {what}"


def _missing(error: BaseException) -> list[str]:
    """The operators that a message names, as ``aten._fft_r2c``."""
    return sorted({name.replace("::", ".") for name in _OPERATOR.findall(str(error))})
