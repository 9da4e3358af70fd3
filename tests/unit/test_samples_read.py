"""Samples from pictures, tables and saved data sets, against what Pillow, the tokenizer and a plain reading give."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from toolkit.config import PROJECT_FILE, Project, parse
from toolkit.data_origin import Data, Image
from toolkit.dataset import load
from toolkit.errors import ConfigError, InputRejected
from toolkit.job import Job
from toolkit.pipeline.plan import make_plan
from toolkit.samples import dividing, pictures, splits, tables

PIL = pytest.importorskip("PIL.Image")

ROOT = Path(__file__).parents[2]
MRI = ROOT / "../shared/data/medical/brain_mri_train"


def draw(file: Path, seed: int, size: tuple[int, int] = (40, 30), **options) -> np.ndarray:
    """Writes a smooth random picture of a width and a height, and returns its pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    picture = PIL.fromarray(small).resize(size, PIL.Resampling.BICUBIC)
    picture.save(file, **options)
    return np.asarray(picture)


def read(tmp_path: Path, out: str = "out", classes: tuple[str, ...] = (), seed: int = 0, **table) -> tuple[dict, Path]:
    """Runs the stage as a project with this table would."""
    data = Data(classes=classes, **table)
    inputs = {role: path for role, path in (("train", data.train), ("eval", data.eval), ("tokenizer", data.tokenizer)) if path}
    options = {"reading": data.reading(), "classes": list(classes), "seed": seed, "task": "image-classification", "parity_samples": 4}
    folder = tmp_path / out
    folder.mkdir()
    return splits.run(Job({role: Path(path) for role, path in inputs.items()}, options, folder)), folder


@pytest.fixture
def animals(tmp_path) -> Path:
    for number in range(10):
        draw(tmp_path / "animals" / "cat" / f"{number}.png", number)
        draw(tmp_path / "animals" / "dog" / f"{number}.png", 100 + number)
    return tmp_path / "animals"


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_a_picture_is_resized_and_normalized_as_pillow_does_it(tmp_path, resize):
    for split, seed in (("train", 0), ("eval", 50)):
        for number in range(4):
            draw(tmp_path / split / "cat" / f"{number}.png", seed + number)
            draw(tmp_path / split / "dog" / f"{number}.png", seed + 20 + number)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    settings = Image(size=(24, 20), resize=resize, mean=mean, std=std)
    _, out = read(tmp_path, train=tmp_path / "train", eval=tmp_path / "eval", image=settings)
    found = load(out / "eval").columns["image"]
    assert found.dtype == np.float32
    with PIL.open(tmp_path / "eval" / "cat" / "0.png") as opened:
        if resize == "stretch":
            wanted = np.asarray(opened.resize((20, 24), PIL.Resampling.BILINEAR))
        elif resize == "crop":  # 40 x 30 becomes 32 x 24, of which 20 x 24 are cut
            wanted = np.asarray(opened.resize((32, 24), PIL.Resampling.BILINEAR))[:, 6:26]
        else:  # 40 x 30 becomes 20 x 15, with 4 rows above and 5 below
            wanted = np.full((24, 20, 3), [128, 102, 76], np.uint8)
            wanted[4:19] = np.asarray(opened.resize((20, 15), PIL.Resampling.BILINEAR))
    np.testing.assert_allclose(found[0], ((wanted / 255 - mean) / std).transpose(2, 0, 1), atol=1e-5)


def test_exif_palettes_and_grey_are_honoured(tmp_path):
    pixels = draw(tmp_path / "one" / "a" / "x.png", 1, (20, 20))
    turned = PIL.Exif()
    turned[0x0112] = 6  # turn by 90 degrees, clockwise
    PIL.fromarray(pixels).save(tmp_path / "one" / "a" / "turned.png", exif=turned)
    PIL.fromarray(pixels).convert("L").save(tmp_path / "one" / "b" / "grey.png") if (tmp_path / "one" / "b").mkdir() is None else None
    settings = Image(size=20, mean=(0, 0, 0), std=(1, 1, 1)).resolved()
    names = ["a/turned.png", "b/grey.png"]
    column, _, broken = pictures.numbers([tmp_path / "one" / name for name in names], names, settings, tmp_path / "x.npy", lambda *_: None)
    assert not broken
    np.testing.assert_allclose(column[0].transpose(1, 2, 0) * 255, np.rot90(pixels, -1), atol=1e-3)
    assert np.array_equal(column[1][0], column[1][2])


def test_a_split_is_made_by_class_and_stored(animals, tmp_path):
    facts, out = read(tmp_path, train=animals, eval_share=0.3, image=Image(size=8))
    stored = json.loads((out / "split.json").read_text())
    assert sorted(stored["train"] + stored["eval"]) == sorted(f"{one}/{number}.png" for one in ("cat", "dog") for number in range(10))
    assert Counter(name[:3] for name in stored["eval"]) == {"cat": 3, "dog": 3}
    assert facts["class_names"] == ["cat", "dog"] == json.loads((out / "classes.json").read_text())["classes"]
    assert load(out / "eval").label.tolist() == [0 if name.startswith("cat") else 1 for name in stored["eval"]]
    again, other = (read(tmp_path, out=name, train=animals, eval_share=0.3, seed=seed, image=Image(size=8))[1] for name, seed in (("b", 0), ("c", 1)))
    assert json.loads((again / "split.json").read_text()) == stored
    assert json.loads((other / "split.json").read_text()) != stored


def test_the_preprocessing_is_written_down(animals, tmp_path):
    _, out = read(tmp_path, train=animals, image=Image(size=8, resize="pad", column="pixels"))
    told = json.loads((out / "preprocessing.json").read_text())
    assert (told["height"], told["resize"], told["mean"], told["input"], told["order"]) == (8, "pad", [0.485, 0.456, 0.406], "pixels", "RGB")
    assert list(load(out / "train").columns) == ["pixels"]


def test_broken_pictures_are_counted_and_named(animals, tmp_path):
    whole = (animals / "cat" / "3.png").read_bytes()
    (animals / "cat" / "3.png").write_bytes(whole[: len(whole) // 2])
    facts, out = read(tmp_path, train=animals, image=Image(size=8))
    (side,) = facts["broken"]
    assert facts["broken"][side]["count"] == 1
    assert facts["broken"][side]["first"][0]["name"] == "cat/3.png"
    assert len(load(out / "train")) + len(load(out / "eval")) == 19
    assert "cat/3.png" in facts["notes"][0]
    for number in range(4, 8):
        (animals / "dog" / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(InputRejected, match="pictures cannot be read"):
        read(tmp_path, out="more", train=animals, image=Image(size=8))


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(PIL, "MAX_IMAGE_PIXELS", 100)
    draw(tmp_path / "x.png", 1)
    with pytest.raises(InputRejected, match="DecompressionBomb"):
        pictures.numbers([tmp_path / "x.png"], ["x.png"], Image(size=8).resolved(), tmp_path / "out.npy", lambda *_: None)


def test_copies_stay_on_one_side(tmp_path):
    """A file that occurs twice, and the same pixels in files that differ."""
    for number in range(12):
        draw(tmp_path / "set" / "a" / f"{number}.png", number)
        draw(tmp_path / "set" / "b" / f"{number}.png", 100 + number)
        (tmp_path / "set" / "a" / f"copy{number}.png").write_bytes((tmp_path / "set" / "a" / f"{number}.png").read_bytes())
        draw(tmp_path / "set" / "b" / f"again{number}.png", 100 + number, compress_level=1)
    facts, out = read(tmp_path, train=tmp_path / "set", image=Image(size=8))
    train, held = (set(load(out / name).digests()) for name in ("train", "eval"))
    assert not train & held
    stored = json.loads((out / "split.json").read_text())
    side = {name: split for split, names in stored.items() for name in names}
    assert all(side[f"a/{number}.png"] == side[f"a/copy{number}.png"] for number in range(12))
    assert any("were left out" in note for note in facts["notes"])


def test_the_same_picture_in_two_given_splits_is_refused(tmp_path):
    for split in ("train", "eval"):
        for number in range(3):
            draw(tmp_path / split / "a" / f"{number}.png", number + (10 if split == "eval" else 0))
            draw(tmp_path / split / "b" / f"{number}.png", number + 20 + (10 if split == "eval" else 0))
    draw(tmp_path / "eval" / "a" / "leak.bmp", 1)
    with pytest.raises(InputRejected, match="1 of 7 samples are in the train split too"):
        read(tmp_path, train=tmp_path / "train", eval=tmp_path / "eval", image=Image(size=8))


def test_groups_stay_together(tmp_path):
    for patient in range(10):
        for slice_ in range(3):
            draw(tmp_path / "set" / ("ill" if patient % 2 else "well") / f"p{patient}_{slice_}.png", 10 * patient + slice_)
    _, out = read(tmp_path, train=tmp_path / "set", group=r"/p(\d+)_", image=Image(size=8))
    stored = json.loads((out / "split.json").read_text())
    held = Counter(name.partition("_")[0] for name in stored["eval"])
    assert set(held.values()) == {3}
    with pytest.raises(InputRejected, match="matches nothing"):
        read(tmp_path, out="more", train=tmp_path / "set", group="patient", image=Image(size=8))


def test_a_division_gives_every_class_its_share_and_keeps_groups_whole():
    generator = np.random.default_rng(0)
    groups = generator.integers(0, 60, 400).tolist()
    labels = [group % 3 for group in groups]
    train, held = dividing.divide(labels, groups, 0.25, 1, "here")
    assert sorted([*train, *held]) == list(range(400))
    assert not {groups[row] for row in train} & {groups[row] for row in held}
    for one in range(3):
        total, share = labels.count(one), sum(labels[row] == one for row in held)
        assert 0.15 < share / total < 0.35
    with pytest.raises(InputRejected, match="in 1 groups"):
        dividing.divide([0, 1, 0, 1], ["same"] * 4, 0.5, 0, "here")


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "bad", "film", "plot", "of", "the", "year", "dull", "fine"]
ROWS = [
    ("a good film", "good"),
    ("a bad film", "bad"),
    ("the film of the year", "good"),
    ("dull plot", "bad"),
    ("fine plot", "good"),
    ("a dull year", "bad"),
]


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "tokens"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), vocab={word: index for index, word in enumerate(WORDS)}).save_pretrained(
        folder
    )
    return folder


def table(file: Path, rows=tuple(ROWS), names=("sentence", "mood")) -> Path:
    if file.suffix == ".jsonl":
        file.write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows))
    elif file.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        arrow = pytest.importorskip("pyarrow")
        parquet.write_table(arrow.table({name: [row[place] for row in rows] for place, name in enumerate(names)}), file)
    else:
        with file.open("w", newline="") as stream:
            csv.writer(stream, delimiter="\t" if file.suffix == ".tsv" else ",").writerows([names, *rows])
    return file


@pytest.mark.parametrize("suffix", tables.SUFFIXES)
def test_texts_of_a_table_become_the_tokens_of_the_tokenizer(tmp_path, tokenizer, suffix):
    transformers = pytest.importorskip("transformers")
    file = table(tmp_path / f"reviews{suffix}")
    facts, out = read(tmp_path, train=file, text="sentence", label="mood", tokenizer=str(tokenizer), max_length=6, eval_share=0.34)
    stored = json.loads((out / "split.json").read_text())
    assert facts["class_names"] == ["bad", "good"]
    made = transformers.AutoTokenizer.from_pretrained(tokenizer)
    for split in ("train", "eval"):
        data = load(out / split)
        rows = [ROWS[int(name)] for name in stored[split]]
        wanted = made([text for text, _ in rows], padding="max_length", truncation=True, max_length=6)
        assert {name: column.tolist() for name, column in data.columns.items()} == {name: wanted[name] for name in made.model_input_names}
        assert [facts["class_names"][index] for index in data.label] == [mood for _, mood in rows]
    again = transformers.AutoTokenizer.from_pretrained(out / "tokenizer")
    assert again("a good plot").input_ids == made("a good plot").input_ids
    assert json.loads((out / "preprocessing.json").read_text())["max_length"] == 6


def test_pairs_of_texts_and_numbered_classes(tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    rows = [
        (f"{a}", f"{b}", str(index % 2)) for index, (a, b) in enumerate([("a good film", "bad plot"), ("dull", "fine"), ("a", "the"), ("year", "of")])
    ]
    file = table(tmp_path / "pairs.csv", rows, ("first", "second", "label"))
    other = table(tmp_path / "other.csv", [("film", "film", "1")], ("first", "second", "label"))
    facts, out = read(tmp_path, train=file, eval=other, text=("first", "second"), tokenizer=str(tokenizer), max_length=8)
    made = transformers.AutoTokenizer.from_pretrained(tokenizer)
    wanted = made([row[0] for row in rows], [row[1] for row in rows], padding="max_length", truncation=True, max_length=8)
    assert load(out / "train").columns["token_type_ids"].tolist() == wanted["token_type_ids"]
    assert facts["class_names"] == ["0", "1"]
    assert load(out / "train").label.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"text": "sentense"}, "has no column 'sentense', found 'sentence', 'mood'"),
        ({"text": "sentence", "label": "moods"}, "has no column 'moods'"),
        ({}, "data.text names no column"),
        ({"text": "sentence", "label": "mood", "classes": ("good", "great")}, "is of class 'bad'"),
    ],
)
def test_mistakes_in_tables_are_told(tmp_path, tokenizer, change, told):
    with pytest.raises(InputRejected) as caught:
        read(tmp_path, train=table(tmp_path / "reviews.csv"), tokenizer=str(tokenizer), **change)
    assert told in str(caught.value)


def test_damaged_tables_and_empty_values_are_told(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"\n')
    (tmp_path / "y.csv").write_text("text,label\nfine,1\n,0\n")
    (tmp_path / "z.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputRejected, match="not a readable table"):
        tables.read(tmp_path / "x.jsonl", ["text"])
    with pytest.raises(InputRejected, match="column 'text' is empty in row 2"):
        tables.read(tmp_path / "y.csv", ["text", "label"])
    pytest.importorskip("pyarrow")
    with pytest.raises(InputRejected, match="not a readable table"):
        tables.read(tmp_path / "z.parquet", ["text"])


def test_texts_without_a_tokenizer_are_told(tmp_path):
    with pytest.raises(ConfigError, match="need a tokenizer"):
        read(tmp_path, train=table(tmp_path / "reviews.csv"), text="sentence", label="mood")


def test_what_datasets_saved_is_read(tmp_path, animals, tokenizer):
    datasets = pytest.importorskip("datasets")
    files = sorted(animals.glob("*/*.png"))
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["dog", "cat"])})
    rows = {"picture": [str(file) for file in files], "kind": [0 if file.parent.name == "dog" else 1 for file in files]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    facts, out = read(tmp_path, train=tmp_path / "saved", label="kind", image=Image(size=8))
    assert facts["class_names"] == ["dog", "cat"]
    (plain := tmp_path / "plain").mkdir()
    wanted, _, _ = pictures.numbers(files, [file.name for file in files], Image(size=8).resolved(), plain / "x.npy", lambda *_: None)
    stored = json.loads((out / "split.json").read_text())
    np.testing.assert_array_equal(load(out / "eval").columns["image"], wanted[[int(row) for row in stored["eval"]]])
    texts = datasets.Dataset.from_dict({"sentence": [text for text, _ in ROWS], "mood": [mood for _, mood in ROWS]})
    datasets.DatasetDict({"train": texts.select(range(4)), "validation": texts.select([4, 5])}).save_to_disk(tmp_path / "both")
    both = tmp_path / "both"
    facts, out = read(tmp_path, out="t", train=both, eval=both, text="sentence", label="mood", tokenizer=str(tokenizer), max_length=6)
    assert (facts["n_train"], facts["n_eval"], facts["class_names"]) == (4, 2, ["bad", "good"])


def test_arrays_are_split_too(tmp_path):
    label = np.repeat([0, 1], 20)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32), label=label)
    facts, out = read(tmp_path, train=tmp_path / "x.npz", eval_share=0.25)
    assert (facts["n_train"], facts["n_eval"]) == (30, 10)
    stored = json.loads((out / "split.json").read_text())
    assert load(out / "eval").label.tolist() == label[[int(row) for row in stored["eval"]]].tolist()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"factory": "a:b", "train": "x"}, "give either factory, or train and eval files"),
        ({}, "give either factory, or train and eval files"),
        ({"factory": "a:b", "text": "x"}, "a factory prepares its samples itself"),
        ({"train": "x", "image": {"channels": 1, "mean": [0.1, 0.2]}}, "mean has 2 numbers, and pictures have 1 channels"),
        ({"train": "x", "eval": "y", "group": "p"}, "group decides how a split is made"),
    ],
)
def test_tables_that_contradict_themselves_are_refused(change, told):
    with pytest.raises(ValueError, match=told):
        Data(**change)


def test_a_plan_follows_the_files_and_the_tokenizer(tmp_path, tokenizer):
    table(tmp_path / "reviews.csv")
    text = f"""
schema = 1
name = "mood"
task = "text-classification"
targets = ["desktop-ort"]
schemes = ["float32"]
[data]
train = "reviews.csv"
text = "sentence"
label = "mood"
tokenizer = "{tokenizer.name}"
[model]
factory = "m:build"
"""
    step = make_plan(parse(Project, text, PROJECT_FILE), tmp_path).steps[0]
    assert step.files == {"train": tmp_path / "reviews.csv", "tokenizer": tokenizer}
    assert step.options["reading"]["text"] == ["sentence"]


def saved(folder: Path, names: list[str], first_seed: int) -> Path:
    """Saves six pictures of "no", then six of "yes", whose indices follow the order of the names."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    for number in range(12):
        draw(folder.parent / f"{folder.name}-raw" / f"{number}.png", first_seed + number)
    raw = [{"bytes": (folder.parent / f"{folder.name}-raw" / f"{number}.png").read_bytes(), "path": None} for number in range(12)]
    rows = {"image": raw, "label": [names.index("no")] * 6 + [names.index("yes")] * 6}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder)
    return folder


@pytest.mark.parametrize("classes", [(), ("yes", "no")])
def test_classes_of_saved_data_are_told_by_name_whatever_their_order(tmp_path, classes):
    train, held = saved(tmp_path / "one", ["no", "yes"], 0), saved(tmp_path / "two", ["yes", "no"], 50)
    facts, out = read(tmp_path, train=train, eval=held, classes=classes, image=Image(size=8))
    for split in ("train", "eval"):
        assert [facts["class_names"][index] for index in load(out / split).label] == ["no"] * 6 + ["yes"] * 6
    assert not classes or tuple(facts["class_names"]) == classes


def test_folders_whose_names_are_numbers_are_names(tmp_path):
    for place, year in enumerate(("02", "2019")):
        for number in range(5):
            draw(tmp_path / "years" / year / f"{number}.png", 10 * place + number)
    facts, out = read(tmp_path, train=tmp_path / "years", image=Image(size=8))
    assert facts["class_names"] == ["02", "2019"]
    assert set(load(out / "train").label.tolist()) == {0, 1}


def test_sixteen_bits_are_scaled_and_32_are_refused(tmp_path):
    ramp = np.linspace(0, 65535, 64).reshape(8, 8)
    PIL.fromarray(ramp.astype(np.uint16)).save(tmp_path / "deep.png")
    PIL.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tif")
    settings = Image(size=8, mean=(0, 0, 0), std=(1, 1, 1)).resolved()
    column, _, _ = pictures.numbers([tmp_path / "deep.png"], ["deep.png"], settings, tmp_path / "x.npy", lambda *_: None)
    np.testing.assert_allclose(column[0], np.broadcast_to(ramp / 65535, (3, 8, 8)), atol=0.51 / 255)
    with pytest.raises(InputRejected, match="range is unknown"):
        pictures.numbers([tmp_path / "float.tif"], ["float.tif"], settings, tmp_path / "y.npy", lambda *_: None)


def test_a_narrow_picture_does_not_fill_the_memory(tmp_path):
    PIL.new("RGB", (1, 20_000)).save(tmp_path / "narrow.png")
    with pytest.raises(InputRejected, match="too narrow") as caught:
        pictures.numbers([tmp_path / "narrow.png"], ["n"], Image().resolved(), tmp_path / "x.npy", lambda *_: None, where="scans")
    assert caught.value.where == "scans"


def test_the_stored_split_lists_the_rows_that_were_kept(animals, tmp_path):
    whole = (animals / "cat" / "3.png").read_bytes()
    (animals / "cat" / "3.png").write_bytes(whole[: len(whole) // 2])
    with PIL.open(animals / "dog" / "1.png") as opened:
        for level in range(1, 5):  # the same pixels in other bytes
            opened.save(animals / "dog" / f"copy{level}.png", compress_level=level)
    _, out = read(tmp_path, train=animals, image=Image(size=8))
    stored = json.loads((out / "split.json").read_text())
    assert len(stored["eval"]) > 0
    settings = Image(size=8).resolved()
    for split, names in stored.items():
        held = load(out / split)
        wanted, _, _ = pictures.numbers([animals / name for name in names], names, settings, tmp_path / f"{split}.npy", lambda *_: None)
        np.testing.assert_array_equal(held.columns["image"], wanted)
        assert held.label.tolist() == [int(name.startswith("dog")) for name in names]


def test_empty_values_of_saved_data_are_told(tmp_path, tokenizer):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a", None] * 6, "label": [0, 1] * 6}).save_to_disk(tmp_path / "texts")
    with pytest.raises(InputRejected, match=r"column 'text' is empty in row 2"):
        read(tmp_path, train=tmp_path / "texts", text="text", tokenizer=str(tokenizer))


def test_numbers_that_begin_at_one_need_names(tmp_path, tokenizer):
    words = ("good", "film", "bad", "plot", "dull", "fine", "year")
    rows = [(f"{words[row % 7]} {words[row // 7]}", str(1 + row % 5)) for row in range(40)]
    file, options = table(tmp_path / "stars.csv", rows), {"text": "sentence", "label": "mood", "tokenizer": str(tokenizer)}
    with pytest.raises(InputRejected, match="classes 1 to 5 and none that is 0") as refused:
        read(tmp_path, train=file, **options)
    assert 'data.classes = ["1", "2", "3", "4", "5"]' in refused.value.hint
    read(tmp_path, "named", ("1", "2", "3", "4", "5"), train=file, **options)
    assert Counter(load(tmp_path / "named" / "eval").label.tolist() + load(tmp_path / "named" / "train").label.tolist()) == dict.fromkeys(range(5), 8)


def test_a_table_without_a_column_of_texts_is_told(tmp_path):
    (tmp_path / "t.csv").write_text("sentence,label\na,0\nb,1\n")
    with pytest.raises(InputRejected, match=r"data\.text names no column"):
        read(tmp_path, train=tmp_path / "t.csv")


def test_brain_scans_are_read(tmp_path):
    if not MRI.is_dir():
        pytest.skip("../shared/data is not here")
    few = tmp_path / "few"
    for folder in sorted(one for one in MRI.iterdir() if one.is_dir()):
        (few / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:10]:
            (few / folder.name / file.name).symlink_to(file.resolve())
    facts, out = read(tmp_path, train=few, image=Image(size=32))
    assert facts["class_names"] == ["glioma", "meningioma", "notumor", "pituitary"]
    assert (facts["n_train"], facts["n_eval"]) == (32, 8)
    assert load(out / "train").columns["image"].shape == (32, 3, 32, 32)
