import hashlib

import numpy as np
import pytest

from toolkit.dataset import Dataset, answers, as_label, load, pieces, release
from toolkit.errors import InputRejected


def example(n=5):
    return Dataset({"b": np.arange(n * 6, dtype=np.float32).reshape(n, 2, 3), "a": np.arange(n, dtype=np.int64)}, np.arange(n) % 2)


def test_folder_and_npz_give_back_what_was_written(tmp_path):
    data = example()
    data.write(tmp_path / "folder")
    np.savez(tmp_path / "file.npz", label=data.label, **data.columns)
    for path in (tmp_path / "folder", tmp_path / "file.npz"):
        found = load(path)
        assert set(found.columns) == {"a", "b"}
        for name, column in data.columns.items():
            assert found.columns[name].dtype == column.dtype
            np.testing.assert_array_equal(found.columns[name], column)
        assert found.label.dtype == np.int64
        np.testing.assert_array_equal(found.label, data.label)


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        example().write(tmp_path / name)
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_folder_is_memory_mapped(tmp_path):
    example().write(tmp_path)
    assert isinstance(load(tmp_path).columns["b"], np.memmap)


@pytest.mark.parametrize("rows", [[3, 0], np.array([1]), slice(1, 4)])
def test_take_keeps_rows_together(rows):
    data = example()
    taken = data.take(rows)
    for name, column in data.columns.items():
        np.testing.assert_array_equal(taken.columns[name], column[rows])
    np.testing.assert_array_equal(taken.label, data.label[rows])


def test_batches_cover_every_row_once_in_order():
    found = list(example(7).batches(3))
    assert [len(batch["a"]) for batch in found] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([batch["a"] for batch in found]), np.arange(7))


def test_digest_is_sha256_of_the_inputs_by_name_and_ignores_the_label():
    data = example()
    expected = hashlib.sha256(data.columns["a"][2].tobytes() + data.columns["b"][2].tobytes()).digest()
    assert data.digests()[2] == expected
    assert Dataset(data.columns, 1 - data.label).digests() == data.digests()
    assert len(set(data.digests())) == 5


def test_digest_does_not_depend_on_memory_layout():
    column = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    fortran = np.asfortranarray(column)
    assert Dataset({"x": fortran}).digests() == Dataset({"x": column}).digests()


@pytest.mark.parametrize(
    ("columns", "label", "message"),
    [
        ({}, None, "no input columns"),
        ({"x": np.zeros((0, 2))}, None, "no samples"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(2)}, None, "differ in length"),
        ({"x": np.zeros((3, 2))}, np.zeros(2, int), "differ in length"),
    ],
)
def test_malformed_columns_are_refused(columns, label, message):
    with pytest.raises(InputRejected, match=message):
        Dataset(columns, label)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (np.array([0.0, 1.0]), r"must be whole numbers, or one text per sample, found \[2\] float64"),
        (np.array([["a"], ["b"]]), r"found \[2, 1\] <U1"),
        (np.array([b"a", b"b"]), r"found \[2\] \|S1"),
        (np.array(3), r"found \[\] int64"),
        (np.array([0, -1]), "class index -1 at sample 1"),
        (np.array([0, -100]), "class index -100 at sample 1"),
        (np.array([[0, -100], [1, 1], [-3, 0]]), "class index -3 at sample 2"),
    ],
)
def test_labels_must_be_class_indices_or_texts(label, words):
    with pytest.raises(InputRejected, match=words) as caught:
        as_label(label, "here")
    assert "column 'label'" in caught.value.message and caught.value.where == "here"


@pytest.mark.parametrize("label", [np.array([[0, -100]] * 5, np.int16), np.zeros((5, 2, 2), np.uint8), np.array(["ab", "", "c", "d", "é"])])
def test_labels_of_parts_and_texts_are_kept_as_they_are(tmp_path, label):
    Dataset(example().columns, label).write(tmp_path)
    found = load(tmp_path).label
    assert found.dtype == label.dtype
    np.testing.assert_array_equal(found, label)


def test_a_task_is_told_what_is_wrong_with_its_labels():
    assert answers(example(), "image-classification") is not None
    with pytest.raises(InputRejected, match=r"column 'label' is \[5\] int64, expected one class index per pixel, \[n x height x width\]"):
        answers(example(), "image-segmentation")
    with pytest.raises(InputRejected, match=r"has no column 'label', found \['a', 'b'\]") as caught:
        answers(Dataset(example().columns), "automatic-speech-recognition")
    assert caught.value.hint == "add label.npy with one text per sample, [n]"


@pytest.mark.parametrize("mapped", [True, False])
def test_pieces_are_all_rows_in_order(tmp_path, monkeypatch, mapped):
    monkeypatch.setattr("toolkit.dataset._PIECE_BYTES", 100)
    example(40).write(tmp_path)
    column = load(tmp_path).columns["b"] if mapped else example(40).columns["b"]
    found = list(pieces(column))
    assert [start for start, _ in found] == list(range(0, 40, 4))
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in found]), example(40).columns["b"])


def test_what_was_changed_in_a_private_mapping_is_not_let_go(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(5000))
    column = np.load(tmp_path / "x.npy", mmap_mode="c")
    column[:] = 1
    release(column[10:])
    assert column.sum() == 5000


def test_damaged_files_are_refused_and_never_unpickled(tmp_path):
    example().write(tmp_path / "cut")
    whole = (tmp_path / "cut" / "b.npy").read_bytes()
    (tmp_path / "cut" / "b.npy").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "pickle.npz", x=np.array([{"a": 1}], dtype=object))
    (tmp_path / "nothing").mkdir()
    for name in ("cut", "empty.npz", "pickle.npz", "nothing", "absent"):
        with pytest.raises(InputRejected) as caught:
            load(tmp_path / name)
        assert name in str(caught.value), name


def test_a_damaged_archive_is_refused_and_closed(tmp_path):
    (tmp_path / "noise.npz").write_bytes(b"PK\x03\x04" + bytes(range(200)))
    with pytest.raises(InputRejected, match="not a readable"):
        load(tmp_path / "noise.npz")
