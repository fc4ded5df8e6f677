"""Folders of text: saved datasets, downloads from the hub and people's own; splits are kept apart."""

import json
from itertools import chain

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from indexcache.calibrate.sources import Documents, TextSource
from indexcache.errors import DatasetError


class Plain:
    chat_template = None


def documents(path, **options):
    return Documents(TextSource(str(path), **options), Plain(), 0)


def write(path, *texts):
    """A file at ``path`` in its format with one row for each of ``texts``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"id": list(range(len(texts))), "text": list(texts)}), path)
    elif path.suffix == ".txt":
        path.write_text(texts[0])
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def download(folder):
    """What lies beside the data of a dataset of the hub."""
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nAbout it")
    (folder / "dataset_infos.json").write_text('{"default": {"features": {}}}')
    (folder / ".gitattributes").write_text("*.parquet filter=lfs")
    (folder / "LICENSE").write_text("MIT")
    (folder / "LICENSE.txt").write_text("MIT")


LAYOUTS = {
    "shards": {
        "train": ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002-0123abcd.parquet"],
        "test": ["data/test-00000-of-00001.parquet"],
        "validation": ["data/validation-00000-of-00001.parquet"],
    },
    "folders": {"train": ["train/0000.parquet", "train/b.txt"], "test": ["test/0000.parquet"]},
    "folders of a configuration": {"train": ["default/train/0.jsonl"], "validation": ["default/dev/0.jsonl"]},
    "names": {"train": ["train.jsonl"], "test": ["test.jsonl"], "validation": ["validation.jsonl"]},
    "other words": {"train": ["corpus_training.jsonl", "corpus.jsonl"][:1], "validation": ["corpus-val.jsonl"]},
    "c4": {"train": ["en/c4-train.00000-of-00002.json"], "validation": ["en/c4-validation.00000-of-00001.json"]},
    "nameless for training": {"train": ["corpus.jsonl"], "test": ["corpus_test.jsonl"]},
    "their own names": {"train_sft": ["data/train_sft-00000-of-00001.parquet"], "train": ["data/train.jsonl"]},
    "texts": {"train": ["train.txt", "more/train/a.txt"], "test": ["test.txt"]},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_download_of_the_hub_is_read_split_by_split(tmp_path, layout):
    download(tmp_path)
    splits = LAYOUTS[layout]
    for split, names in splits.items():
        for name in names:
            write(tmp_path / name, f"{split} of {name}")
    expected = {split: sorted(f"{split} of {name}" for name in names) for split, names in splits.items()}
    assert sorted(documents(tmp_path)) == expected["train"]
    for split, texts in expected.items():
        assert sorted(documents(tmp_path, split=split)) == texts
    assert sorted(documents(tmp_path, split="all")) == sorted(chain(*expected.values()))
    others = " and ".join(sorted(splits.keys() - {"train"}))
    (note,) = documents(tmp_path).notes
    assert note.startswith(f"split train is read, {others} left alone: ")
    assert all(name in note for split in others.split(" and ") for name in splits[split][:1])
    with pytest.raises(DatasetError, match="has no split 'nonesuch'") as caught:
        documents(tmp_path, split="nonesuch")
    assert caught.value.hint == f"it has {', '.join(sorted(splits))}"


def test_links_as_the_hub_cache_has_them_are_followed(tmp_path):
    write(tmp_path / "blobs" / "a.parquet", "linked")
    (tmp_path / "blobs" / "a.parquet").rename(tmp_path / "blobs" / "0123")
    snapshot = tmp_path / "snapshot"
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data" / "train-00000-of-00001.parquet").symlink_to("../../blobs/0123")
    (snapshot / "again").symlink_to(snapshot, target_is_directory=True)
    assert list(documents(snapshot)) == ["linked"]
    (tmp_path / "blobs" / "0123").unlink()
    with pytest.raises(DatasetError, match="a link to a file that is not there"):
        documents(snapshot)


def test_a_split_named_otherwise_is_read_by_the_word_for_it(tmp_path):
    write(tmp_path / "train.jsonl", "a")
    write(tmp_path / "valid.jsonl", "b")
    for word in ("validation", "valid", "dev"):
        assert list(documents(tmp_path, split=word)) == ["b"]


def test_without_train_a_split_has_to_be_named_unless_there_is_one(tmp_path):
    write(tmp_path / "test.jsonl", "a")
    assert list(documents(tmp_path)) == ["a"]
    write(tmp_path / "validation.jsonl", "b")
    with pytest.raises(DatasetError, match="has no split 'train'") as caught:
        documents(tmp_path)
    assert "test, validation" in caught.value.hint


def test_files_of_no_split_are_left_alone_where_others_are_of_train(tmp_path):
    write(tmp_path / "train.jsonl", "a")
    write(tmp_path / "extra.jsonl", "b")
    read = documents(tmp_path)
    assert list(read) == ["a"]
    assert read.notes == ["1 files that belong to no split are left alone: extra.jsonl"]


def test_titles_of_texts_are_no_splits(tmp_path):
    for name in ("test drive.txt", "the train.txt", "essay.txt"):
        write(tmp_path / name, name)
    assert len(list(documents(tmp_path))) == 3
    with pytest.raises(DatasetError, match="has no split"):
        documents(tmp_path, split="test")


def test_a_saved_dataset_is_read(tmp_path):
    rows = {"id": [1, 2, 3], "text": ["a", "b", None]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved", num_shards=2)
    read = documents(tmp_path / "saved")
    assert sorted(read) == ["a", "b"]
    assert read.notes == ["1 of 3 rows read hold no text and are skipped"]
    with pytest.raises(DatasetError, match="no column 'body'"):
        list(documents(tmp_path / "saved", column="body"))
    with pytest.raises(DatasetError, match="has no split"):
        documents(tmp_path / "saved", split="train")


def test_a_saved_selection_is_read_in_part(tmp_path):
    chosen = datasets.Dataset.from_dict({"text": ["a", "b", "c"]}).select([2, 0])
    chosen.save_to_disk(tmp_path / "saved")
    assert sorted(documents(tmp_path / "saved")) == ["a", "c"]


def test_splits_of_a_saved_dataset_are_kept_apart(tmp_path):
    parts = {name: datasets.Dataset.from_dict({"text": [f"of {name}"]}) for name in ("train", "test", "extra")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert list(documents(tmp_path / "saved")) == ["of train"]
    for name in parts:
        assert list(documents(tmp_path / "saved", split=name)) == [f"of {name}"]
    with pytest.raises(DatasetError, match="no split 'validation'") as caught:
        documents(tmp_path / "saved", split="validation")
    assert caught.value.hint == "it has extra, test, train"


def test_what_is_not_read_never_decides(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "one", "score": 1, "meta": {"x": 1}}\n{"text": "two", "score": "?"}\n'
    )
    (tmp_path / "b.jsonl").write_text('{"meta": [1, "x"], "text": "three"}\n')
    (tmp_path / "c.json").write_text('[{"score": {"a": 1}, "text": "four"}]')
    (tmp_path / "d.csv").write_text("score,text\n1,five\n")
    (tmp_path / "e.csv").write_text("text,score,more\nsix,high,1\n")
    (tmp_path / "f.ndjson").write_text('{"content": "seven"}\n')
    columns = {"score": [1.5], "text": ["eight"]}, {"text": ["nine"], "score": [[1]]}, {"text": ["ten"]}
    for number, table in enumerate(columns):
        pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / f"{number}.parquet")
    large = pyarrow.table({"text": pyarrow.array(["eleven"], pyarrow.large_string())})
    pyarrow.parquet.write_table(large, tmp_path / "3.parquet")
    expected = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
    assert sorted(documents(tmp_path)) == sorted(expected)


@pytest.mark.reliability("R12")
def test_a_file_without_the_column_is_named(tmp_path):
    write(tmp_path / "a.jsonl", "one")
    (tmp_path / "b.jsonl").write_text('{"title": "x"}\n')
    with pytest.raises(DatasetError, match=r"b\.jsonl' has no column 'text'"):
        list(documents(tmp_path))


def test_files_about_a_model_are_left_alone(tmp_path):
    write(tmp_path / "a.jsonl", "text")
    for name in (
        "tokenizer.json",
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "vocab.json",
    ):
        (tmp_path / name).write_text('{"version": "1.0"}')
    (tmp_path / "merges.txt").write_text("a b")
    assert list(documents(tmp_path)) == ["text"]


@pytest.mark.reliability("R12")
@pytest.mark.parametrize(("content", "has"), [("id,score\n1,2\n", "it has 'id', 'score'"), ("{}", "remove")])
def test_a_file_of_a_folder_that_is_no_text_is_to_be_removed(tmp_path, content, has):
    write(tmp_path / "a.jsonl", "one")
    (tmp_path / ("b.json" if content == "{}" else "b.csv")).write_text(content)
    with pytest.raises(DatasetError, match=r"b\..* has no column 'text'") as caught:
        list(documents(tmp_path))
    assert has in caught.value.hint
    assert caught.value.hint.endswith("remove the file from the folder, or give the file with the text itself")


def test_the_files_that_a_split_leaves_out_are_named(tmp_path):
    for name in ("prod/a.jsonl", "dev/a.jsonl", "eval-logs.jsonl"):
        write(tmp_path / name, name)
    read = documents(tmp_path)
    assert list(read) == ["prod/a.jsonl"]
    (note,) = read.notes
    assert "left alone: eval-logs.jsonl, dev/a.jsonl (--dataset-split all reads all)" in note
    for number in range(4):
        write(tmp_path / "dev" / f"{number}.jsonl", f"{number}")
    assert "dev/1.jsonl, and 3 more (" in documents(tmp_path).notes[0]


def test_hidden_and_empty_files_cost_nothing(tmp_path):
    write(tmp_path / "a.jsonl", "kept")
    write(tmp_path / ".ipynb_checkpoints" / "a-checkpoint.jsonl", "hidden")
    write(tmp_path / "__MACOSX" / "a.jsonl", "hidden")
    for name in (".DS_Store", "._a.jsonl", ".hidden.txt"):
        (tmp_path / name).write_bytes(b"\0\xff")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "header.csv").write_text("id,text\n")
    (tmp_path / "mark.csv").write_bytes(b"\xef\xbb\xbf")
    read = documents(tmp_path)
    assert list(read) == ["kept"]
    assert read.notes == ["1 of 4 files are empty"]


def test_a_file_about_the_data_is_read_where_it_is_named(tmp_path):
    write(tmp_path / "README.txt", "words")
    assert list(documents(tmp_path / "README.txt")) == ["words"]
    with pytest.raises(DatasetError, match="no text that can be read"):
        documents(tmp_path)


CARD = """---
configs:
- config_name: one
  data_files:
  - split: train
    path: first/part-*
  - split: extra
    path: [first/more.jsonl]
- config_name: two
  data_files: "second/**"
- config_name: three
  data_dir: third
---
"""


def test_configurations_that_a_card_lists_are_kept_apart(tmp_path):
    for name in ("first/part-1.jsonl", "first/part-2.jsonl", "first/more.jsonl", "second/deep/a.jsonl"):
        write(tmp_path / name, name)
    for name in ("third/train.jsonl", "third/test.jsonl", "unlisted.jsonl"):
        write(tmp_path / name, name)
    (tmp_path / "README.md").write_text(CARD)
    with pytest.raises(DatasetError, match="several subsets") as caught:
        documents(tmp_path)
    assert "one, two, three" in caught.value.hint
    with pytest.raises(DatasetError, match="no subset 'four'"):
        documents(tmp_path, subset="four")
    assert sorted(documents(tmp_path, subset="one")) == ["first/part-1.jsonl", "first/part-2.jsonl"]
    assert list(documents(tmp_path, subset="one", split="extra")) == ["first/more.jsonl"]
    assert list(documents(tmp_path, subset="two")) == ["second/deep/a.jsonl"]
    assert list(documents(tmp_path, subset="three")) == ["third/train.jsonl"]
    assert list(documents(tmp_path, subset="three", split="test")) == ["third/test.jsonl"]
    assert len(list(documents(tmp_path, subset="all"))) == 4


def test_a_card_that_lists_one_configuration_needs_no_name_and_may_be_about_other_files(tmp_path):
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/*\n---\n"
    (tmp_path / "README.md").write_text(card)
    write(tmp_path / "moved.jsonl", "moved")
    assert list(documents(tmp_path)) == ["moved"]
    write(tmp_path / "data" / "a.jsonl", "listed")
    assert list(documents(tmp_path)) == ["listed"]
    with pytest.raises(DatasetError, match=r"is local and has no subset"):
        documents(tmp_path / "data", subset="default")
