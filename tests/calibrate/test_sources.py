"""Documents from files, folders and chats, and what is said when there are none."""

import gzip
import json

import pytest

from indexcache.calibrate.sources import Documents, TextSource
from indexcache.errors import DatasetError

TEXTS = ["one document", "another one", "a third", "and a fourth"]


class Chat:
    """A tokenizer with a chat template, as far as sources use one."""

    chat_template = "given"

    def apply_chat_template(self, messages, tokenize):
        assert not tokenize
        return " / ".join(f"{message['role']}: {message['content']}" for message in messages)


class Plain:
    chat_template = None


def read(dataset, tokenizer=Plain, seed=0, **options):
    return list(Documents(TextSource(str(dataset), **options), tokenizer(), seed))


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_reads_json_lines(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    assert sorted(read(path)) == sorted(TEXTS)


def test_reads_csv_parquet_and_text(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.csv").write_text("id,text\n1,from csv\n")
    assert read(tmp_path / "a.csv") == ["from csv"]
    pyarrow.parquet.write_table(pyarrow.table({"content": ["from parquet"]}), tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet") == ["from parquet"]
    (tmp_path / "c.txt").write_text("a whole file\n\nis one document\n")
    assert read(tmp_path / "c.txt") == ["a whole file\n\nis one document\n"]


def test_reads_compressed_files(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "packed"}) + "\n")
    assert read(tmp_path / "a.jsonl.gz") == ["packed"]


def test_reads_a_folder_of_different_files(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "lines"}])
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "b.txt").write_text("plain")
    (tmp_path / "notes.md").write_text("not read")
    assert sorted(read(tmp_path)) == ["lines", "plain"]


def test_the_seed_fixes_the_order(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"document {number}"} for number in range(50)])
    assert read(path, seed=1) == read(path, seed=1)
    assert read(path, seed=1) != read(path, seed=2)


def test_a_repeated_or_blank_document_counts_once_or_not(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in ["same", "same", "  ", "other"]])
    assert sorted(read(path)) == ["other", "same"]


def test_chat_messages_are_rendered(tmp_path):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": messages}])
    assert read(path, Chat) == ["user: hi / assistant: yes"]


def test_names_with_glob_characters_are_names(tmp_path):
    write_jsonl(tmp_path / "a[1].jsonl", [{"text": "this one"}])
    write_jsonl(tmp_path / "a1.jsonl", [{"text": "not this"}])
    assert read(tmp_path / "a[1].jsonl") == ["this one"]


def test_documents_that_differ_in_white_space_only_count_once(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a b"}, {"text": "a  b\n"}])
    assert len(read(path)) == 1


def test_a_named_column_is_read(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "no", "body": "yes"}])
    assert read(path, column="body") == ["yes"]


@pytest.mark.reliability("R12")
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"title": "x"}\n', "no column 'text'"),
        ("a.jsonl", '{"text": 5}\n', "holds int in column 'text'"),
        ("a.jsonl", '{"text": null}\n', "holds nothing in column 'text'"),
        ("a.jsonl", '{"text": "cut off', "cannot be"),
        (
            "a.jsonl",
            '{"text": "whole"}\n{"text": "cut o',
            r"a\.jsonl' cannot be read on after .* line 2 is not JSON",
        ),
        ("a.jsonl", '{"text": "whole"}\n[1, 2]\n', "line 2 holds list, not an object"),
        ("a.jsonl", '{"text": ["a", "b"]}\n', "holds list in column 'text'"),
        ("a.jsonl", '{"messages": "role: user"}\n{"messages": 5}\n', "holds int in column 'messages'"),
        ("a.json", "3", "line 1 holds int"),
        ("a.csv", "id,text\n1,a,b\n2,c,d\n", "more cells than its first line names"),
        ("a.csv", 'id,text\n1,"never closed\n', "never closed, in the row of line 2"),
        ("a.csv", "id,text\n1,\n2,NULL\n", r"holds nothing in column 'text': 2 rows, 0 documents"),
        ("a.csv", "id,title\n", "no column 'text'"),
        ("a.tsv", "text\na\0b\n", "byte 6 is zero"),
        ("a.txt", " \n", "holds nothing in column 'text'"),
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", '{"messages": [{"from": "human", "value": "hi"}]}\n', "without role and content"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "hi"}]}\n', "no chat template"),
        ("a.md", "text", "no text that can be read"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=says) as caught:
        read(tmp_path / name)
    assert "\n" not in caught.value.line()


@pytest.mark.reliability("R12")
@pytest.mark.parametrize("name", ["./nothing", "nothing.jsonl", "/no/such/folder"])
def test_a_missing_path_is_not_sought_on_the_hub(name):
    with pytest.raises(DatasetError, match="does not exist"):
        read(name)


@pytest.mark.reliability("R12")
def test_a_hub_dataset_that_cannot_be_reached_is_one_line():
    with pytest.raises(DatasetError, match="cannot open dataset 'nobody/nothing'") as caught:
        read("nobody/nothing")
    assert "\n" not in caught.value.line()
