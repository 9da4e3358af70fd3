"""Small Keras models, captured and converted in a process of one backend: ``python -m tests.keras_cases <backend> <folder> <routes> <cases>``.

The first backend to come writes, for each case, ``<case>.keras`` and ``<case>.h5``, the inputs, what Keras' own ``predict`` says, and what the
source recorded. Then every route named writes ``<case>.<route>.<format>``, and the second run of it ``<case>.<route>.again.<format>``.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from toolkit import keras_models, plugins
from toolkit.artifact import Signature, TensorSpec

N = 4


def inputs(case):
    rng = np.random.default_rng(3)
    floats = {"picture": (16, 16, 3), "left": (4,), "right": (6,)}
    names = {"cnn": ["picture"], "unnamed": ["picture"], "own_class": ["picture"], "two": ["right", "left"]}
    if case in names:
        return {name: rng.normal(size=(N, *floats[name])).astype(np.float32) for name in names[case]}
    return {"tokens": rng.integers(0, 50, (N, 12)).astype(np.int64 if case == "lstm" else np.int32)}


def build(case, keras):
    """Returns a model with random weights and, as after training, statistics that make its normalisation do something."""
    layers = keras.layers
    keras.utils.set_random_seed(1)
    model = globals()[f"_{case}"](keras, layers)
    rng = np.random.default_rng(5)
    for variable in model.variables:
        if "moving" in variable.path or variable.path.endswith(("bias", "gamma", "beta")):
            variable.assign(rng.uniform(0.3, 1.2, variable.shape).astype(np.float32))
    return model


def _cnn(keras, layers):
    picture = keras.Input((16, 16, 3), name="picture")
    x = layers.ReLU(6)(layers.BatchNormalization()(layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(picture)))
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, strides=2, padding="same")(x))
    x = layers.GlobalAveragePooling2D()(layers.SeparableConv2D(8, 3, activation="swish")(x))
    model = keras.Model(picture, layers.Dense(5, activation="softmax", name="scores")(layers.Dropout(0.5)(x)), name="cnn")
    model.compile("adam", "categorical_crossentropy")
    return model


def _unnamed(keras, layers):
    return keras.Sequential([layers.Conv2D(4, 3, activation="gelu"), layers.Flatten(), layers.Dense(3)])


def _own_class(keras, layers):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.seen, self.norm, self.drop, self.head = layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(3)

        def call(self, picture, training=False):
            seen = keras.ops.relu(self.norm(self.seen(picture), training=training))
            return {"scores": 2.0 * self.head(self.drop(keras.ops.mean(seen, axis=(1, 2)), training=training))}

    model = Net()
    model(np.zeros((1, 16, 16, 3), np.float32))
    return model


def _two(keras, layers):
    left, right = keras.Input((4,), name="left"), keras.Input((6,), name="right")
    both = layers.Concatenate()([layers.Dense(8, activation="gelu")(left), layers.Dense(8, activation="tanh")(right)])
    return keras.Model([left, right], [layers.Dense(3, name="zulu")(both), layers.Dense(2, name="alpha")(both)])


def _lstm(keras, layers):
    tokens = keras.Input((12,), dtype="int32", name="tokens")
    x = layers.LSTM(8, return_sequences=True)(layers.Embedding(50, 6, mask_zero=True)(tokens))
    return keras.Model(tokens, layers.Dense(2, name="logits")(layers.Bidirectional(layers.GRU(6))(x)))


def _tokens(keras, layers):
    tokens = keras.Input((12,), dtype="int32", name="tokens")
    x = layers.Embedding(50, 8)(tokens)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    return keras.Model(tokens, layers.Dense(2, name="logits")(layers.GlobalAveragePooling1D()(x)))


CASES = ("cnn", "unnamed", "own_class", "two", "lstm", "tokens")


def specs(columns):
    return tuple(TensorSpec(name=name, dtype=str(column.dtype), shape=(1, *column.shape[1:])) for name, column in columns.items())


def capture(case, folder, keras):
    model, columns = build(case, keras), inputs(case)
    recorded = plugins.get("sources", "keras").capture(model, columns, folder / f"{case}.keras")
    plugins.get("sources", "keras").capture(model, columns, folder / f"{case}.again.keras")
    given = columns if len(columns) > 1 else next(iter(columns.values()))
    found = model.predict(given, verbose=0, batch_size=N)
    flat = list(found.values()) if isinstance(found, dict) else list(found) if isinstance(found, list) else [found]
    np.savez(folder / f"{case}.inputs.npz", **columns)
    np.savez(folder / f"{case}.recorded.npz", **recorded)
    np.savez(folder / f"{case}.predicted.npz", **dict(zip(recorded, flat, strict=True)))
    if case in ("cnn", "two"):
        with keras_models.quiet():
            model.save(folder / f"{case}.h5")


def signature(case, folder):
    with np.load(folder / f"{case}.inputs.npz") as given, np.load(folder / f"{case}.recorded.npz") as recorded:
        return Signature(inputs=specs(dict(given)), outputs=specs(dict(recorded)))


def arrays(folder, case, what):
    with np.load(folder / f"{case}.{what}.npz") as columns:
        return dict(columns)


def sqnr_db(expected, found):
    noise = np.sum((expected.astype(np.float64) - found) ** 2)
    return 200.0 if not noise else 10 * np.log10(np.sum(expected.astype(np.float64) ** 2) / noise)


def main(backend, folder, routes, cases):
    folder = Path(folder)
    keras = keras_models.use(backend)
    seconds = {}
    for case in cases.split(","):
        if not (folder / f"{case}.keras").exists():
            capture(case, folder, keras)
        for name in filter(None, routes.split(",")):
            route = plugins.get("routes", name)
            if not (folder / f"{case}.{route.source}").exists():
                continue
            for again in ("", ".again"):
                started = time.perf_counter()
                route.convert(folder / f"{case}.{route.source}", folder / f"{case}.{name}{again}.{route.format}", signature(case, folder))
                seconds.setdefault(f"{case} {name}", round(time.perf_counter() - started, 2))
    (folder / f"{backend}.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
