"""JAX programs: captured from every kind of model, and converted with the framework's own outputs as the reference."""

import numpy as np
import pytest

from toolkit import jax_programs, plugins
from toolkit.artifact import Signature, TensorSpec
from toolkit.errors import InputRejected, StageFailed

jax = pytest.importorskip("jax")


@pytest.fixture(autouse=True)
def as_jax_is():
    """Other tests of this process may import litert-torch, which turns 64-bit numbers on for everybody."""
    wide = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", wide)


SOURCE, RUNTIME = plugins.get("sources", "jax"), plugins.get("runtimes", "jax")
RNG = np.random.default_rng(0)
PICTURES = RNG.normal(size=(3, 8, 8, 2)).astype(np.float32)
CONVERTERS = {
    "tflite": ("jax_litert", "litert", "litert_converter"),
    "onnx": ("jax_onnx", "onnxruntime", "onnx"),
    "tflite by onnx": ("jax_onnx_litert", "litert", "ai_edge_litert"),
}
DIRECT = ("tflite", "onnx")
"""Those that take slices from places that are computed, as a scan does of its sequence."""


def weights(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def convolve(x, kernel, **options):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


def captured(model, inputs, folder, **options):
    path = folder / "model.jax"
    return path, SOURCE.capture(model, inputs, path, **options)


def specs(columns):
    return tuple(TensorSpec(name=name, dtype=str(column.dtype), shape=(1, *column.shape[1:])) for name, column in columns.items())


def run_all(session, inputs):
    dtypes = {spec.name: spec.dtype for spec in session.signature.inputs}
    rows = [
        session.run({name: column[row : row + 1].astype(dtypes[name]) for name, column in inputs.items()})
        for row in range(len(next(iter(inputs.values()))))
    ]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def converted(format, model, inputs, folder, **options):
    """Converts, and holds every output against the live model; returns the file."""
    route, runtime, needed = CONVERTERS[format]
    pytest.importorskip(needed)
    program, expected = captured(model, inputs, folder, **options)
    out = folder / f"model.{format.split()[0]}"
    plugins.get("routes", route).convert(program, out, Signature(inputs=specs(inputs), outputs=specs(expected)))
    session = plugins.get("runtimes", runtime).open(out, threads=1)
    assert {spec.name for spec in session.signature.inputs} == set(inputs)
    found = run_all(session, inputs)
    assert set(found) == set(expected)
    for name, column in expected.items():
        np.testing.assert_allclose(found[name], column, rtol=1e-3, atol=1e-4, err_msg=name)
        assert found[name].dtype == column.dtype
    return out


def tflite_operators(path):
    from ai_edge_litert.interpreter import Interpreter

    return [one["op_name"] for one in Interpreter(model_path=str(path))._get_ops_details() if one["op_name"] != "DELEGATE"]


# What is captured


def plain():
    kernel = jax.numpy.asarray(weights(3, 3, 2, 4))
    return jax.jit(lambda picture: jax.nn.relu(convolve(picture, kernel)).mean((1, 2))), None


def linen():
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, picture):
            seen = nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3), name="stem")(picture))
            return nn.Dense(5, name="head")(nn.avg_pool(nn.gelu(seen, approximate=False), (2, 2), (2, 2)).reshape(1, -1))

    variables = Net().init(jax.random.key(0), PICTURES[:1])
    return Net().bind(variables), lambda picture: Net().apply(variables, picture)


def nnx():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.stem, self.norm = nnx.Conv(2, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
            self.dropout, self.head = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(256, 5, rngs=rngs)

        def __call__(self, picture):
            return self.head(self.dropout(jax.nn.relu(self.norm(self.stem(picture)))).reshape(1, -1))

    return Net(nnx.Rngs(0)), None


def equinox():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        stem: eqx.nn.Conv2d
        dropout: eqx.nn.Dropout
        head: eqx.nn.Linear

        def __init__(self, key):
            self.stem, self.dropout = eqx.nn.Conv2d(8, 4, 3, key=key), eqx.nn.Dropout(0.5)
            self.head = eqx.nn.Linear(24, 5, key=key)

        def __call__(self, picture, *, key=None):
            return (
                self.head(self.dropout(jax.nn.relu(self.stem(picture)), key=key).ravel()) if picture.shape[-1] > 2 else self.head.bias * picture.sum()
            )

    model = Net(jax.random.key(0))
    return model, jax.vmap(eqx.nn.inference_mode(model))


def pair():
    def function(params, picture):
        return picture.mean((1, 2)) @ params["w"]

    params = {"w": weights(2, 3)}
    return (function, params), lambda picture: function(params, picture)


@pytest.mark.parametrize("build", [plain, linen, nnx, equinox, pair])
def test_every_kind_of_model_is_captured_and_runs_as_the_live_one_does(build, tmp_path):
    model, reference = build()
    assert SOURCE.accepts(model)
    model = SOURCE.prepare(model, None)
    path, expected = captured(model, {"picture": PICTURES}, tmp_path, outputs=("scores",))
    reference = reference or model
    for row in range(len(PICTURES)):
        np.testing.assert_allclose(expected["scores"][row], np.asarray(reference(PICTURES[row : row + 1]))[0], rtol=1e-4, atol=1e-5)
    session = RUNTIME.open(path, threads=1)
    assert [str(spec) for spec in session.signature.inputs] == ["picture [1 x 8 x 8 x 2] float32"]
    np.testing.assert_allclose(run_all(session, {"picture": PICTURES})["scores"], expected["scores"], rtol=1e-5, atol=1e-6)


def test_other_objects_are_not_accepted():
    assert not any(SOURCE.accepts(one) for one in (len, object(), (1, 2), (len, "no arrays"), np.zeros(3), lambda x: x))


@pytest.mark.parametrize("build", [nnx, equinox])
def test_a_model_in_training_mode_is_refused(build, tmp_path):
    model, _ = build()
    with pytest.raises(InputRejected, match="training mode"):
        captured(model, {"picture": PICTURES}, tmp_path)


def test_an_unbound_linen_module_is_refused_with_the_way_to_bind_it(tmp_path):
    nn = pytest.importorskip("flax.linen")
    with pytest.raises(InputRejected) as caught:
        captured(nn.Dense(3), {"x": weights(2, 4)}, tmp_path)
    assert "bind" in caught.value.hint


def test_outputs_keep_the_order_and_names_of_the_model_s_dict(tmp_path):
    def net(params, a, b):
        return {"z": a @ params, "logits": a + b, "nothing": None}

    inputs = {"b": weights(2, 4), "a": weights(2, 4)}
    path, expected = captured((net, weights(4, 3)), inputs, tmp_path)
    assert list(expected) == ["z", "logits"] and jax_programs.load(path).inputs == ("b", "a")
    np.testing.assert_allclose(expected["logits"], inputs["a"] + inputs["b"], rtol=1e-6)
    _, chosen = captured((net, weights(4, 3)), inputs, tmp_path, outputs=("logits",))
    assert list(chosen) == ["logits"]


def test_names_in_another_order_than_the_function_s_are_not_guessed(tmp_path):
    with pytest.raises(InputRejected, match="takes"):
        captured(jax.jit(lambda a, b: a - b), {"b": weights(2, 4), "other": weights(2, 4)}, tmp_path)


def test_equal_models_give_equal_bytes_without_paths(tmp_path):
    model, _ = linen()
    first = captured(model, {"picture": PICTURES}, tmp_path)[0].read_bytes()
    assert first == captured(model, {"picture": PICTURES}, tmp_path)[0].read_bytes()
    assert b"test_jax" not in first and b"site-packages" not in first and b"stem" in first


def test_wide_numbers_that_jax_would_cut_down_are_refused(tmp_path):
    ids = np.array([[1, 2], [3, 2**40]])
    with pytest.raises(InputRejected, match="do not fit"):
        captured(jax.jit(lambda ids: ids + 1), {"ids": ids}, tmp_path)
    with pytest.raises(InputRejected, match="float64"):
        captured(jax.jit(lambda x: x + 1), {"x": np.zeros((2, 3))}, tmp_path)


def test_a_function_that_raises_is_one_sentence(tmp_path):
    def broken(x):
        raise ValueError("the user's own reason")

    with pytest.raises(StageFailed, match="the user's own reason"):
        captured(jax.jit(broken), {"x": weights(2, 3)}, tmp_path)


# What is converted


def lstm(params, x):
    w, u, out = params
    size = u.shape[0]

    def step(state, now):
        h, c = state
        i, f, g, o = jax.numpy.split(now @ w + h @ u, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jax.numpy.tanh(g)
        h = jax.nn.sigmoid(o) * jax.numpy.tanh(c)
        return (h, c), h

    start = jax.numpy.zeros((x.shape[0], size))
    _, seen = jax.lax.scan(step, (start, start), x.transpose(1, 0, 2))
    return {"last": seen[-1] @ out, "all": seen.transpose(1, 0, 2)}


def attention(params, ids, mask):
    table, qkv, out = params
    x = table[ids]
    q, k, v = jax.numpy.split(x @ qkv, 3, axis=-1)
    scores = jax.numpy.where(mask[:, None, :] > 0, jax.numpy.einsum("bqd,bkd->bqk", q, k) / 4.0, -1e9)
    x = x + jax.nn.softmax(scores) @ v
    x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
    return {"logits": jax.nn.gelu(x, approximate=False).mean(1) @ out}


@pytest.mark.parametrize("format", CONVERTERS)
@pytest.mark.parametrize("build", [plain, linen, nnx, equinox])
def test_convolutional_models_are_converted(format, build, tmp_path):
    model, _ = build()
    converted(format, SOURCE.prepare(model, None), {"picture": PICTURES}, tmp_path, outputs=("scores",))


@pytest.mark.parametrize("format", DIRECT)
def test_an_lstm_by_scan_is_converted(format, tmp_path):
    params = tuple(map(jax.numpy.asarray, (weights(3, 20), weights(5, 20), weights(5, 2))))
    out = converted(format, (lstm, params), {"x": weights(3, 7, 3)}, tmp_path)
    if format == "tflite":
        assert tflite_operators(out).count("WHILE") == 1


@pytest.mark.parametrize("format", CONVERTERS)
def test_loops_inside_of_loops_are_converted(format, tmp_path):
    def net(x):
        return jax.lax.fori_loop(0, 3, lambda i, c: jax.lax.fori_loop(0, 4, lambda j, d: d * 0.9 + x.sum() + i + j, c), x)

    converted(format, jax.jit(net), {"x": weights(2, 4)}, tmp_path)


@pytest.mark.parametrize("format", CONVERTERS)
def test_token_ids_select_rows_and_a_mask_hides_some(format, tmp_path):
    params = tuple(map(jax.numpy.asarray, (weights(11, 16), weights(16, 48), weights(16, 3))))
    ids = RNG.integers(0, 11, (3, 6))
    mask = (np.arange(6) < np.array([[6], [3], [4]])).astype(np.int64)
    converted(format, (attention, params), {"ids": ids, "mask": mask}, tmp_path)


GELUS = {
    "jax.nn.gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "erf": lambda x: 0.5 * x * (1 + jax.lax.erf(x / np.float32(np.sqrt(2)))),
}


@pytest.mark.parametrize("gelu", GELUS)
@pytest.mark.parametrize("format", CONVERTERS)
def test_an_exact_gelu_is_one_operator(format, gelu, tmp_path):
    out = converted(format, jax.jit(GELUS[gelu]), {"x": np.linspace(-8, 8, 30, dtype=np.float32).reshape(3, 10)}, tmp_path)
    if format != "onnx":
        assert tflite_operators(out) == ["GELU"]
    else:
        onnx = pytest.importorskip("onnx")
        assert [node.op_type for node in onnx.load(out).graph.node if node.op_type != "Identity"] == ["Gelu"]


@pytest.mark.parametrize("other", [lambda x: x * jax.nn.sigmoid(1.702 * x), lambda x: 0.5 * x * (1 + jax.lax.erf(0.75 * x))])
def test_what_only_looks_like_a_gelu_is_left_alone(other, tmp_path):
    out = converted("tflite", jax.jit(other), {"x": np.linspace(-8, 8, 30, dtype=np.float32).reshape(3, 10)}, tmp_path)
    assert "GELU" not in tflite_operators(out)


PADDINGS = ["SAME", "VALID", ((0, 0), (0, 0)), ((1, 2), (2, 1)), ((3, 3), (4, 5))]


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize(("kernel", "strides"), [((3, 3), (2, 2)), ((4, 1), (2, 3)), ((2, 5), (2, 1)), ((4, 4), (3, 3)), ((1, 2), (3, 2))])
@pytest.mark.parametrize("format", CONVERTERS)
def test_transposed_convolutions_keep_their_sizes(format, kernel, strides, padding, tmp_path):
    w = weights(*kernel, 2, 3)
    converted(format, jax.jit(lambda x: jax.lax.conv_transpose(x, w, strides, padding)), {"x": weights(1, 6, 7, 2)}, tmp_path)


ONNX_ONLY = {
    "sort": lambda x: jax.numpy.sort(x, axis=1),
    "argsort": lambda x: jax.numpy.argsort(x, axis=1, descending=True),
    "top_k": lambda x: jax.lax.top_k(x, 3)[0],
    "three dimensions": lambda x: jax.lax.conv_transpose(x[..., None, None], np.ones((3, 3, 1, 1, 2), np.float32), (2, 2, 1), "SAME")[:, :, :, 0],
}
BOTH = {
    "cumsum": lambda x: jax.numpy.cumsum(x, axis=1),
    "argmax": lambda x: jax.numpy.argmax(x, axis=-1),
    "argmin": lambda x: jax.numpy.argmin(x, axis=1),
    "max pool": lambda x: jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 3, 3), (1, 2, 2), "SAME"),
    "sum pool": lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2), (1, 2, 2), "VALID"),
    "negative pad": lambda x: jax.lax.pad(x, 2.0, ((0, 0, 0), (-1, 2, 0), (1, -2, 0))),
    "reverse and stride": lambda x: x[:, ::-1, ::2],
    "cond": lambda x: jax.lax.cond(x.sum() > 0, lambda v: v + 1, lambda v: v * 2, x),
    "cond that is cut": lambda x: jax.lax.cond(x.sum() > 0, lambda v: v + 1, lambda v: v * 2, x)[:, :2],
    "switch": lambda x: jax.lax.switch(jax.numpy.argmax(x[0, 0, :3]), [lambda v: v + 1, lambda v: v * 2, lambda v: -v], x),
    "dynamic slice": lambda x: jax.lax.dynamic_slice(x, (0, jax.numpy.argmax(x[0, :, 0]), 5), (1, 3, 4)),
    "dynamic update": lambda x: jax.lax.dynamic_update_slice(x, x[:, :2, :3] * 2, (0, jax.numpy.argmax(x[0, :, 0]), 2)),
    "scatter": lambda x: x.at[:, 2].set(9.0),
    "pairs": lambda x: x[:, np.array([0, 3]), np.array([1, 2])],
    "einsum": lambda x: jax.numpy.einsum("bij,bkj->bik", x, x),
    "std": lambda x: x.std(1),
    "any": lambda x: (x > 1).any(1),
    "prod": lambda x: x.prod(1),
    "clip": lambda x: jax.numpy.clip(x, -0.5, 0.7),
}


@pytest.mark.parametrize(
    ("format", "name"),
    [
        *((format, name) for format in CONVERTERS for name in BOTH if format in DIRECT or name != "dynamic slice"),
        *(("onnx", name) for name in ONNX_ONLY),
    ],
    ids=str,
)
def test_operators_compute_what_jax_computes(format, name, tmp_path):
    converted(format, jax.jit((BOTH | ONNX_ONLY)[name]), {"x": weights(3, 6, 8)}, tmp_path)


def test_channels_last_costs_two_transposes_in_all(tmp_path):
    onnx = pytest.importorskip("onnx")
    first, second, scale, bias = weights(3, 3, 2, 4), weights(3, 3, 4, 4), weights(4), weights(4)

    def net(x):
        x = jax.nn.relu(convolve(x, first) * scale + bias)
        gate = jax.nn.sigmoid(x.mean((1, 2), keepdims=True))
        y = jax.lax.reduce_window(
            jax.numpy.pad(x * gate, ((0, 0), (1, 0), (0, 1), (0, 0))), -np.inf, jax.lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID"
        )
        return jax.numpy.concatenate([convolve(x, second) + y, x[:, ::-1, :]], axis=-1)

    out = converted("onnx", jax.jit(net), {"x": PICTURES}, tmp_path)
    large = [node for node in onnx.load(out).graph.node if node.op_type == "Transpose"]
    assert len(large) <= 3, "one in, one out, and a small one of the gate"


# What is refused


def test_preflight_names_what_has_no_kernel_and_its_layer(tmp_path):
    nn = pytest.importorskip("flax.linen")
    route = plugins.get("routes", "jax_litert")

    class Ranked(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jax.numpy.sort(nn.Dense(4)(x), axis=-1)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Ranked(name="order")(x)

    x = weights(2, 3)
    program, expected = captured(Net().bind(Net().init(jax.random.key(0), x[:1])), {"x": x}, tmp_path)
    signature = Signature(inputs=specs({"x": x}), outputs=specs(expected))
    (found,) = route.preflight(program, signature)
    assert (found.operator, found.layer) == ("sort", "Net/order") and "TFLite" in found.reason and found.hint
    with pytest.raises(StageFailed, match="sort") as caught:
        route.convert(program, tmp_path / "model.tflite", signature)
    assert caught.value.exit_code == 5 and "Net/order" in caught.value.where
    assert not (tmp_path / "model.tflite").exists()


REFUSED = {
    "lapack_sgetrf_ffi": lambda x: jax.numpy.linalg.inv(x[:, :6, :6]),
    "fft": lambda x: jax.numpy.abs(jax.numpy.fft.fft(x)),
    "dot_general of bf16": lambda x: (x.astype("bfloat16") @ jax.numpy.ones((8, 2), "bfloat16")).astype("float32"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_operators_without_a_kernel_are_named(name, tmp_path):
    program, _ = captured(jax.jit(REFUSED[name]), {"x": weights(2, 6, 8)}, tmp_path)
    signature = jax_programs.load(program).signature
    assert name in [one.operator for one in plugins.get("routes", "jax_litert").preflight(program, signature)]
    assert plugins.get("routes", "jax_onnx").preflight(program, signature)
    with pytest.raises(StageFailed):
        plugins.get("routes", "jax_onnx").convert(program, tmp_path / "model.onnx", signature)
