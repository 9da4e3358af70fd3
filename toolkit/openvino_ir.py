"""OpenVINO IR: a folder with ``model.xml``, the graph, and ``model.bin``, the weights. What its routes and its runtime share.

A file that OpenVINO saves differs from process to process: it numbers nodes by a counter of the whole process, and adds its
build and what it was converted with. :func:`write` leaves out of the file what does not belong to the model.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from toolkit import intake
from toolkit.artifact import Signature, TensorSpec
from toolkit.errors import StageFailed
from toolkit.factory import CODE_ERRORS

XML, BIN = "model.xml", "model.bin"
# OpenVINO's element types by NumPy's names; what is missing here NumPy has no type for.
DTYPES = {
    **{f"f{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"i{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"u{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "boolean": "bool",
}
Names = Callable[[Path], tuple[list[str], list[str], set[str]]]
_TELEMETRY = "openvino_telemetry"
# A name that OpenVINO made up: the operator's type and a number.
_NUMBERED = re.compile(r"([A-Z][A-Za-z0-9]*)_\d+")
_LAYER = re.compile(r'(<layer id="\d+" name=")([^"]*)(")')
_BOILERPLATE = re.compile(r"(Exception from |Check '.*' failed at |While validating |FrontEnd API failed |Model wasn't fully converted|Summary:).*")


def library() -> ModuleType:
    """Imports OpenVINO without the telemetry that its converter would otherwise start.

    Where ``openvino_telemetry`` is found, importing OpenVINO sends an event to Google Analytics and writes an identifier to the
    user's home, without having asked. So it is not found while OpenVINO is imported; where someone else has imported OpenVINO
    before, its converter at least gets the stand-in that OpenVINO itself has for that case.
    """
    if "openvino" not in sys.modules:
        _import_silently()
    from openvino.tools.ovc import telemetry_stub, telemetry_utils

    telemetry_utils.tm = telemetry_stub
    return sys.modules["openvino"]


def _import_silently() -> None:
    known = {name: module for name, module in sys.modules.items() if name.split(".")[0] == _TELEMETRY}
    for name in known:
        del sys.modules[name]
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # the documented way to make an import fail
    try:
        importlib.import_module("openvino")
    finally:
        del sys.modules[_TELEMETRY]
        sys.modules.update(known)


def convert(source: Any, where: str) -> Any:
    """Converts a model file, or what a frontend makes of a live one.

    Raises:
        StageFailed: An operator has no OpenVINO counterpart.
    """
    try:
        return library().convert_model(source)
    except errors() as error:
        hint = "replace that operator in the model"
        raise StageFailed(f"OpenVINO cannot convert the model: {reason(error)}", where=where, hint=hint) from error


class FileRoute:
    """A route from a model file that OpenVINO reads itself; it writes a folder with ``model.xml`` and ``model.bin``.

    Args:
        source: The format it reads.
        names: Returns the names of a file's inputs and of its outputs, in its own order, and names of operators that are the file's own.
            It raises InputRejected where the file is damaged.
        modules: Import names that it needs beside OpenVINO.
        distributions: Their distributions.
        extra: What to install when one is missing.
    """

    version = 1
    format = "openvino"
    options: tuple[str, ...] = ("dynamic",)

    def __init__(self, source: str, names: Names, modules: tuple[str, ...], distributions: tuple[str, ...], extra: str) -> None:
        self.name, self.source, self.extra = f"{source}_openvino", source, extra
        self.modules: tuple[str, ...] = ("openvino", *modules)
        self.distributions: tuple[str, ...] = ("openvino", *distributions)
        self._names = names

    def convert(self, program: Path, out: Path, signature: Signature) -> None:
        """Converts a model file; operators keep the names that they have in it.

        Args:
            program: The model file.
            out: The folder to write.
            signature: Inputs and outputs; where it has a size that is free in the file, the size becomes fixed.

        Raises:
            InputRejected: The file is damaged.
            StageFailed: An operator has no OpenVINO counterpart, or the model has other inputs and outputs.
        """
        intake.check_model(program, self.source)
        inputs, outputs, known = self._names(program)
        model = convert(str(program), self.name)
        rename(model, inputs, outputs)
        fix_sizes(model, signature)
        write(model, out, known)


def errors() -> tuple[type[BaseException], ...]:
    """Returns what a conversion may raise: beside ordinary errors those of the frontends and of the converter, which are none."""
    frontends = vars(library().frontend)
    failures = [frontends[name] for name in sorted(frontends) if name.endswith("Failure")]
    from openvino.tools.ovc.error import BasicError

    return (*CODE_ERRORS, BasicError, *failures)


def reason(error: BaseException) -> str:
    """Returns the sentence of an OpenVINO error that says what is wrong; around it are places in OpenVINO's own sources."""
    lines = [line.strip().removeprefix("-- ") for line in str(error).splitlines()]
    told = [line for line in lines if line and not _BOILERPLATE.fullmatch(line)]
    return (told[0] if told else type(error).__name__)[:300]


def name_of_input(port: Any, outputs: Collection[str]) -> str:
    """Returns what an input is called, given the names of all outputs.

    Its tensor may have several names, one of them the parameter's own, and shares them with an output that is the input itself.
    """
    own, names = port.get_node().get_friendly_name(), port.get_names()
    return own if own in names else min(names - set(outputs), default=own)


def name_of_output(port: Any) -> str:
    """Returns what an output is called; the node's name where its tensor has none."""
    return min(port.get_names(), default=port.get_node().get_friendly_name())


def free_shape(shape: Any) -> tuple[int | str, ...]:
    """Returns the sizes of a shape of known rank, ``d0``, ``d1`` and so on, after the axis, for those that are free."""
    return tuple(size.get_length() if size.is_static else f"d{axis}" for axis, size in enumerate(shape))


def rename(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Gives a model's inputs and outputs their names, each a tensor of its own.

    Args:
        model: The ``openvino.Model``.
        inputs: Names of the inputs, in the model's order.
        outputs: Names of the outputs, in the model's order.

    Raises:
        StageFailed: The model has another number of them.
    """
    for kind, ports, names in (("inputs", model.inputs, inputs), ("outputs", model.outputs, outputs)):
        if len(ports) != len(names):
            hint = "make every input count and every output a tensor of its own"
            raise StageFailed(f"OpenVINO's model has {len(ports)} {kind}, expected {', '.join(names)}", hint=hint)
    _part_outputs(model)
    for ports, names, suffix in ((model.inputs, inputs, ""), (model.outputs, outputs, "/sink_port_0")):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
            port.get_node().set_friendly_name(name + suffix)


def fix_sizes(model: Any, signature: Signature) -> None:
    """Gives the inputs of a model that are free the sizes of the signature, where it has them.

    Raises:
        StageFailed: The model has no such input, or cannot have these sizes.
    """
    ports = {name: port for port in model.inputs for name in port.get_names()}
    wanted = {spec.name: _partial(spec) for spec in signature.inputs}
    try:
        changed = {ports[name]: shape for name, shape in wanted.items() if shape != ports[name].get_partial_shape()}
        if changed:
            model.reshape(changed)
    except (RuntimeError, KeyError) as error:
        told = f"it takes {', '.join(ports)}" if isinstance(error, KeyError) else reason(error)
        hint = "give samples of names and sizes that the model takes"
        raise StageFailed(f"OpenVINO cannot give the model {', '.join(map(str, signature.inputs))}: {told}", hint=hint) from error


def _partial(spec: TensorSpec) -> Any:
    openvino = library()
    return openvino.PartialShape([size if isinstance(size, int) else openvino.Dimension() for size in spec.shape])


def write(model: Any, out: Path, known: Collection[str] = ()) -> None:
    """Writes a model, whose bytes then depend on the model and the versions alone. Weights keep their element types.

    Args:
        model: The ``openvino.Model``, named by :func:`rename`.
        out: The folder to write.
        known: Names of nodes that are the model's own although they look like made up ones.

    Raises:
        StageFailed: The model cannot be written.
    """
    _equal_ranks(model)
    out.mkdir()
    try:
        library().save_model(model, str(out / XML), compress_to_fp16=False)
    except RuntimeError as error:
        raise StageFailed(f"OpenVINO cannot write the model: {reason(error)}", hint="see the stage's log for OpenVINO's own messages") from error
    xml = (out / XML).read_text(encoding="utf-8")
    (out / XML).write_text(_renumber(_without_origin(xml), known), encoding="utf-8")


def _part_outputs(model: Any) -> None:
    """Gives every output a tensor of its own, where several are one tensor or one is an input: a tensor has the names of one of them.

    A conversion of a tensor to its own type costs nothing; the plugin drops it.
    """
    from openvino import opset1

    seen: set[tuple[str, int]] = set()
    for result in model.get_results():
        source = result.input(0).get_source_output()
        key = (source.get_node().get_name(), source.get_index())
        if key in seen or source.get_node().get_type_name() == "Parameter":
            result.input(0).replace_source_output(opset1.convert(source, source.get_element_type().to_string()).output(0))
        seen.add(key)
    model.validate_nodes_and_infer_types()


def _equal_ranks(model: Any) -> None:
    """Gives both operands of a sum the same number of axes.

    OpenVINO 2026.4 ends the process when it compiles a transformer that adds ``[1 x n x c]`` to the ``[n x c]`` of a fully connected
    layer, as TFLite's have them.
    """
    from openvino import opset1

    for node in model.get_ordered_ops():
        if node.get_type_name() != "Add" or not node.get_output_partial_shape(0).is_static:
            continue
        rank = len(node.get_output_shape(0))
        for operand in node.inputs():
            if operand.get_partial_shape().is_dynamic:
                continue
            source, shape = operand.get_source_output(), list(operand.get_shape())
            if len(shape) < rank and source.get_node().get_type_name() != "Constant":
                full = opset1.constant(np.array([1] * (rank - len(shape)) + shape, np.int64))
                operand.replace_source_output(opset1.reshape(source, full, False).output(0))


def _without_origin(xml: str) -> str:
    """Drops the model's notes (OpenVINO's build, parameters of the conversion) and its name, which is a number of the process."""
    start = xml.rfind("\n\t<rt_info>")
    end = xml.find("\n\t</rt_info>", start)
    if 0 <= start < end:
        xml = xml[:start] + xml[end + len("\n\t</rt_info>") :]
    return re.sub(r'<net name="[^"]*"', '<net name="model"', xml, count=1)


def _renumber(xml: str, known: Collection[str]) -> str:
    """Numbers made up names from 1 for each type, in the order of the file."""
    kept = {name for _, name, _ in _LAYER.findall(xml) if name in known or not _NUMBERED.fullmatch(name)}
    counts: Counter[str] = Counter()

    def rename(match: re.Match[str]) -> str:
        if match[2] in kept:
            return match[0]
        kind = _NUMBERED.fullmatch(match[2])[1]  # type: ignore[index]  # what does not match is kept
        name = ""
        while not name or name in kept:
            counts[kind] += 1
            name = f"{kind}_{counts[kind]}"
        return f"{match[1]}{name}{match[3]}"

    return _LAYER.sub(rename, xml)
