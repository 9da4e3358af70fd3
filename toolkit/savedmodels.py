"""Reads and writes TensorFlow's SavedModel folders for everyone who needs one: the source, the runtime, the routes.

Whatever a folder holds, what leaves here is one graph of one signature with its variables turned into constants and its function
calls inlined. Converters go wrong silently where either is left: a variable without its value makes NaN, and every captured
constant becomes one more input of the model. What is written is the same graph in the older layout of the format, which is one
protobuf message without time stamps, identifiers or paths.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit import intake, savedmodel_graphs, savedmodel_operators
from toolkit.artifact import Signature, TensorSpec
from toolkit.errors import InputRejected, StageFailed, StageOutOfMemory
from toolkit.factory import CODE_ERRORS, first_line

if TYPE_CHECKING:
    import tensorflow as tf

# Importing it starts no threads; they come with the first operation.
PRELOAD = ("tensorflow",)
SERVING = "serving_default"
GRAPH_FILE = "saved_model.pb"
_TAG = "serve"
_VARIABLES = ("VarHandleOp", "VariableV2", "Variable", "ReadVariableOp", "ResourceGather")
_WRITES = re.compile(r"(Resource)?(Scatter|Assign|Apply|SparseApply|StridedSliceAssign)\w*")
_TABLES = re.compile(r"(Mutable)?(Dense)?(Anonymous)?\w*HashTable(V2|OfTensors\w*)?|LookupTable\w+|InitializeTable\w*")


@dataclass(frozen=True)
class Frozen:
    """One function as a graph that needs nothing beside it.

    Attributes:
        graph: A ``GraphDef`` whose variables are constants.
        inputs: Name of the tensor in the graph for each input, by the input's name.
        outputs: The same of the outputs.
    """

    graph: Any
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def load(folder: Path) -> Frozen:
    """Reads the signature ``serving_default`` of a SavedModel, or its only one.

    Raises:
        InputRejected: The folder is damaged, could run code or open files, has no signature that can be picked, or uses custom
            operators, lookup tables or variables that it writes to.
        StageOutOfMemory: The process may not have the memory that the model needs.
    """
    intake.check_model(folder, "savedmodel")
    quiet()
    try:
        savedmodel_operators.refuse_unsafe(folder / GRAPH_FILE)
        meta = _meta_graph(folder)
        key = _signature_key(meta, folder)
        return _load(folder, meta, key)
    except MemoryError as error:
        raise StageOutOfMemory(f"loading the model ran out of memory: {first_line(error)}", where=str(folder)) from error


def freeze(function: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Frozen:
    """Turns a concrete function into one graph of constants.

    Args:
        function: A ``tf.types.experimental.ConcreteFunction``.
        inputs: Names for its inputs, in the order of ``function.inputs`` without those that it captures.
        outputs: Names for its outputs, in the order of ``function.outputs``.

    Raises:
        InputRejected: It keeps lookup tables or variables that it writes to, or has other inputs or outputs than were named.
        StageFailed: TensorFlow cannot freeze it.
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    _refuse_state(savedmodel_graphs.pruned(function.graph.as_graph_def(), [tensor.name for tensor in function.outputs]))
    try:
        frozen = convert_variables_to_constants_v2(function, lower_control_flow=False, aggressive_inlining=True)
        graph = frozen.graph.as_graph_def()
    except CODE_ERRORS as error:
        hint = "keep lookup tables, and models above 2 GB, out of the graph"
        raise StageFailed(f"TensorFlow cannot turn its variables into constants: {first_line(error)}", where="savedmodel", hint=hint) from error
    given, made = [tensor.name for tensor in frozen.inputs], [tensor.name for tensor in frozen.outputs]
    for kind, names, found in (("inputs", inputs, given), ("outputs", outputs, made)):
        if len(names) != len(found):
            message = f"the function has {len(found)} {kind} {found}, expected {list(names)}"
            raise InputRejected(message, where=kind, hint="give every input and output one name, and capture no tensors but variables")
    result = Frozen(savedmodel_graphs.tidy(graph, [*given, *made]), dict(zip(inputs, given, strict=True)), dict(zip(outputs, made, strict=True)))
    _check_frozen(result)
    return result


def pinned(frozen: Frozen, signature: Signature) -> Frozen:
    """Returns the graph with the static input sizes of a signature, and what follows from those sizes computed.

    Recurrent layers take the batch size from their input when they run, and converters want it before.

    Raises:
        InputRejected: The sizes or names do not fit the graph.
    """
    import tensorflow as tf

    graph = type(frozen.graph)()
    graph.CopyFrom(frozen.graph)
    nodes = {node.name: node for node in graph.node}
    for spec in signature.inputs:
        if spec.name not in frozen.inputs:
            raise InputRejected(f"the model has no input {spec.name!r}; found {', '.join(frozen.inputs)}", where="signature", hint="name its inputs")
        sizes = [size if isinstance(size, int) else None for size in spec.shape]
        nodes[savedmodel_graphs.node_of(frozen.inputs[spec.name])].attr["shape"].shape.CopyFrom(tf.TensorShape(sizes).as_proto())
    if graph == frozen.graph:
        return frozen
    _size_lists(graph, {size for spec in signature.inputs for size in spec.shape[:1] if isinstance(size, int)})
    try:
        return _without_shapes(replace(frozen, graph=graph))
    except (ValueError, tf.errors.OpError) as error:
        raise InputRejected(f"does not take {', '.join(map(str, signature.inputs))}: {first_line(error)}", where="signature") from error


def _size_lists(graph: Any, batches: set[int]) -> None:
    """Gives the lists that recurrent layers write their steps to the one batch size; in the graph it is still open (-1)."""
    from tensorflow import make_ndarray, make_tensor_proto

    places = {"TensorListReserve": 0, "TensorListStack": 1, "TensorListFromTensor": 1}
    constants = {node.name: node for node in graph.node if node.op == "Const"}
    for user in [node for node in graph.node if node.op in places]:
        constant = constants.get(savedmodel_graphs.node_of(user.input[places[user.op]]))
        sizes = make_ndarray(constant.attr["value"].tensor) if constant else np.zeros(0, np.int32)
        if sizes.ndim == 1 and len(sizes) > 1 and sizes[0] == -1 and (sizes[1:] >= 0).all() and len(batches) == 1:
            sized = graph.node.add()
            sized.CopyFrom(constant)
            sized.name = f"{user.name}/static_sizes"
            sized.attr["value"].tensor.CopyFrom(make_tensor_proto(np.array([*batches, *sizes[1:]], sizes.dtype)))
            user.input[places[user.op]] = sized.name


def _without_shapes(frozen: Frozen) -> Frozen:
    """Replaces the sizes that a graph asks for by numbers, until none is left that is known."""
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2
    from tensorflow.python.grappler import tf_optimizer

    for node in savedmodel_graphs.nodes(frozen.graph):
        if node.op in ("While", "StatelessWhile"):
            node.attr["output_shapes"].list.ClearField("shape")  # the sizes of another batch
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.min_graph_nodes = -1
    config.graph_options.rewrite_options.optimizers.append("constfold")
    kept = [*frozen.inputs.values(), *frozen.outputs.values()]
    while True:
        with tf.Graph().as_default() as imported:
            tf.import_graph_def(frozen.graph, name="")
            known = [node for node in frozen.graph.node if node.op == "Shape" and _sizes(imported, node) is not None]
            if not known:
                return replace(frozen, graph=savedmodel_graphs.tidy(frozen.graph, kept))
            for node in known:
                value = tf.make_tensor_proto(_sizes(imported, node), dtype=tf.as_dtype(node.attr["out_type"].type or tf.int32))
                node.op = "Const"
                node.attr.clear()
                node.attr["value"].tensor.CopyFrom(value)
                node.attr["dtype"].type = value.dtype
                node.input[:] = [f"^{savedmodel_graphs.node_of(source.removeprefix('^'))}" for source in node.input]
            meta = tf.compat.v1.train.export_meta_graph(graph_def=frozen.graph, graph=imported, clear_devices=True)
        meta.collection_def["train_op"].node_list.value.extend(kept)
        frozen = replace(frozen, graph=tf_optimizer.OptimizeGraph(config, meta))


def _sizes(graph: Any, node: Any) -> list[int] | None:
    shape = graph.get_operation_by_name(node.name).inputs[0].shape
    return shape.as_list() if shape.is_fully_defined() else None


def write(frozen: Frozen, out: Path) -> None:
    """Writes a graph as a SavedModel folder with the signature ``serving_default``; the same graph gives the same bytes.

    Raises:
        StageFailed: The model has more than the 2 GB that a protobuf message can hold.
    """
    import tensorflow as tf
    from google.protobuf.message import EncodeError
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    meta = model.meta_graphs.add()
    meta.meta_info_def.tags.append(_TAG)
    meta.meta_info_def.tensorflow_version = tf.__version__
    meta.graph_def.CopyFrom(frozen.graph)
    serving = meta.signature_def[SERVING]
    serving.method_name = "tensorflow/serving/predict"
    with _imported(frozen) as tensor:
        for infos, names in ((serving.inputs, frozen.inputs), (serving.outputs, frozen.outputs)):
            for name, place in names.items():
                infos[name].name = place
                infos[name].dtype = tensor(place).dtype.as_datatype_enum
                infos[name].tensor_shape.CopyFrom(tensor(place).shape.as_proto())
    out.mkdir(parents=True, exist_ok=True)
    try:
        (out / GRAPH_FILE).write_bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        hint = "make it smaller than 2 GB"
        raise StageFailed(f"the model is too large for one message: {first_line(error)}", where="savedmodel", hint=hint) from error


def signature_of(frozen: Frozen) -> Signature:
    """Returns inputs and outputs of a graph; a size that is free is named by its axis: ``d0``.

    Raises:
        InputRejected: A tensor's rank is unknown, or its elements are not numbers.
    """
    with _imported(frozen) as tensor:
        inputs = tuple(_spec(name, tensor(place)) for name, place in frozen.inputs.items())
        return Signature(inputs=inputs, outputs=tuple(_spec(name, tensor(place)) for name, place in frozen.outputs.items()))


def quiet() -> None:
    """Turns off TensorFlow's start-up messages and graphics cards; without effect where it has been imported already."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


def _meta_graph(folder: Path) -> Any:
    """Returns the message of the graph that is meant for serving."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        model = saved_model_pb2.SavedModel.FromString((folder / GRAPH_FILE).read_bytes())
    except DecodeError as error:
        raise InputRejected(f"is not a usable savedmodel: {first_line(error)}", where=str(folder), hint="export the model again") from error
    found = [set(meta.meta_info_def.tags) for meta in model.meta_graphs]
    if {_TAG} not in found:
        message = f"has no graph with the tag {_TAG!r}; found {[sorted(tags) for tags in found] or 'no graph'}"
        raise InputRejected(message, where=str(folder), hint="export the model for serving: tf.saved_model.save")
    return model.meta_graphs[found.index({_TAG})]


def _signature_key(meta: Any, folder: Path) -> str:
    keys = sorted(key for key, definition in meta.signature_def.items() if not key.startswith("__") and definition.outputs)
    if SERVING in keys:
        return SERVING
    if len(keys) != 1:
        message = f"has the signatures {', '.join(keys)}, expected one, or one called {SERVING!r}" if keys else "has no signature"
        raise InputRejected(message, where=str(folder), hint="export it with tf.saved_model.save(model, folder, signatures=function)")
    return keys[0]


def _load(folder: Path, meta: Any, key: str) -> Frozen:
    import tensorflow as tf

    try:
        if not meta.HasField("object_graph_def"):
            alone = savedmodel_graphs.stands_alone(meta.graph_def, _VARIABLES)
            return _as_it_is(meta, key) if alone else _from_session(folder, meta.signature_def[key])
        try:
            loaded = tf.saved_model.load(str(folder))  # keeps the variables alive
            function = loaded.signatures[key]
        except (AttributeError, KeyError, TypeError, ValueError):
            # Objects of an older Keras that today's loader does not know; the graph and its variables can be read without them.
            return _from_session(folder, meta.signature_def[key])
        names = tf.nest.flatten({name: name for name in function.structured_input_signature[1]})
        return freeze(function, names, tf.nest.flatten({name: name for name in function.structured_outputs}))
    except (*CODE_ERRORS, tf.errors.OpError) as error:
        custom = re.search(r"Op type not registered '(\w+)'", str(error))
        reason = f"uses the custom operator {custom[1]}" if custom else f"cannot be loaded: {first_line(error)}"
        hint = "export it with TensorFlow's own operators" if custom else "export the model again"
        raise InputRejected(reason, where=str(folder), hint=hint) from error


def _as_it_is(meta: Any, key: str) -> Frozen:
    """Takes a graph of constants, as :func:`write` leaves it, without the seconds of a session."""
    inputs, outputs = _ends(meta.signature_def[key])
    kept = [*inputs.values(), *outputs.values()]
    graph = savedmodel_graphs.tidy(meta.graph_def, kept)
    _refuse_state(graph)
    frozen = Frozen(graph, inputs, outputs)
    _check_frozen(frozen)
    with _imported(frozen) as tensor:  # what is damaged fails here
        for name in kept:
            tensor(name)
    return frozen


def _ends(definition: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the tensors of a signature's inputs and outputs by name."""
    inputs, outputs = ({name: info.name for name, info in sorted(infos.items())} for infos in (definition.inputs, definition.outputs))
    if not all([*inputs.values(), *outputs.values()]):
        raise InputRejected("has sparse or composite inputs or outputs", where="signature", hint="export a function of plain tensors")
    return inputs, outputs


def _from_session(folder: Path, definition: Any) -> Frozen:
    """Loads a folder by its graph alone, as TensorFlow 1 did."""
    import tensorflow as tf

    inputs, outputs = _ends(definition)
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(config=_one_cpu()) as session:
        tf.compat.v1.saved_model.load(session, [_TAG], str(folder))
        nodes = list(dict.fromkeys(savedmodel_graphs.node_of(name) for name in (*inputs.values(), *outputs.values())))
        constants = tf.compat.v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), nodes)
    constants = savedmodel_graphs.pruned(constants, [*inputs.values(), *outputs.values()])
    wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(constants, name=""), [])
    tensor = wrapped.graph.get_tensor_by_name
    function = wrapped.prune([tensor(name) for name in inputs.values()], [tensor(name) for name in outputs.values()])
    return freeze(function, list(inputs), list(outputs))


def _one_cpu() -> Any:
    import tensorflow as tf

    return tf.compat.v1.ConfigProto(device_count={"GPU": 0}, intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)


def _refuse_state(graph: Any) -> None:
    for node in savedmodel_graphs.nodes(graph):
        if _WRITES.fullmatch(node.op):
            message, hint = f"writes to a variable when it runs ({node.op} {node.name})", "make the function's state an input and an output of it"
        elif _TABLES.fullmatch(node.op):
            message, hint = f"looks values up in a table ({node.op} {node.name})", "keep the table out of the graph: give the model its indices"
        elif savedmodel_operators.UNSAFE.fullmatch(node.op) or savedmodel_operators.CHECKPOINT.fullmatch(node.op):
            message, hint = f"runs code or opens files when it runs ({node.op} {node.name})", "keep that part out of the function"
        else:
            continue
        raise InputRejected(message, where="savedmodel", hint=hint)


def _check_frozen(frozen: Frozen) -> None:
    """Catches the two silent faults by name: a variable without its value, and an input that is not the user's."""
    left = [f"{node.op} {node.name}" for node in savedmodel_graphs.nodes(frozen.graph) if node.op in _VARIABLES]
    if left:
        raise StageFailed(f"variables were not turned into constants: {', '.join(left[:3])}", where="savedmodel", hint="save the model once more")
    own = {savedmodel_graphs.node_of(name) for name in frozen.inputs.values()}
    extra = [node.name for node in frozen.graph.node if node.op == "Placeholder" and node.name not in own]
    if extra:
        raise StageFailed(f"the graph has the inputs {', '.join(extra[:3])}, which nobody gives", where="savedmodel", hint="make them constants")


class _imported:
    """A graph in TensorFlow's hands, with shapes inferred anew; gives a function from a tensor's name to the tensor."""

    def __init__(self, frozen: Frozen) -> None:
        import tensorflow as tf

        self._graph = tf.Graph()
        with self._graph.as_default():
            tf.import_graph_def(frozen.graph, name="")

    def __enter__(self) -> Any:
        return self._graph.get_tensor_by_name

    def __exit__(self, *_: object) -> None:
        return None


def _spec(name: str, tensor: tf.Tensor) -> TensorSpec:
    if tensor.shape.rank is None:
        raise InputRejected(f"{name!r} has an unknown number of axes", where="signature", hint="export the model with shapes")
    try:
        dtype = np.dtype(tensor.dtype.as_numpy_dtype)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "biuf":
        raise InputRejected(f"{name!r} holds {tensor.dtype.name}, expected numbers", where="signature", hint="keep text out of the graph")
    sizes = tuple(size if size is not None else f"d{axis}" for axis, size in enumerate(tensor.shape.as_list()))
    return TensorSpec(name=name, dtype=dtype.name, shape=sizes)


def example(folder: Path) -> tuple[Path, Signature, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Writes a small model for ``tests/contract``.

    Returns:
        The SavedModel, its signature, inputs ``[4 x ...]`` and the outputs ``[4 x ...]`` that TensorFlow computes for them.
    """
    quiet()
    import tensorflow as tf

    random = np.random.default_rng(2)
    kernel, weights = (tf.Variable(random.normal(size=shape).astype(np.float32)) for shape in ((3, 3, 1, 4), (66, 3)))

    def net(extra: Any, picture: Any) -> dict[str, Any]:
        seen = tf.nn.gelu(tf.nn.conv2d(picture, kernel, 1, "SAME"))
        logits = tf.concat([tf.reshape(seen, (1, -1)), extra], 1) @ weights
        return {"logits": logits, "scores": tf.nn.softmax(logits)}

    inputs = {"extra": random.normal(size=(4, 2)).astype(np.float32), "picture": random.normal(size=(4, 4, 4, 1)).astype(np.float32)}
    rows = [net(**{name: tf.constant(column[row : row + 1]) for name, column in inputs.items()}) for row in range(4)]
    expected = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    specs = {name: tf.TensorSpec((1, *column.shape[1:]), column.dtype) for name, column in inputs.items()}
    frozen = freeze(tf.function(net).get_concrete_function(**specs), list(inputs), list(expected))
    write(frozen, folder / "example.savedmodel")
    return folder / "example.savedmodel", signature_of(frozen), inputs, expected
