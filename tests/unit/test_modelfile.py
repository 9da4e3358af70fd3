"""Models that are one file, and models that are folders."""

import hashlib
import subprocess

import pytest

from toolkit import intake, modelfile, plugins
from toolkit.errors import InputRejected
from toolkit.pipeline import deliver


@pytest.fixture
def saved(tmp_path):
    """A folder as TensorFlow writes it."""
    folder = tmp_path / "net"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "variables.index").write_bytes(b"index")
    return folder


def test_the_digest_of_a_folder_is_what_sha256sum_of_its_files_gives(saved):
    names = ["saved_model.pb", "variables/variables.index"]
    listed = subprocess.run(["sha256sum", *names], cwd=saved, capture_output=True, check=True).stdout
    assert modelfile.sha256(saved) == hashlib.sha256(listed).hexdigest()
    before = modelfile.sha256(saved)
    (saved / "variables" / "variables.index").rename(saved / "variables.index")
    assert modelfile.sha256(saved) != before, "where a file lies counts too"


def test_a_file_has_its_own_digest_and_size(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"abc")
    assert modelfile.sha256(tmp_path / "m.onnx") == hashlib.sha256(b"abc").hexdigest()
    assert modelfile.size_bytes(tmp_path / "m.onnx") == 3


def test_the_size_of_a_folder_is_that_of_its_files(saved):
    assert modelfile.size_bytes(saved) == len(b"graph") + len(b"index")


def test_a_folder_is_known_by_its_suffix_or_by_what_it_holds(saved, tmp_path):
    assert plugins.format_of(saved) == intake.check_model(saved) == "savedmodel"
    renamed = saved.rename(tmp_path / "net.openvino")
    with pytest.raises(InputRejected, match=r"not a usable openvino folder: it has no model\.xml"):
        intake.check_model(renamed)
    (tmp_path / "other").mkdir()
    assert plugins.format_of(tmp_path / "other") is None


def test_links_and_empty_and_too_large_folders_are_refused(saved, tmp_path):
    with pytest.raises(InputRejected, match="10 bytes, the limit is 9"):
        intake.check_model(saved, max_bytes=9)
    (tmp_path / "secret").write_text("x")
    (saved / "assets").symlink_to(tmp_path / "secret")
    with pytest.raises(InputRejected, match="symbolic link"):
        intake.check_model(saved)
    empty = tmp_path / "e.savedmodel"
    empty.mkdir()
    (empty / "saved_model.pb").touch()
    with pytest.raises(InputRejected, match="empty"):
        intake.check_model(empty)


def test_a_delivered_folder_replaces_an_older_one_whole(saved, tmp_path):
    out = tmp_path / "out" / "net.savedmodel"
    out.mkdir(parents=True)
    (out / "stale").touch()
    saved.joinpath("saved_model.pb").chmod(0o444)
    deliver.copy(saved, out)
    assert modelfile.sha256(out) == modelfile.sha256(saved)
    assert [path.name for path in out.parent.iterdir()] == ["net.savedmodel"], "nothing half-written stays behind"
    deliver.copy(saved, out)
