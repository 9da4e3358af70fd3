import itertools
import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.dataset import Dataset, hold_out
from toolkit.errors import ConfigError, InputRejected, SetupError, StageFailed
from toolkit.finetuning import blocks, calling, checkpoint, fitting, loop, recipe, stage
from toolkit.job import Job
from toolkit.training import Finetune

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

_MODULES = itertools.count()
SMALL = {"epochs": 8, "batch_size": 16, "learning_rate": 0.02, "device": "cpu", "seed": 5, "threads": 1}
NET = """
class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, classes)

    def forward(self, x):
        return self.head(self.body(x))
"""


def blobs(n=240, classes=3, seed=0):
    """Gaussian clusters five standard deviations apart: a linear model separates them."""
    generator = np.random.default_rng(seed)
    label = np.arange(n) % classes
    centres = 5 * np.eye(4)[:classes]
    return Dataset({"x": (centres[label] + generator.normal(0, 1, (n, 4))).astype(np.float32)}, label)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Writes a project with one factory module; returns a function that trains it."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    runs = itertools.count()

    def train(body=NET, build="Net", data=None, weights=None, progress=None, kept=None, **options):
        module = f"finetuned_{next(_MODULES)}"
        (tmp_path / f"{module}.py").write_text(f"import torch\nfrom torch import nn\n{body}")
        (data or blobs()).write(tmp_path / module)
        inputs = {"project": tmp_path, "data": tmp_path / module}
        if weights is not None:
            inputs["weights"] = weights
        out = tmp_path / f"out{next(runs)}"
        out.mkdir()
        job = Job(inputs, {**SMALL, "factory": f"{module}:{build}", **options}, out, progress or (lambda *_: None), kept)
        return stage.run(job), out

    return train


def tensors(folder):
    return safetensors_torch.load_file(folder / "weights.safetensors")


def forward(weights, x):
    """The test network in plain NumPy, in evaluation mode."""
    w = {name: tensor.numpy().astype(np.float64) for name, tensor in weights.items()}
    hidden = x @ w["body.0.weight"].T + w["body.0.bias"]
    hidden = (hidden - w["body.1.running_mean"]) / np.sqrt(w["body.1.running_var"] + 1e-5) * w["body.1.weight"] + w["body.1.bias"]
    return np.maximum(hidden, 0) @ w["head.weight"].T + w["head.bias"]


def test_learns_a_separable_problem_and_writes_the_best_epoch(project):
    notes = []
    facts, out = project(progress=lambda *note: notes.append(note))
    fresh = blobs(300, seed=9)
    right = forward(tensors(out), fresh.columns["x"]).argmax(axis=1) == fresh.label
    assert right.mean() >= 0.95
    history = json.loads((out / "training.json").read_text())
    scores = [(-one["validation_accuracy"], one["validation_loss"]) for one in history["epochs"]]
    assert facts["best_epoch"] == history["best_epoch"] == 1 + scores.index(min(scores))
    assert (history["n_train"], history["n_validation"], facts["epochs"], len(scores)) == (216, 24, 8, 8)
    assert facts["validation_accuracy"] == {"value": -min(scores)[0], "n": 24}
    assert facts["parameters"] == facts["trainable"] == 4 * 16 + 16 + 2 * 16 + 16 * 3 + 3
    assert (facts["device"], facts["threads"]) == ("cpu", 1)
    assert notes[-1][0] == notes[-1][1] == 8 * math.ceil(216 / 16)


def test_validation_figures_are_those_of_the_written_weights(project):
    data = blobs(seed=2)
    facts, out = project(data=data, epochs=2)
    _, held = hold_out(data.label, SMALL["seed"])
    logits, label = forward(tensors(out), data.columns["x"][held]), data.label[held]
    loss = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(label)), label])
    best = json.loads((out / "training.json").read_text())["epochs"][facts["best_epoch"] - 1]
    assert best["validation_loss"] == pytest.approx(loss, rel=1e-4)
    assert best["validation_accuracy"] == (logits.argmax(axis=1) == label).mean()


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(project):
    folders = [project(seed=seed, epochs=2)[1] for seed in (5, 5, 6)]
    for name in ("weights.safetensors", "training.json"):
        first, again, other = ((folder / name).read_bytes() for folder in folders)
        assert first == again != other


def test_frozen_parameters_and_batch_norm_statistics_stay(project, tmp_path):
    _, start = project(epochs=1)
    weights = start / "weights.safetensors"
    before = tensors(start)
    frozen, out = project(weights=weights, freeze=("body.*",), epochs=2)
    after = tensors(out)
    assert frozen["trainable"] == 16 * 3 + 3
    for name in before:
        assert torch.equal(before[name], after[name]) == name.startswith("body"), name
    _, free = project(weights=weights, freeze=("body.0.*",), epochs=2)
    assert not torch.equal(before["body.1.running_mean"], tensors(free)["body.1.running_mean"])


def test_batch_norm_without_parameters_is_frozen_by_its_own_name(project):
    body = NET.replace("BatchNorm1d(16)", "BatchNorm1d(16, affine=False)")
    _, moved = project(body, epochs=1, freeze=("body.0.*",))
    _, kept = project(body, epochs=1, freeze=("body.*",))
    assert tensors(moved)["body.1.num_batches_tracked"] > 0
    assert tensors(kept)["body.1.num_batches_tracked"] == 0


@pytest.mark.parametrize(
    ("patterns", "message", "hint"), [(("bdy.*",), "'bdy.*' matches no parameter", "body"), (("*",), "every parameter is frozen", "head")]
)
def test_freeze_patterns_must_make_sense(project, patterns, message, hint):
    with pytest.raises(ConfigError) as caught:
        project(freeze=patterns)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_starting_weights_are_used(project):
    _, start = project()
    facts, _ = project(weights=start / "weights.safetensors", epochs=1, learning_rate=1e-9)
    assert facts["validation_accuracy"]["value"] >= 0.95
    assert project(epochs=1, learning_rate=1e-9)[0]["validation_accuracy"]["value"] < 0.95


def test_starting_weights_that_do_not_fit_are_listed_tensor_by_tensor(project, tmp_path):
    weights = tensors(project(epochs=1)[1])
    weights["head.weight"] = torch.zeros(5, 16)
    weights["body.0.weight"] = weights["body.0.weight"].half()
    weights["extra"] = weights.pop("body.0.bias")
    safetensors_torch.save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(InputRejected) as caught:
        project(weights=tmp_path / "other.safetensors")
    assert caught.value.message == (
        "3 tensors do not fit the model: body.0.bias: not in the file, model [16] float32; extra: file [16] float32, not in the model; "
        "body.0.weight: file [16 x 4] float16, model [16 x 4] float32"
    )
    assert caught.value.hint == "build the model that these weights were saved from"


def test_a_head_for_other_classes_begins_afresh_and_nothing_else(project, tmp_path):
    _, other = project(epochs=1)
    weights = tensors(other)
    weights["head.weight"], weights["head.bias"] = torch.zeros(7, 16), torch.zeros(7)
    safetensors_torch.save_file(weights, tmp_path / "seven.safetensors")
    facts, out = project(weights=tmp_path / "seven.safetensors", epochs=1, freeze=("body.*",))
    assert facts["replaced"] == [
        {"name": "head.weight", "file": [7, 16], "model": [3, 16]},
        {"name": "head.bias", "file": [7], "model": [3]},
    ]
    assert "began afresh, as the weights have it for other classes or not at all: head" in facts["notes"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tensors(out).items() if name.startswith("body."))


def test_damaged_or_broken_starting_weights_are_refused(project, tmp_path):
    _, start = project(epochs=1)
    whole = (start / "weights.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    safetensors_torch.save_file({**tensors(start), "head.bias": torch.tensor([0, math.nan, 0])}, tmp_path / "nan.safetensors")
    for name, message in (("cut", "not a readable"), ("empty", "not a readable"), ("absent", "not a readable"), ("nan", "head.bias has NaN")):
        with pytest.raises(InputRejected, match=message):
            project(weights=tmp_path / f"{name}.safetensors")


def test_infinities_that_a_model_is_built_with_may_come_from_a_file(project, tmp_path):
    """An attention mask is a buffer with minus infinity; it is saved with the weights, and must not make them unusable."""
    body = NET.replace("self.head =", "self.register_buffer('mask', torch.tensor([0.0, -torch.inf])); self.head =")
    _, start = project(body, epochs=1)
    assert math.isinf(tensors(start)["mask"][1])
    assert project(body, weights=start / "weights.safetensors", epochs=1)[0]["epochs"] == 1
    for name, broken in (("head.bias", torch.tensor([0, math.inf, 0])), ("mask", torch.tensor([math.inf, -math.inf]))):
        safetensors_torch.save_file({**tensors(start), name: broken}, tmp_path / f"{name}.safetensors")
        with pytest.raises(InputRejected, match=f"{name} has NaN or Inf"):
            project(body, weights=tmp_path / f"{name}.safetensors")


def test_shared_tensors_are_stored_once_and_can_be_read_back(project):
    tied = NET + "\ndef build():\n    net = Net()\n    net.twin = net.head\n    return net\n"
    _, out = project(tied, "build", epochs=1)
    assert "twin.weight" not in tensors(out)
    facts, again = project(tied, "build", weights=out / "weights.safetensors", epochs=1)
    assert facts["parameters"] == 163
    assert set(tensors(again)) == set(tensors(out))


def test_nan_loss_names_epoch_and_step_and_says_what_to_do(project):
    body = NET.replace(
        "return self.head(self.body(x))",
        "self.calls = getattr(self, 'calls', 0) + self.training; y = self.head(self.body(x)); return y / 0 * 0 if self.calls == 16 else y",
    )
    with pytest.raises(StageFailed, match="loss is nan") as caught:
        project(body)
    assert caught.value.where == "epoch 2, step 2"  # 14 steps an epoch
    assert "lower finetune.learning_rate, now 0.02" in caught.value.hint


@pytest.mark.parametrize("result", ["y", "{'scores': y, 'other': x}", "(y, x)", "type('Output', (), {'logits': y})()"])
def test_logits_are_found_in_what_the_model_returns(project, result):
    body = NET.replace("return self.head(self.body(x))", f"y = self.head(self.body(x)); return {result}")
    assert project(body)[0]["validation_accuracy"]["value"] >= 0.95


@pytest.mark.parametrize(
    ("result", "outputs"),
    [
        ("{'aux': -y.detach(), 'logits': y}", ["logits", "aux"]),
        ("{'aux': -y.detach(), 'logits': y}", ["logits"]),
        ("{'loss': None, 'logits': y, 'aux': -y.detach()}", []),
        ("{'first': y, 'second': -y.detach()}", ["logits", "aux"]),
        ("(y, -y.detach())", ["logits", "aux"]),
        ("y", ["logits"]),
    ],
)
def test_the_first_named_output_is_trained(project, result, outputs):
    body = NET.replace("return self.head(self.body(x))", f"y = self.head(self.body(x)); return {result}")
    assert project(body, outputs=outputs)[0]["validation_accuracy"]["value"] >= 0.95


def test_inputs_go_by_name_where_forward_knows_them_and_by_place_elsewhere(project):
    data = blobs()
    pair = Dataset({"a": data.columns["x"], "b": np.zeros((len(data), 1), np.float32)}, data.label)
    by_name = NET.replace("def forward(self, x):", "def forward(self, b, a):\n        assert b.shape[1] == 1; x = a + b")
    by_place = NET.replace("def forward(self, x):", "def forward(self, left, right):\n        assert right.shape[1] == 1; x = left + right")
    for body in (by_name, by_place):
        assert project(body, data=pair)[0]["validation_accuracy"]["value"] >= 0.95


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"classes": ["a", "b"]}, InputRejected, r"shape \[2, 3\], expected \[2, 2\]"),
        ({"classes": list("abcd")}, InputRejected, r"shape \[2, 3\], expected \[2, 4\]"),
        ({"classes": 5}, InputRejected, r"shape \[2, 3\], expected \[2, 5 or more\]"),
        ({"data": blobs(classes=4)}, InputRejected, r"shape \[2, 3\], expected \[2, 4 or more\]"),
        ({"data": Dataset({"x": np.zeros((9, 7), np.float32)}, np.arange(9) % 3)}, StageFailed, "the model raised RuntimeError"),
        ({"data": Dataset({"x": np.zeros((9, 4), np.float32)})}, InputRejected, "has no column 'label'"),
        ({"data": Dataset({"x": np.zeros((3, 4), np.float32)}, np.arange(3))}, InputRejected, "no class has two samples"),
        ({"build": "int"}, ConfigError, "no function 'int'"),
        ({"build": "build", "body": "def build():\n    return 3\n"}, ConfigError, "returned a int"),
    ],
)
def test_model_and_data_must_fit(project, changes, error, message):
    with pytest.raises(error, match=message):
        project(**changes)


def test_process_settings_are_left_as_they_were(project):
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    project(epochs=1, threads=before[0] + 1)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_device_is_chosen_with_a_reason(monkeypatch):
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: there)
        device, why = fitting.choose_device("auto")
        assert device == expected
        assert "GPU" in why
    with pytest.raises(SetupError, match="no cuda device"):
        fitting.choose_device("cuda")


def test_schedule_is_that_of_pytorch():
    """Linear warm-up and cosine, against PyTorch's own schedulers."""
    steps, rising = 40, 8
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / rising, total_iters=rising - 1)
    down = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps - rising)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [up, down], milestones=[rising])
    for step in range(steps):
        assert recipe.schedule(step, steps, rising / steps) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        both.step()


def test_hold_out_takes_a_tenth_of_every_class():
    label = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [200, 57, 9, 1]))
    train, held = hold_out(label, seed=1)
    assert sorted([*train, *held]) == list(range(len(label)))
    for one, size in enumerate(np.bincount(label)):
        assert abs((label[held] == one).sum() - size / 10) <= 1
        assert (label[train] == one).any()
    np.testing.assert_array_equal(held, hold_out(label, seed=1)[1])
    assert not np.array_equal(held, hold_out(label, seed=2)[1])


@given(st.integers(1, 70), st.integers(1, 20))
def test_batches_hold_every_row_and_no_lone_one(n, size):
    cuts = recipe.batches(np.arange(n), size)
    np.testing.assert_array_equal(np.concatenate(cuts), np.arange(n))
    assert all(len(cut) > 1 for cut in cuts) or size == 1 or n == 1
    assert max(len(cut) for cut in cuts) <= size + 1


def test_a_learning_rate_for_each_block():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    groups = recipe.parameter_groups(net, 0.1, blocks.blocks(net), 0.5)
    factors = {id(one): group["factor"] for group in groups for one in group["params"]}
    assert [factors[id(one)] for one in net.parameters()] == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    assert {group["weight_decay"] for group in groups if group["params"][0].ndim > 1} == {0.1}


def test_classes_weigh_alike():
    sklearn = pytest.importorskip("sklearn.utils.class_weight")
    label = np.array([0] * 50 + [1] * 7 + [3] * 3)
    expected = sklearn.compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=label)
    np.testing.assert_allclose(recipe.class_weights(label), [*expected[:2], 1.0, expected[2]])


def trainer(net, **settings):
    return loop.Trainer(calling.Caller(net, ["x"], "cpu"), Finetune(**settings))


@pytest.mark.parametrize("more", [{}, {"balance": "weights", "label_smoothing": 0.1}])
def test_a_step_in_parts_is_the_step_as_a_whole(more):
    data = blobs(50)
    data = Dataset(data.columns, np.where(data.label == 2, np.arange(50) % 2, data.label))  # classes of different sizes
    torch.manual_seed(1)
    start = torch.nn.Linear(4, 3).state_dict()
    found = []
    for parts in (1, 3):
        net = torch.nn.Linear(4, 3)
        net.load_state_dict(start)
        history = trainer(net, epochs=2, batch_size=20, accumulate=parts, **more).run(data, np.arange(50), np.arange(50), seed=0)
        found.append((net.weight.detach(), [one.train_loss for one in history]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


def test_weighted_loss_is_that_of_pytorch():
    data = Dataset({"x": blobs(30).columns["x"]}, np.array([0] * 20 + [1] * 8 + [2] * 2))
    torch.manual_seed(1)
    net = torch.nn.Linear(4, 3)
    weight = torch.tensor([30 / 60, 30 / 24, 30 / 6])
    expected = torch.nn.functional.cross_entropy(net(torch.from_numpy(data.columns["x"])), torch.from_numpy(data.label), weight).item()
    (only,) = trainer(net, epochs=1, batch_size=64, balance="weights").run(data, np.arange(30), np.arange(30), seed=0)
    assert only.train_loss == pytest.approx(expected, rel=1e-6)


def test_the_sampler_draws_every_class_equally_often():
    label = np.array([0] * 900 + [1] * 90 + [2] * 10)
    data = Dataset({"x": np.zeros((1000, 4), np.float32)}, label)
    drawn = trainer(torch.nn.Linear(4, 3), balance="sampler")._order(data, np.arange(1000), np.random.default_rng(0))
    counts = np.bincount(label[drawn])
    assert len(drawn) == 1000 and all(abs(count - 1000 / 3) < 4 * np.sqrt(1000 * 2 / 9) for count in counts)


def test_the_average_of_all_steps_is_what_is_kept():
    """Against the moving average written out: after each step ``0.8 a + 0.2 w``."""
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 3)
    data, steps = blobs(40), []
    made = trainer(net, epochs=3, batch_size=64, learning_rate=0.1, average=0.8)
    inner = made._step
    made._step = lambda *given: (inner(*given), steps.append(net.weight.detach().clone()))[0]
    history = made.run(data, np.arange(40), np.arange(40), seed=0)
    average = steps[0].clone()  # it begins with the first
    averages = [average.clone()]
    for weight in steps[1:]:
        average.mul_(0.8).add_(0.2 * weight)
        averages.append(average.clone())
    torch.testing.assert_close(net.weight.detach(), averages[loop.best(history) - 1])


def test_training_ends_when_nothing_improves():
    data = blobs(60)
    net = torch.nn.Linear(4, 3)
    with torch.no_grad():
        net.weight.copy_(torch.eye(4)[:3] * 9)
        net.bias.zero_()
    wrong = Dataset(data.columns, np.where(np.arange(60) < 30, (data.label + 1) % 3, data.label))
    history = trainer(net, epochs=20, batch_size=10, learning_rate=0.05, warmup=0.0, patience=3).run(wrong, np.arange(30), np.arange(30, 60), seed=0)
    assert loop.best(history) == 1 and len(history) == 4


def test_strategies_train_what_they_say(project, tmp_path):
    _, start = project(epochs=1)
    weights, before = start / "weights.safetensors", tensors(start)
    facts, out = project(weights=weights, strategy="head", epochs=2)
    after = tensors(out)
    assert all(torch.equal(before[name], after[name]) == name.startswith("body") for name in before)
    assert facts["trainable"] == 16 * 3 + 3
    _, out = project(weights=weights, strategy="last", blocks=1, epochs=2)
    assert not torch.equal(before["body.0.weight"], tensors(out)["body.0.weight"])
    _, out = project(weights=weights, strategy="gradual", epochs=4)
    assert [one["trained"] for one in json.loads((out / "training.json").read_text())["epochs"]] == [1, 2, 2, 2]


def test_a_strategy_whose_blocks_are_frozen_is_refused(project):
    with pytest.raises(ConfigError, match=r"trains 'head' alone, which freeze keeps"):
        project(strategy="head", freeze=("head.*",))


def test_weight_decay_spares_biases_and_norms():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    groups = recipe.parameter_groups(net, 0.1)
    assert {group["weight_decay"]: [list(one.shape) for one in group["params"]] for group in groups} == {0.1: [[4, 3]], 0.0: [[4], [4], [4]]}


def test_three_steps_are_those_of_plain_pytorch():
    """One batch an epoch: AdamW, cosine and clipping at 1.0, written out by hand."""
    torch.manual_seed(0)
    net, twin = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    twin.load_state_dict(net.state_dict())
    data, rows = blobs(40), np.arange(40)
    settings = Finetune(epochs=3, batch_size=64, learning_rate=0.3, weight_decay=0.5, warmup=0.0, label_smoothing=0.2)
    trainer = loop.Trainer(calling.Caller(net, ["x"], "cpu"), settings)
    history = trainer.run(data, rows, rows, seed=0)

    x, label = torch.from_numpy(data.columns["x"]), torch.from_numpy(data.label)
    optimizer = torch.optim.AdamW([{"params": [twin.weight], "weight_decay": 0.5}, {"params": [twin.bias], "weight_decay": 0.0}])
    losses, norms, weights = [], [], []
    for rate in (0.3, 0.225, 0.075):  # 0.3 times (1 + cos(k pi / 3)) / 2
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(twin(x), label, label_smoothing=0.2)
        loss.backward()
        norms.append(math.sqrt(sum(float((one.grad**2).sum()) for one in twin.parameters())))
        for one in twin.parameters():
            one.grad /= max(1.0, norms[-1])
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        losses.append(loss.item())
        weights.append(twin.weight.detach().clone())
    assert max(norms) > 1 > min(norms)  # else clipping would not show: AdamW's first step ignores the gradient's size
    assert [one.train_loss for one in history] == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(net.weight.detach(), weights[loop.best(history) - 1])


def test_weights_of_the_best_epoch_are_kept_when_later_ones_are_worse():
    """Rows to learn from carry wrong labels, rows to choose by right ones: every epoch is worse than the one before."""
    data, train, validation = blobs(120), np.arange(60), np.arange(60, 120)
    label = data.label.copy()
    label[train] = (label[train] + 1) % 3
    net = torch.nn.Linear(4, 3)
    with torch.no_grad():
        net.weight.copy_(torch.eye(4)[:3])
        net.bias.zero_()
    settings = Finetune(epochs=6, batch_size=20, learning_rate=0.2, warmup=0.0)
    trainer = loop.Trainer(calling.Caller(net, ["x"], "cpu"), settings)
    history = trainer.run(Dataset(data.columns, label), train, validation, seed=0)
    assert history[0].validation_loss < history[-1].validation_loss
    assert loop.best(history) == 1
    assert trainer.evaluate(data, validation) == (history[0].validation_loss, history[0].validation_accuracy)


class Stopped(BaseException):
    """Stands for a kill: nothing may catch it."""


DROPS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.body(x))
"""


@pytest.mark.parametrize(
    "more", [{}, {"average": 0.9, "balance": "sampler", "accumulate": 2}, {"strategy": "gradual", "patience": 3}, {"mixup": 0.4, "teacher": "start"}]
)
@pytest.mark.parametrize("stop", [1, 17, 29])
def test_a_run_that_is_killed_and_resumed_ends_as_the_unbroken_one(project, monkeypatch, tmp_path, stop, more):
    _, whole = project(DROPS, epochs=4, **more)
    monkeypatch.setattr(checkpoint.Checkpoint, "due", lambda _: True)
    steps, kept = itertools.count(1), tmp_path / "kept"
    kept.mkdir()
    inner = loop.Trainer._step

    def dies(self, *given):
        if next(steps) == stop:
            raise Stopped
        return inner(self, *given)

    monkeypatch.setattr(loop.Trainer, "_step", dies)
    with pytest.raises(Stopped):
        project(DROPS, epochs=4, kept=kept, **more)
    assert (kept / checkpoint.NAME).exists() == (stop > 1)
    _, resumed = project(DROPS, epochs=4, kept=kept, **more)
    assert next(steps) <= 4 * 14 + 3, "it began anew"
    for name in ("weights.safetensors", "training.json"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()


def test_a_damaged_checkpoint_is_none(project, tmp_path):
    (tmp_path / checkpoint.NAME).write_bytes(b"half of a")
    facts, _ = project(epochs=1, kept=tmp_path)
    assert facts["epochs"] == 1
