"""Every installed collection, ours or a plugin's: it refuses unknown names, and what it builds is captured by a source.

A collection that is not known here takes part when it has ``contract_example(folder) -> str``, the name of a small model.
"""

import numpy as np
import pytest

from toolkit import dataset, plugins
from toolkit.artifact import Signature
from toolkit.errors import ConfigError, InputRejected, SetupError
from toolkit.job import Job
from toolkit.sources import stage

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 90,
    "max_position_embeddings": 16,
}


def tiny_bert(folder):
    transformers = pytest.importorskip("transformers")
    transformers.BertConfig(**SMALL, architectures=["BertForSequenceClassification"]).save_pretrained(folder / "bert")
    return str(folder / "bert")


EXAMPLES = {"torchvision": lambda folder: "shufflenet_v2_x0_5", "timm": lambda folder: "lcnet_035", "transformers": tiny_bert}
COLLECTIONS = plugins.discover("collections")

pytestmark = pytest.mark.parametrize("collection", COLLECTIONS.values(), ids=COLLECTIONS)


@pytest.fixture
def model(collection, tmp_path):
    if plugins.missing_modules(collection):
        pytest.skip(f"{collection.name} needs {', '.join(plugins.missing_modules(collection))}")
    maker = getattr(collection, "contract_example", None) or EXAMPLES.get(collection.name)
    if maker is None:
        pytest.skip(f"{collection.name} has no contract_example")
    return maker(tmp_path)


def test_unknown_names_are_refused(collection, model):
    with pytest.raises((ConfigError, SetupError)) as caught:
        collection.build("./no such model")
    assert caught.value.message and caught.value.hint


def run(collection, model, out, **others):
    inputs = others.pop("inputs", {})
    options = {"collection": collection.name, "model": model, "weights": None, "task": None, "outputs": [], "samples": 2, **others}
    out.mkdir()
    return stage.run(Job(inputs, options, out))


def test_the_stage_captures_what_it_builds(collection, model, tmp_path):
    facts = run(collection, model, tmp_path / "out")
    assert facts["examples"] == "made up" and facts["notes"] and facts["task"]
    inputs, outputs = (dataset.load(tmp_path / "out" / "expected" / side).columns for side in ("inputs", "outputs"))
    signature = Signature.model_validate(facts["signature"])
    assert [spec.name for spec in signature.inputs] == list(inputs) and [spec.name for spec in signature.outputs] == list(outputs)
    assert any(np.ptp(column, axis=0).any() for column in outputs.values())
    session = plugins.runtime_for(facts["format"]).open(tmp_path / "out" / f"model.{facts['format']}", threads=1)
    found = session.run({name: np.array(column[1:2]) for name, column in inputs.items()})
    for name, column in outputs.items():
        np.testing.assert_allclose(found[name], column[1:2], rtol=1e-4, atol=1e-5)


def test_the_users_samples_take_the_place_of_examples(collection, model, tmp_path):
    examples = collection.build(model).examples
    given = {name: np.array(column[2:4]) for name, column in examples.items()}
    np.savez(tmp_path / "given.npz", **given)
    facts = run(collection, model, tmp_path / "out", inputs={"data": tmp_path / "given.npz"})
    assert facts["examples"] == "given"
    recorded = dataset.load(tmp_path / "out" / "expected" / "inputs").columns
    for name, column in given.items():
        np.testing.assert_array_equal(recorded[name], column)
    first = next(iter(given))
    wrong = ({"no_such_input": given[first]}, {first: given[first][:, 0]})
    for number, columns in enumerate(wrong):
        np.savez(tmp_path / f"wrong{number}.npz", **columns)
        with pytest.raises(InputRejected):
            run(collection, model, tmp_path / f"wrong{number}", inputs={"data": tmp_path / f"wrong{number}.npz"})
