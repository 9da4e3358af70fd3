"""Low-rank updates: what learns, what is added in the end, and what PEFT's own computation says to it."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from toolkit.dataset import Dataset
from toolkit.errors import ConfigError
from toolkit.finetuning import fitting, lora
from toolkit.finetuning.blocks import blocks, mark_fresh
from toolkit.training import Finetune

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TINY = {"vocab_size": 30, "max_position_embeddings": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
IDS = torch.from_numpy(np.random.default_rng(0).integers(5, 30, (6, 8)))


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(**TINY, num_labels=3, initializer_range=0.3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return transformers.BertForSequenceClassification(config).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def ask(**settings) -> Finetune:
    return Finetune(strategy="lora", **settings)


def shaken(model):
    """Gives every update numbers, as training would."""
    generator = torch.Generator().manual_seed(1)
    for name, one in model.named_parameters():
        if "lora_" in name:
            one.data.normal_(0, 0.3, generator=generator)


def test_a_new_update_changes_no_output_and_only_it_and_the_head_learn():
    model = bert()
    before = logits(model)
    lora.attach(model, ask(lora_rank=4))
    assert torch.equal(logits(model), before)
    learning = {name: one.numel() for name, one in model.named_parameters() if one.requires_grad}
    # PEFT's own table has query and value for BERT: two matrices of 16 x 4 for each, in two layers; the head is 16 x 3 and 3.
    assert sum(learning.values()) == 2 * 2 * 2 * 16 * 4 + 16 * 3 + 3
    assert {name for name in learning if "lora_" not in name} == {"classifier.weight", "classifier.bias"}


def test_merged_weights_are_the_papers_sum_and_compute_what_peft_computes():
    model = bert()
    names, kinds = list(model.state_dict()), [(name, type(one)) for name, one in model.named_modules()]
    start = copy.deepcopy(model.state_dict())
    lora.attach(model, ask(lora_rank=4, lora_alpha=6.0))
    shaken(model)
    unmerged = logits(model)
    update = model.bert.encoder.layer[0].attention.self.query
    product = update.lora_B["default"].weight.double() @ update.lora_A["default"].weight.double()
    lora.merge(model)
    assert (unmerged - logits(bert())).abs().max() > 0.01
    torch.testing.assert_close(logits(model), unmerged, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == names
    assert [(name, type(one)) for name, one in model.named_modules()] == kinds
    assert not hasattr(model, "peft_config")
    query = "bert.encoder.layer.0.attention.self.query.weight"
    torch.testing.assert_close(model.state_dict()[query].double(), start[query].double() + 6.0 / 4 * product, rtol=1e-5, atol=1e-6)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])}
    assert {name.split("self.")[-1] for name in changed} == {"query.weight", "value.weight"}


def test_named_layers_get_an_update_and_the_head_none():
    model = bert()
    lora.attach(model, ask(lora_targets=("dense", "classifier")))
    updated = {name.partition(".lora_")[0] for name, _ in model.named_parameters() if "lora_" in name}
    assert all(name.endswith("dense") for name in updated)
    assert "bert.encoder.layer.1.intermediate.dense" in updated


def test_an_update_of_a_frozen_weight_does_not_learn():
    model = bert()
    fitting.freeze(model, ["bert.encoder.layer.0.*weight"])
    lora.attach(model, ask())
    learning = {name for name, one in model.named_parameters() if one.requires_grad}
    assert not any(name.startswith("bert.encoder.layer.0.") for name in learning)
    assert any(name.startswith("bert.encoder.layer.1.attention.self.query.lora_A") for name in learning)


def test_pytorchs_own_attention_is_merged_too():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)])
            self.head = torch.nn.Linear(16, 2)

        def forward(self, x):
            return self.head(self.layers[0](x).mean(1))

    torch.manual_seed(0)
    model, x = Net(), torch.randn(5, 3, 16)
    kinds = [(name, type(one)) for name, one in model.named_modules()]
    start = copy.deepcopy(model.state_dict())
    lora.attach(model, ask(lora_targets=("self_attn", "linear1", "out_proj")))
    shaken(model)
    unmerged = model(x)
    lora.merge(model)
    torch.testing.assert_close(model(x), unmerged, rtol=1e-4, atol=1e-5)
    assert [(name, type(one)) for name, one in model.named_modules()] == kinds
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])}
    assert changed == {f"layers.0.{name}.weight" for name in ("linear1", "self_attn.out_proj")} | {"layers.0.self_attn.in_proj_weight"}
    model.eval()
    with torch.no_grad():
        model(x)  # PyTorch's fast path looks at the parameters themselves


def test_a_model_that_peft_does_not_know_needs_names():
    net = torch.nn.ModuleDict({"body": torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(4, 8))), "head": torch.nn.Linear(8, 2)})
    with pytest.raises(ConfigError) as caught:
        lora.attach(net, ask())
    assert caught.value.message == "PEFT does not know which layers of a ModuleDict get low-rank updates"
    assert caught.value.hint == 'name them, or their ends: lora_targets = ["0"]; there is 0'
    with pytest.raises(ConfigError, match="no layer that can have a low-rank update is called 'qurey'") as caught:
        lora.attach(bert(), ask(lora_targets=("qurey",)))
    assert "did you mean 'query'?" in caught.value.hint
    assert "there is query, key, value, dense" in caught.value.hint


def test_a_model_without_layers_to_update_is_told_what_else_there_is():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Linear(8, 2))
    with pytest.raises(ConfigError) as caught:
        lora.attach(net, ask())
    assert 'strategy = "last"' in caught.value.hint


def test_training_moves_only_the_head_and_the_updated_weights():
    model = bert()
    start = copy.deepcopy(model.state_dict())
    generator = np.random.default_rng(2)
    label = generator.integers(0, 3, 48)
    ids = np.where(generator.random((48, 8)) < 0.5, 5 + label[:, None], generator.integers(8, 30, (48, 8)))
    data = Dataset({"input_ids": ids}, label)
    run = fitting.Run(ask(epochs=6, learning_rate=0.02, batch_size=8, lora_rank=2, threads=1), classes=["a", "b", "c"])
    fitted = fitting.fit(lambda: model, data, run)
    assert fitted.facts["trainable"] == 2 * 2 * 2 * 16 * 2 + 16 * 3 + 3
    assert fitted.facts["parameters"] == sum(one.numel() for one in bert().parameters())
    state = fitted.model.state_dict()
    assert list(state) == list(start)
    changed = {name for name in state if not torch.equal(state[name], start[name])}
    updates = {f"bert.encoder.layer.{layer}.attention.self.{kind}.weight" for layer in (0, 1) for kind in ("query", "value")}
    assert changed == {"classifier.weight", "classifier.bias", *updates}
    # What is left is of rank two.
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert np.linalg.matrix_rank((state[query] - start[query]).double().numpy(), tol=1e-5) == 2
    assert fitted.history[-1].train_loss < fitted.history[0].train_loss


def test_what_begins_afresh_right_before_the_head_is_part_of_it():
    config = transformers.DistilBertConfig(vocab_size=30, max_position_embeddings=8, dim=16, n_layers=1, n_heads=2, hidden_dim=24, num_labels=2)
    model = transformers.DistilBertForSequenceClassification(config)
    assert blocks(model)[-1].parameters == (model.classifier.weight, model.classifier.bias)
    mark_fresh(model, [f"{layer}.{kind}" for layer in ("pre_classifier", "classifier") for kind in ("weight", "bias")])
    lora.attach(model, ask())
    learning = {name for name, one in model.named_parameters() if one.requires_grad and "lora_" not in name}
    assert learning == {f"{layer}.{kind}" for layer in ("pre_classifier", "classifier") for kind in ("weight", "bias")}
    assert not any(name.startswith("pre_classifier.lora") for name, _ in model.named_parameters())
