"""What a source tells of a live model before it is captured: names for positional examples, and notes that reach manifest and report."""

import importlib.util
import sys

import numpy as np
import pytest

from toolkit import plugins
from toolkit.dataset import Dataset
from toolkit.measure.feed import fit
from toolkit.pipeline import export
from toolkit.protocols import Arrays
from toolkit.sources import variants

X = np.zeros((2, 4), np.float32)


def needs(*modules):
    for module in modules:
        if module not in sys.modules and importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")


def names(model, count):
    source = export._source(model)
    return source.name, list(export._named(source, model, (X,) * count).columns)


def test_pytorch_knows_forwards_parameters():
    torch = pytest.importorskip("torch")

    class Two(torch.nn.Module):
        def forward(self, left, right=None):
            return left

    class Any(torch.nn.Module):
        def forward(self, *tensors):
            return tensors[0]

    assert names(Two(), 1) == ("torch", ["left"])
    assert names(Two(), 2) == ("torch", ["left", "right"])
    assert names(Any(), 2) == ("torch", ["input_0", "input_1"])


def test_keras_knows_its_input_layers_or_the_parameters_of_call():
    needs("keras", "tensorflow")
    import keras

    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")

    class Own(keras.Model):
        def call(self, one, other, training=False):
            return one + other

    assert names(keras.Model([left, right], left + right), 2) == ("keras", ["left", "right"])
    assert names(Own(), 2) == ("keras", ["one", "other"])
    assert names(keras.Sequential([keras.Input((4,), name="pixels"), keras.layers.Dense(2)]), 1) == ("keras", ["pixels"])
    assert names(keras.Sequential([keras.layers.Dense(2)]), 1)[1][0].isidentifier()


def test_tensorflow_and_jax_know_the_functions_parameters():
    needs("tensorflow", "jax")
    import jax
    import tensorflow as tf

    def add(first, second):
        return first + second

    assert names(tf.function(add), 2) == ("tensorflow", ["first", "second"])
    assert names(jax.jit(add), 2) == ("jax", ["first", "second"])
    assert names((lambda parameters, x: parameters * x, np.ones(4, np.float32)), 1) == ("jax", ["x"])


class Plain:
    """A source of a plugin that knows nothing of names and notes."""

    name = "plain"

    def capture(self, model: object, examples: Arrays, out: object) -> None: ...


def test_a_source_need_not_know():
    assert list(export._named(Plain(), object(), X).columns) == ["input_0"]
    assert export._notes(Plain(), object()) == {}


def test_notes_of_a_live_model_reach_the_evidence():
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(4, 4)
    source = plugins.get("sources", "torch")
    assert export._notes(source, torch.nn.Sequential(layer, layer)) == {"notes": ["the layers 0 and 1 are one and the same"]}
    assert export._notes(source, torch.nn.Sequential(layer)) == {}


def test_samples_of_another_layout_are_fed_in_order():
    """Views are enough until a model gets them: a runtime may read memory in order."""
    images = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    given = Dataset({"image": images, "scale": X}, None, "")
    turned = given.laid_out("channels_last")
    assert turned.columns["image"].shape == (2, 4, 5, 3) and np.shares_memory(turned.columns["image"], images)
    assert turned.columns["scale"] is X and given.laid_out(None) is given
    inputs = variants.TensorSpec(name="image", dtype="float32", shape=(1, 4, 5, 3)), variants.TensorSpec(name="scale", dtype="float32", shape=(1, 4))
    ((_, _, columns),) = fit(turned, variants.Signature(inputs=inputs, outputs=())).blocks()
    assert columns["image"].flags.c_contiguous
    np.testing.assert_array_equal(columns["image"], np.moveaxis(images, 1, -1))
