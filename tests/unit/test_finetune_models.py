"""Models by name with a head for other classes: what is kept of the weights bit for bit, what begins afresh, and what is refused."""

from __future__ import annotations

import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest

import toolkit
from toolkit import plugins
from toolkit.collections import heads
from toolkit.config import load_project
from toolkit.errors import ConfigError, InputRejected
from toolkit.finetuning import models
from toolkit.finetuning.blocks import blocks
from toolkit.job import Job
from toolkit.pipeline.plan import make_plan
from toolkit.pipeline.steps import Fact, Need
from toolkit.store import Store

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

CLASSES = ("cat", "dog", "owl")
TINY = {"vocab_size": 30, "max_position_embeddings": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def build(collection, model, **options):
    found = plugins.get("collections", collection)
    for module in found.modules:
        pytest.importorskip(module)
    return found.build(model, **options)


def saved(model, file):
    """Writes a model's tensors, all moved a little from what a fresh model has, and returns them."""
    state = {name: tensor.clone() + (0.001 if tensor.is_floating_point() else 0) for name, tensor in model.state_dict().items()}
    if file.suffix == ".safetensors":
        safetensors_torch.save_file(state, file)
    else:
        torch.save(state, file)
    return state


def differing(model, state):
    return {name for name, tensor in model.state_dict().items() if name not in state or not torch.equal(tensor, state[name])}


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("alexnet", "classifier.6"),
        ("convnext_tiny", "classifier.2"),
        ("densenet121", "classifier"),
        ("efficientnet_b0", "classifier.1"),
        ("efficientnet_v2_s", "classifier.1"),
        ("googlenet", "fc"),
        ("inception_v3", "fc"),
        ("maxvit_t", "classifier.5"),
        ("mnasnet0_5", "classifier.1"),
        ("mobilenet_v2", "classifier.1"),
        ("mobilenet_v3_small", "classifier.3"),
        ("regnet_x_400mf", "fc"),
        ("resnet18", "fc"),
        ("resnext50_32x4d", "fc"),
        ("shufflenet_v2_x0_5", "fc"),
        ("squeezenet1_1", "classifier.1"),
        ("swin_t", "head"),
        ("swin_v2_t", "head"),
        ("vgg11", "classifier.6"),
        ("vit_b_16", "heads.head"),
        ("wide_resnet50_2", "fc"),
    ],
)
def test_the_head_of_each_of_torchvisions_families_is_found_and_replaced(name, head):
    torchvision = pytest.importorskip("torchvision")
    # RegNet computes its widths with tensors, which need numbers then.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model = torchvision.models.get_model(name, weights=None, **({"init_weights": False} if name in ("googlenet", "inception_v3") else {}))
        assert heads.name_of(model, 1000) == head
        before = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
        heads.replace(model, head, 7)
        after = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert {key for key in after if after[key] != before[key]} == {key for key in before if key.startswith(f"{head}.")}
    assert after[f"{head}.weight"] == [7, *before[f"{head}.weight"][1:]]
    assert {key for key in before if key not in after} == {key for key in before if key.startswith(("aux1.", "aux2.", "AuxLogits."))}


@pytest.mark.parametrize(
    "name",
    [
        "convnext_atto",
        "deit_tiny_distilled_patch16_224",
        "densenet121",
        "efficientnet_b0",
        "fastvit_t8",
        "ghostnet_100",
        "lcnet_050",
        "levit_128s",
        "mixer_s32_224",
        "mobilenetv4_conv_small",
        "mobilevit_xxs",
        "regnetx_002",
        "resnet18",
        "swin_tiny_patch4_window7_224",
        "vit_tiny_patch16_224",
    ],
)
def test_timm_names_the_head_of_its_models(name):
    timm = pytest.importorskip("timm")
    from toolkit.collections.timm import _heads

    with torch.device("meta"):
        shapes = [{key: list(one.shape) for key, one in timm.create_model(name, num_classes=count).state_dict().items()} for count in (1000, 7)]
    differ = {key for key in shapes[0] if shapes[0][key] != shapes[1][key]}
    assert differ == {key for key in shapes[0] if key.startswith(_heads(SimpleNamespace(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())))}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_of_weights_is_kept_but_for_the_head(tmp_path, suffix):
    torchvision = pytest.importorskip("torchvision")
    file = tmp_path / f"weights{suffix}"
    state = saved(torchvision.models.squeezenet1_1(num_classes=5), file)
    built = build("torchvision", "squeezenet1_1", weights=str(file), classes=CLASSES)
    assert differing(built.model, state) == {"classifier.1.weight", "classifier.1.bias"}
    assert built.replaced == (
        {"name": "classifier.1.weight", "file": [5, 512, 1, 1], "model": [3, 512, 1, 1]},
        {"name": "classifier.1.bias", "file": [5], "model": [3]},
    )
    assert built.labels == CLASSES
    # The features are those of torchvision's own model with these weights.
    whole = torchvision.models.squeezenet1_1(num_classes=5).eval()
    whole.load_state_dict(state)
    pictures = torch.from_numpy(built.examples["image"][:2, :, :64, :64])
    with torch.no_grad():
        assert torch.equal(built.model.features(pictures), whole.features(pictures))
        assert built.model(pictures).shape == (2, 3)
    again = build("torchvision", "squeezenet1_1", weights=str(file), classes=CLASSES)
    assert differing(again.model, built.model.state_dict()) == set()


def test_a_head_that_fits_is_kept(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    state = saved(torchvision.models.squeezenet1_1(num_classes=3), tmp_path / "w.safetensors")
    built = build("torchvision", "squeezenet1_1", weights=str(tmp_path / "w.safetensors"), classes=CLASSES)
    assert differing(built.model, state) == set()
    assert built.replaced == ()


def test_what_is_not_the_head_must_fit(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    state = saved(torchvision.models.squeezenet1_1(num_classes=5), tmp_path / "w.safetensors")
    state["features.0.weight"] = torch.zeros(64, 1, 3, 3)
    state["other"] = state.pop("features.0.bias")
    safetensors_torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputRejected) as caught:
        build("torchvision", "squeezenet1_1", weights=str(tmp_path / "w.safetensors"), classes=CLASSES)
    assert caught.value.message == (
        "3 tensors do not fit the model: features.0.bias: not in the file, model [64] float32; other: file [64] float32, not in the model; "
        "features.0.weight: file [64 x 1 x 3 x 3] float32, model [64 x 3 x 3 x 3] float32"
    )


def test_without_classes_the_head_must_fit_too(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    saved(torchvision.models.squeezenet1_1(num_classes=5), tmp_path / "w.safetensors")
    with pytest.raises(InputRejected, match="2 tensors do not fit the model"):
        build("torchvision", "squeezenet1_1", weights=str(tmp_path / "w.safetensors"))


def test_torchvisions_own_weights_are_kept_but_for_the_head(tmp_path, monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    state = saved(torchvision.models.squeezenet1_1(), tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    built = build("torchvision", "squeezenet1_1", weights="DEFAULT", classes=CLASSES)
    assert differing(built.model, state) == {"classifier.1.weight", "classifier.1.bias"}
    assert built.replaced[0] == {"name": "classifier.1.weight", "file": [1000, 512, 1, 1], "model": [3, 512, 1, 1]}


def test_auxiliary_heads_are_dropped(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    state = saved(torchvision.models.googlenet(num_classes=5, init_weights=False), tmp_path / "w.safetensors")
    built = build("torchvision", "googlenet", weights=str(tmp_path / "w.safetensors"), classes=CLASSES)
    assert differing(built.model, state) == {"fc.weight", "fc.bias"}
    assert {one["name"].partition(".")[0] for one in built.replaced if one["model"] is None} == {"aux1", "aux2"}
    with torch.no_grad():
        assert built.model.train()(torch.from_numpy(built.examples["image"][:2, :, :64, :64])).shape == (2, 3)


def test_pickles_that_hold_more_than_tensors_are_refused(tmp_path):
    pytest.importorskip("torchvision")
    file = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(2, 2), file)
    with pytest.raises(InputRejected, match="holds more than plain tensors") as caught:
        build("torchvision", "squeezenet1_1", weights=str(file), classes=CLASSES)
    assert "torch.save(model.state_dict(), file)" in caught.value.hint
    torch.save({"epoch": 3}, file)
    with pytest.raises(InputRejected, match="holds a dict, expected tensors by name"):
        build("torchvision", "squeezenet1_1", weights=str(file), classes=CLASSES)


def test_timms_own_weights_are_kept_but_for_the_head(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    state = saved(timm.create_model("test_vit"), tmp_path / "model.safetensors")
    own = functools.partial(timm.create_model, pretrained_cfg_overlay={"file": str(tmp_path / "model.safetensors")})
    monkeypatch.setattr(timm, "create_model", own)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    built = build("timm", "test_vit", weights="DEFAULT", classes=CLASSES)
    assert differing(built.model, state) == {"head.weight", "head.bias"}
    assert built.replaced == ({"name": "head.weight", "file": [1000, 64], "model": [3, 64]}, {"name": "head.bias", "file": [1000], "model": [3]})
    by_file = build("timm", "test_vit", weights=str(tmp_path / "model.safetensors"), classes=CLASSES)
    assert by_file.replaced == built.replaced
    assert differing(by_file.model, state) == {"head.weight", "head.bias"}


def bert(folder, kind, **settings):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    model = getattr(transformers, kind)(transformers.BertConfig(**TINY, initializer_range=0.3, **settings))
    model.save_pretrained(folder)
    return model


def test_a_transformer_without_a_head_gets_one(tmp_path):
    base = bert(tmp_path, "BertModel")
    built = build("transformers", str(tmp_path), task="text-classification", classes=CLASSES)
    assert differing(built.model.bert, base.state_dict()) == set()
    assert {one["name"]: (one["file"], one["model"]) for one in built.replaced} == {
        "classifier.weight": (None, [3, 16]),
        "classifier.bias": (None, [3]),
    }
    assert built.model.config.id2label == dict(enumerate(CLASSES))
    assert built.model.config.num_labels == 3
    assert built.outputs == ("logits",)


def test_a_transformers_head_for_other_classes_is_replaced_and_its_pooler_may_be_missing(tmp_path):
    whole = bert(tmp_path / "five", "BertForSequenceClassification", num_labels=5)
    built = build("transformers", str(tmp_path / "five"), task="text-classification", classes=CLASSES)
    assert differing(built.model, whole.state_dict()) == {"classifier.weight", "classifier.bias"}
    assert {one["name"]: one["file"] for one in built.replaced} == {"classifier.weight": [5, 16], "classifier.bias": [5]}
    masked = bert(tmp_path / "masked", "BertForMaskedLM")
    built = build("transformers", str(tmp_path / "masked"), task="text-classification", classes=CLASSES)
    fresh = {"pooler.dense.weight", "pooler.dense.bias"}
    assert differing(built.model.bert, masked.bert.state_dict()) == fresh
    assert {one["name"] for one in built.replaced} == {"classifier.weight", "classifier.bias", *(f"bert.{name}" for name in fresh)}
    by_file = build(
        "transformers", str(tmp_path / "masked"), task="text-classification", weights=str(tmp_path / "five/model.safetensors"), classes=CLASSES
    )
    assert differing(by_file.model, whole.state_dict()) == {"classifier.weight", "classifier.bias"}


def test_a_transformer_for_pictures_gets_another_head(tmp_path):
    transformers = pytest.importorskip("transformers")
    settings = {**TINY, "image_size": 16, "patch_size": 8, "vocab_size": None, "max_position_embeddings": None}
    config = transformers.ViTConfig(**{name: value for name, value in settings.items() if value}, num_labels=4)
    whole = transformers.ViTForImageClassification(config)
    whole.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 16, "width": 16}}')
    built = build("transformers", str(tmp_path), task="image-classification", classes=CLASSES)
    assert differing(built.model, whole.state_dict()) == {"classifier.weight", "classifier.bias"}
    # transformers computes attention in another order by itself.
    torch.testing.assert_close(run_features(built.model.vit, built), run_features(whole.eval().vit, built), rtol=1e-4, atol=1e-5)
    assert built.model.config.id2label == dict(enumerate(CLASSES))


def run_features(body, built):
    with torch.no_grad():
        return body(torch.from_numpy(built.examples["pixel_values"])).last_hidden_state


def test_a_transformer_that_lacks_more_than_a_head_is_refused(tmp_path):
    bert(tmp_path, "BertModel")
    state = safetensors_torch.load_file(tmp_path / "model.safetensors")
    del state["encoder.layer.1.output.dense.weight"]
    safetensors_torch.save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputRejected, match="lacks 1 weights of BertForSequenceClassification below its head, such as bert"):
        build("transformers", str(tmp_path), task="text-classification", classes=CLASSES)


def test_only_classifiers_get_classes(tmp_path):
    bert(tmp_path, "BertModel")
    with pytest.raises(ConfigError, match="not one for feature-extraction"):
        build("transformers", str(tmp_path), task="feature-extraction", classes=CLASSES)
    with pytest.raises(ConfigError, match="only classifiers get other classes"):
        build("torchvision", "lraspp_mobilenet_v3_large", classes=CLASSES)


NETS = """
from torch import nn
class Split(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Sequential(nn.Linear(4, 8)), nn.Sequential(nn.Linear(8, 8))), nn.Linear(8, 3)
class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
"""


@pytest.fixture
def started(tmp_path, request):
    """Builds a model of a factory with weights."""

    def start(factory, state):
        module = f"nets_{abs(hash(request.node.name))}_{factory}"
        (tmp_path / f"{module}.py").write_text(NETS)
        safetensors_torch.save_file(state, tmp_path / "w.safetensors")
        inputs = {"project": tmp_path, "weights": tmp_path / "w.safetensors"}
        return models.build(Job(inputs, {"factory": f"{module}:{factory}"}, tmp_path))

    return start


def test_of_a_factorys_model_the_last_block_alone_may_differ(started):
    body = {f"body.{block}.0.{kind}": torch.ones(shape) for block, size in ((0, 4), (1, 8)) for kind, shape in (("weight", (8, size)), ("bias", 8))}
    model, facts = started("Split", {**body, "head.extra": torch.ones(2)})
    assert facts["replaced"] == [
        {"name": "head.weight", "file": None, "model": [3, 8]},
        {"name": "head.bias", "file": None, "model": [3]},
        {"name": "head.extra", "file": [2], "model": None},
    ]
    assert differing(model, body) == {"head.weight", "head.bias"}
    body["body.1.0.bias"] = torch.ones(9)
    with pytest.raises(InputRejected, match=r"1 tensors do not fit the model: body.1.0.bias: file \[9\] float32, model \[8\] float32"):
        started("Split", body)


def test_of_a_model_of_one_block_all_must_fit(started):
    state = {"net.0.weight": torch.ones(8, 4), "net.0.bias": torch.ones(8), "net.2.weight": torch.ones(5, 8), "net.2.bias": torch.ones(5)}
    with pytest.raises(InputRejected, match="2 tensors do not fit the model"):
        started("Whole", state)


PROJECT = """
schema = 1
name = "tiny"
task = "text-classification"
targets = ["desktop-ort"]
schemes = ["float32"]

[data]
train = "train.npz"
eval = "eval.npz"
{classes}

[model]
name = "transformers:./start"

[finetune]
epochs = 3
learning_rate = 0.02
batch_size = 8
threads = 1
{more}
"""


@pytest.fixture
def project(tmp_path):
    """A project that trains a tiny transformer to tell which of three tokens a text has most of."""

    def write(classes="", more=""):
        base = bert(tmp_path / "start", "BertModel", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        generator = np.random.default_rng(4)
        for name, count in (("train", 60), ("eval", 24)):
            label = generator.permutation(np.arange(count) % 3)
            ids = np.where(generator.random((count, 8)) < 0.6, 5 + label[:, None], generator.integers(8, 30, (count, 8)))
            np.savez(tmp_path / f"{name}.npz", input_ids=ids, attention_mask=np.ones_like(ids), label=label)
        (tmp_path / "edgekit.toml").write_text(PROJECT.format(classes=classes, more=more))
        return base

    write.folder = tmp_path
    return write


def steps_of(folder):
    return {step.id: step for step in make_plan(*load_project(folder)).steps}


def test_names_of_classes_come_from_the_project_or_from_its_data(project):
    project('classes = ["a", "b", "c"]')
    steps = steps_of(project.folder)
    for id in ("finetune", "source"):
        assert steps[id].options["classes"] == ["a", "b", "c"]
        assert steps[id].options["task"] == "text-classification"
        assert steps[id].files == {"model": project.folder / "start"}
        assert not steps[id].derived
    assert steps["source"].needs["tuned"] == Need("finetune", "weights.safetensors")
    project()
    steps = steps_of(project.folder)
    assert steps["finetune"].derived == steps["source"].derived == {"classes": Fact("data", "class_names")}


def test_the_projects_code_counts_only_with_a_teacher_of_its_own(project):
    project(more='teacher = "start"')
    assert "project" not in steps_of(project.folder)["finetune"].files
    project(more='teacher = "teach:teacher"')
    assert steps_of(project.folder)["finetune"].files["project"] == project.folder


def test_a_transformer_is_trained_merged_and_captured(project):
    for module in ("peft", "transformers", "optimum"):
        pytest.importorskip(module)
    base = project(more='strategy = "lora"')
    tuned = toolkit.finetune(project.folder, output=project.folder / "out", store=Store(project.folder / "store"))
    assert {one["name"] for one in tuned.facts["replaced"]} == {"classifier.weight", "classifier.bias"}
    assert json.loads((project.folder / "out" / "training.json").read_text())["classes"] == ["0", "1", "2"]
    weights = safetensors_torch.load_file(tuned.weights)
    changed = {name for name, tensor in base.state_dict().items() if not torch.equal(tensor, weights[f"bert.{name}"])}
    assert {name.split("self.")[-1] for name in changed} == {"query.weight", "value.weight"}
    # The captured program computes what transformers computes with these weights.
    transformers = pytest.importorskip("transformers")
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**TINY, num_labels=3)).eval()
    model.load_state_dict(weights)
    samples = np.load(project.folder / "eval.npz")
    inputs = {name: torch.from_numpy(samples[name][:1]) for name in ("input_ids", "attention_mask")}
    program = torch.export.load(tuned.program.path).module()
    with torch.no_grad():
        torch.testing.assert_close(program(**inputs)["logits"], model(**inputs).logits, rtol=1e-4, atol=1e-5)


def test_columns_that_the_model_does_not_know_are_told_before_training(project):
    pytest.importorskip("optimum")
    project()
    ids = np.load(project.folder / "train.npz")["input_ids"]
    data = project.folder / "data"
    data.mkdir()
    np.save(data / "tokens.npy", ids)
    options = {"collection": "transformers", "model": "", "task": "text-classification", "classes": list(CLASSES)}
    with pytest.raises(InputRejected, match=r"columns are \['tokens'\], the model's inputs are \['attention_mask', 'input_ids', 'token_type_ids'\]"):
        models.build(Job({"model": project.folder / "start", "data": data}, options, project.folder))


def test_the_head_is_the_last_block_of_a_named_model():
    built = build("torchvision", "squeezenet1_1", classes=CLASSES)
    assert [list(one.shape) for one in blocks(built.model)[-1].parameters] == [[3, 512, 1, 1], [3]]
