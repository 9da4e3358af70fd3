import hashlib
import itertools
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit import resources
from toolkit.dataset import Dataset, load
from toolkit.errors import ConfigError, InputRejected
from toolkit.job import Job
from toolkit.metrics import CLASSIFICATION, TASKS
from toolkit.samples import calibration, splits


def columns(n, seed=0, classes=3):
    generator = np.random.default_rng(seed)
    return {"x": generator.random((n, 2, 4), dtype=np.float32), "label": np.arange(n) % classes}


def run_splits(tmp_path, evaluation, train=None, **options):
    inputs = {}
    for name, split in (("eval", evaluation), ("train", train)):
        if split is not None:
            inputs[name] = tmp_path / f"given-{name}.npz"
            np.savez(inputs[name], **split)
    (tmp_path / "out").mkdir(exist_ok=True)
    return splits.run(Job(inputs, options, tmp_path / "out"))


def run_factory(tmp_path, monkeypatch, body, **options):
    module = f"factory_{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"
    (tmp_path / f"{module}.py").write_text(f"import random\nimport numpy as np\n\n\ndef load():\n    {body}\n")
    (tmp_path / "out").mkdir(exist_ok=True)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return splits.run(Job({"project": tmp_path}, {"factory": f"{module}:load", **options}, tmp_path / "out"))


def test_splits_of_files_are_written_and_described(tmp_path):
    train, evaluation = columns(9), columns(7, seed=1)
    facts = run_splits(tmp_path, evaluation, train, classes=["a", "b", "c"])
    assert facts == {
        "n_train": 9,
        "n_eval": 7,
        "inputs": {"x": {"dtype": "float32", "shape": [2, 4]}},
        "classes": 3,
        "class_names": ["a", "b", "c"],
        "per_class": {"train": {"a": 3, "b": 3, "c": 3}, "eval": {"a": 3, "b": 2, "c": 2}},
        "notes": [],
    }
    for name, split in (("train", train), ("eval", evaluation)):
        found = load(tmp_path / "out" / name)
        np.testing.assert_array_equal(found.columns["x"], split["x"])
        np.testing.assert_array_equal(found.label, split["label"])


def test_a_lone_evaluation_split_writes_no_train_folder(tmp_path):
    facts = run_splits(tmp_path, columns(4))
    assert (facts["n_train"], facts["n_eval"], facts["class_names"]) == (0, 4, ["0", "1", "2"])
    assert sorted(folder.name for folder in (tmp_path / "out").iterdir()) == ["eval", "parity"]


@pytest.mark.parametrize("with_train", [True, False])
def test_parity_samples_come_from_train_when_there_is_one_and_carry_no_answers(tmp_path, with_train):
    evaluation, train = columns(4), columns(9, seed=1)
    run_splits(tmp_path, evaluation, train if with_train else None, parity_samples=3)
    found = load(tmp_path / "out" / "parity")
    assert found.label is None
    np.testing.assert_array_equal(found.columns["x"], (train if with_train else evaluation)["x"][:3])


def test_factory_is_called_with_seeded_generators(tmp_path, monkeypatch):
    body = 'return {"eval": {"x": np.random.rand(4, 2) + random.random(), "label": [0, 1, 0, 1]}}'
    first = run_factory(tmp_path, monkeypatch, body, seed=3) and load(tmp_path / "out" / "eval").columns["x"].copy()
    again = run_factory(tmp_path, monkeypatch, body, seed=3) and load(tmp_path / "out" / "eval").columns["x"].copy()
    other = run_factory(tmp_path, monkeypatch, body, seed=4) and load(tmp_path / "out" / "eval").columns["x"].copy()
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def put(split, column, *places):
    """Returns the split with values replaced at ``(index, value)`` places."""
    changed = split[column].copy()
    for index, value in places:
        changed[index] = value
    return {**split, column: changed}


TRAIN, EVAL = columns(9), columns(7, seed=1)
SPOILED = {
    "nan": (TRAIN, put(EVAL, "x", ((4, 1, 2), np.nan))),
    "inf": (put(TRAIN, "x", ((3, 0, 0), -np.inf)), EVAL),
    "no label": ({"x": TRAIN["x"]}, EVAL),
    "label range": (TRAIN, put(EVAL, "label", (5, 3))),
    "column": ({**TRAIN, "y": np.zeros(9, np.float32)}, EVAL),
    "shape": (TRAIN, {**EVAL, "x": EVAL["x"].reshape(7, 4, 2)}),
    "dtype": (TRAIN, {**EVAL, "x": EVAL["x"].astype(np.float64)}),
    "text": (TRAIN, {**EVAL, "x": np.array(["a"] * 7)}),
    "empty": (TRAIN, {name: column[:0] for name, column in EVAL.items()}),
    "hollow": (TRAIN, {**EVAL, "x": np.zeros((7, 0), np.float32)}),
    "overlap": (TRAIN, put(EVAL, "x", (2, TRAIN["x"][8]), (6, TRAIN["x"][1]))),
}


@pytest.mark.parametrize(
    ("kind", "split", "message"),
    [
        ("nan", "eval", "column 'x' has nan in sample 4, expected finite numbers"),
        ("inf", "train", "column 'x' has -inf in sample 3, expected finite numbers"),
        ("no label", "train", "has no column 'label', found ['x']"),
        ("label range", "eval", "column 'label' has 3 in sample 5, expected 0..2 (1 such samples)"),
        ("column", "eval", "columns are ['x'], the train split has ['x', 'y']"),
        ("shape", "eval", "column 'x' has samples of [4, 2] float32, those of the train split are [2, 4] float32"),
        ("dtype", "eval", "column 'x' has samples of [2, 4] float64, those of the train split are [2, 4] float32"),
        ("text", "eval", "column 'x' is <U1, expected numbers"),
        ("empty", "eval", "has no samples"),
        ("hollow", "eval", "column 'x' has samples of shape [0], expected at least one value"),
        ("overlap", "eval", "2 of 7 samples are in the train split too; the first is sample 2, which is train sample 8"),
    ],
)
def test_each_refusal_names_split_column_and_sample(tmp_path, kind, split, message):
    train, evaluation = SPOILED[kind]
    with pytest.raises(InputRejected) as caught:
        run_splits(tmp_path, evaluation, train, classes=["a", "b", "c"])
    assert caught.value.message == message
    assert f"given-{split}" in caught.value.where
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 3", "returned int"),
        ('return {"train": {}}', r"returned \['train'\]"),
        ('return {"eval": {}, "test": {}}', r"returned \['eval', 'test'\]"),
        ('return {"eval": [1]}', "is a list"),
        ('return {"eval": {}}', "no input columns"),
        ('return {"eval": {"x": [[1, 2], [3]], "label": [0, 1]}}', "column 'x' is not one array"),
        ('return {"eval": {"x": 1.0, "label": [0, 1]}}', "column 'x' is a float"),
        ('return {"eval": {"x": np.array([1, "a"], dtype=object), "label": [0, 1]}}', "column 'x' is object"),
        ('return {"eval": {"x": [1.0, 2.0], "label": [0.5, 1.0]}}', "column 'label' must be"),
        ('return {"eval": {"../x": [1.0, 2.0], "label": [0, 1]}}', "cannot be a name"),
        ('return {"eval": {"x": [1.0, 2.0], "label": [0]}}', "differ in length"),
    ],
)
def test_what_a_factory_returns_is_checked(tmp_path, monkeypatch, body, message):
    with pytest.raises(InputRejected, match=message):
        run_factory(tmp_path, monkeypatch, body)


def test_oddities_are_noted_but_not_refused(tmp_path):
    train, evaluation = columns(6, classes=2), columns(6, seed=1, classes=2)
    evaluation["label"][0] = 2
    evaluation["x"][5] = evaluation["x"][3]
    facts = run_splits(tmp_path, evaluation, train, classes=["a", "b", "c", "d"])
    assert facts["notes"] == [
        "class 'd' has no evaluation samples",
        "class 'c' is evaluated (1 samples) but never occurs in train",
        "1 of 6 evaluation samples repeat another one",
    ]


def run_calibration(tmp_path, split, **options):
    Dataset({name: column for name, column in split.items() if name != "label"}, split.get("label")).write(tmp_path / "data")
    out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
    out.mkdir()
    facts = calibration.run(Job({"samples": tmp_path / "data"}, {"samples": 12, "min_samples": 4, **options}, out))
    return facts, load(out / "calibration")


def best_apportionment(sizes, count):
    """Brute force: of all ways to give every class at least one seat, the one nearest to the exact shares."""
    exact = [count * size / sum(sizes) for size in sizes]
    ways = (way for way in itertools.product(*(range(1, size + 1) for size in sizes)) if sum(way) == count)
    return min(sum((seats - share) ** 2 for seats, share in zip(way, exact, strict=True)) for way in ways)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.data())
def test_apportionment_is_the_nearest_to_exact_shares(sizes, data):
    count = data.draw(st.integers(len(sizes), sum(sizes)))
    seats = calibration.apportion(sizes, count)
    assert sum(seats) == count
    assert all(1 <= taken <= size for taken, size in zip(seats, sizes, strict=True))
    distance = sum((taken - count * size / sum(sizes)) ** 2 for taken, size in zip(seats, sizes, strict=True))
    assert distance == pytest.approx(best_apportionment(sizes, count))


def test_apportionment_of_a_known_example():
    # The votes of the textbook example of largest remainders, which gives 5, 2, 1, 1, 1, 0 of 10; the last class gets its one
    # from the second, whose 2 lie furthest above the exact share of 1.6.
    votes = [47_000, 16_000, 15_800, 12_000, 6_100, 3_100]
    assert calibration.apportion(votes, 10) == [5, 1, 1, 1, 1, 1]
    assert calibration.apportion(votes, 100) == [47, 16, 16, 12, 6, 3]
    assert calibration.apportion([3, 9, 9, 1], 2) == [0, 1, 1, 0]


def test_stratified_choice_takes_every_class_in_its_share(tmp_path):
    split = columns(100)
    split["label"] = np.repeat([0, 1, 2], [80, 19, 1])
    facts, chosen = run_calibration(tmp_path, split, samples=20)
    rows = [int(np.flatnonzero((split["x"] == row).all(axis=(1, 2)))[0]) for row in chosen.columns["x"]]
    assert Counter(split["label"][rows].tolist()) == {0: 16, 1: 3, 2: 1}
    assert facts["per_class"] == {"0": 16, "1": 3, "2": 1}
    assert len(set(rows)) == facts["n"] == 20
    assert chosen.label is None


def test_choice_depends_on_the_seed_alone(tmp_path):
    shas = [run_calibration(tmp_path, columns(60), seed=seed)[0]["sha256"] for seed in (1, 1, 2)]
    assert shas[0] == shas[1] != shas[2]


def test_random_choice_is_uniform_over_rows():
    counts = np.bincount(np.concatenate([calibration.choose(40, None, 10, seed) for seed in range(2000)]), minlength=40)
    deviation = np.sqrt(2000 * 0.25 * 0.75)  # of a row that is taken with probability 10/40 in each of 2,000 draws
    assert np.abs(counts - 500).max() < 5 * deviation


def test_facts_describe_the_chosen_rows(tmp_path):
    facts, chosen = run_calibration(tmp_path, columns(60), selection="random", value_range=[0, 1])
    column = np.array(chosen.columns["x"])
    assert facts["range"] == {"x": [float(column.min()), float(column.max())]}
    assert facts["sha256"] == hashlib.sha256(b"x float32 (12, 2, 4)\n" + column.tobytes()).hexdigest()
    assert (facts["n"], facts["selection"], facts["notes"]) == (12, "random", [])


def test_samples_of_a_file_need_no_labels(tmp_path):
    np.savez(tmp_path / "mine.npz", x=columns(30)["x"])
    (tmp_path / "out").mkdir()
    facts = calibration.run(Job({"samples": tmp_path / "mine.npz"}, {"samples": 40, "min_samples": 8, "selection": "stratified"}, tmp_path / "out"))
    assert (facts["n"], facts["selection"], facts["per_class"]) == (30, "random", {})
    assert "no labels" in facts["notes"][0]


def scaled(split):
    return {**split, "x": split["x"] * 255}


def holed(split):
    split["x"][7, 0, 0] = np.nan
    return split


def same(split):
    return {**split, "x": np.repeat(split["x"][:1], len(split["x"]), axis=0)}


def repeated(split):
    return {**split, "x": split["x"][np.arange(len(split["x"])) % 5]}


def flat(split):
    return {**split, "x": np.broadcast_to(split["x"][:, :1, :1], split["x"].shape)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (holed, "column 'x' has nan in sample 7"),
        (scaled, r"column 'x' has values 0\.\d+\.\.25\d\.\d+, the recipe says 0\.\.1"),
        (same, "all 12 calibration samples are identical"),
        (repeated, r"\d+ of 12 calibration samples repeat another one"),
        (flat, "column 'x': every one of the 12 calibration samples is constant"),
    ],
)
def test_samples_that_ruin_ranges_are_refused(tmp_path, spoil, message):
    with pytest.raises(InputRejected, match=message):
        run_calibration(tmp_path, spoil(columns(40)), value_range=[0, 1])


def test_too_few_samples_are_refused(tmp_path):
    with pytest.raises(InputRejected, match="has 3 samples, calibration needs at least 4"):
        run_calibration(tmp_path, columns(3))
    with pytest.raises(ConfigError, match="asks for 2 samples, the recipe needs at least 4"):
        run_calibration(tmp_path, columns(40), samples=2)


def test_masks_of_ones_beside_token_ids_are_fine(tmp_path):
    generator = np.random.default_rng(0)
    split = {"ids": generator.integers(0, 99, (20, 8)), "mask": np.ones((20, 8), np.int64), "label": np.arange(20) % 2}
    assert run_calibration(tmp_path, split)[0]["range"]["mask"] == [1, 1]


PIXELS = np.array([[[0, 2], [2, -100]]] * 4 + [[[1, 1], [0, 0]]] * 3)
TEXTS = np.array(["one", "two words", "", "four", "five", "six", "seven"])


def test_parts_of_samples_are_counted_by_class(tmp_path):
    facts = run_splits(tmp_path, {**columns(7), "label": PIXELS}, task="image-segmentation", classes=["a", "b", "c", "d"])
    assert facts["per_class"] == {"eval": {"a": 10, "b": 6, "c": 8, "d": 0}}
    assert (facts["classes"], facts["notes"]) == (4, ["class 'd' has no evaluation samples"])
    np.testing.assert_array_equal(load(tmp_path / "out" / "eval").label, PIXELS)


@pytest.mark.parametrize("label", [TEXTS, np.arange(7 * 200).reshape(7, 200)])
def test_texts_and_token_ids_have_no_classes(tmp_path, label):
    facts = run_splits(tmp_path, {**columns(7), "label": label})
    assert (facts["classes"], facts["class_names"], facts["per_class"], facts["notes"]) == (0, [], {}, [])
    np.testing.assert_array_equal(load(tmp_path / "out" / "eval").label, label)


def test_symbols_of_a_text_are_no_classes_of_samples(tmp_path):
    facts = run_splits(tmp_path, {**columns(7), "label": TEXTS}, task="automatic-speech-recognition", classes=["<pad>", "|", "a"])
    assert (facts["classes"], facts["class_names"], facts["per_class"]) == (3, ["<pad>", "|", "a"], {})


@pytest.mark.parametrize(
    ("label", "task", "message"),
    [
        (PIXELS, "image-classification", r"column 'label' is \[7, 2, 2\] int64, expected one class index per sample, \[n\]"),
        (TEXTS, "text-classification", r"column 'label' is \[7\] <U9, expected one class index per sample, \[n\]"),
        (PIXELS, "image-segmentation", r"column 'label' has 2 in sample 0, expected 0\.\.1 \(4 such samples\)"),
    ],
)
def test_labels_of_another_task_or_beyond_its_classes_are_refused(tmp_path, label, task, message):
    with pytest.raises(InputRejected, match=message):
        run_splits(tmp_path, {**columns(7), "label": label}, task=task, classes=["a", "b"])


@pytest.mark.parametrize(("label", "counts"), [(PIXELS, {"0": 10, "1": 6, "2": 8}), (TEXTS, {})])
def test_samples_without_one_class_each_are_calibrated_at_random(tmp_path, label, counts):
    facts, chosen = run_calibration(tmp_path, {**columns(7), "label": label}, samples=7)
    assert (facts["selection"], facts["per_class"], chosen.label) == ("random", counts, None)
    assert facts["notes"] == ["samples have not one class each: rows are chosen at random instead of class by class"]


def test_every_task_has_a_recipe():
    assert set(resources.recipe_names()) == set(TASKS)
    for task in TASKS:
        recipe = resources.load_recipe(task)
        assert (recipe.task, recipe.selection) == (task, "stratified" if task in CLASSIFICATION else "random")
