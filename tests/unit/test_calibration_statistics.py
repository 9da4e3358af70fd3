"""Calibration statistics against what NumPy says of all values at once."""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.errors import InputRejected
from toolkit.quantization.statistics import BINS, GROUPS, Seen, Statistics


def seen(values: np.ndarray) -> Seen:
    """A batch ``[n x ...]`` of which everything is told, channels on the last axis."""
    flat = values.reshape(len(values), -1)
    table = values.reshape(-1, values.shape[-1])
    return Seen(flat.min(axis=1), flat.max(axis=1), flat, table.min(axis=0), table.max(axis=0), table.mean(axis=0))


def collected(values: np.ndarray, sizes: int = 7) -> Statistics:
    found = Statistics("model")
    for start in range(0, len(values), sizes):
        part = values[start : start + sizes]
        found.add({"x": seen(part)}, len(part))
    return found


def growing(samples: int = 60, seed: int = 0) -> np.ndarray:
    """Samples whose range grows by much, so that bins must be joined often."""
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.uniform(-6, 6, samples)).astype(np.float32)
    return rng.standard_normal((samples, 50, 4), dtype=np.float32) * scales[:, None, None]


def one(statistics: Statistics) -> Any:
    """What was seen of the only tensor."""
    return statistics.tensors["x"]


class TestAdd:
    def test_ends_and_channels_are_those_of_all_values(self) -> None:
        values = growing()
        found = one(collected(values))
        assert (found.low, found.high) == (values.min(), values.max())
        assert found.samples == len(values)
        assert np.array_equal(found.channel_low, values.min(axis=(0, 1)))
        assert np.array_equal(found.channel_high, values.max(axis=(0, 1)))
        assert found.channel_mean == pytest.approx(values.astype(np.float64).mean(axis=(0, 1)), abs=1e-5)

    @pytest.mark.parametrize("seed", range(5))
    def test_histogram_is_that_of_all_values(self, seed: int) -> None:
        values = growing(seed=seed)
        found = one(collected(values))
        width = 2.0**found.exponent
        places = np.floor(values.astype(np.float64).reshape(-1) / width).astype(np.int64) - found.first
        assert places.min() >= 0
        assert np.array_equal(found.counts, np.bincount(places, minlength=len(found.counts)))
        assert found.values == values.size
        assert BINS / 4 < len(found.counts) <= BINS

    def test_values_on_borders_count_to_the_bin_above(self) -> None:
        values = np.arange(-8, 9, dtype=np.float32).reshape(1, -1)
        found = one(collected(values))
        assert found.counts.sum() == 17
        borders = found.edges()[:-1][found.counts > 0]
        assert np.array_equal(borders, np.arange(-8, 9))

    def test_zeros_alone(self) -> None:
        found = collected(np.zeros((3, 4), np.float32))
        assert one(found).counts.sum() == 12
        for method in ("min_max", "moving_average", "percentile", "entropy", "mse"):
            assert found.range("x", method) == (0, 0)

    def test_average_is_the_known_recurrence(self) -> None:
        values = growing()
        expected = float(values[0].max())
        for sample in values[1:]:
            expected = 0.95 * expected + 0.05 * float(sample.max())
        assert one(collected(values)).average_high == pytest.approx(expected, rel=1e-9)

    def test_groups_take_every_64th_sample(self) -> None:
        values = growing(150)
        found = one(collected(values))
        expected = [values[group::GROUPS].max() for group in range(GROUPS)]
        assert np.array_equal(found.group_high, np.array(expected, np.float32))

    def test_nothing_depends_on_the_size_of_batches(self) -> None:
        values = growing()
        few, many = collected(values, sizes=1), collected(values, sizes=60)
        one_, other = one(few), one(many)
        assert np.array_equal(one_.counts, other.counts)
        assert (one_.first, one_.exponent, one_.average_low) == (other.first, other.exponent, other.average_low)

    def test_infinite_values_do_not_break_the_histogram(self) -> None:
        values = np.array([[1.0, 2.0, np.inf]], np.float32)
        found = one(collected(values))
        assert found.high == math.inf


class TestMerged:
    @pytest.mark.parametrize("seed", range(5))
    def test_equals_one_pass(self, seed: int) -> None:
        values = growing(90, seed)
        whole = one(collected(values))
        cut = int(np.random.default_rng(seed).integers(1, 89))
        for shards in ((values[:cut], values[cut:]), (values[cut:], values[:cut])):
            parts = [collected(shard) for shard in shards]
            both = one(parts[0].merged(parts[1]))
            assert (both.low, both.high, both.samples, both.values) == (whole.low, whole.high, 90, whole.values)
            assert (both.first, both.exponent) == (whole.first, whole.exponent)
            assert np.array_equal(both.counts, whole.counts)
            assert np.array_equal(both.channel_low, whole.channel_low)
            assert np.array_equal(both.channel_high, whole.channel_high)

    def test_many_shards_in_any_order(self) -> None:
        values = growing(80)
        parts = [collected(values[start : start + 10]) for start in range(0, 80, 10)]
        forwards, backwards = parts[0], parts[-1]
        for part in parts[1:]:
            forwards = forwards.merged(part)
        for part in parts[-2::-1]:
            backwards = backwards.merged(part)
        assert np.array_equal(one(forwards).counts, one(backwards).counts)
        assert one(forwards).exponent == one(backwards).exponent
        for method in ("min_max", "percentile", "entropy", "mse"):
            assert forwards.range("x", method) == backwards.range("x", method) == collected(values).range("x", method)

    def test_shard_of_zeros(self) -> None:
        values = growing(20)
        values[:10] = 0
        both = one(collected(values[:10]).merged(collected(values[10:])))
        assert np.array_equal(both.counts, one(collected(values)).counts)

    def test_other_models_are_refused(self) -> None:
        with pytest.raises(InputRejected, match="another model"):
            Statistics("a").merged(Statistics("b"))


def laplace(samples: int = 40) -> np.ndarray:
    """Long tails on both sides: where clipping pays off."""
    return np.random.default_rng(1).laplace(0.3, 1, (samples, 500, 4)).astype(np.float32)


def folded(samples: int = 40) -> np.ndarray:
    """As behind a ReLU: half are zero, the others have a tail."""
    return np.maximum(np.random.default_rng(2).laplace(0, 1, (samples, 500, 4)), 0).astype(np.float32)


DISTRIBUTIONS = pytest.mark.parametrize("values", [laplace(), folded(), -folded()], ids=["both sides", "positive", "negative"])


class TestRanges:
    """Against searches over all values in memory, to one bin."""

    @DISTRIBUTIONS
    def test_min_max(self, values: np.ndarray) -> None:
        assert collected(values).range("x", "min_max") == (min(0, values.min()), max(0, values.max()))

    @DISTRIBUTIONS
    def test_percentile(self, values: np.ndarray) -> None:
        found = collected(values)
        ordered, dropped = np.sort(values.reshape(-1)), values.size // 10_000
        expected = ordered[dropped], ordered[-1 - dropped]
        width = 2.0 ** one(found).exponent
        low, high = found.range("x", "percentile")
        assert low == pytest.approx(min(0, expected[0]), abs=width)
        assert high == pytest.approx(max(0, expected[1]), abs=width)

    @DISTRIBUTIONS
    def test_mse(self, values: np.ndarray) -> None:
        """With 4 bits, where the best candidate is clear; with 8 the error's minimum is flat."""
        found = collected(values)
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        errors = [squared_error(values, low * part / 128, high * part / 128, 4) for part in range(1, 129)]
        best = (int(np.argmin(errors)) + 1) / 128
        width = 2.0 ** one(found).exponent
        assert found.range("x", "mse", bits=4) == pytest.approx((low * best, high * best), abs=width)
        least = min(squared_error(values, low * part / 128, high * part / 128, 8) for part in range(1, 129))
        assert squared_error(values, *found.range("x", "mse"), 8) < 1.005 * least

    @DISTRIBUTIONS
    def test_entropy(self, values: np.ndarray) -> None:
        found = collected(values)
        width = 2.0 ** one(found).exponent
        expected = plain_entropy(values.reshape(-1).astype(np.float64), width)
        low, high = found.range("x", "entropy")
        assert low == pytest.approx(max(-expected, min(0, values.min())), abs=width)
        assert high == pytest.approx(min(expected, max(0, values.max())), abs=width)

    def test_methods_clip_tails_and_fewer_bits_clip_more(self) -> None:
        found = collected(laplace())
        ends = {method: found.range("x", method)[1] for method in ("min_max", "percentile", "mse", "entropy")}
        assert ends["min_max"] > ends["percentile"] > 0
        assert ends["min_max"] > ends["mse"]
        assert found.range("x", "mse", bits=4)[1] < ends["mse"]

    def test_unknown_tensor_and_missing_histogram(self) -> None:
        found = Statistics("m")
        found.add({"x": Seen(np.zeros(1, np.float32), np.ones(1, np.float32))}, 1)
        assert found.range("x", "min_max") == (0, 1)
        with pytest.raises(InputRejected, match="no histogram"):
            found.range("x", "mse")
        with pytest.raises(InputRejected, match="do not know"):
            found.range("y", "min_max")


def squared_error(values: np.ndarray, low: float, high: float, bits: int) -> float:
    """What rounding and clipping to a range costs."""
    flat = values.reshape(-1).astype(np.float64)
    step = (high - low) / (2**bits - 1)
    zero = round(-low / step)
    return float(np.square((np.clip(np.rint(flat / step) + zero, 0, 2**bits - 1) - zero) * step - flat).mean())


def plain_entropy(values: np.ndarray, width: float) -> float:
    """Migacz's search as it is told on his slides, with loops: how far from zero the range goes. Bins at zero are as high as their neighbours."""
    places = np.floor(values / width).astype(int)
    held = dict(zip(*(part.tolist() for part in np.unique(places, return_counts=True)), strict=True))
    lowest, highest = min(held), max(held)
    lowest, highest = (0 if lowest == -1 else lowest), (-1 if highest == 0 else highest)
    for border, neighbour in ((0, 1), (-1, -2)):
        held[border] = min(held.get(border, 0), held.get(neighbour, 0))
    best, chosen = math.inf, 0
    for size in range(128 if lowest < 0 <= highest else 256, max(-lowest, highest + 1) + 1):
        first, last = max(lowest, -size), min(highest, size - 1)
        bins = [held.get(place, 0) for place in range(first, last + 1)]
        exact = list(bins)
        exact[0] += sum(count for place, count in held.items() if lowest <= place < first)
        exact[-1] += sum(count for place, count in held.items() if last < place <= highest)
        divergence, levels, inside, everything = 0.0, min(256, len(bins)), sum(bins), sum(exact)
        for level in range(levels):
            part = range(level * len(bins) // levels, (level + 1) * len(bins) // levels)
            filled = [place for place in part if exact[place]]
            for place in filled:
                guess = sum(bins[other] for other in part) / len(filled) / inside
                share = exact[place] / everything
                divergence += share * math.log(share / max(guess, 1e-9))
        if divergence < best:
            best, chosen = divergence, size
    return chosen * width


class TestFile:
    def test_round_trip(self, tmp_path: Path) -> None:
        found = collected(growing())
        found.add({"y": Seen(np.zeros(2, np.float32), np.ones(2, np.float32))}, 2)
        found.write(tmp_path / "s.npz")
        read = Statistics.read(tmp_path / "s.npz")
        read.write(tmp_path / "again.npz")
        assert (tmp_path / "s.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
        assert (read.model_sha256, read.samples, set(read.tensors)) == ("model", 62, {"x", "y"})
        assert read.range("x", "entropy") == found.range("x", "entropy")
        assert read.tensors["y"].counts is None

    def test_goes_on_from_a_file(self, tmp_path: Path) -> None:
        values = growing()
        begun = collected(values[:21])
        begun.write(tmp_path / "s.npz")
        read = Statistics.read(tmp_path / "s.npz")
        for start in range(21, len(values), 7):
            read.add({"x": seen(values[start : start + 7])}, len(values[start : start + 7]))
        read.write(tmp_path / "resumed.npz")
        collected(values).write(tmp_path / "whole.npz")
        assert (tmp_path / "resumed.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()

    @pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
    def test_other_files(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "s.npz").write_bytes(content)
        with pytest.raises(InputRejected, match="not a readable file of statistics"):
            Statistics.read(tmp_path / "s.npz")

    def test_cut_off(self, tmp_path: Path) -> None:
        collected(growing()).write(tmp_path / "s.npz")
        whole = (tmp_path / "s.npz").read_bytes()
        for size in range(0, len(whole), 211):
            (tmp_path / "s.npz").write_bytes(whole[:size])
            with pytest.raises(InputRejected):
                Statistics.read(tmp_path / "s.npz")

    def test_absent(self, tmp_path: Path) -> None:
        with pytest.raises(InputRejected):
            Statistics.read(tmp_path / "absent.npz")

    @pytest.mark.parametrize(
        ("header", "arrays"),
        [
            (b"[]", {}),
            (b"{}", {}),
            (b"\xff", {}),
            (json.dumps({"layout": 2}).encode(), {}),
            (json.dumps({"layout": 1, "model_sha256": "", "samples": 1, "tensors": [{"name": "x"}]}).encode(), {}),
            (json.dumps({"layout": 1, "model_sha256": "", "samples": "many", "tensors": []}).encode(), {}),
            (json.dumps({"layout": 1, "model_sha256": "", "samples": 1, "tensors": 3}).encode(), {}),
            (None, {"0.counts": np.zeros((2, 2), np.int64)}),
            (None, {"0.counts": np.zeros(8, object)}),
            (None, {"0.counts": np.array(["a", "b"])}),
            (None, {"0.counts": np.full(4, -1, np.int64)}),
            (None, {"0.counts": np.zeros(BINS + 1, np.int64)}),
            (None, {"0.channel_low": np.zeros(4, complex)}),
        ],
    )
    def test_hostile(self, header: bytes | None, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
        numbers = dict.fromkeys(("low", "high", "average_low", "average_high", "values", "samples", "first", "exponent"), 0)
        sane = json.dumps({"layout": 1, "model_sha256": "", "samples": 1, "tensors": [{"name": "x", **numbers}]}).encode()
        path = tmp_path / "s.npz"
        with path.open("wb") as stream:
            np.savez(stream, header=np.frombuffer(header if header is not None else sane, np.uint8), **arrays)  # type: ignore[arg-type]
        with pytest.raises(InputRejected):
            Statistics.read(path)

    def test_bomb(self, tmp_path: Path) -> None:
        """An array that claims to be far larger than what is there is refused before room is made for it."""
        claims = io.BytesIO()
        np.lib.format.write_array_header_1_0(claims, {"descr": "<i8", "fortran_order": False, "shape": (1 << 40,)})
        numbers = dict.fromkeys(("low", "high", "average_low", "average_high", "values", "samples", "first", "exponent"), 0)
        header = io.BytesIO()
        text = json.dumps({"layout": 1, "model_sha256": "", "samples": 1, "tensors": [{"name": "x", **numbers}]}).encode()
        np.save(header, np.frombuffer(text, np.uint8))
        with zipfile.ZipFile(tmp_path / "s.npz", "w") as archive:
            archive.writestr("header.npy", header.getvalue())
            archive.writestr("0.counts.npy", claims.getvalue())
        with pytest.raises(InputRejected):
            Statistics.read(tmp_path / "s.npz")
