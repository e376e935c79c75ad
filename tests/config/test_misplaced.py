"""Files and folders in the place of the TOML file: what they are, and the command that is meant."""

from pathlib import Path

import pytest

from sftctl.config.load import load_config
from sftctl.errors import ConfigError

FILES = {
    "chats.jsonl": '{"messages": []}\n',
    "rows.json.gz": "",
    "rows": '[\n  {"instruction": "x"}]',
    "table.csv": "prompt,completion\na,b\n",
    "run.yaml": "train:\n  epochs: 2\n",
    "config": "epochs: 2\n",
    "broken.toml": "[train\nepochs: 2\n",
}
FOLDERS = {"run": "run.json", "store": "manifest.json", "model": "config.json", "rows.d": "a.jsonl"}

DATA = "this is data, not a configuration"
YAML = "YAML is not read: a configuration is TOML"


@pytest.mark.parametrize(
    ("name", "problem", "hint"),
    [
        ("chats.jsonl", DATA, "sftctl train --data chats.jsonl"),
        ("rows.json.gz", DATA, "sftctl train --data rows.json.gz"),
        ("rows", DATA, "sftctl train --data rows"),
        ("table.csv", DATA, "sftctl train --data table.csv"),
        ("run.yaml", YAML, "sftctl train --print-config > run.toml"),
        ("config", YAML, "sftctl train --print-config > run.toml"),
        ("broken.toml", "not TOML", "key = value"),
        ("run", "this is a run, not", "sftctl resume run"),
        ("store", "this is a token store, not", "sftctl train --data store"),
        ("model", "this is a model directory, not", "sftctl train --model model"),
        ("rows.d", "this is a folder, not", "sftctl train --data rows.d"),
    ],
)
def test_a_file_that_is_not_a_configuration_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, problem: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for file, text in FILES.items():
        Path(file).write_text(text) if text else Path(file).write_bytes(b"\x1f\x8b\x08\x00")
    for folder, file in FOLDERS.items():
        Path(folder).mkdir()
        Path(folder, file).touch()
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    assert caught.value.message.startswith(f"{name}: {problem}")
    assert hint in str(caught.value.hint)
