"""What training does beyond the plain loop, each part against an independent computation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import toolkit
from toolkit.dataset import Dataset, hold_out
from toolkit.errors import ConfigError, InputRejected, SetupError, StageFailed
from toolkit.finetuning import calling, distillation, fitting, loop, precision, variation
from toolkit.training import Finetune

torch = pytest.importorskip("torch")

PICTURES = np.random.default_rng(0).normal(size=(6, 3, 8, 12)).astype(np.float32)


def tensors(**columns) -> dict:
    return {name: torch.from_numpy(np.asarray(column)) for name, column in columns.items()}


def two_classes(count: int = 64, seed: int = 0) -> Dataset:
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 2, count)
    return Dataset({"x": (generator.normal(size=(count, 4)) + 2 * label[:, None]).astype(np.float32)}, label)


def linear() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))


def trainer(net, columns=("x",), **settings) -> loop.Trainer:
    return loop.Trainer(calling.Caller(net, list(columns), "cpu"), Finetune(**settings))


def test_flipping_turns_some_pictures_round_and_leaves_the_others():
    varied = variation.augment(tensors(x=PICTURES), ["flip"], np.random.default_rng(1))["x"].numpy()
    turned = [np.array_equal(one, before[:, :, ::-1]) for one, before in zip(varied, PICTURES, strict=True)]
    kept = [np.array_equal(one, before) for one, before in zip(varied, PICTURES, strict=True)]
    assert all(a != b for a, b in zip(turned, kept, strict=True))
    assert 0 < sum(turned) < len(PICTURES)


def test_the_middle_of_a_picture_is_cropped_as_scipy_interpolates_it(monkeypatch):
    ndimage = pytest.importorskip("scipy.ndimage")
    angle, size, right, down = np.radians(10), 0.85, 0.1, -0.05
    monkeypatch.setattr(variation, "_moves", lambda kinds, count, generator: np.tile([-1.0, angle, size, right, down], (count, 1)))
    found = variation.augment(tensors(x=PICTURES), ["crop"], np.random.default_rng(0))["x"].numpy()
    height, width = PICTURES.shape[2:]
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    # In pixels from the middle: turned, made smaller, moved.
    x, y = -(columns - (width - 1) / 2), rows - (height - 1) / 2
    from_x = size * (np.cos(angle) * x - np.sin(angle) * y) + right * width / 2 + (width - 1) / 2
    from_y = size * (np.sin(angle) * x + np.cos(angle) * y) + down * height / 2 + (height - 1) / 2
    wanted = [ndimage.map_coordinates(channel, [from_y, from_x], order=1, mode="nearest") for channel in PICTURES.reshape(-1, height, width)]
    np.testing.assert_allclose(found.reshape(-1, height, width), wanted, atol=1e-5)


def test_brightness_moves_a_picture_by_a_share_of_its_spread():
    varied = variation.augment(tensors(x=PICTURES), ["brightness"], np.random.default_rng(2))["x"].numpy()
    shift = (varied - PICTURES).reshape(len(PICTURES), -1)
    np.testing.assert_allclose(shift.std(axis=1), 0, atol=1e-6)
    share = shift.mean(axis=1) / PICTURES.reshape(len(PICTURES), -1).std(axis=1)
    assert np.all(np.abs(share) <= 0.2)
    assert len(np.unique(share.round(6))) == len(PICTURES)


def test_what_is_erased_is_a_rectangle_with_the_mean_of_its_channel():
    pictures = np.random.default_rng(3).normal(size=(200, 2, 32, 32)).astype(np.float32)
    varied = variation.augment(tensors(x=pictures), ["erase"], np.random.default_rng(4))["x"].numpy()
    shares = []
    for before, after in zip(pictures, varied, strict=True):
        changed = (before != after).any(axis=0)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        assert changed[np.ix_(rows, columns)].all()
        assert np.array_equal(rows, np.arange(rows[0], rows[-1] + 1))
        np.testing.assert_allclose(after[:, changed].T, np.broadcast_to(before.mean(axis=(1, 2)), (changed.sum(), 2)), rtol=1e-4, atol=1e-6)
        shares.append(changed.mean())
    assert max(shares) < 0.27
    assert np.mean(shares) == pytest.approx(0.12, abs=0.02)  # 0.135 less what lies beyond the border


def test_columns_that_are_no_pictures_stay_as_they_are():
    inputs = tensors(x=PICTURES, ids=np.arange(6))
    assert torch.equal(variation.augment(inputs, ["crop", "erase"], np.random.default_rng(0))["ids"], inputs["ids"])


def test_mixup_mixes_inputs_and_labels_by_the_same_share():
    inputs = tensors(x=PICTURES)
    mixed = variation.mix(inputs, Finetune(mixup=0.4), np.random.default_rng(5))
    partner = mixed.partner.numpy()
    np.testing.assert_allclose(mixed.inputs["x"], mixed.share * PICTURES + (1 - mixed.share) * PICTURES[partner], rtol=1e-5)
    assert sorted(partner) == list(range(6))


def test_shares_of_mixup_are_drawn_from_the_beta_distribution():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(6)
    shares = [variation.mix(tensors(x=PICTURES[:2]), Finetune(mixup=0.4), generator).share for _ in range(400)]
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).pvalue > 0.01


def test_cutmix_pastes_a_patch_and_counts_its_pixels():
    generator = np.random.default_rng(7)
    for _ in range(20):
        mixed = variation.mix(tensors(x=PICTURES), Finetune(cutmix=1.0), generator)
        found, other = mixed.inputs["x"].numpy(), PICTURES[mixed.partner.numpy()]
        pasted = (found == other).all(axis=(0, 1)) & (found != PICTURES).any(axis=(0, 1))
        assert mixed.share == pytest.approx(1 - pasted.mean(), abs=1e-6)
        assert np.array_equal(found[:, :, ~pasted], PICTURES[:, :, ~pasted])


def test_the_loss_of_mixed_samples_is_that_of_mixed_labels():
    """By mixed one-hot labels, which PyTorch's cross-entropy takes too."""
    data, net = two_classes(8), linear()
    made = trainer(net, mixup=0.3, label_smoothing=0.1)
    found = made._loss(data, np.random.default_rng(8))
    mixed = variation.mix(tensors(x=data.columns["x"]), made.settings, np.random.default_rng(8))
    hot = torch.nn.functional.one_hot(torch.from_numpy(data.label), 2).float()
    labels = mixed.share * hot + (1 - mixed.share) * hot[mixed.partner]
    wanted = torch.nn.functional.cross_entropy(net(mixed.inputs["x"]), labels, label_smoothing=0.1)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("settings", "columns", "told"),
    [
        ({"augment": ["flip"]}, {"x": np.zeros((2, 4), np.float32)}, "no input holds pictures"),
        ({"cutmix": 1.0}, {"ids": np.zeros((2, 4), np.int64)}, "ids [2, 4] int64"),
        ({"mixup": 0.2}, {"ids": np.zeros((2, 4), np.int64)}, "cannot be mixed"),
    ],
)
def test_what_cannot_be_varied_is_refused(settings, columns, told):
    with pytest.raises(ConfigError) as caught:
        variation.check(tensors(**columns), Finetune(**settings))
    assert told in caught.value.message


def test_a_teacher_changes_the_gradient_as_hinton_says():
    """The gradient of T^2 KL by the student's logits is T (softmax(s/T) - softmax(t/T)), over the batch."""
    data = two_classes(16)
    student, caller = linear(), None
    caller = calling.Caller(student, ["x"], "cpu")
    teacher = distillation.teacher_of("start", caller, Path(), 0.25, 3.0)
    for parameter in student.parameters():
        parameter.data += 0.1
    inputs = caller.tensors(data)
    logits = caller(inputs).detach().requires_grad_()
    own = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.label))
    teacher.loss(logits, inputs, own).backward()
    hot = np.eye(2)[data.label]
    softmax = lambda z: np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)  # noqa: E731
    s, t = logits.detach().numpy(), teacher.caller(inputs).numpy()
    wanted = (0.75 * (softmax(s) - hot) + 0.25 * 3.0 * (softmax(s / 3) - softmax(t / 3))) / 16
    np.testing.assert_allclose(logits.grad, wanted, atol=1e-6)


def test_a_teacher_stays_as_it_is_while_its_student_learns():
    data, net = two_classes(), linear()
    made = trainer(net, epochs=2, learning_rate=0.05)
    made.teacher = distillation.teacher_of("start", made.caller, Path(), 0.5, 2.0)
    before = [parameter.clone() for parameter in made.teacher.caller.model.parameters()]
    made.run(data, np.arange(64), np.arange(64), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, made.teacher.caller.model.parameters(), strict=True))
    assert not torch.equal(net[0].weight, made.teacher.caller.model[0].weight)


def test_a_teacher_for_other_classes_is_refused(tmp_path):
    (tmp_path / "large.py").write_text("from torch import nn\ndef three():\n    return nn.Linear(4, 3)\ndef none():\n    return 1\n")
    caller = calling.Caller(linear(), ["x"], "cpu")
    teacher = distillation.teacher_of("large:three", caller, tmp_path, 0.5, 2.0)
    with pytest.raises(InputRejected, match="the teacher has 3 outputs, the model 2"):
        distillation.check_alike(teacher, caller.tensors(two_classes(2)), 2)
    with pytest.raises(ConfigError, match="returned a int"):
        distillation.teacher_of("large:none", caller, tmp_path, 0.5, 2.0)


class Hungry(torch.nn.Module):
    """Runs out of memory above some number of samples, as a GPU does."""

    def __init__(self, net: torch.nn.Module, most: int) -> None:
        super().__init__()
        self.net, self.most, self.seen = net, most, []

    def forward(self, x):
        if self.training and len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.seen.append(len(x))
        return self.net(x)


def test_out_of_memory_halves_the_batch_and_learns_the_same():
    data, plain, hungry = two_classes(48), linear(), Hungry(linear(), most=5)
    settings = {"epochs": 2, "batch_size": 16}
    wanted = trainer(plain, **settings).run(data, np.arange(48), np.arange(48), seed=0)
    made = trainer(hungry, **settings)
    found = made.run(data, np.arange(48), np.arange(48), seed=0)
    np.testing.assert_allclose([one.train_loss for one in found], [one.train_loss for one in wanted], rtol=1e-5)
    torch.testing.assert_close(hungry.net[0].weight, plain[0].weight)
    assert made.caller.notes == [
        "out of memory: a batch of 16 is taken in 2 parts from epoch 1, step 1 on",
        "out of memory: a batch of 16 is taken in 4 parts from epoch 1, step 1 on",
    ]


def test_a_single_sample_that_does_not_fit_is_an_error():
    with pytest.raises(StageFailed, match="too little memory for one part"):
        trainer(Hungry(linear(), most=0), epochs=1, batch_size=4).run(two_classes(8), np.arange(8), np.arange(8), seed=0)


def test_bfloat16_computes_the_forward_pass_alone():
    made = trainer(linear(), epochs=1)
    made.precision = precision.choose("bfloat16", "cpu")
    inputs = made.caller.tensors(two_classes(8))
    net = made.caller.model
    hidden = torch.relu(torch.nn.functional.linear(inputs["x"].bfloat16(), net[0].weight.bfloat16(), net[0].bias.bfloat16()))
    wanted = torch.nn.functional.linear(hidden, net[2].weight.bfloat16(), net[2].bias.bfloat16()).float()
    torch.testing.assert_close(made._logits(inputs, learning=True), wanted, rtol=0.02, atol=0.02)
    assert made._logits(inputs, learning=True).dtype == torch.float32
    made.run(two_classes(), np.arange(64), np.arange(64), seed=0)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


def test_precision_by_default_and_where_there_is_no_gpu():
    assert precision.choose("auto", "cpu").name == "float32"
    with pytest.raises(ConfigError, match="float16 is for GPUs"):
        precision.choose("float16", "cpu")


def test_a_scaler_leaves_out_a_step_whose_gradients_are_infinite():
    """float16 needs a GPU, its scaler does not."""
    parameter = torch.nn.Parameter(torch.ones(2))
    made = precision.Precision("float16", "cpu", torch.amp.GradScaler("cpu", init_scale=4.0))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    made.backward((parameter * torch.tensor([0.25, 0.0])).sum())
    assert float(made.step(optimizer, [parameter])) == pytest.approx(0.25)
    assert parameter.tolist() == [0.875, 1.0]
    optimizer.zero_grad()
    made.backward((parameter * torch.tensor([float("inf"), 0.0])).sum())
    assert float(made.step(optimizer, [parameter])) == 0.0
    assert parameter.tolist() == [0.875, 1.0]


def test_what_cannot_be_compiled_runs_as_it_is_or_is_refused(monkeypatch):
    def broken(model):
        def run(*_):
            raise torch._dynamo.exc.TorchDynamoException("no compiler here")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    caller, data = calling.Caller(linear(), ["x"], "cpu"), two_classes(4)
    caller.compile(required=False)
    torch.testing.assert_close(caller(caller.tensors(data)), caller.model(torch.from_numpy(data.columns["x"])))
    assert "no compiler here" in caller.notes[0]
    caller.compile(required=True)
    with pytest.raises(SetupError, match="no compiler here"):
        caller(caller.tensors(data))


def test_the_confusion_matrix_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    data, net = two_classes(100), linear()
    found = trainer(net).confusion(data, np.arange(100), 2)
    answers = net(torch.from_numpy(data.columns["x"])).argmax(dim=1).numpy()
    assert np.array_equal(found, metrics.confusion_matrix(data.label, answers))


def test_progress_tells_loss_accuracy_speed_and_what_is_left(monkeypatch):
    monkeypatch.setattr(loop, "_REPORT_SECONDS", 0.0)
    told: list[str] = []
    made = trainer(linear(), epochs=2, batch_size=8)
    made.progress = lambda done, total, note: told.append(f"{done}/{total} {note}")
    made.run(two_classes(), np.arange(64), np.arange(64), seed=0)
    assert told[9].startswith("10/16 epoch 2/2 loss 0.")
    assert "val " in told[9]
    assert "samples/s" in told[9]
    assert told[9].endswith("s left")
    assert made.samples_per_second > 0


def test_a_live_model_is_trained_where_it_is():
    data, net = two_classes(100), linear()
    tuned = toolkit.finetune(net, {"x": data.columns["x"], "label": data.label}, classes=["low", "high"], epochs=5, learning_rate=0.02)
    assert tuned.model is net
    assert tuned.training["classes"] == ["low", "high"]
    rows, held = hold_out(data.label, 0)
    answers = net(torch.from_numpy(data.columns["x"][held])).argmax(dim=1).numpy()
    assert tuned.facts["validation_accuracy"] == {"value": (answers == data.label[held]).mean(), "n": len(held)}
    assert np.sum(tuned.training["confusion"]) == len(held) == 100 - len(rows)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: toolkit.finetune(linear()), "needs samples"),
        (lambda: toolkit.finetune(3, {"x": [1.0]}), "found a int"),
        (lambda: toolkit.finetune(linear(), two_classes(), epoch=3), "epoch"),
        (lambda: toolkit.finetune("somewhere", epochs=3), "names its samples and settings itself"),
        (lambda: toolkit.finetune(linear(), two_classes(), output="x"), "is returned, not written"),
    ],
)
def test_mistakes_of_the_call_are_told(call, told):
    with pytest.raises(ConfigError) as caught:
        call()
    assert told in str(caught.value)


SCRIPT = """
import json, sys
import numpy as np, torch, toolkit
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
generator = np.random.default_rng(0)
label = generator.integers(0, 2, 101)
x = (generator.normal(size=(101, 4)) + label[:, None]).astype(np.float32)
settings = dict(epochs=3, batch_size=7, strategy="gradual", balance="weights", accumulate=2, threads=1)
tuned = toolkit.finetune(net, {"x": x, "label": label}, **settings)
if tuned.facts["processes"] == 1 or torch.distributed.get_rank() == 0:
    np.savez(sys.argv[1], *[one.detach().numpy() for one in net.parameters()])
    print(json.dumps(tuned.training["epochs"]), tuned.facts["processes"])
"""


def test_two_processes_learn_what_one_does(tmp_path):
    pytest.importorskip("accelerate")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    # By --cpu accelerate starts a single process where MPI is missing; --multi_gpu starts as many as asked for, on whatever there is.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(20000 + os.getpid() % 20000)]
    outcomes = {}
    for name, command in (("one", [sys.executable]), ("two", launch)):
        done = subprocess.run([*command, str(script), str(tmp_path / f"{name}.npz")], capture_output=True, text=True, cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stderr
        epochs, _, processes = done.stdout.strip().splitlines()[-1].rpartition(" ")
        with np.load(tmp_path / f"{name}.npz") as weights:
            outcomes[name] = (int(processes), json.loads(epochs), list(weights.values()))
    assert [outcomes[name][0] for name in ("one", "two")] == [1, 2]
    for one, two in zip(outcomes["one"][1], outcomes["two"][1], strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    for one, two in zip(outcomes["one"][2], outcomes["two"][2], strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-5)


def test_the_rounding_of_quantization_aware_training_keeps_batch_norm_still():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten(), torch.nn.Linear(2 * 4, 2))
    made = trainer(net, strategy="qat")
    still = made._thaw(fitting_blocks(net), {id(one) for one in net.parameters()})
    assert still == [net[1]]
    assert all(parameter.requires_grad for parameter in net.parameters())


def fitting_blocks(net):
    from toolkit.finetuning.blocks import blocks

    return blocks(net)


def test_pictures_show_every_epoch_and_every_count(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from toolkit.finetuning import curves

    history = [loop.Epoch(n, 1 / n, 2 / n, 0.5 + n / 10, 1e-3, 4) for n in (1, 2, 3)]
    confusion = np.array([[5, 1], [0, 7]])
    assert curves.draw(history, 3, confusion, ["cat", "dog"], tmp_path) == ["learning-curves.png", "confusion-matrix.png"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("learning-curves.png", "confusion-matrix.png"))
    loss = curves._curves(Figure(), history, 3).axes[0]
    assert loss.lines[1].get_xydata().tolist() == [[1, 2.0], [2, 1.0], [3, pytest.approx(2 / 3)]]
    texts = {text.get_text(): text.get_position() for text in curves._confusion(Figure(), confusion, ["cat", "dog"]).axes[0].texts}
    assert texts == {"5": (0, 0), "1": (1, 0), "7": (1, 1)}


def test_the_rest_of_the_settings_reaches_the_trainer():
    """A run with everything at once: it learns, and tells what it did."""
    generator = np.random.default_rng(0)
    label = generator.integers(0, 3, 120)
    pictures = generator.normal(size=(120, 1, 8, 8)).astype(np.float32) * 0.3
    pictures[np.arange(120), 0, 2 * label + 1] += 2  # a bright row tells the class, however the picture is turned round
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(512, 3))
    more = {"augment": ["flip", "brightness", "erase"], "mixup": 0.2, "cutmix": 0.5, "average": 0.9, "teacher": "start", "teacher_weight": 0.05}
    tuned = toolkit.finetune(net, Dataset({"x": pictures}, label), epochs=8, learning_rate=0.01, precision="bfloat16", **more)
    assert tuned.facts["validation_accuracy"]["value"] > 0.8
    assert tuned.facts["precision"] == "bfloat16"
    assert fitting.choose_device("cpu")[0] == "cpu"
