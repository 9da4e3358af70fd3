"""One small convolutional network, built in four frameworks from the same weights: ``python same_network.py FRAMEWORK FOLDER``.

Each framework gets a process of its own, as they do not live together in one. The folder holds ``weights.npz`` and ``digits.npy``
``[n x 8 x 8] float32``; the exported files are written beside them.
"""

import sys
from pathlib import Path

import numpy as np


def torch(weights):
    import torch

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 8, 3, padding=1)
            self.dense = torch.nn.Linear(128, 10)

        def forward(self, image):
            seen = torch.nn.functional.max_pool2d(torch.relu(self.conv(image)), 2)
            return {"scores": self.dense(seen.permute(0, 2, 3, 1).flatten(1))}  # the dense weights expect channels last

    network = Network()
    with torch.no_grad():
        network.conv.weight.copy_(torch.from_numpy(weights["kernel"].transpose(3, 2, 0, 1)))
        network.conv.bias.copy_(torch.from_numpy(weights["bias"]))
        network.dense.weight.copy_(torch.from_numpy(weights["dense"].T))
        network.dense.bias.copy_(torch.from_numpy(weights["offset"]))
    return network.eval()


def keras(weights):
    import keras

    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="conv")(image)
    x = keras.layers.Flatten()(keras.layers.MaxPooling2D(2)(x))
    network = keras.Model(image, keras.layers.Dense(10, name="scores")(x))
    network.get_layer("conv").set_weights([weights["kernel"], weights["bias"]])
    network.get_layer("scores").set_weights([weights["dense"], weights["offset"]])
    return network


def tensorflow(weights):
    import tensorflow as tf

    class Network(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernel, self.bias = tf.Variable(weights["kernel"]), tf.Variable(weights["bias"])
            self.dense, self.offset = tf.Variable(weights["dense"]), tf.Variable(weights["offset"])

        @tf.function
        def __call__(self, image):
            seen = tf.nn.relu(tf.nn.conv2d(image, self.kernel, 1, "SAME") + self.bias)
            pooled = tf.nn.max_pool2d(seen, 2, 2, "VALID")
            return {"scores": tf.reshape(pooled, [-1, 128]) @ self.dense + self.offset}

    return Network()


def jax(weights):
    import jax
    from jax import lax, nn
    from jax import numpy as jnp

    weights = {name: jnp.asarray(value) for name, value in weights.items()}

    @jax.jit
    def network(image):
        seen = lax.conv_general_dilated(image, weights["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        seen = nn.relu(seen + weights["bias"])
        pooled = lax.reduce_window(seen, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return {"scores": pooled.reshape(-1, 128) @ weights["dense"] + weights["offset"]}

    return network


def main(framework, folder):
    import toolkit
    from toolkit.store import Store

    weights = dict(np.load(folder / "weights.npz"))
    digits = np.load(folder / "digits.npy")
    images = digits[:, None] if framework == "torch" else digits[..., None]
    network = {"torch": torch, "keras": keras, "tensorflow": tensorflow, "jax": jax}[framework](weights)
    for format in ("onnx", "tflite"):
        toolkit.export(network, {"image": images[:16]}, format=format, output=folder / f"{framework}.{format}", store=Store(folder / "cache"))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
