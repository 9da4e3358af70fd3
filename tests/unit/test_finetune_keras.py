"""Keras models are fine-tuned as PyTorch's are; each run happens in a process of its own, see :mod:`tests.keras_training`."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import toolkit
from tests import keras_training_models
from toolkit.errors import ConfigError
from toolkit.finetuning import keras_stage
from toolkit.pipeline.plan import make_plan
from toolkit.store import Store
from toolkit.training import Finetune

# Not by importing them: Keras takes one backend for the whole process.
MISSING = [name for name in ("keras", "tensorflow", "safetensors") if find_spec(name) is None]
there = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Returns what a case of :mod:`tests.keras_training` wrote; all of them run in one process, as TensorFlow takes long to begin."""
    folder = tmp_path_factory.mktemp("keras")
    done = subprocess.run([sys.executable, "-m", "tests.keras_training", str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return lambda case: json.loads((folder / f"{case}.json").read_text())


@there
def test_learns_and_writes_the_best_epoch_with_the_facts_of_the_others(found):
    case = found("learns")
    facts, training = case["facts"], case["training"]
    epoch = training["epochs"][training["best_epoch"] - 1]
    assert facts["validation_accuracy"] == {"value": case["accuracy"], "n": 24} and case["accuracy"] > 0.95
    assert epoch["validation_accuracy"] == max(one["validation_accuracy"] for one in training["epochs"])
    assert (facts["device"], facts["threads"], facts["processes"], facts["outputs"]) == ("cpu", 1, 1, "logits")
    assert (facts["parameters"], facts["trainable"]) == (4 * 16 + 16 + 4 * 16 + 16 * 3 + 3, 4 * 16 + 16 + 2 * 16 + 16 * 3 + 3)
    assert set(training) == {"schema", "n_train", "n_validation", "best_epoch", "classes", "confusion", "epochs"}
    assert np.trace(training["confusion"]) == round(24 * case["accuracy"]) and np.sum(training["confusion"]) == 24
    assert case["told"] == [84, 84, f"best epoch {facts['best_epoch']}/6"]
    assert case["same"] == [True, True], "the same seed gives the same bytes"
    assert case["names"][:2] == ["batch_normalization/beta", "batch_normalization/gamma"], "numbered through the model, not the process"


@there
def test_the_learning_curve_is_that_of_a_plain_loop_of_keras(found):
    case = found("plain_loop")
    np.testing.assert_allclose(case["found"], case["expected"], rtol=1e-5)


@there
def test_a_softmax_at_the_end_is_found_and_changes_nothing(found):
    case = found("probabilities")
    assert case.pop("logits") == "logits"
    for build, one in case.items():
        assert one["outputs"] == "probabilities" and one["apart"] < 1e-5, build


@there
@pytest.mark.parametrize(
    ("title", "changed", "trained"),
    [
        ("head", {"head/bias", "head/kernel"}, [1, 1, 1, 1]),
        (
            "last",
            {f"{layer}/{name}" for layer, names in {"hidden": ("bias", "kernel"), "head": ("bias", "kernel")}.items() for name in names},
            [3] * 4,
        ),
        ("gradual", None, [1, 4, 4, 4]),
        ("freeze", {"first/bias", "first/kernel", "head/bias", "head/kernel"}, [4] * 4),
        ("frozen base", {"head/bias", "head/kernel"}, [1] * 4),
    ],
)
def test_a_strategy_changes_what_it_names_and_statistics_of_nothing_else(found, title, changed, trained):
    case = found("strategies")[title]
    norm = {f"bn/{name}" for name in ("beta", "gamma", "moving_mean", "moving_variance")}
    every = norm | {f"{layer}/{name}" for layer in ("first", "hidden", "head") for name in ("bias", "kernel")}
    expected = every if changed is None else changed | (norm if title == "last" else set())
    assert {name.removeprefix("base/") for name in case["changed"]} == expected
    assert case["trained"] == trained


@there
def test_one_step_is_that_of_numpy_and_the_same_in_parts(found):
    """AdamW's first step is the rate times the gradient's sign, but for epsilon, after the weights shrank by rate times decay."""
    case = found("steps")
    x, label, weights = np.array(case["x"]), np.array(case["label"]), np.array(case["weights"])
    kernel, bias = np.linspace(-1, 1, 12).reshape(4, 3), np.array([0.1, 0.2, -0.3])
    scores = x @ kernel + bias
    share = np.exp(scores - scores.max(axis=1, keepdims=True))
    wrong = share / share.sum(axis=1, keepdims=True) - np.eye(3)[label]
    wrong *= (weights[label] / weights[label].sum())[:, None]
    gradient = [x.T @ wrong, wrong.sum(axis=0)]
    norm = np.sqrt(sum(np.square(one).sum() for one in gradient))
    assert norm > 1, "else nothing is cut"
    cut = [one / norm for one in gradient]
    expected = [(1 - 0.05 * 0.3) * kernel - 0.05 * cut[0] / (np.abs(cut[0]) + 1e-8), bias - 0.05 * cut[1] / (np.abs(cut[1]) + 1e-8)]
    for parts in ("1", "3"):
        for one, other in zip(case[parts], expected, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5)


@there
def test_training_begins_from_weights_with_a_fresh_head_where_it_must(found):
    case = found("starts")
    assert case["replaced"] == [{"name": "head/kernel", "file": [16, 3], "model": [16, 4]}, {"name": "head/bias", "file": [3], "model": [4]}]
    assert case["kept"] and case["same"] and case["names"]


@there
@pytest.mark.parametrize(
    ("title", "kind", "words"),
    [
        ("pattern", "ConfigError", "'hiden/*' matches no weight"),
        ("all frozen", "ConfigError", "every weight is frozen"),
        ("head frozen", "ConfigError", "trains 'head' alone, which freeze keeps"),
        ("classes", "InputRejected", "have shape [8, 3], expected [8, 2]"),
        ("labels", "InputRejected", "expected [8, 4 or more]"),
        ("shape", "StageFailed", "the model raised"),
        ("no model", "ConfigError", "returned a builtins.str, which is no model of keras"),
        ("broken", "InputRejected", "is not a readable safetensors file"),
        ("other", "InputRejected", "weights do not fit the model"),
        ("diverged", "StageFailed", "training diverged"),
        ("lora", "ConfigError", 'strategy = "lora" is not there for models of Keras'),
    ],
)
def test_a_mistake_is_told(found, title, kind, words):
    name, told, hint = found("refusals")[title]
    assert name == kind and words in told and hint


@there
@pytest.mark.parametrize("strategy", ["full", "gradual"])
def test_a_resumed_run_ends_as_the_unbroken_one(found, strategy):
    assert found("resumed")[strategy] == [True, True]


@pytest.mark.parametrize(
    ("key", "value"),
    [("augment", ("flip",)), ("mixup", 0.2), ("cutmix", 1.0), ("layer_decay", 0.9), ("teacher", "start"), ("compile", "always"), ("device", "mps")],
)
def test_what_keras_does_not_know_is_refused_by_its_key(key, value):
    keras_stage.check(Finetune())
    with pytest.raises(ConfigError, match=key) as caught:
        keras_stage.check(Finetune(**{key: value}))
    assert caught.value.where == f"finetune.{key}" and caught.value.hint


PROJECT = """
name = "digits"
task = "image-classification"
targets = ["desktop-litert"]
schemes = ["float32"]
[data]
factory = "project:data"
[model]
factory = "project:build"
framework = "keras"
[finetune]
epochs = 6
learning_rate = 0.005
threads = 1
{more}
"""
CODE = """
import numpy as np

def data():
    from sklearn.datasets import load_digits
    found = load_digits()
    pictures, label = (found.images[..., None] / 16).astype(np.float32), found.target.astype(np.int64)
    _, first = np.unique(pictures.reshape(len(pictures), -1), axis=0, return_index=True)
    order = np.random.default_rng(0).permutation(np.sort(first))
    split = lambda rows: {"picture": pictures[rows], "label": label[rows]}
    return {"train": split(order[:1200]), "eval": split(order[1200:])}

def build():
    import keras
    layers = keras.layers
    inside = [layers.RandomTranslation(0.1, 0.1), layers.Conv2D(8, 3, activation="relu"), layers.BatchNormalization()]
    inside += [layers.Conv2D(16, 3, activation="relu"), layers.Flatten(), layers.Dense(10, activation="softmax", name="scores")]
    return keras.Sequential(inside)
"""


@there
def test_a_project_is_trained_and_captured(tmp_path):
    pytest.importorskip("sklearn")
    (tmp_path / "project.py").write_text(CODE)
    (tmp_path / "edgekit.toml").write_text(PROJECT.format(more=""))
    store = Store(tmp_path / "store")
    tuned = toolkit.finetune(tmp_path, output=tmp_path / "tuned", store=store)
    assert tuned.facts["validation_accuracy"]["value"] > 0.9 and tuned.facts["outputs"] == "probabilities"
    assert tuned.weights.name == "digits.safetensors" and tuned.program.path.name == "digits.keras"


def test_the_plan_refuses_what_keras_does_not_know(tmp_path):
    (tmp_path / "project.py").write_text(CODE)
    (tmp_path / "edgekit.toml").write_text(PROJECT.format(more='strategy = "qat"'))
    with pytest.raises(ConfigError, match='strategy = "qat" is not there'):
        make_plan(*toolkit.config.load_project(tmp_path))


def test_the_test_data_is_what_it_says():
    data = keras_training_models.blobs()
    assert data.columns["x"].shape == (240, 4) and np.bincount(data.label).tolist() == [80, 80, 80]
