"""What a search says of a quantized file, against plain counting."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from toolkit.artifact import Signature, TensorSpec
from toolkit.dataset import Dataset, load
from toolkit.job import Job
from toolkit.quantization.search import Judged, Search, divergence, lost, right
from toolkit.samples import search as stage
from toolkit.stats.proportions import paired_difference_interval

RNG = np.random.default_rng(0)


class Fake:
    """A runtime whose files are functions."""

    def __init__(self, free, **files):
        self.free, self.files, self.sizes = free, files, []

    def open(self, model, *, threads):
        spec = TensorSpec(name="x", dtype="float32", shape=("batch" if self.free else 1, 4))
        out = TensorSpec(name="scores", dtype="float32", shape=(1, 3))

        def run(feeds):
            self.sizes.append(len(feeds["x"]))
            return {"scores": self.files[model](feeds["x"])}

        return SimpleNamespace(signature=Signature(inputs=(spec,), outputs=(out,)), run=run)


def spoil(x):
    """Scores of the first three columns; samples whose last value is above 1 get another answer."""
    scores = x[:, :3].copy()
    scores[x[:, 3] > 1] = scores[x[:, 3] > 1][:, [1, 2, 0]]
    return scores


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("task", ["image-classification", ""])
def test_a_drop_is_the_paired_loss_of_right_answers(free, task):
    x = RNG.normal(size=(200, 4)).astype(np.float32)
    label = x[:, :3].argmax(1)
    label[::7] = (label[::7] + 1) % 3
    runtime = Fake(free, twin=lambda v: v[:, :3], int8=spoil)
    judged = Search(Dataset({"x": x}, label), runtime, task=task).judge("int8", "twin")
    answer = label if task else x[:, :3].argmax(1)
    reference, candidate = x[:, :3].argmax(1) == answer, spoil(x).argmax(1) == answer
    counts = [(reference & candidate).sum(), (reference & ~candidate).sum(), (~reference & candidate).sum(), (~reference & ~candidate).sum()]
    value, low, high = paired_difference_interval(*map(int, counts))
    assert judged.n == 200
    assert judged.drop == pytest.approx((-value, -high, -low))
    noise = spoil(x) - x[:, :3]
    assert judged.sqnr_db == pytest.approx(10 * np.log10((x[:, :3].astype(float) ** 2).sum() / (noise.astype(float) ** 2).sum()), abs=1e-4)
    assert max(runtime.sizes) == (16 if free else 1)


def test_pixels_and_tokens_count_by_their_share():
    scores = RNG.normal(size=(5, 3, 2, 2)).astype(np.float32)
    label = scores.argmax(1)
    label[0, 0, 0] = (label[0, 0, 0] + 1) % 3
    label[1, 0, 0] = -100
    np.testing.assert_allclose(right(scores, label, scores), [0.75, 1, 1, 1, 1])
    tokens = scores.transpose(0, 2, 3, 1).reshape(5, 4, 3)
    np.testing.assert_allclose(right(tokens, label.reshape(5, 4), tokens), [0.75, 1, 1, 1, 1])


def test_an_output_without_classes_must_be_near_the_float_models():
    reference = np.linspace(-1, 1, 50, dtype=np.float32)[:, None]
    moved = reference + np.where(np.arange(50) % 5 == 0, 0.5, 0.001).astype(np.float32)[:, None]
    assert right(moved, None, reference).mean() == pytest.approx(0.8)


def test_shares_get_the_interval_of_their_mean_difference():
    reference, candidate = np.array([1.0, 0.75, 0.5, 1.0]), np.array([0.75, 0.75, 0.25, 1.0])
    loss = reference - candidate
    value, low, high = lost(reference, candidate)
    half = 1.959964 * loss.std(ddof=1) / 2
    assert (value, low, high) == pytest.approx((loss.mean(), loss.mean() - half, loss.mean() + half))


@pytest.mark.parametrize(
    ("drop", "sqnr_db", "holds"),
    [
        ((0.004, -0.001, 0.009), 5.0, True),
        ((0.004, -0.05, 0.06), 25.0, True),
        ((0.004, -0.05, 0.06), 15.0, False),
        ((0.008, -0.05, 0.06), 25.0, False),
    ],
)
def test_a_search_stops_where_the_interval_holds_or_a_clean_output_has_half_the_budget_to_spare(drop, sqnr_db, holds):
    assert Judged(100, drop, sqnr_db).holds(0.01) is holds


def test_the_better_file_has_more_right_answers_or_the_cleaner_output():
    worse, better, cleaner = (Judged(9, (drop, drop - 0.05, drop + 0.05), db) for drop, db in ((0.2, 40.0), (0.1, 10.0), (0.12, 11.0)))
    assert better.better_than(worse)
    assert not worse.better_than(better)
    assert cleaner.better_than(better)  # a difference of less than the standard error, which is chance
    assert not better.better_than(cleaner)
    assert worse.better_than(None)


def test_where_few_answers_change_probabilities_count_more_than_noise_in_scores_that_are_far_ahead():
    noisy, off = (Judged(500, (0.002, -0.01, 0.014), db, divergence) for db, divergence in ((5.0, 0.011), (16.0, 0.015)))
    assert noisy.better_than(off)
    assert not off.better_than(noisy)


def test_divergence_is_that_of_scipy():
    from scipy.special import softmax
    from scipy.stats import entropy

    expected, found = RNG.normal(size=(2, 50, 7)).astype(np.float32) * 3
    chances = [softmax(one.astype(np.float64), axis=1) for one in (expected, found)]
    truth = entropy(chances[0], chances[1], axis=1).mean()
    assert divergence(expected, found) == pytest.approx(truth, rel=1e-4)
    assert divergence(*(one.astype(np.float32) for one in chances)) == pytest.approx(truth, rel=1e-3)
    assert divergence(expected, expected) == 0
    assert divergence(expected[:, 0], found[:, 0]) is None
    axis_one = [one.T[None] for one in (expected, found)]  # [n x positions x classes] of token classification
    assert divergence(*(np.swapaxes(one, 1, 2) for one in axis_one), label=np.zeros((1, 50), int)) == pytest.approx(truth, rel=1e-4)


def searched(tmp_path, n=100, calibration=30, **options):
    x = RNG.normal(size=(n, 4)).astype(np.float32)
    data = Dataset({"x": x}, np.arange(n) % 2)
    data.write(tmp_path / "train")
    data.take(slice(0, calibration)).write(tmp_path / "calibration")
    inputs = {"samples": tmp_path / "train", "calibration": tmp_path / "calibration"}
    facts = stage.run(Job(inputs, {"samples": 20, "seed": 0, "trained": False, **options}, tmp_path))
    return data, load(tmp_path / "search"), facts


def test_search_samples_are_none_of_the_calibration_samples(tmp_path):
    data, found, facts = searched(tmp_path)
    assert facts == {"n": 20, "held_out": None, "notes": []}
    assert not set(found.digests()) & set(data.take(slice(0, 30)).digests())
    assert set(found.digests()) <= set(data.digests())
    assert found.label.sum() == 10


def test_what_training_held_out_comes_first(tmp_path):
    from toolkit.dataset import hold_out

    data, found, facts = searched(tmp_path, trained=True)
    held = set(data.take(hold_out(data.label, 0)[1]).digests()) - set(data.take(slice(0, 30)).digests())
    assert facts["held_out"] == len(held) < 20
    assert held <= set(found.digests())
    assert facts["notes"] == [f"{20 - len(held)} of 20 samples of the search were trained on, where a model loses less than on new ones"]


def test_nothing_that_was_trained_on_is_added_to_enough_that_was_not(tmp_path):
    _, found, facts = searched(tmp_path, n=1000, samples=500, trained=True)
    assert facts["held_out"] == facts["n"] == len(found) >= 64
    assert facts["notes"] == []


def test_where_calibration_leaves_too_little_its_own_samples_are_used_and_that_is_said(tmp_path):
    _, found, facts = searched(tmp_path, n=35)
    assert len(found) == 20
    assert facts["notes"] == ["calibration left 5 samples: repairs are searched for on its own"]
