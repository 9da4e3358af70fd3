"""Random small graphs: LiteRT computes what ONNX Runtime computes, or the compiler says what it cannot express."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolkit.artifact import Signature, TensorSpec
from toolkit.convert import onnx_litert
from toolkit.errors import StageFailed

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
interpreter = pytest.importorskip("ai_edge_litert.interpreter")

helper, numpy_helper = onnx.helper, onnx.numpy_helper
UNARY = ["Relu", "Sigmoid", "Tanh", "Abs", "Neg", "Exp", "Floor", "HardSwish", "Elu", "Softplus", "Sqrt", "LeakyRelu", "Erf", "Identity"]
BINARY = ["Add", "Sub", "Mul", "Max", "Min"]
REDUCE = ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"]
MOST_ELEMENTS = 4096


class Builder:
    """Draws a graph node by node; every value's sizes are known from ONNX Runtime's point of view by running NumPy's rules."""

    def __init__(self, draw):
        self.draw = draw
        self.nodes, self.constants, self.values = [], {}, {}
        self.random = np.random.default_rng(draw(st.integers(0, 2**20)))

    def integer(self, low, high):
        return self.draw(st.integers(low, high))

    def pick(self, options):
        return self.draw(st.sampled_from(options))

    def constant(self, array):
        name = f"k{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def weights(self, *shape):
        return self.constant(self.random.normal(size=shape).astype(np.float32))

    def add(self, kind, inputs, shape, **attributes):
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"layer{len(self.nodes)}/{kind}", **attributes))
        self.values[name] = tuple(int(size) for size in shape)
        return name

    def value(self, rank=None):
        fitting = [name for name, shape in self.values.items() if rank is None or len(shape) == rank]
        return self.pick(fitting) if fitting else None

    def step(self):
        getattr(self, self.pick([name for name in dir(self) if name.startswith("add_")]))()

    def add_unary(self):
        name = self.value()
        self.add(self.pick(UNARY), [name], self.values[name])

    def add_binary(self):
        name = self.value()
        shape = self.values[name]
        other = self.pick([one for one, size in self.values.items() if size == shape])
        if self.pick([True, False]):
            kept = [size if self.pick([True, False]) else 1 for size in shape][self.integer(0, len(shape)) :]
            other = self.weights(*kept)
        self.add(self.pick(BINARY), self.pick([[name, other], [other, name]]), shape)

    def add_conv(self):
        name = self.value(4)
        if name is None:
            return
        batch, channels, height, width = self.values[name]
        group = self.pick([1, channels])
        outputs = group * self.integer(1, 3)
        kernel, stride, dilation = ([self.integer(1, 3) for _ in range(2)] for _ in range(3))
        pads = [self.integer(0, 2) for _ in range(4)]
        sizes = [
            (size + pads[place] + pads[place + 2] - dilation[place] * (kernel[place] - 1) - 1) // stride[place] + 1
            for place, size in enumerate((height, width))
        ]
        if min(sizes) < 1:
            return
        inputs = [name, self.weights(outputs, channels // group, *kernel), *([self.weights(outputs)] if self.pick([True, False]) else [])]
        self.add("Conv", inputs, (batch, outputs, *sizes), group=group, kernel_shape=kernel, strides=stride, dilations=dilation, pads=pads)

    def add_pool(self):
        name = self.value(4)
        if name is None:
            return
        batch, channels, height, width = self.values[name]
        kernel, stride = ([self.integer(1, 3) for _ in range(2)] for _ in range(2))
        pads = [self.integer(0, kernel[place % 2] - 1) for place in range(4)]
        sizes = [(size + pads[place] + pads[place + 2] - kernel[place]) // stride[place] + 1 for place, size in enumerate((height, width))]
        if min(sizes) < 1:
            return
        more = self.pick([("MaxPool", {}), ("AveragePool", {"count_include_pad": self.pick([0, 1])})])
        self.add(more[0], [name], (batch, channels, *sizes), kernel_shape=kernel, strides=stride, pads=pads, **more[1])

    def add_transpose(self):
        name = self.value()
        shape = self.values[name]
        order = self.draw(st.permutations(range(len(shape))))
        self.add("Transpose", [name], [shape[axis] for axis in order], perm=list(order))

    def add_reshape(self):
        name = self.value()
        shape = self.values[name]
        cut = self.integer(0, len(shape))
        wanted = [int(np.prod(shape[:cut])), int(np.prod(shape[cut:]))]
        wanted = self.pick([wanted, [*shape[:1], 1, *shape[1:]], [*shape, 1]])
        if len(wanted) <= 5:
            self.add("Reshape", [name, self.constant(np.array(wanted, np.int64))], wanted)

    def add_concat(self):
        name = self.value()
        shape = self.values[name]
        axis = self.integer(0, len(shape) - 1)
        if np.prod(shape) * 2 <= MOST_ELEMENTS:
            wanted = [size * 2 if place == axis else size for place, size in enumerate(shape)]
            self.add("Concat", [name, self.pick([one for one, size in self.values.items() if size == shape])], wanted, axis=axis)

    def add_slice(self):
        name = self.value()
        shape = self.values[name]
        axis = self.integer(0, len(shape) - 1)
        start, step = self.integer(0, shape[axis] - 1), self.pick([1, 1, 2])
        end = self.integer(start + 1, shape[axis])
        given = [self.constant(np.array([number], np.int64)) for number in (start, end, axis, step)]
        wanted = [len(range(start, end, step)) if place == axis else size for place, size in enumerate(shape)]
        self.add("Slice", [name, *given], wanted)

    def add_pad(self):
        name = self.value()
        shape = self.values[name]
        pads = [self.integer(0, 1) for _ in range(2 * len(shape))]
        wanted = [size + pads[place] + pads[place + len(shape)] for place, size in enumerate(shape)]
        if np.prod(wanted) <= MOST_ELEMENTS:
            self.add("Pad", [name, self.constant(np.array(pads, np.int64)), self.constant(np.float32(self.pick([0, 1.5])))], wanted)

    def add_reduce(self):
        name = self.value()
        shape = self.values[name]
        axis, keep = self.integer(0, len(shape) - 1), self.pick([0, 1])
        wanted = [1 if place == axis else size for place, size in enumerate(shape) if keep or place != axis]
        if wanted:
            self.add(self.pick(REDUCE), [name, self.constant(np.array([axis], np.int64))], wanted, keepdims=keep)

    def add_matmul(self):
        name = self.value()
        shape = self.values[name]
        if len(shape) >= 2:
            outputs = self.integer(1, 4)
            self.add("MatMul", [name, self.weights(shape[-1], outputs)], (*shape[:-1], outputs))

    def add_softmax(self):
        name = self.value()
        self.add("Softmax", [name], self.values[name], axis=self.integer(0, len(self.values[name]) - 1))

    def add_norm(self):
        name = self.value(4)
        if name is not None:
            channels = self.values[name][1]
            given = [self.weights(channels) for _ in range(3)] + [self.constant(self.random.uniform(0.5, 2, channels).astype(np.float32))]
            self.add("BatchNormalization", [name, *given], self.values[name])


@st.composite
def graphs(draw):
    builder = Builder(draw)
    shape = draw(st.one_of(st.tuples(st.just(1), *[st.integers(1, 6)] * 3), st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)))
    builder.values["x"] = shape
    for _ in range(draw(st.integers(2, 7))):
        builder.step()
    last = list(builder.values)[-1]
    given_values = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)]
    if last == "x":
        last = builder.add("Relu", ["x"], shape)
    result = [helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, builder.values[last])]
    constants = [numpy_helper.from_array(value, name) for name, value in builder.constants.items()]
    graph = helper.make_graph(builder.nodes, "net", given_values, result, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return model, builder.random.normal(size=shape).astype(np.float32)


def check(model, x):
    (output,) = model.graph.output
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "net.onnx", Path(folder) / "net.tflite"
        source.write_bytes(model.SerializeToString())
        signature = Signature(
            inputs=(TensorSpec(name="x", dtype="float32", shape=x.shape),),
            outputs=(TensorSpec(name=output.name, dtype="float32", shape=expected.shape),),
        )
        try:
            onnx_litert.ROUTE.convert(source, out, signature)
        except StageFailed as error:
            assert "cannot convert the graph" in str(error) and "layer" in str(error)
            return
        found = interpreter.Interpreter(str(out), num_threads=1).get_signature_runner()(x=x)[output.name]
    assert found.shape == expected.shape
    scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=1.0))
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5 * scale)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_random_graphs_compute_what_onnxruntime_computes(drawn):
    check(*drawn)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_five_hundred_random_graphs(drawn):
    check(*drawn)
