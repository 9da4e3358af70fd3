"""Keras models that :mod:`tests.keras_training` trains, as a project's factory would build them, and their data."""

import numpy as np

from toolkit.dataset import Dataset


def blobs(n=240, classes=3, seed=0):
    """Gaussian clusters five standard deviations apart: a linear model separates them."""
    generator = np.random.default_rng(seed)
    label = np.arange(n) % classes
    centres = 5 * np.eye(4)[:classes]
    return Dataset({"x": (centres[label] + generator.normal(0, 1, (n, 4))).astype(np.float32)}, label)


def net(classes=3):
    import keras

    x = keras.Input((4,), name="x")
    hidden = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Dense(16)(x)))
    return keras.Model(x, keras.layers.Dense(classes, name="head")(hidden))


def four():
    return net(4)


def numpy_forward(weights, x):
    """``net`` in plain NumPy, in inference mode."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    norm = {name: w[f"batch_normalization/{name}"] for name in ("gamma", "beta", "moving_mean", "moving_variance")}
    hidden = x @ w["dense/kernel"] + w["dense/bias"]
    hidden = (hidden - norm["moving_mean"]) / np.sqrt(norm["moving_variance"] + 1e-3) * norm["gamma"] + norm["beta"]
    return np.maximum(hidden, 0) @ w["head/kernel"] + w["head/bias"]


def plain(activation=None):
    import keras

    layers = keras.layers
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, activation="tanh", name="hidden"), layers.Dense(3, activation=activation, name="last")]
    )


def soft_activation():
    return plain("softmax")


def soft_layer():
    import keras

    model = plain()
    return keras.Model(model.inputs, keras.layers.Softmax()(model.outputs[0]))


def soft_nested():
    import keras

    x = keras.Input((4,))
    return keras.Model(x, plain("softmax")(x))


def dropping():
    import keras

    layers = keras.layers
    inside = [layers.Dense(16, name="first"), layers.BatchNormalization(), layers.ReLU(), layers.Dropout(0.3), layers.Dense(8, name="second")]
    return keras.Sequential([keras.Input((4,)), *inside, layers.Dropout(0.2), layers.Dense(3, name="head")])


def deep():
    import keras

    layers = keras.layers
    inner = [layers.Dense(6, name="first"), layers.BatchNormalization(name="bn"), layers.Dense(5, activation="relu", name="hidden")]
    base = keras.Sequential([keras.Input((4,)), *inner], name="base")
    x = keras.Input((4,), name="x")
    model = keras.Model(x, layers.Dense(3, name="head")(base(x)), name="deep")
    return model


def on_frozen_base():
    model = deep()
    model.get_layer("base").trainable = False
    return model


def own_class():
    import keras

    class OwnNet(keras.Model):
        def __init__(self):
            super().__init__()
            self.inside, self.out = keras.layers.Dense(5, activation="relu"), keras.layers.Dense(3)

        def call(self, x):
            return self.out(self.inside(x))

    return OwnNet()


def linear():
    import keras

    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


def narrow():
    import keras

    return keras.Sequential([keras.Input((7,)), keras.layers.Dense(3)])


def no_model():
    return "a model"
