"""The models of the coverage table: 40, with random weights, and inputs that make their outputs vary.

Weights are random because it is the graph that decides whether a model converts. Fresh batch norms and small initial values can
make outputs nearly constant, on which nothing can be compared; so statistics and scales are stirred first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.figures import Skipped

SAMPLES = 4
Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Model:
    """One row of the table.

    Attributes:
        name: ``collection:model``.
        framework: ``torch``, ``keras`` or ``jax``.
        build: Returns the live model in inference mode and samples for it.
    """

    name: str
    framework: str
    build: Callable[[], tuple[Any, Inputs]]


TORCHVISION = (
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "resnet18",
    "resnet50",
    "efficientnet_b0",
    "shufflenet_v2_x1_0",
    "squeezenet1_1",
    "mnasnet0_5",
    "regnet_y_400mf",
    "densenet121",
    "convnext_tiny",
    "swin_t",
    "lraspp_mobilenet_v3_large",
)
TIMM = {
    "mobilenetv4_conv_small": 224,
    "vit_tiny_patch16_224": 224,
    "deit_tiny_patch16_224": 224,
    "efficientnet_lite0": 224,
    "convnext_atto": 224,
    "mobilevit_xxs": 256,
    "ghostnet_100": 224,
    "levit_128s": 224,
    "edgenext_xx_small": 256,
    "repvgg_a0": 224,
}
TRANSFORMERS = ("bert", "distilbert", "albert", "electra", "mobilebert", "vit", "swin", "whisper_encoder", "llama", "gpt2")
KERAS = ("cnn", "mobilenet_v2", "two_inputs", "lstm")
JAX = ("cnn", "transformer_block")


def models() -> dict[str, Model]:
    """Returns all rows, by name."""
    rows = [
        *(Model(f"torchvision:{name}", "torch", partial(_torchvision, name)) for name in TORCHVISION),
        *(Model(f"timm:{name}", "torch", partial(_timm, name, size)) for name, size in TIMM.items()),
        *(Model(f"transformers:{name}", "torch", partial(_transformers, name)) for name in TRANSFORMERS),
        *(Model(f"keras:{name}", "keras", partial(_keras, name)) for name in KERAS),
        *(Model(f"jax:{name}", "jax", partial(_jax, name)) for name in JAX),
    ]
    return {row.name: row for row in rows}


def _images(size: int, channels_last: bool = False) -> np.ndarray:
    images = np.random.default_rng(0).normal(size=(SAMPLES, 3, size, size)).astype(np.float32)
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)) if channels_last else images


def _tokens(vocabulary: int, length: int = 32) -> Inputs:
    generator = np.random.default_rng(0)
    mask = (np.arange(length) < generator.integers(length // 2, length + 1, (SAMPLES, 1))).astype(np.int64)
    return {"input_ids": generator.integers(5, vocabulary, (SAMPLES, length)), "attention_mask": mask}


def _stirred(model: Any, images: Any = None) -> Any:
    """Gives normalizations statistics that fit the data, as training would, and returns the model in inference mode."""
    import torch

    kinds = torch.nn.BatchNorm1d, torch.nn.BatchNorm2d
    if images is not None and any(isinstance(module, kinds) for module in model.modules()):
        for module in model.modules():
            if isinstance(module, kinds):
                module.momentum = None  # a plain average over all batches
                if not module.weight.any():  # as some residual branches begin: converters would drop a branch that training brings to life
                    torch.nn.init.ones_(module.weight)
        model.train()
        with torch.no_grad():
            model(torch.from_numpy(images))
    return model.eval()


def _torchvision(name: str) -> tuple[Any, Inputs]:
    import torch
    import torchvision

    torch.manual_seed(0)
    images = _images(224)
    if name.startswith("lraspp"):
        model = torchvision.models.get_model(name, weights=None, weights_backbone=None)
        return _pick(_stirred(model, images), "out"), {"input": images}
    return _stirred(torchvision.models.get_model(name, weights=None), images), {"image": images}


def _timm(name: str, size: int) -> tuple[Any, Inputs]:
    import timm
    import torch

    torch.manual_seed(0)
    images = _images(size)
    return _stirred(timm.create_model(name, pretrained=False), images), {"image": images}


def _transformers(name: str) -> tuple[Any, Inputs]:
    import torch
    import transformers as hf

    torch.manual_seed(0)
    small = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    text = {**small, "vocab_size": 1000, "max_position_embeddings": 64}
    if name in ("llama", "gpt2"):
        config = (
            hf.LlamaConfig(**text, num_key_value_heads=2)
            if name == "llama"
            else hf.GPT2Config(vocab_size=1000, n_positions=64, n_embd=128, n_layer=2, n_head=4)
        )
        config.use_cache = False
        return _wild(_pick(hf.AutoModelForCausalLM.from_config(config), "logits")), _tokens(1000)
    if name in ("vit", "swin"):
        config = (
            hf.ViTConfig(**small, image_size=64, patch_size=16, num_labels=10)
            if name == "vit"
            else hf.SwinConfig(image_size=64, patch_size=4, embed_dim=32, depths=[1, 1], num_heads=[2, 4], window_size=4, num_labels=10)
        )
        return _wild(_pick(hf.AutoModelForImageClassification.from_config(config), "logits")), {"pixel_values": _images(64)}
    if name == "whisper_encoder":
        encoder = {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 128, "max_source_positions": 100}
        decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 128}
        config = hf.WhisperConfig(d_model=64, **encoder, **decoder)
        features = np.random.default_rng(0).normal(size=(SAMPLES, 80, 200)).astype(np.float32)
        return _wild(_pick(hf.WhisperModel(config).get_encoder(), "last_hidden_state")), {"input_features": features}
    configs = {
        "bert": lambda: hf.BertConfig(**text, num_labels=3),
        "distilbert": lambda: hf.DistilBertConfig(
            vocab_size=1000, max_position_embeddings=64, dim=128, n_layers=2, n_heads=4, hidden_dim=256, num_labels=3
        ),
        "albert": lambda: hf.AlbertConfig(**text, embedding_size=64, num_labels=3),
        "electra": lambda: hf.ElectraConfig(**text, embedding_size=64, num_labels=3),
        "mobilebert": lambda: hf.MobileBertConfig(
            vocab_size=1000,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            embedding_size=64,
            intra_bottleneck_size=64,
            num_labels=3,
        ),
    }
    return _wild(_pick(hf.AutoModelForSequenceClassification.from_config(configs[name]()), "logits")), _tokens(1000)


def _wild(model: Any) -> Any:
    """Makes matrices five times larger than Hugging Face's initial 0.02, with which all outputs would be alike."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model.eval()


def _pick(model: Any, output: str) -> Any:
    """Makes a module that returns one of the outputs of another, by name."""
    import torch

    class Pick(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: Any) -> Any:
            return self.model(**inputs)[output]

    return Pick().eval()


def _keras(name: str) -> tuple[Any, Inputs]:
    try:
        import keras
    except ImportError as error:
        raise Skipped(str(error)) from None
    keras.utils.set_random_seed(0)
    layers = keras.layers
    if name == "mobilenet_v2":
        model = keras.applications.MobileNetV2(input_shape=(96, 96, 3), alpha=0.35, weights=None, classes=10)
        images = _images(96, channels_last=True)
        for layer in model.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.momentum = 0.0  # the next batch decides alone: as they were initialised, they let fade what makes images differ
        model(images, training=True)
        return model, {model.inputs[0].name: images}
    if name == "lstm":
        tokens = np.random.default_rng(0).integers(0, 100, (SAMPLES, 12)).astype(np.int32)
        given = keras.Input((12,), dtype="int32", name="tokens")
        return keras.Model(given, layers.Dense(3, name="scores")(layers.LSTM(24)(layers.Embedding(100, 16)(given)))), {"tokens": tokens}
    if name == "two_inputs":
        image, number = keras.Input((16, 16, 3), name="image"), keras.Input((4,), name="number")
        seen = layers.GlobalAveragePooling2D()(layers.SeparableConv2D(8, 3, activation="gelu")(image))
        joined = layers.Concatenate()([seen, layers.Dense(8, activation="relu")(number)])
        model = keras.Model([image, number], [layers.Dense(3, name="scores")(joined), layers.Dense(1, name="value")(joined)])
        numbers = np.random.default_rng(1).normal(size=(SAMPLES, 4)).astype(np.float32)
        return model, {"image": _images(16, channels_last=True), "number": numbers}
    given = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(given)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.MaxPooling2D()(layers.DepthwiseConv2D(3, padding="same")(x))
    return keras.Model(given, layers.Dense(10, name="scores")(layers.Flatten()(x))), {"image": _images(32, channels_last=True)}


def _jax(name: str) -> tuple[Any, Inputs]:
    try:
        import jax
        import jax.numpy as jnp
        from flax import linen
    except ImportError as error:
        raise Skipped(str(error)) from None

    class Cnn(linen.Module):
        @linen.compact
        def __call__(self, image: Any) -> Any:
            x = linen.relu(linen.Conv(16, (3, 3), strides=2)(image))
            x = linen.avg_pool(linen.relu(linen.Conv(32, (3, 3), feature_group_count=16)(x)), (2, 2), (2, 2))
            return linen.Dense(10)(x.reshape(x.shape[0], -1))

    class Block(linen.Module):
        @linen.compact
        def __call__(self, tokens: Any) -> Any:
            x = linen.Embed(100, 32)(tokens)
            x = x + linen.MultiHeadDotProductAttention(num_heads=4)(linen.LayerNorm()(x))
            x = x + linen.Dense(32)(linen.gelu(linen.Dense(64)(linen.LayerNorm()(x)), approximate=False))
            return linen.Dense(5)(jnp.mean(x, axis=1))

    if name == "cnn":
        model, inputs = Cnn(), {"image": _images(32, channels_last=True)}
    else:
        model, inputs = Block(), {"tokens": np.random.default_rng(0).integers(0, 100, (SAMPLES, 16)).astype(np.int32)}
    variables = model.init(jax.random.key(0), *(value[:1] for value in inputs.values()))
    return model.bind(variables), inputs
