"""`sftctl init`: what it finds in the data, the run.toml it writes, and its errors."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sftctl.config.load import load_config
from sftctl.train.preflight.look import suggested_length
from tests.toys.commands import Result
from tests.toys.data import row, written

Sftctl = Callable[..., Result]


def test_init_writes_a_configuration_that_trains(sftctl: Sftctl, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "今天很好"}]
    rows: list[object] = [row(f"Say {n}.", f"It is {n} {'and more ' * (n % 7)}") for n in range(98)]
    written(tmp_path / "chats.jsonl", [*rows, {"messages": messages, "tools": tools}, "{broken"])
    result = sftctl("init", "chats.jsonl", "--model", "tiny", "--chat-template", "chatml")
    assert result.exit_code == 0
    shown = dict(line.split("  ", 1) for line in result.stdout.splitlines() if "  " in line)
    facts = {name.strip(): value.strip() for name, value in shown.items()}
    assert facts["rows"].startswith("98 of 100 rows can be used; ")
    assert "tools_not_rendered 1" in facts["rows"] and "broken_json 1" in facts["rows"]
    assert facts["shapes"] == "alpaca 98, messages 1"
    assert facts["letters"] == "Latin letters 100%"
    assert facts["tools"] == "the chat template does not render the tools of 1 row"
    assert facts["max_seq_len"] == "128: 0.0% of the examples are cut"
    assert result.stdout.endswith(
        "wrote run.toml; next:\n  sftctl train run.toml --dry-run\n  sftctl train run.toml\n"
    )
    text = (tmp_path / "run.toml").read_text()
    assert 'name = "tiny"  # random weights' in text
    config = load_config("run.toml")
    assert (config.data.path, config.data.chat_template) == ("chats.jsonl", "chatml")
    assert (config.data.max_seq_len, config.train.batch_size, config.train.epochs) == (128, 2, 6)
    assert sftctl("train", "run.toml", "--max-steps", 1).exit_code == 0
    found = json.loads(
        sftctl("init", "chats.jsonl", "--model", "tiny", "-o", "b.toml", "--json").stdout
    )
    assert (found["rows_read"], found["config"], found["cut_ratio"]) == (100, "b.toml", 0.0)
    assert found["time_s"] > 0 and found["memory_bytes"] > 10**6
    refused = sftctl("init", "chats.jsonl")
    assert (refused.exit_code, refused.error) == (
        2,
        "error: run.toml: can't be written: File exists",
    )
    assert "hint: name another file with --output" in refused.stderr


def test_data_that_is_not_there_is_one_line_and_no_file(sftctl: Sftctl, tmp_path: Path) -> None:
    result = sftctl("init", "nowhere.jsonl")
    assert (result.exit_code, result.error) == (
        3,
        "error: nowhere.jsonl: no such file or directory",
    )
    assert not (tmp_path / "run.toml").exists()


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([10] * 100, 128), ([100] * 99 + [5000], 128), ([600] * 100, 1024), ([10**6] * 9, 32768)],
)
def test_the_suggested_length_keeps_99_percent_complete(lengths: list[int], expected: int) -> None:
    assert suggested_length(np.array(lengths)) == expected


def test_special_tokens_do_not_count_as_letters(sftctl: Sftctl, tmp_path: Path) -> None:
    row = {"instruction": "三加四等于几？", "output": "三加四等于七。"}
    (tmp_path / "sums.json").write_text(json.dumps([row] * 4))
    result = sftctl("init", "sums.json", "--json")
    assert json.loads(result.stdout)["scripts"] == {"Chinese or Japanese": 1.0}
