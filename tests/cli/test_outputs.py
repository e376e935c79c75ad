"""An output that can't be made is refused before the work, not after it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl.folders import require_makeable
from tests.toys.commands import Result

Sftctl = Callable[..., Result]

COMMANDS = {
    "prepare-data": ["prepare-data", "rows.jsonl", "--output"],
    "train": ["train", "--data", "rows.jsonl", "--model", "tiny", "--output-dir"],
    "export": ["export", "model", "--output"],
    "export of another format": ["export", "model", "--format", "gguf", "--output"],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    Path("model").mkdir()
    Path("model/config.json").write_text("not JSON: it is never read")
    Path("link").symlink_to("nowhere")
    Path("file").write_text("")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("output", ["link", "link/inside", "file/inside", "file"])
def test_a_link_to_nowhere_or_a_file_is_refused_at_once(
    sftctl: Sftctl, here: Path, command: list[str], output: str
) -> None:
    before = sorted(here.rglob("*"))
    result = sftctl(*command, output)
    assert result.exit_code == 2
    assert result.error.startswith(f"error: {output}: ")
    assert "hint: " in result.stderr
    assert sorted(here.rglob("*")) == before


def test_what_can_be_made_is_not_refused(tmp_path: Path) -> None:
    require_makeable(tmp_path / "new" / "deep")
    with pytest.raises(FileExistsError):
        require_makeable(tmp_path)
