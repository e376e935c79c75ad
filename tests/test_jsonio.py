"""jsonio: every value that a file may hold can be written as JSON."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sftctl import jsonio
from sftctl.errors import CheckpointError


@dataclass
class Fact:
    name: str
    value: int


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"step": 2**70}, {"step": str(2**70)}),
        ({"step": -(2**70)}, {"step": str(-(2**70))}),
        ({"step": 2**64 - 1}, {"step": 2**64 - 1}),
        ([7**9000], ["an integer of 25267 bits"]),
        ({2**70: 1}, {str(2**70): 1}),
        (["\ud800"], ["\\ud800"]),
        ({"\udcff": 1}, {"\\udcff": 1}),
        (Path("\udcff"), "\\udcff"),
        (Fact("\udcff", 2**70), {"name": "\\udcff", "value": str(2**70)}),
        ((1, [float("nan")]), [1, [None]]),
    ],
)
@pytest.mark.parametrize("dump", [jsonio.dump_line, jsonio.dump_pretty, jsonio.dump_canonical])
def test_values_that_json_lacks_become_text(dump: Any, value: Any, written: Any) -> None:
    assert json.loads(dump(value)) == written


def test_letters_that_a_terminal_may_act_on_are_escapes_of_json() -> None:
    value = {"a\x9b\u202e\x7f\U000e0041": ["Grüße\n👨\u200d👩"]}
    written = jsonio.dump_printable(value)
    assert b'"a\\u009b\\u202e\\u007f\\udb40\\udc41"' in written and "👨\u200d👩".encode() in written
    assert jsonio.loads(written) == value


def test_a_deep_value_is_cut() -> None:
    assert jsonio.dump_line(nested(300)).startswith(b"[" * 100 + '"…"'.encode())


@pytest.mark.parametrize(
    "text", ['{"a":' + "[" * 500 + "]" * 500 + "}", '{"a":' * 200 + "1" + "}" * 200]
)
def test_a_deep_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(CheckpointError, match="x.json: nested deeper than 100 levels"):
        jsonio.read_object(tmp_path / "x.json", CheckpointError)


def test_many_containers_beside_each_other_are_not_deep(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"a": [[[]], {}] * 200}))
    assert len(jsonio.read_object(tmp_path / "x.json", CheckpointError)["a"]) == 400
