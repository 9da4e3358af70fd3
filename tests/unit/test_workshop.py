"""What the workshop of the repair ladder makes, and that a file which could not be made is in nobody's way."""

from __future__ import annotations

import pytest

from toolkit.errors import StageFailed
from toolkit.quantization.workshop import State, Workshop


class Quantizer:
    """Writes what it was asked for, and fails on one scheme."""

    name, format = "some", "onnx"
    schemes = ("broken", "whole")
    methods = ("min_max", "mse")
    needs_calibration = ()

    def quantize(self, model, out, *, scheme, calibration, options):
        if scheme == "broken":
            raise StageFailed("the library fell over", where=self.name)
        out.write_text(options["method"])


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    made = Workshop("onnx", tmp_path / "work", None, "", lambda done, total, note: None)
    monkeypatch.setattr(made, "quantizer", lambda scheme: Quantizer())
    return made


def test_files_are_made_after_one_that_failed(workshop, tmp_path):
    state = State(tmp_path / "float.onnx", "whole")
    first = workshop.make(state)
    with pytest.raises(StageFailed):
        workshop.make(State(state.model, "broken"))
    second = workshop.make(State(state.model, "whole", method="mse"))
    assert (first.read_text(), second.read_text()) == ("min_max", "mse")


def test_a_file_is_made_once(workshop, tmp_path):
    state = State(tmp_path / "float.onnx", "whole")
    first = workshop.make(state)
    first.write_text("kept")
    assert workshop.make(state).read_text() == "kept"
