import hashlib
import json

import pytest

from sftctl.data.sources import hash_source, read_rows
from sftctl.errors import DataError


def rows_of(path):
    return [(source.line, row) for source, row in read_rows(path)]


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_json_lines_are_read_with_their_line_numbers(tmp_path):
    path = written(tmp_path, "a.jsonl", '\ufeff{"a": 1}\n\n  \r\n{"a": "é\u2028"}\r\n{"a": 3}')
    assert rows_of(path) == [(1, {"a": 1}), (4, {"a": "é\u2028"}), (5, {"a": 3})]


def test_json_lines_are_streamed(tmp_path):
    path = written(tmp_path, "a.jsonl", '{"a": 1}\n{broken')
    rows = read_rows(path)
    assert next(rows)[1] == {"a": 1}


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_gives_the_line_on_which_each_row_begins(tmp_path, indent):
    values = [{"a": i, "b": {"text": "x\n，🤖"}} for i in range(5)]
    text = "\ufeff\n" + json.dumps(values, indent=indent, ensure_ascii=False)
    path = written(tmp_path, "a.json", text)
    lines = text.split("\n")
    for number, (line, row) in enumerate(rows_of(path)):
        assert row == values[number]
        assert "{" in lines[line - 1]
    expected = [2 + 1 + 6 * i for i in range(5)] if indent else [2] * 5
    assert [line for line, _ in rows_of(path)] == expected


def test_json_lines_may_be_called_json(tmp_path):
    assert rows_of(written(tmp_path, "a.json", '{"a": 1}\n{"a": 2}\n')) == [
        (1, {"a": 1}),
        (2, {"a": 2}),
    ]


def test_a_source_is_hashed_by_content(tmp_path):
    path = written(tmp_path, "a.jsonl", "{}")
    assert hash_source(path) == hashlib.sha256(b"{}").hexdigest()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", ": no rows in this file"),
        ("a.jsonl", "\n \n", ": no rows in this file"),
        ("a.json", "", ": no rows in this file"),
        ("a.json", "[ ]", ": no rows in this file"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', ":2: broken JSON at column "),
        ("a.jsonl", '{"a": "\\ud800"}\n', ":1: broken JSON at column "),
        ("a.json", '{"a": 1}\n{"a": \n', ":2: broken JSON at column "),
        ("a.json", '[{"a": 1},\n{"a": }]', ":2: broken JSON at column 7: "),
        ("a.json", '[{"a": 1},\n{"a": "\\ud800"}]', ":2: broken JSON at column "),
        ("a.json", '[{"a": 1}\n{"a": 2}]', ":2: broken JSON at column 1: expected ',' or ']'"),
        ("a.json", '[{"a": 1},\n', ":2: broken JSON at column "),
        ("a.json", '[{"a": 1},\n]', ":2: broken JSON at column 1: "),
        ("a.json", '[{"a": 1}]\n{}', ":2: broken JSON at column 1: more text after the array"),
        ("a.json", '[{"a": 1},\n\n{"a": NaN}]', ":3: broken JSON at column "),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', ":2: invalid UTF-8"),
        ("a.json", b'[{"a": 1},\n{"a": "\xff"}]', ":2: invalid UTF-8"),
        ("a.jsonl", '{"a": 1}\n[1]\n', ":2: a row must be a JSON object, this is a list"),
        ("a.json", '[{"a": 1},\n"b"]', ":2: a row must be a JSON object, this is a str"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    assert caught.value.message.startswith(f"{path}{message}")


@pytest.mark.parametrize("read", [lambda path: list(read_rows(path)), hash_source])
def test_a_missing_file_and_a_folder_are_data_errors(tmp_path, read):
    with pytest.raises(DataError, match=r"none\.jsonl: no such file or directory"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=f"{tmp_path}: is a directory"):
        read(tmp_path)
