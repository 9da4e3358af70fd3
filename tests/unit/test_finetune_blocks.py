"""Blocks of real models, and which of them a strategy trains."""

from __future__ import annotations

import pytest

from toolkit.training import Finetune

torch = pytest.importorskip("torch")

from toolkit.finetuning import blocks as parts  # noqa: E402  after what may skip the module


def names(model):
    return [one.name for one in parts.blocks(model)]


def whole(model):
    """Every parameter is in one block, and in one alone."""
    found = [id(one) for block in parts.blocks(model) for one in block.parameters]
    assert sorted(found) == sorted({id(one) for one in model.parameters()})
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("name", "first", "some", "last"),
    [
        ("mobilenet_v2", "features.0", "features.17", "classifier"),
        ("resnet18", "conv1", "layer3.1", "fc"),
        ("vit_b_32", "", "encoder.layers.encoder_layer_7", "heads"),
        ("densenet121", "features.conv0", "features.denseblock3", "classifier"),
    ],
)
def test_models_of_torchvision(name, first, some, last):
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    found = names(model)
    assert (found[0], found[-1]) == (first, last) and some in found
    whole(model)


def test_a_transformer():
    hf = pytest.importorskip("transformers")
    config = hf.BertConfig(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, vocab_size=20)
    model = hf.BertForSequenceClassification(config)
    layers = [f"bert.encoder.layer.{number}" for number in range(3)]
    assert names(model) == ["bert.embeddings", *layers, "bert.pooler", "classifier"]
    whole(model)


def test_layers_in_a_row_are_blocks_of_their_own():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    assert names(model) == ["0", "2", "3"]


def test_shared_parameters_are_those_of_the_first_block():
    first, last = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    last.weight = first.weight
    model = torch.nn.Sequential(first, last)
    assert [len(one.parameters) for one in parts.blocks(model)] == [2, 1]
    whole(model)


def counts(strategy, epochs, many, **more):
    found = [parts.Block(str(number), ()) for number in range(many)]
    settings = Finetune(strategy=strategy, epochs=epochs, **more)
    return [[one.name for one in parts.trained(found, settings, epoch)] for epoch in range(1, epochs + 1)]


def test_strategies():
    assert counts("full", 2, 3) == [["0", "1", "2"]] * 2
    assert counts("head", 2, 3) == [["2"]] * 2
    assert counts("last", 2, 4, blocks=2) == [["1", "2", "3"]] * 2
    assert counts("last", 1, 2, blocks=9) == [["0", "1"]]
    assert [len(one) for one in counts("gradual", 10, 5)] == [1, 2, 3, 4, 5, 5, 5, 5, 5, 5]
    assert [len(one) for one in counts("gradual", 4, 9)] == [1, 9, 9, 9]
    assert [len(one) for one in counts("gradual", 12, 3)] == [1, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3]
    assert [len(one) for one in counts("gradual", 1, 3)] == [3]
