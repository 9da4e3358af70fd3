"""Keras to TFLite through TensorFlow's converter, with sizes that are fixed before it looks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from toolkit import keras_models
from toolkit.artifact import Signature
from toolkit.errors import StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Route

# Operators that read or write a variable at run time. The converter leaves them, without a word, where weights could not be
# made constants; nothing initialises them on a device.
_VARIABLES = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE")
_STATELESS = "make layers stateless (stateful=False); a state can be an input and an output of the model"
_NO_KERNEL = re.compile(r"'?(tf\.\w+)'? op is neither a custom op nor a flex op")
_LAYER = re.compile(r'"(?:model(?:_\d+)?/)(?:captured(?:_\d+)?/)?([\w./-]+?)/[\w.-]+"')


class KerasLiteRT:
    """Writes a ``.tflite`` file with one signature and TFLite's own operators only.

    Args:
        name: The route's name.
        source: ``keras`` or ``h5``.
    """

    version = 1
    format = "tflite"
    modules: tuple[str, ...] = ("keras", "tensorflow")
    distributions: tuple[str, ...] = ("keras", "tensorflow")
    extra = "edgekit[tensorflow]"
    options: tuple[str, ...] = ("dynamic",)
    trust = 0.83

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source

    def convert(self, program: Path, out: Path, signature: Signature) -> None:
        """Converts a Keras file.

        Args:
            program: The ``.keras`` or ``.h5`` file.
            out: The ``.tflite`` file to write.
            signature: Inputs and outputs; a free size stays free, where every layer can be written so.

        Raises:
            InputRejected: The file is damaged, or its inputs and outputs are others.
            SetupError: Keras already runs on another backend in this process.
            StageFailed: An operator has no TFLite counterpart, or a layer keeps a state between calls.
        """
        model = keras_models.static(keras_models.load(program, backend="tensorflow"), signature)
        data = _convert(model, signature, self.name)
        _refuse_variables(data, self.name)
        out.write_bytes(data)

    def contract_example(self, folder: Path) -> Any:
        """Writes a small model; see :func:`toolkit.keras_models.write_example`."""
        return keras_models.write_example(folder, self.source)


ROUTE: Route = KerasLiteRT("keras_litert", "keras")
ROUTE_H5: Route = KerasLiteRT("h5_litert", "h5")


def _convert(model: Any, signature: Signature, where: str) -> bytes:
    import tensorflow as tf
    from tensorflow.lite.python.convert_phase import ConverterError

    function = keras_models.concrete_function(model, signature)
    if any(operation.type.startswith("Assign") for operation in function.graph.get_operations()):
        raise StageFailed("a layer keeps a state between calls, in a variable that it writes to", where=where, hint=_STATELESS)
    # The converter saves a module with the function, and finds the weights by it. Given the Keras model itself it finds none
    # and writes a file that computes NaN; given nothing it forgets the signature's names.
    module = tf.Module()
    module.variables_of_the_model = [variable.value for variable in model.variables]
    try:
        return bytes(tf.lite.TFLiteConverter.from_concrete_functions([function], module).convert())
    except (*CODE_ERRORS, ConverterError) as error:
        raise StageFailed(
            f"TensorFlow cannot convert the model to TFLite: {_reason(error)}", where=where, hint="replace that layer, or fix the size that is free"
        ) from error


def _reason(error: BaseException) -> str:
    """The converter prints its whole program; the operators without a kernel, and the layers that have them, are what counts."""
    operators = sorted(set(_NO_KERNEL.findall(str(error))))
    if not operators:
        return first_line(error)[:300]
    layers = list(dict.fromkeys(_LAYER.findall(str(error))))
    return f"no TFLite operator for {', '.join(operators)}{f' (layer {layers[0]})' if layers else ''}"


def _refuse_variables(data: bytes, where: str) -> None:
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.Model.GetRootAsModel(data, 0)
    used = {model.OperatorCodes(index).BuiltinCode() for index in range(model.OperatorCodesLength())}
    left = [name for name in _VARIABLES if getattr(schema.BuiltinOperator, name) in used]
    if left:
        raise StageFailed(f"the file would hold variables that nothing initialises ({', '.join(left)})", where=where, hint=_STATELESS)
