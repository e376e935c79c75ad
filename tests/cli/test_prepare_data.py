"""sftctl prepare-data: its screen, its progress line and its own options."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl.cli.show.store import progress_line
from sftctl.data.prepare.builder import Progress
from tests.toys.commands import Result


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (Progress(1200, 9000, 10_000_000, 40_000_000), "1,200 rows, 9,000 tokens, 5.0 MB/s, 25%"),
        (Progress(1200, 9000, 10_000_000, None), "1,200 rows, 9,000 tokens, 5.0 MB/s"),
    ],
)
def test_progress_has_a_rate_and_the_time_left(progress: Progress, line: str) -> None:
    left = ", 0:06 left" if progress.total_bytes else ""
    assert progress_line(progress, 2.0) == line + left


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    turns = [{"role": role, "content": "word " * 20} for role in ("user", "assistant") * 4]
    path.write_text(json.dumps({"messages": turns}) + "\n")
    return path


def test_the_screen_shows_engine_masks_and_split_rows(
    rows: Path, tmp_path: Path, sftctl: Callable[..., Result]
) -> None:
    done = sftctl(
        *("prepare-data", rows, "--output", tmp_path / "s", "--max-seq-len", 100),
        *("--overflow", "split", "--show", 1),
    )
    assert done.exit_code == 0, done.stderr
    assert "kept, split" in done.stdout
    assert "splintr-rs" in done.stdout
    assert "checked against Hugging Face tokenizers on 1 row of this data" in done.stdout
    assert "ok: every example has target tokens; 4 of 4 trained turns end with" in done.stdout
    assert "<|im_start|>assistant\n«word word" in done.stdout


def test_hugging_face_tokenizers_can_be_forced(
    rows: Path, tmp_path: Path, sftctl: Callable[..., Result]
) -> None:
    done = sftctl("prepare-data", rows, "--output", tmp_path / "s", "--engine", "hf", "--json")
    manifest = json.loads(done.stdout)
    assert manifest["engine"].startswith("tokenizers ")
    assert manifest["engine_reason"] == "requested with --engine hf"
    assert manifest["engine_rows_checked"] == 0
    assert manifest["audit"]["passed"] is True


def test_an_unknown_engine_is_a_usage_error(
    rows: Path, tmp_path: Path, sftctl: Callable[..., Result]
) -> None:
    done = sftctl("prepare-data", rows, "--output", tmp_path / "s", "--engine", "magic")
    assert done.exit_code == 2
    assert done.stderr == ("error: --engine magic: no such engine\nhint: known engines: auto, hf\n")


@pytest.mark.parametrize(
    ("missing", "begins"), [("", b"store "), ("no-such-file", b"error: no-such-file")]
)
def test_on_a_terminal_the_progress_line_is_erased_before_the_result(
    rows: Path, tmp_path: Path, missing: str, begins: bytes
) -> None:
    ours, terminal = os.openpty()
    words = ["prepare-data", missing or str(rows), "--output", str(tmp_path / "s")]
    subprocess.run(
        [sys.executable, "-m", "sftctl", *words],
        stdout=terminal,
        stderr=terminal,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    os.close(terminal)
    shown = re.sub(rb"\x1b\[[0-9;]*m", b"", os.read(ours, 65536))  # without bold and colour
    assert b"\r\x1b[K" + begins in shown
    os.close(ours)
