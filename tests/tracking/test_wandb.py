"""What W&B writes, read back from its file: a log of protocol buffers in LevelDB's framing."""

import json
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from sftctl.errors import ConfigError
from sftctl.tracking.wandb import INIT_TIMEOUT_S, WandbTracker, require_login
from tests.toys.metrics import step_metrics

BLOCK_BYTES = 32768
WHOLE, LAST = 1, 4


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    wandb.teardown()  # an earlier test's service, so that its address does not come back
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "600")  # this machine may be slow
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "600")
    monkeypatch.setenv("HOME", str(tmp_path))  # nobody's login
    yield
    wandb.teardown()  # it remembers the environment of its first run


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: 7 bytes of header, then (crc, length, kind) and the data."""
    content, at, data = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left_in_block = BLOCK_BYTES - at % BLOCK_BYTES
        if left_in_block < 7:  # too little for a header: zeros
            at += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        data += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (WHOLE, LAST):
            yield Record.FromString(data)
            data = b""


def written(run_dir: Path) -> list[Any]:
    """All records of all sessions, oldest first."""
    wandb.teardown()  # `finish` returns a moment before the service has written all
    files = sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"))
    return [record for file in files for record in records(file)]


def history(run_dir: Path) -> dict[int, dict[str, Any]]:
    """Step -> key -> value."""
    rows = {}
    for record in written(run_dir):
        if record.HasField("history"):
            items = {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            rows[items["_step"]] = items
    return rows


def track(
    run_dir: Path,
    steps: range,
    *,
    resumed: bool = False,
    epochs: int = 2,
    model: Path | None = None,
) -> WandbTracker:
    config = {"train": {"epochs": epochs}, "model": {"name": "tiny"}}
    tracker = WandbTracker(run_dir, "a-project", "abc123", config, resumed=resumed, model=model)
    for step in steps:
        tracker.log(step_metrics(step))
    return tracker


def test_steps_and_evaluations_are_written_under_their_step(tmp_path: Path) -> None:
    tracker = track(tmp_path, range(0))
    tracker.event("evaluation", 0, validation_loss=7.6, num_target_tokens=10)
    tracker.log(step_metrics(1))
    tracker.log(step_metrics(2))
    tracker.event("evaluation", 2, validation_loss=3.1, num_target_tokens=10)
    tracker.event("saved", 2, path="x", num_bytes=1, seconds=0.1)
    tracker.close()
    rows = history(tmp_path)
    assert sorted(rows) == [0, 1, 2]
    assert rows[0]["validation/loss"] == 7.6
    assert rows[2]["validation/loss"] == 3.1
    expected = {
        "train/loss": 3.4121,
        "train/grad_norm": 0.83,
        "train/learning_rate": 9.1e-4,
        "train/epoch": 0,
        "train/tokens_per_s": 5120.0,
        "data/wait_s": 0.001,
        "data/num_padding_tokens": 8,
    }
    for step in (1, 2):
        assert {key: rows[step][key] for key in expected} == expected


def test_every_step_of_a_long_run_is_written(tmp_path: Path) -> None:
    track(tmp_path, range(1, 501)).close()
    assert sorted(history(tmp_path)) == list(range(1, 501))


def test_the_run_has_its_id_project_name_and_config(tmp_path: Path) -> None:
    track(tmp_path, range(1, 2)).close()
    run = next(record.run for record in written(tmp_path) if record.HasField("run"))
    assert (run.run_id, run.project, run.display_name) == ("abc123", "a-project", tmp_path.name)
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["train"] == {"epochs": 2}


def test_a_resumed_run_goes_on_under_the_same_id_with_a_grown_config(tmp_path: Path) -> None:
    track(tmp_path, range(1, 4)).close()
    time.sleep(1.1)  # W&B names a session's folder by the second
    track(tmp_path, range(4, 6), resumed=True, epochs=3).close()
    assert sorted(history(tmp_path)) == [1, 2, 3, 4, 5]
    ids = {record.run.run_id for record in written(tmp_path) if record.HasField("run")}
    assert ids == {"abc123"}


@pytest.mark.parametrize(("ending", "code"), [("finished", 0), ("stopped", 0), (None, 1)])
def test_only_a_run_that_ended_well_has_exit_code_0(
    tmp_path: Path, ending: str | None, code: int
) -> None:
    tracker = track(tmp_path, range(1, 2))
    if ending:
        tracker.event(ending, 1, signal="SIGTERM")
    tracker.close()
    tracker.close()
    codes = [record.exit.exit_code for record in written(tmp_path) if record.HasField("exit")]
    assert codes == [code]


def test_nothing_is_printed(tmp_path: Path) -> None:
    session = (
        "from pathlib import Path; from tests.tracking.test_wandb import track\n"
        f"track(Path({str(tmp_path)!r}), range(1, 3)).close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", session],
        capture_output=True,
        cwd=Path(__file__).parents[2],
        timeout=600,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_nobody_logged_in_is_a_usage_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(ConfigError) as caught:
        track(tmp_path, range(0))
    assert caught.value.message.startswith("tracking.wandb: No API key configured.")
    assert caught.value.hint is not None and "WANDB_MODE=offline" in caught.value.hint


def test_a_service_that_cannot_be_reached_means_logging_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    tracker = track(tmp_path, range(1, 3))
    assert tracker.warning is not None
    assert re.match("W&B can't be reached .* logging offline, .* wandb sync", tracker.warning)
    tracker.close()
    assert sorted(history(tmp_path)) == [1, 2]


def test_the_git_commit_of_the_working_directory_is_written(tmp_path: Path) -> None:
    for words in (
        ["init", "-q"],
        ["remote", "add", "origin", "https://example.invalid/x.git"],
        ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *words], check=True, cwd=tmp_path)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, cwd=tmp_path)
    track(tmp_path, range(1, 2)).close()
    commits = {record.run.git.commit for record in written(tmp_path) if record.HasField("run")}
    assert commits == {commit.stdout.decode().strip()}


def test_samples_are_one_growing_table_at_the_step_of_their_evaluation(tmp_path: Path) -> None:
    tracker = track(tmp_path, range(1, 2))
    for step in (1, 2):
        tracker.event("evaluation", step, validation_loss=3.0, num_target_tokens=10)
        for number in (0, 1):
            texts = {"prompt": "?", "reply": f"{step}.{number}", "reference": "!"}
            tracker.event("sample", step, number=number, **texts)
        tracker.log(step_metrics(step + 1))
    tracker.close()
    name = "validation/samples"
    rows = history(tmp_path)
    assert {step: row.get(f"{name}/nrows") for step, row in rows.items()} == {1: 2, 2: 4, 3: None}
    folder = next((tmp_path / "wandb").glob("offline-run-*/files"))
    last = json.loads((folder / rows[2][f"{name}/path"]).read_text())
    assert last["columns"] == ["step", "number", "prompt", "reply", "reference"]
    assert [row[3] for row in last["data"]] == ["1.0", "1.1", "2.0", "2.1"]


@pytest.mark.parametrize("ending", ["finished", "stopped"])
def test_the_model_of_a_finished_run_is_uploaded_if_asked_for(tmp_path: Path, ending: str) -> None:
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "config.json").write_text("{}")
    tracker = track(tmp_path, range(1, 2), model=tmp_path / "final")
    tracker.event(ending, 1, signal="SIGTERM")
    tracker.close()
    logged = [
        record.request.log_artifact.artifact
        for record in written(tmp_path)
        if record.HasField("request") and record.request.HasField("log_artifact")
    ] + [record.artifact for record in written(tmp_path) if record.HasField("artifact")]
    if ending == "stopped":
        assert logged == []
    else:
        (artifact,) = logged
        assert (artifact.name, artifact.type) == ("model-abc123", "model")
        assert [entry.path for entry in artifact.manifest.contents] == ["config.json"]


def test_the_wait_for_a_missing_service_is_shorter_than_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WANDB_INIT_TIMEOUT")
    assert wandb.Settings().init_timeout > INIT_TIMEOUT_S


def test_a_missing_login_is_refused_before_the_run_and_offline_needs_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_login()
    wandb.teardown()
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(ConfigError) as caught:
        require_login()
    assert caught.value.message == "tracking.wandb: not logged in"
    assert caught.value.hint is not None and "WANDB_MODE=offline" in caught.value.hint
