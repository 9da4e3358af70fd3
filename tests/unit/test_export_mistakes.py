"""What an export is asked for by mistake, said before anything is imported or run."""

from __future__ import annotations

import pytest

import toolkit
from toolkit import plugins
from toolkit.errors import ConfigError


@pytest.mark.parametrize(
    ("model", "said", "hint"),
    [
        ("torchvison:mobilenet_v2", "'torchvison:mobilenet_v2' is no model of a collection", "did you mean 'torchvision'?"),
        ("transfomers:org/model", "'transfomers:org/model' is no model of a collection", "did you mean 'transformers'?"),
        ("torchvision:", "'torchvision:' is no model of a collection", "torchvision"),
    ],
)
def test_a_misspelt_name_is_no_missing_file(model, said, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        toolkit.export(model, format="onnx")
    assert caught.value.message.startswith(said) and hint in caught.value.hint


def test_a_misspelt_format_is_a_mistake_of_the_caller():
    with pytest.raises(ConfigError, match="nothing makes 'onxx'") as caught:
        plugins.routes("pt2", "onxx")
    assert caught.value.hint == "did you mean 'onnx'?"


def test_a_folder_without_model_and_project_is_told_so(tmp_path):
    with pytest.raises(ConfigError, match="holds no model and no project"):
        toolkit.export(tmp_path, format="onnx")
