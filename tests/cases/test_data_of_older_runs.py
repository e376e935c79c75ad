"""Runs on raw files continue with the day they recorded and the store they were trained on."""

import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from sftctl.config.load import load_config
from sftctl.environment import cache_folder
from tests.toys.commands import Result
from tests.toys.data import CHATML, row, written
from tests.toys.first_sample import TRAIN, VALIDATION
from tests.toys.runs import events_of

Sftctl = Callable[..., Result]
SHORT = ["train", "--data", "rows.jsonl", "--model", "tiny", "--max-steps", 4, "--batch-size", 2]
SHORT += ["--save-interval", 2, "--output-dir", "run"]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "clock.jinja").write_text("{{ strftime_now('%d %b %Y') }}\n" + CHATML)
    return written(tmp_path / "rows.jsonl", [row(f"Name river {n}.") for n in range(6)])


def test_a_run_records_the_day_that_its_template_wrote(sftctl: Sftctl, rows: Path) -> None:
    result = sftctl(*SHORT, "--set", "data.chat_template=clock.jinja")
    assert result.exit_code == 0
    assert f"date: the chat template writes a date: {date.today()}" in result.stderr
    assert load_config(Path("run/config.toml")).data.date == str(date.today())


def test_a_resume_without_its_cache_writes_the_recorded_day_again(
    sftctl: Sftctl, rows: Path
) -> None:
    day = ["--set", "data.date=2026-11-01", "--set", "data.chat_template=clock.jinja"]
    assert sftctl(*SHORT, *day).exit_code == 0
    shutil.rmtree(cache_folder() / "stores")
    result = sftctl("resume", "run", "--step", 2)
    assert (result.exit_code, events_of(Path("run"))[-1]) == (0, "finished")
    assert "--allow" not in result.stdout + result.stderr


def test_a_run_of_older_mask_rules_needs_its_own_store(
    sftctl: Sftctl, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sftctl.data.prepare.fingerprint.MASK_RULES_VERSION", 3)
        assert sftctl(*SHORT).exit_code == 0
    assert sftctl("resume", "run", "--step", 2).exit_code == 0
    shutil.rmtree(cache_folder() / "stores")
    result = sftctl("resume", "run", "--step", 2)
    assert result.exit_code == 4
    assert "the same files, prepared by older mask rules" in result.error
    assert sftctl("resume", "run", "--step", 2, "--allow", "data").exit_code == 0


def test_a_run_on_the_first_sample_needs_its_own_store(
    sftctl: Sftctl, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = [word for word in SHORT if word not in ("--data", "rows.jsonl")]
    with monkeypatch.context() as patch:
        files = (TRAIN, VALIDATION)
        patch.setattr("sftctl.train.preflight.inputs.sample_files", lambda: files)
        assert sftctl(*short).exit_code == 0
    assert sftctl("resume", "run", "--step", 2).exit_code == 0
    shutil.rmtree(cache_folder() / "stores")
    result = sftctl("resume", "run", "--step", 2)
    assert result.exit_code == 4
    assert "the bundled sample changed with this version, and the run's own store" in result.error


def test_a_store_of_an_earlier_version_is_read(sftctl: Sftctl, rows: Path) -> None:
    from sftctl import jsonio
    from sftctl.data.store import TokenStore

    assert sftctl("prepare-data", "rows.jsonl", "--output", "store").exit_code == 0
    path = Path("store/manifest.json")
    values = jsonio.loads(path.read_bytes())
    for later in ("columns", "special_text", "special_text_first", "date", "left_out"):
        del values[later]
    del values["rows_unpadded"], values["audit"]["rows_with_special_text"]
    for remark in (
        "empty_answer",
        "open_thought",
        "empty_question",
        "placeholder",
        "unlisted_call",
        "unknown_token",
    ):
        del values["audit"][f"rows_with_{remark}"]
    for source in values["sources"]:
        for later in ("rows_dropped", "columns_used", "columns_left"):
            del source[later]
    path.write_bytes(jsonio.dump_pretty(values))
    manifest = TokenStore.open(Path("store")).manifest
    assert (manifest.special_text, manifest.date, manifest.left_out) == ("keep", None, [])
    assert sftctl(*SHORT[:2], "store", *SHORT[3:]).exit_code == 0
