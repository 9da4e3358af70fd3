import os
import re
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from tests import models
from toolkit import quantize
from toolkit.columns import check_columns
from toolkit.dataset import Dataset
from toolkit.errors import InputRejected
from toolkit.job import Job
from toolkit.pipeline import steps
from toolkit.pipeline.single import run_steps
from toolkit.pipeline.steps import Need
from toolkit.resources import load_recipe
from toolkit.samples import calibration, lint
from toolkit.samples.randomness import is_drawn_uniformly, is_noise
from toolkit.store import Store

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
VOCABULARY = 40


def pictures(n, seed=0, size=12):
    """Smooth pictures ``[n x 3 x size x size]`` in 0..1: a blob of each sample's own at a place of its own."""
    generator = np.random.default_rng(seed)
    place, width = generator.uniform(2, size - 2, (2, n, 1, 1, 1)), generator.uniform(1, 3, (n, 1, 1, 1))
    rows, columns = np.mgrid[:size, :size]
    blob = np.exp(-((rows - place[0]) ** 2 + (columns - place[1]) ** 2) / 2 / width**2)
    return (0.9 * blob * generator.uniform(0.5, 1, (n, 3, 1, 1)) + 0.1 * generator.random((n, 3, size, size))).astype(np.float32)


def texts(n, seed=0, length=16):
    """Token ids as frequent as in text (Zipf), padded to one length."""
    generator = np.random.default_rng(seed)
    ids = np.minimum(generator.zipf(1.5, (n, length)), VOCABULARY - 1)
    ids[np.arange(length) >= generator.integers(4, length + 1, (n, 1))] = 0
    return ids.astype(np.int64)


def chosen(**columns):
    return lint.check_chosen(Dataset(columns, None, "mine"))


def needs(path):
    if not (DATA / path).exists():
        pytest.skip("../shared/data is not here")
    return DATA / path


# --- noise ---


@pytest.mark.parametrize("n", [8, 64, 200])
@pytest.mark.parametrize("draw", ["random", "normal", "bytes", "normalized", "scaled by sample"])
def test_noise_is_refused(n, draw):
    generator = np.random.default_rng(n)
    noise = generator.random((n, 3, 16, 16)) if draw != "normal" else generator.normal(size=(n, 3, 16, 16))
    if draw == "bytes":
        noise = np.floor(noise * 256)
    if draw == "normalized":  # as torchvision does
        noise = (noise - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))) / np.reshape([0.229, 0.224, 0.225], (3, 1, 1))
    if draw == "scaled by sample":
        noise = (noise - noise.mean(axis=(1, 2, 3), keepdims=True)) / noise.std(axis=(1, 2, 3), keepdims=True)
    with pytest.raises(InputRejected, match=r"column 'image' is random noise: the values of \[3 x 16 x 16\] do not depend on") as refused:
        chosen(image=noise.astype(np.float32))
    assert "allow_noise" in refused.value.hint
    assert lint.check_chosen(Dataset({"image": noise.astype(np.float32)}), allow_noise=True) == []


def test_noise_is_recognized_at_the_rate_that_is_claimed():
    """Seven scores that reach 4 with a probability of at most 6e-5 each: of 400 draws none should pass, of many sizes."""
    generator = np.random.default_rng(1)
    shapes = [(8, 8, 8), (20, 1, 12, 9), (32, 8, 8, 3), (16, 40, 13)]
    assert all(is_noise(generator.exponential(size=shapes[turn % 4])) for turn in range(400))


def structured():
    generator = np.random.default_rng(2)
    noise = generator.normal(size=(32, 16, 16))
    yield "neighbours across", noise + np.roll(noise, 1, axis=2)
    yield "neighbours down", noise + np.roll(noise, 1, axis=1)
    yield "rows of their own mean", noise + generator.normal(size=(16, 1)) / 8
    yield "places of their own mean", noise + generator.normal(size=(16, 16)) / 2
    yield "samples of their own mean", noise + generator.normal(size=(32, 1, 1)) / 8
    yield "samples of their own loudness", noise * generator.uniform(0.5, 1.5, (32, 1, 1))
    yield "a constant channel", np.stack([noise, np.zeros_like(noise)], axis=1)
    yield "one axis", noise.reshape(32, 256)
    yield "short axes", noise[:, :7, :7]
    yield "too little to tell", noise[:2, :12, :12]
    yield "whole numbers", (noise * 100).astype(np.int32)


@pytest.mark.parametrize(("name", "signal"), structured(), ids=[name for name, _ in structured()])
def test_whatever_has_any_structure_is_no_noise(name, signal):
    assert not is_noise(signal)


def sound(folder, count, size):
    found = np.zeros((count, size), np.float32)
    for row, file in enumerate(sorted(folder.glob("**/*.wav"))[::11][:count]):
        with wave.open(str(file)) as stream:
            heard = np.frombuffer(stream.readframes(size), np.int16) / 32768
        found[row, : len(heard)] = heard[:size]
    return found


def spectra(waves, size):
    windows = np.lib.stride_tricks.sliding_window_view(waves, size, axis=1)[:, :: size // 2] * np.hanning(size)
    return np.abs(np.fft.rfft(windows)).astype(np.float32)


def opened(files, count, size):
    image = pytest.importorskip("PIL.Image")
    return np.stack([np.asarray(image.open(file).convert("RGB").resize((size, size)), np.float32) / 255 for file in sorted(files)[::5][:count]])


REAL = {
    "mnist": lambda: np.load(needs("mnist_12k.npz"))["x"][:64] / np.float32(255),
    "eight pictures of cifar": lambda: cifar()[:8],
    "cifar": lambda: cifar()[:64],
    "pneumonia": lambda: np.load(needs("medical/pneumoniamnist_28_trainval.npz"))["train_images"][:32] / np.float32(255),
    "brain mri": lambda: opened(needs("medical/brain_mri_train").glob("**/*.jpg"), 24, 64),
    "blood": lambda: opened(needs("medical/bccd").glob("**/*.jpg"), 16, 64),
    "imagenet": lambda: opened(needs("imagenet_samples_250").glob("*.jpg"), 16, 96),
    "frames of speech": lambda: sound(needs("audio/fsdd_600"), 24, 4000).reshape(24, 40, 100),
    "speech": lambda: sound(needs("audio/fsdd_600"), 24, 4000),
    "spectrogram": lambda: spectra(sound(needs("audio/fsdd_600"), 24, 4000), 64),
    "log spectrogram": lambda: np.log(spectra(sound(needs("audio/speech_commands_v0.01_300"), 16, 8000), 256) + 1e-6),
    "words as vectors": lambda: embedded(16, 16),
}


def cifar():
    found = np.load(needs("cifar10/cifar10_train4000_lossless.npz"))
    return next(found[name] for name in found.files if found[name].ndim == 4).astype(np.float32) / 255


def embedded(rows, length):
    """Sentences of SST-2 as GloVe vectors ``[rows x length x 50]``, padded with zeros."""
    lines = (needs("text/glove.6B.50d_8453words.txt")).read_text(encoding="utf-8").splitlines()
    table = {line.split(" ")[0]: np.array(line.split(" ")[1:], np.float32) for line in lines if line.count(" ") == 50}
    found = np.zeros((rows, length, 50), np.float32)
    for row, sentence in enumerate(sentences(rows)):
        known = [table[word] for word in sentence if word in table][:length]
        found[row, : len(known)] = known
    return found


def sentences(count):
    file = next(file for file in sorted(needs("text/sst2").iterdir()) if "train" in file.name)
    return [line.split("\t")[0].lower().split() for line in file.read_text(encoding="utf-8").splitlines()[1 : count + 1]]


@pytest.mark.parametrize("name", REAL)
def test_real_data_passes(name):
    chosen(x=np.ascontiguousarray(REAL[name](), np.float32))


@pytest.mark.parametrize("rows", [8, 64])
def test_real_texts_pass_and_shuffled_ids_do_not(rows):
    known = {word: row for row, word in enumerate(needs("text/bert_base_uncased_vocab.txt").read_text(encoding="utf-8").splitlines())}
    ids = np.zeros((rows, 32), np.int64)
    for row, sentence in enumerate(sentences(rows)):
        words = [known.get(word, 100) for word in sentence][:32]
        ids[row, : len(words)] = words
    assert chosen(input_ids=ids, attention_mask=(ids > 0).astype(np.int64)) == []
    drawn = np.random.default_rng(0).integers(0, 3000, (64, 64))
    with pytest.raises(InputRejected, match=r"column 'input_ids' is random: whole numbers 0\.\.2999 that are all equally frequent"):
        chosen(input_ids=drawn, attention_mask=np.ones_like(drawn))


def test_uniform_draws_are_told_from_positions_bases_and_text():
    generator = np.random.default_rng(3)
    assert all(is_drawn_uniformly(generator.integers(5, 1000, (40, 32))) for _ in range(50))
    assert not is_drawn_uniformly(np.tile(np.arange(32), (40, 1)))
    assert not is_drawn_uniformly(generator.integers(0, 4, (40, 200)))  # bases of DNA are
    assert not is_drawn_uniformly(generator.integers(0, 30_000, (8, 100)))  # too few to tell
    assert not is_drawn_uniformly(texts(64))


# --- what carries no signal ---


def test_samples_that_are_constant_or_hidden_are_noted_and_refused_where_they_are_most():
    image = pictures(20)
    image[[3, 7]] = 0.5
    assert chosen(image=image) == ["column 'image': 2 of 20 calibration samples are constant, the first is sample 3"]
    ids, mask = texts(20), np.ones((20, 16), np.int64)
    mask[[5, 6]] = 0
    what = "column 'attention_mask' is all zero in {} of 20 calibration samples, so that nothing is attended to; the first is sample 5"
    assert chosen(input_ids=ids, attention_mask=mask) == [what.format(2)]
    mask[5:] = 0
    with pytest.raises(InputRejected, match=what.format(15)):
        chosen(input_ids=ids, attention_mask=mask)


def test_texts_of_padding_are_refused():
    ids = np.zeros((20, 16), np.int64)
    ids[:4] = texts(4)
    with pytest.raises(InputRejected, match=r"column 'input_ids' repeats one token in 16 of 20 calibration samples, .*; the first is sample 4"):
        lint._check_tokens(Dataset({"input_ids": ids}), "input_ids", lone=False, allow_noise=False)
    assert chosen(input_ids=texts(20), lang_ids=np.full((20, 16), 3)) == []
    ids = texts(20)
    ids[9] = 0
    assert chosen(input_ids=ids, token_type_ids=np.zeros_like(ids), mask=np.zeros_like(ids))[0].startswith(
        "column 'input_ids' repeats one token in 1 of"
    )


# --- ranges ---


def run(tmp_path, data, label=None, *, evaluation=None, reference=None, **options):
    inputs = {"samples": tmp_path / "data"}
    Dataset(data, label).write(tmp_path / "data")
    for role, given in (("evaluation", evaluation), ("reference", reference)):
        if given is not None:
            given.write(tmp_path / role)
            inputs[role] = tmp_path / role
    out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
    out.mkdir()
    return calibration.run(Job(inputs, {"samples": 16, "min_samples": 4, **options}, out))


@pytest.mark.parametrize(
    ("factor", "says"),
    [
        (255, r"values 0\.\d+\.\.2\d\d\.?\d*, 2[4-9]\d times as large as the {} samples, which have "),
        (1 / 255, r"2\d\d times smaller than the {}"),
    ],
)
@pytest.mark.parametrize("role", ["evaluation", "reference"])
def test_ranges_of_another_order_of_magnitude_are_refused(tmp_path, factor, says, role):
    right = Dataset({"image": pictures(30, seed=1)})
    assert run(tmp_path, {"image": pictures(20)}, selection="random", **{role: right})["notes"] == []
    with pytest.raises(InputRejected, match="column 'image' has " + says.format(role) if factor > 1 else says.format(role)):
        run(tmp_path, {"image": pictures(20) * np.float32(factor)}, selection="random", **{role: right})


def test_one_outlier_does_not_make_another_magnitude(tmp_path):
    image = pictures(20)
    image[4, 0, 0, 0] = 500
    run(tmp_path, {"image": image}, reference=Dataset({"image": pictures(30, seed=1)}))


def test_shifted_ranges_and_unscaled_pixels_are_noted(tmp_path):
    centred = Dataset({"image": pictures(30, seed=1) * 2 - 1})
    (note,) = run(tmp_path, {"image": pictures(20)}, selection="random", reference=centred)["notes"]
    assert "none below zero; the reference samples have -" in note
    (note,) = run(tmp_path, {"image": pictures(20) * 255}, selection="random")["notes"]
    assert "like pixels that were not scaled: nothing says which range the model takes; set value_range in the recipe" in note
    assert run(tmp_path, {"image": pictures(20) * 255}, selection="random", value_range=[0, 255])["notes"] == []
    assert run(tmp_path, {"image": pictures(20) * 255 - 128}, selection="random")["notes"] == []


def test_infinity_is_found_in_the_pass_that_finds_ranges():
    data = Dataset({"a": np.array([[1.0], [-np.inf]]), "b": np.array([[3], [-4]])})
    with pytest.raises(InputRejected, match="column 'a' has -inf in sample 1"):
        lint.finite_ranges(data)
    assert lint.finite_ranges(Dataset({"b": np.array([[3], [-4]])})) == {"b": [-4.0, 3.0]}


# --- evaluation samples and classes ---


def test_samples_of_the_evaluation_are_refused_by_content(tmp_path):
    both = pictures(40, seed=5)
    # the same pictures, stored in other rows and in double precision
    evaluation = Dataset({"image": np.concatenate([pictures(300, seed=6), both[[11, 2]].astype(np.float64)])})
    with pytest.raises(
        InputRejected, match=r"2 of 40 calibration samples are evaluation samples too; the first is sample 2, which is evaluation sample 301"
    ):
        run(tmp_path, {"image": both}, evaluation=evaluation)


def test_samples_that_differ_in_one_value_are_others():
    image = pictures(4)
    other = image.copy()
    other[:, 0, 5, 7] += 1e-3
    assert lint.check_apart(Dataset({"image": image}), Dataset({"image": other})) == []
    ids, mask = texts(4), np.ones((4, 16), np.int64)
    assert lint.check_apart(Dataset({"ids": ids, "mask": mask}), Dataset({"ids": ids, "mask": 1 - mask})) == []
    with pytest.raises(InputRejected, match="4 of 4 calibration samples"):
        lint.check_apart(Dataset({"ids": ids, "mask": mask}), Dataset({"mask": mask.astype(np.int32), "ids": ids}))


def test_other_columns_cannot_be_compared():
    (note,) = lint.check_apart(Dataset({"a": np.ones((2, 3))}), Dataset({"a": np.ones((2, 4))}))
    assert note == "evaluation samples have other columns ('a' [4]): not compared with those of calibration ('a' [3])"


def test_only_a_few_values_of_samples_that_differ_are_read(monkeypatch):
    digested = []
    monkeypatch.setattr(lint, "_digest", lambda data, row: digested.append(row) or b"")
    lint.check_apart(Dataset({"image": pictures(20)}), Dataset({"image": pictures(20, seed=1)}))
    assert digested == []


def test_missing_classes_are_noted_and_refused_where_they_are_most(tmp_path):
    image, label = pictures(30), np.repeat([0, 1, 2], 10)
    evaluation = Dataset({"image": pictures(30, seed=1)}, np.arange(30) % 4)
    assert run(tmp_path, {"image": image}, label, evaluation=evaluation)["notes"] == ["1 of 4 classes have no calibration sample: 3"]
    assert run(tmp_path, {"image": image}, label, classes=["a", "b", "c", "d"])["notes"] == ["1 of 4 classes have no calibration sample: 'd'"]
    assert run(tmp_path, {"image": image}, label, classes=3)["notes"] == []
    with pytest.raises(InputRejected, match=r"the calibration samples show 3 of 10 classes; missing are 3, 4, 5, 6, 7, \.\.\."):
        run(tmp_path, {"image": image}, label, classes=10)


def test_fewer_samples_than_classes_can_show_only_some(tmp_path):
    facts = run(tmp_path, {"image": pictures(200)}, np.arange(200) % 100, classes=100)
    assert facts["notes"] == ["84 of 100 classes have no calibration sample: " + facts["notes"][0].split(": ")[1]]


def test_a_step_hands_the_evaluation_on():
    recipe = load_recipe("image-classification")
    step = steps.calibration(recipe, samples=None, seed=0, origin=Path("a.npz"), evaluation=Need("data", "eval"), reference=Path("b"))
    assert (step.needs, step.files) == ({"evaluation": Need("data", "eval")}, {"samples": Path("a.npz"), "reference": Path("b")})
    plain = steps.calibration(recipe, samples=None, seed=0, origin=Path("a.npz"))
    assert (plain.needs, plain.files) == ({}, {"samples": Path("a.npz")}) and "allow_noise" not in plain.options
    open_to_all = recipe.model_copy(update={"allow_noise": True})
    assert steps.calibration(open_to_all, samples=None, seed=0, origin=Path("a.npz")).options["allow_noise"] is True


def test_a_step_refuses_what_its_evaluation_forbids(tmp_path):
    np.savez(tmp_path / "mine.npz", image=pictures(40))
    np.savez(tmp_path / "eval.npz", image=pictures(40)[7:8])
    step = steps.calibration(load_recipe("image-classification"), samples=40, seed=0, origin=tmp_path / "mine.npz", evaluation=tmp_path / "eval.npz")
    with pytest.raises(
        InputRejected, match="1 of 40 calibration samples are evaluation samples too; the first is sample 7, which is evaluation sample 0"
    ):
        run_steps([step], Store(tmp_path / "cache"), None)


# --- layouts ---


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((4, 12, 10, 3), "the samples have their channels last, the model takes them first: numpy.transpose(x, (0, 3, 1, 2))"),
        ((4, 12, 10), "prepare the samples with the transform the model was trained with"),
        ((4, 3, 10, 12), "prepare the samples with the transform the model was trained with"),
    ],
)
def test_a_wrong_layout_says_what_to_do(shape, hint):
    signature = models_signature((1, 3, 12, 10))
    with pytest.raises(InputRejected, match="column 'x' has samples of shape") as refused:
        check_columns(Dataset({"x": np.ones(shape, np.float32)}), signature)
    assert refused.value.hint == hint


def test_channels_first_and_missing_channels_are_told_too():
    for wanted, shape, hint in (
        ((1, "h", "w", 3), (2, 3, 12, 10), "numpy.transpose(x, (0, 2, 3, 1))"),
        ((1, 1, 28, 28), (2, 28, 28), "numpy.expand_dims(x, 1)"),
        ((1, 28, 28, 1), (2, 28, 28), "numpy.expand_dims(x, 3)"),
    ):
        with pytest.raises(InputRejected) as refused:
            check_columns(Dataset({"x": np.ones(shape, np.float32)}), models_signature(wanted))
        assert hint in refused.value.hint


def models_signature(shape):
    from toolkit.artifact import Signature, TensorSpec

    return Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=shape),), outputs=())


# --- vocabularies ---


def text_onnx(path, through=("Cast",), stored_by="initializer"):
    """Ids, through operators that keep them, into a table of 40 rows; then a dense layer."""
    onnx = pytest.importorskip("onnx")
    generator = np.random.default_rng(0)
    make, tensor = onnx.helper.make_node, onnx.numpy_helper.from_array
    table, head = generator.normal(size=(VOCABULARY, 8)).astype(np.float32), generator.normal(size=(128, 32)).astype(np.float32)
    nodes, last = [], "input_ids"
    for turn, kind in enumerate(through):
        nodes.append(make(kind, [last], [f"same{turn}"], **({"to": onnx.TensorProto.INT32} if kind == "Cast" else {})))
        last = f"same{turn}"
    stored = [tensor(head, "head"), tensor(np.array([1, -1], np.int64), "flat")]
    if stored_by == "constant":
        nodes.insert(0, make("Constant", [], ["table"], value=tensor(table, "value")))
    else:
        stored.append(tensor(table, "table"))
    nodes += [make("Gather", ["table", last], ["words"]), make("Reshape", ["words", "flat"], ["row"]), make("MatMul", ["row", "head"], ["logits"])]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(nodes, "g", [value("input_ids", 7, [1, 16])], [value("logits", 1, [1, 32])], stored)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


@pytest.mark.parametrize(
    ("through", "stored_by"), [((), "initializer"), (("Cast", "Identity"), "initializer"), ((), "constant"), (("Neg",), "initializer")]
)
def test_the_table_of_an_onnx_file_is_found(tmp_path, through, stored_by):
    from toolkit.quantization.vocabulary import vocabularies

    found = vocabularies(text_onnx(tmp_path / "m.onnx", through, stored_by), "onnx")
    assert found == ({} if through == ("Neg",) else {"input_ids": VOCABULARY})


@pytest.mark.parametrize("kind", ["GATHER", "EMBEDDING_LOOKUP", "behind a cast", "GATHER of pictures"])
def test_the_table_of_a_tflite_file_is_found(tmp_path, kind):
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    from toolkit.quantization.vocabulary import vocabularies

    code = schema.BuiltinOperator
    table = np.random.default_rng(0).normal(size=(VOCABULARY, 8)).astype(np.float32)
    ids = np.zeros(16, np.int32)
    tensors = [("ids", [16], ids), ("table", [VOCABULARY, 8], table), ("same", [16], ids), ("words", [16, 8], None), ("y", [16, 8], None)]
    look = (code.EMBEDDING_LOOKUP, [0, 1], [3], None) if kind == "EMBEDDING_LOOKUP" else (code.GATHER, [1, 0], [3], schema.GatherOptionsT())
    operators = [look, (code.TANH, [3], [4], None)]
    if kind == "behind a cast":
        operators = [(code.CAST, [0], [2], None), (code.GATHER, [1, 2], [3], schema.GatherOptionsT()), (code.TANH, [3], [4], None)]
    if kind == "GATHER of pictures":
        tensors[1] = ("table", [VOCABULARY, 8], None)
        operators = [(code.TANH, [1], [3], None), (code.GATHER, [3, 0], [4], schema.GatherOptionsT())]
    path = models._write_tflite(tmp_path / "m.tflite", tensors, operators, ("ids", 0), ("y", 4))
    assert vocabularies(path, "tflite") == ({} if kind == "GATHER of pictures" else {"ids": VOCABULARY})


# --- the whole way, from Python and from the command line ---


def picture_onnx(path):
    onnx = pytest.importorskip("onnx")
    generator = np.random.default_rng(0)
    make, tensor = onnx.helper.make_node, onnx.numpy_helper.from_array
    kernel, head = generator.normal(size=(8, 3, 3, 3)).astype(np.float32), generator.normal(size=(8 * 144, 8)).astype(np.float32)
    nodes = [
        make("Conv", ["image", "kernel"], ["seen"], pads=[1, 1, 1, 1], name="conv"),
        make("Relu", ["seen"], ["positive"]),
        make("Reshape", ["positive", "flat"], ["row"]),
        make("MatMul", ["row", "head"], ["logits"], name="head_matmul"),
    ]
    stored = [tensor(kernel, "kernel"), tensor(head, "head"), tensor(np.array([1, -1], np.int64), "flat")]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(nodes, "g", [value("image", 1, [1, 3, 12, 12])], [value("logits", 1, [1, 8])], stored)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def holed():
    image = pictures(40)
    image[7, 1, 2, 3] = np.nan
    return image


def beyond():
    ids = texts(40)
    ids[12, 3] = VOCABULARY
    return ids


def negative():
    ids = texts(40)
    ids[12, 3] = -1
    return ids


WRONG = {
    "bytes": ("image", lambda: pictures(40) * 255, r"column 'image' has values .*, the recipe says 0\.\.1"),
    "layout": (
        "image",
        lambda: np.ascontiguousarray(pictures(40).transpose(0, 2, 3, 1)),
        r"shape \[12, 12, 3\], the model's input takes \[3, 12, 12\]",
    ),
    "nan": ("image", holed, "column 'image' has nan in sample 7, expected finite numbers"),
    "empty": ("image", lambda: pictures(40)[:0], "has no samples"),
    "few": ("image", lambda: pictures(31), "has 31 samples, calibration needs at least 32"),
    "noise": ("image", lambda: np.random.default_rng(0).random((40, 3, 12, 12), np.float32), "column 'image' is random noise"),
    "beyond": ("input_ids", beyond, "column 'input_ids' has token id 40 in sample 12, which is not in the model's vocabulary: .* has rows 0..39"),
    "negative": ("input_ids", negative, "column 'input_ids' has token id -1 in sample 12, which is not in the model's vocabulary"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("wrong")
    picture_onnx(folder / "image.onnx")
    text_onnx(folder / "input_ids.onnx")
    shipped = (ROOT / "calibration" / "image-classification.toml").read_text(encoding="utf-8")
    (folder / "unit.toml").write_text(shipped + "value_range = [0, 1]\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("what", WRONG)
def test_wrong_calibration_is_refused_from_python(place, tmp_path, what):
    name, make, says = WRONG[what]
    with pytest.raises(InputRejected, match=says) as refused:
        quantize(
            place / f"{name}.onnx",
            calibration={name: make()},
            recipe=str(place / "unit.toml") if name == "image" else "text-classification",
            samples=40,
            output=tmp_path / "out" / "q.onnx",
            store=Store(place / "cache"),
        )
    assert refused.value.hint
    assert not list(tmp_path.rglob("*.onnx*"))


@pytest.mark.parametrize("what", ["bytes", "layout", "nan", "empty", "beyond"])
def test_wrong_calibration_is_refused_on_the_command_line(place, tmp_path, what):
    name, make, says = WRONG[what]
    np.savez(tmp_path / "samples.npz", **{name: make()})
    recipe = place / "unit.toml" if name == "image" else "text-classification"
    words = ["quantize", place / f"{name}.onnx", "-c", "samples.npz", "--recipe", recipe, "--samples", "40"]
    environment = {**os.environ, "EDGEKIT_CACHE": str(place / "cache"), "PYTHONPATH": str(ROOT), "COLUMNS": "400"}
    done = subprocess.run(
        [sys.executable, "-m", "toolkit", *map(str, words)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if "samples.npz: " in line]) <= 1
    assert re.search(says, done.stderr), done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["samples.npz"]


def test_right_calibration_is_taken(place, tmp_path):
    for name, columns, recipe in (("image", pictures(40), place / "unit.toml"), ("input_ids", texts(40), "text-classification")):
        made = quantize(
            place / f"{name}.onnx",
            scheme="static_wi8_ai8",
            calibration={name: columns},
            recipe=str(recipe),
            samples=40,
            output=tmp_path / f"{name}.onnx",
            store=Store(place / "cache"),
        )
        facts = made.manifest.evidence["calibration_samples"]
        assert facts["n"] == 40 and not [note for note in facts["notes"] if "no labels" not in note]
