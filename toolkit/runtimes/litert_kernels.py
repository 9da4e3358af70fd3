"""Which operator of a TFLite file each kernel of the XNNPACK delegate computes.

XNNPACK executes a partition of the graph in the order of the file, but it fuses activations, leaves out reshapes that
cost nothing, computes a 1 x 1 convolution as a fully connected layer, and puts conversions in between. It reports kernels
by kind only. So the two lists are laid side by side like two sequences (Needleman and Wunsch 1970): kernels and operators that
can be the same are paired, in order, as many as possible; what has no partner stays without one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What kernels compute, where the name alone does not tell: XNNPACK's operator names against TFLite's.
_COMPUTES = {
    "Convolution": ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"),
    "Fully Connected": ("FULLY_CONNECTED", "CONV_2D"),
    "Dynamic Fully Connected": ("FULLY_CONNECTED", "BATCH_MATMUL"),
    "Batch Matrix Multiply": ("BATCH_MATMUL", "FULLY_CONNECTED"),
    "Deconvolution": ("TRANSPOSE_CONV", "Convolution2DTransposeBias"),
    "Average Pooling": ("AVERAGE_POOL_2D", "MEAN"),
    "Max Pooling": ("MAX_POOL_2D",),
    "ArgMax Pooling": ("MaxPoolingWithArgmax2D",),
    "Unpooling": ("MaxUnpooling2D",),
    "Mean": ("MEAN", "AVERAGE_POOL_2D"),
    "Reduce Max": ("REDUCE_MAX",),
    "Reduce Min": ("REDUCE_MIN",),
    "Subtract": ("SUB",),
    "Multiply": ("MUL",),
    "Divide": ("DIV",),
    "Power": ("POW",),
    "Clamp": ("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1"),
    "HardSwish": ("HARD_SWISH",),
    "LeakyReLU": ("LEAKY_RELU",),
    "PReLU": ("PRELU",),
    "ApproxGELU": ("GELU",),
    "Sigmoid": ("LOGISTIC",),
    "TanH": ("TANH",),
    "Negate": ("NEG",),
    "Sine": ("SIN",),
    "Cosine": ("COS",),
    "Ceiling": ("CEIL",),
    "Bankders Rounding": ("ROUND",),
    "Square Root": ("SQRT",),
    "Reciprocal Square Root": ("RSQRT",),
    "Constant Pad": ("PAD", "PADV2"),
    "Concatenate": ("CONCATENATION",),
    "Slice": ("SLICE", "STRIDED_SLICE"),
    "Even Split": ("SPLIT",),
    "Copy": ("RESHAPE", "EXPAND_DIMS", "SQUEEZE", "CONCATENATION", "SPLIT"),
    "Static Reshape": ("RESHAPE", "SQUEEZE"),
    "Static Expand Dims": ("EXPAND_DIMS",),
    "Convert": ("QUANTIZE", "DEQUANTIZE", "CAST"),
    "Resize Bilinear": ("RESIZE_BILINEAR",),
}
# Kernels that prepare what the next one reads, when no operator of the file is behind them.
_PREPARES = ("Convert", "Pack LH", "Copy", "Static Reshape", "Transpose")


@dataclass(frozen=True)
class Operator:
    """One operator of the file's main graph.

    Attributes:
        kind: Its kind in TFLite's words, for example ``CONV_2D``.
        inputs: Indices of the tensors it reads.
        computes: Indices of the tensors it computes.
        outputs: Their names.
    """

    kind: str
    inputs: tuple[int, ...]
    computes: tuple[int, ...]
    outputs: tuple[str, ...]


def read_operators(model: Path) -> list[Operator]:
    """Reads the operators of the main graph, in the order of the file."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_path=str(model), experimental_op_resolver_type=kernels)
    names = {int(tensor["index"]): str(tensor["name"]) for tensor in interpreter.get_tensor_details()}
    return [_operator(details, names) for details in interpreter._get_ops_details()]


def match(kernels: Sequence[str], operators: Sequence[Operator], undelegated: set[int]) -> list[Operator | None]:
    """Returns the operator that each kernel computes.

    Args:
        kernels: The delegate's kernels in the order of execution, such as ``Convolution (NHWC, F32) IGEMM``.
        operators: The file's operators.
        undelegated: Places of those that the interpreter executed itself.
    """
    delegated = [operators[place] for place in execution_order(operators, undelegated) if place not in undelegated]
    found = [None if place is None else delegated[place] for place in _align(kernels, [operator.kind for operator in delegated])]
    for place in reversed(range(len(found) - 1)):
        if found[place] is None and kernels[place].startswith(_PREPARES):
            found[place] = found[place + 1]
    return found


def execution_order(operators: Sequence[Operator], undelegated: set[int]) -> list[int]:
    """Returns the places of the operators in the order they run in once a delegate took its share.

    TFLite cuts a graph into parts that are delegated or not (``tflite/graph_info.cc``): it takes an operator that is
    ready, then all others of the same kind of part as they become ready, then begins the next part.
    """
    missing = {tensor for operator in operators for tensor in operator.computes}
    waiting, order = list(range(len(operators))), list[int]()
    while waiting:
        part = [place for place in waiting if not missing.intersection(operators[place].inputs)][:1]
        if not part:
            return order + waiting  # operators that wait for each other, as none of a valid file do
        side = part[0] in undelegated
        for place in waiting:  # the file lists what an operator reads before it, so that one sweep finds all
            if (place in undelegated) == side and not missing.intersection(operators[place].inputs):
                missing.difference_update(operators[place].computes)
                order.append(place)
        waiting = [place for place in waiting if place not in set(order)]
    return order


def _align(kernels: Sequence[str], kinds: Sequence[str]) -> list[int | None]:
    """Returns each kernel's partner among the operators: an order-keeping pairing of the highest total likeness."""
    alike = {(kernel, kind): _likeness(kernel, kind) for kernel in set(kernels) for kind in set(kinds)}
    best = [[0] * (len(kinds) + 1) for _ in range(len(kernels) + 1)]
    for row, kernel in enumerate(kernels):
        above, here = best[row], best[row + 1]
        for column, kind in enumerate(kinds):
            likeness = alike[kernel, kind]
            here[column + 1] = max(above[column + 1], here[column], above[column] + likeness if likeness else 0)
    partners: list[int | None] = [None] * len(kernels)
    row, column = len(kernels), len(kinds)
    while row and column:
        likeness = alike[kernels[row - 1], kinds[column - 1]]
        if likeness and best[row][column] == best[row - 1][column - 1] + likeness:
            row, column = row - 1, column - 1
            partners[row] = column
        elif best[row][column] == best[row][column - 1]:
            column -= 1
        else:
            row -= 1
    return partners


def _likeness(kernel: str, kind: str) -> int:
    """Tells how well a kernel fits an operator: 0 not at all, 2 as its first choice."""
    name, _, rest = kernel.partition(" (")
    if name == "Convolution" and rest.endswith("DWConv"):
        return 2 if kind == "DEPTHWISE_CONV_2D" else 0
    kinds = _COMPUTES.get(name, (name.upper().replace(" ", "_"),))
    return 0 if kind not in kinds else 2 if kind == kinds[0] else 1


def _operator(details: Mapping[str, Any], names: Mapping[int, str]) -> Operator:
    computes = tuple(int(tensor) for tensor in details["outputs"])
    inputs = tuple(int(tensor) for tensor in details["inputs"] if tensor >= 0)
    return Operator(str(details["op_name"]), inputs, computes, tuple(names.get(tensor, "") for tensor in computes))
