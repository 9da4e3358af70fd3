"""The verdicts of the comparison of quantizers, its samples, and what it says of a maker that fails."""

from __future__ import annotations

import os
import sys
import time
import wave

import numpy as np
import pytest

from benchmarks.quantization import __main__ as runner
from benchmarks.quantization import cases, keywords
from benchmarks.quantization.verdict import judge, together


def row(maker, right, before=100, n=100, **more):
    answers = "1" * right + "0" * (n - right)
    return {
        "network": "net",
        "format": "onnx",
        "maker": maker,
        "n": n,
        "right": answers,
        "accuracy": [right / n],
        "change": [(right - before) / n],
        **more,
    }


def test_a_file_within_the_interval_of_the_best_peer_holds():
    # By hand: Wilson's ends are 93.00 and 99.45 of 98, 96.30 and 100 of 100, without correlation; Newcombe's method 10 adds their squares.
    lines = judge([row("ours, auto", 98), row("weak", 60), row("strong", 100)])
    assert lines == ["net, onnx: holds, ours, auto -2.00 pp [-7.00, +1.97] to strong, the best peer, n=100"]


def test_a_file_beyond_the_interval_is_missed():
    (line,) = judge([row("ours, auto", 80), row("strong", 99)])
    assert line.startswith("net, onnx: MISSED, ours, auto -19.00 pp")


@pytest.mark.parametrize(("ours", "peer", "said"), [(100, 99, ["holds"]), (99, 99, ["MISSED"]), (99, 98, [])])
def test_the_ladder_is_held_to_half_a_point_only_where_a_peer_is_within_one(ours, peer, said):
    lines = [line for line in judge([row("ours, ladder", ours), row("peer", peer)]) if "to float" in line]
    assert [line.split(": ")[1].split(",")[0] for line in lines] == said


def test_a_file_that_we_did_not_make_is_missed_and_a_peers_is_not():
    lines = judge([row("ours, ladder", 0, reason="fell over"), row("peer", 99), row("other", 0, reason="fell over")])
    assert lines == ["net, onnx: MISSED, ours, ladder made no file: fell over"]


def test_many_comparisons_are_corrected_for_their_number():
    # 8 of 100 answers lost and 1 gained: McNemar's p is 2 * (1 + 9) / 2**9 = 0.039, and 20 of them need 0.0025.
    mine, best = "0" * 8 + "1" + "1" * 91, "1" * 8 + "0" + "1" * 91
    once = [{**row("ours, auto", 92), "right": mine}, row("ours, static", 50), {**row("peer", 99), "right": best}, row("weak", 10)]
    assert together(once) == "1 of 1 comparisons with the best peer are below it beyond their own interval, 1 after Holm's correction"
    many = [{**one, "network": f"net {number}"} for number in range(20) for one in once]
    assert together(many) == "20 of 20 comparisons with the best peer are below it beyond their own interval, 0 after Holm's correction"


def test_what_is_dealt_out_is_in_one_part_alone():
    parts = cases._dealt({"image": np.arange(100.0), "label": np.arange(100)}, calibration=10, search=20, most=50)
    assert {name: len(part["label"]) for name, part in parts.items()} == {"calibration": 10, "search": 20, "eval": 50}
    assert len(np.unique(np.concatenate([part["label"] for part in parts.values()]))) == 80
    assert all((part["image"] == part["label"]).all() for part in parts.values())


def test_the_reason_of_a_maker_is_the_last_thing_it_said(tmp_path):
    made = runner._made("ours, static", tmp_path / "absent.onnx", tmp_path / "vit", tmp_path / "out.onnx")
    assert "absent.onnx" in made["reason"]
    assert "Command exited" not in made["reason"]


@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_a_maker_that_takes_too_long_leaves_no_process(tmp_path, monkeypatch):
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\n{sys.executable} -c 'import time, pathlib; time.sleep(2); pathlib.Path(\"{tmp_path}/late\").touch()' & wait\n")
    slow.chmod(0o755)
    monkeypatch.setattr(runner, "_SECONDS", 0.5)
    monkeypatch.setattr(runner.sys, "executable", str(slow))
    assert runner._made("ours, static", tmp_path / "a.onnx", tmp_path, tmp_path / "out.onnx")["reason"] == "not done after 0.5 s"
    time.sleep(2.5)
    assert not (tmp_path / "late").exists()


def test_spoken_words_are_told_as_tensorflow_tells_them(tmp_path):
    """The features of MLPerf Tiny's reference, by TensorFlow's own operators."""
    tf = pytest.importorskip("tensorflow")
    sound = (6000 * np.sin(np.arange(16_000) ** 1.5 / 900) * np.linspace(0, 1, 16_000)).astype(np.int16)
    for word, length in (("stop", 16_000), ("tree", 12_000)):
        (tmp_path / word).mkdir()
        with wave.open(str(tmp_path / word / "one.wav"), "wb") as stream:
            stream.setparams((1, 2, 16_000, 0, "NONE", ""))
            stream.writeframes(sound[:length].tobytes())
    found = keywords.load(tmp_path)
    assert found["label"].tolist() == [keywords.KEYWORDS.index("stop"), keywords.KEYWORDS.index("unknown")]
    filters = tf.signal.linear_to_mel_weight_matrix(40, 257, 16_000, 20.0, 4000.0)
    for row, length in zip(found["input_1"], (16_000, 12_000), strict=True):
        signal = sound[:length] / np.abs(sound[:length]).max()
        spectrum = tf.abs(tf.signal.stft(np.pad(signal, (0, 16_000 - length)).astype(np.float32), 480, 320, 512))
        expected = tf.signal.mfccs_from_log_mel_spectrograms(tf.math.log(spectrum @ filters + 1e-6))[:, :10]
        assert row.shape == (49, 10, 1)
        np.testing.assert_allclose(row[..., 0], expected, atol=2e-3)
