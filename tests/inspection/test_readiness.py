"""Whether a run's checkpoint can be resumed here and now; if not, why, and what to do about it."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sftctl import jsonio
from sftctl.checkpoint.layout import manifest_hash_line
from sftctl.data.manifest import cached_store
from sftctl.environment import cache_folder
from sftctl.errors import DataError, SftctlError
from sftctl.inspection.inspect import inspect_path
from sftctl.inspection.inspection import Inspection
from sftctl.train.resume import ResumeRequest, plan_request
from tests.toys.runs import metrics_of, toy_config

LAST = "step-00000012"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def checkpoint(run: Path, step: int = 12) -> Inspection:
    return inspect_path(run / "checkpoints" / f"step-{step:08d}")


def test_a_run_lists_all_its_checkpoints(run: Path) -> None:
    report = inspect_path(run, verify=True).to_json()
    rows, lines = report["checkpoints"], metrics_of(run)
    assert [row["loss"] for row in rows] == [line["loss"] for line in lines]
    assert [row["learning_rate"] for row in rows] == [line["learning_rate"] for line in lines]
    assert all(row["resumable"] and row["verified"] for row in rows)
    assert report["data_store"]["fits"] is True
    assert report["rng"]["seed"] == toy_config(run.parent).train.seed
    assert report["advice"] == f"sftctl resume {run} --epochs N   (to train longer)"
    assert report["notes"] == ["finished: every step is trained"]


def test_the_next_learning_rate_is_the_one_that_was_used(run: Path) -> None:
    rates = [line["learning_rate"] for line in metrics_of(run)]
    for step in (1, 6, 11):
        assert checkpoint(run, step).next_learning_rate == rates[step]
    assert checkpoint(run).next_learning_rate is None


def test_an_older_checkpoint_is_resumed_by_its_step(run: Path) -> None:
    report = checkpoint(run, 5)
    assert report.resumable
    assert report.advice == f"sftctl resume {run} --step 5   (moves later ones away)"


def test_a_run_that_was_shortened_is_finished_by_its_new_number_of_steps(run: Path) -> None:
    for step in range(6, 13):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("[train]\n", "[train]\nmax_steps = 5\n"))
    report = inspect_path(run)
    assert report.facts["total_steps"] == 12
    assert "train.max_steps: None -> 5" in report.notes[0]
    assert report.notes[1:] == ["finished: config.toml now asks for 5 steps"]


def test_a_checkpoint_alone_is_not_resumable(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "checkpoints" / LAST, tmp_path / "x" / "y" / LAST)
    report = inspect_path(tmp_path / "x" / "y" / LAST)
    assert (report.complete, report.problems, report.resumable) == (True, [], False)
    assert report.obstacles == [
        f"{tmp_path / 'x'}: not a run directory (no run.json and config.toml)"
    ]
    assert report.advice == "put it back into RUN/checkpoints of its run"


@pytest.mark.parametrize("others", [True, False])
def test_a_checkpoint_under_another_name_is_not_resumable(run: Path, others: bool) -> None:
    copy = run / "checkpoints" / "before-the-change"
    (run / "checkpoints" / LAST).rename(copy)
    for path in [] if others else (run / "checkpoints").glob("step-*"):
        shutil.rmtree(path)
    report = inspect_path(copy)
    assert (report.complete, report.resumable) == (True, False)
    assert report.obstacles == [f"a resume looks only at folders named like {LAST}"]
    assert report.advice == f"rename it to {LAST}"


def test_a_link_to_a_checkpoint_has_the_verdict_of_the_checkpoint(run: Path) -> None:
    (run / "checkpoints" / "latest").symlink_to(LAST)
    report = inspect_path(run / "checkpoints" / "latest")
    assert report.resumable and report.advice is not None
    assert report.advice == f"sftctl resume {run} --epochs N   (to train longer)"


Harm = Callable[[Path], object]


@pytest.mark.parametrize(
    ("harm", "why", "advice"),
    [
        (
            lambda run: (run / "model/config.json").unlink(),
            "model/config.json: missing",
            "put back",
        ),
        (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl: missing", "restore it"),
        (lambda run: (run / "config.toml").unlink(), "config.toml: missing", "put it back"),
        (lambda run: (run / "config.toml").write_text("[x"), "config.toml", "write `key"),
    ],
)
def test_a_missing_file_is_named(run: Path, harm: Harm, why: str, advice: str) -> None:
    harm(run)
    report = checkpoint(run)
    assert (report.complete, report.resumable) == (True, False)
    assert why in report.obstacles[0]
    assert report.advice is not None and report.advice.startswith(advice)


def test_missing_data_is_named(run: Path, tmp_path: Path) -> None:
    text = (run / "config.toml").read_text()
    [path] = [line.split('"')[1] for line in text.splitlines() if line.startswith("path =")]
    (run / "config.toml").write_text(text.replace(path, "/nowhere/toy.jsonl"))
    report = checkpoint(run)
    assert report.obstacles == ["data.path: /nowhere/toy.jsonl: missing"]
    assert report.data_store == {"path": "/nowhere/toy.jsonl", "fits": None, "why": "missing"}
    assert report.advice == (
        f"data.path in {run / 'config.toml'} names it: put it back, or correct the key"
    )


def in_a_store(run: Path, tmp_path: Path, **values: object) -> None:
    """Make the run's configuration name a store whose manifest has these values."""
    fingerprint = checkpoint(run).facts["data_fingerprint"]
    store = tmp_path / "store"
    shutil.copytree(cache_folder() / "stores" / fingerprint[:32], store)
    manifest = jsonio.read_object(store / "manifest.json", DataError)
    (store / "manifest.json").write_bytes(jsonio.dump_pretty(manifest | values))
    text = (run / "config.toml").read_text()
    [path] = [line.split('"')[1] for line in text.splitlines() if line.startswith("path =")]
    (run / "config.toml").write_text(text.replace(path, str(store)))


def test_a_store_that_fits_is_reported(run: Path, tmp_path: Path) -> None:
    in_a_store(run, tmp_path)
    report = checkpoint(run)
    assert report.resumable and report.data_store is not None
    assert report.data_store["fits"] is True
    assert "data.path" in report.notes[0] and "--dry-run` says what that means" in report.notes[0]


def test_other_data_with_the_same_number_of_steps_may_be_allowed(run: Path, tmp_path: Path) -> None:
    in_a_store(run, tmp_path, fingerprint="0" * 64)
    report = checkpoint(run)
    assert "is not what it was trained on" in report.obstacles[0]
    assert report.advice == f"sftctl resume {run} --allow data   (only if you want that)"


def test_other_data_with_another_number_of_steps_is_impossible(run: Path, tmp_path: Path) -> None:
    in_a_store(run, tmp_path, fingerprint="0" * 64, num_examples=100)
    report = checkpoint(run)
    assert "25 steps per epoch, not 6" in report.obstacles[0]
    assert report.advice == "undo the change, or start a new run with `sftctl train`"


def test_damage_is_a_problem_and_not_an_obstacle(run: Path) -> None:
    next((run / "checkpoints" / LAST).glob("*.safetensors")).unlink()
    report = checkpoint(run)
    assert not report.resumable and report.obstacles == []
    assert report.advice is not None and "falls back to the newest complete" in report.advice


def test_damage_of_the_only_checkpoint_leaves_nothing_to_fall_back_to(run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        (path / "manifest.json.sha256").unlink()
    assert checkpoint(run).advice == "put one back from a copy, or start a new run"


def saved_with(run: Path, **sections: object) -> dict[str, Any]:
    """Change sections of the configuration in the last checkpoint's manifest; the manifest."""
    path = run / "checkpoints" / LAST / "manifest.json"
    values: dict[str, Any] = jsonio.loads(path.read_bytes())
    values["config"] |= sections
    path.write_bytes(data := jsonio.dump_pretty(values))
    (path.parent / "manifest.json.sha256").write_bytes(manifest_hash_line(data))
    return values


@pytest.mark.parametrize(
    "sections", [{"optim": None}, {"data": 7, "model": []}, {"train": {"epochs": "many"}}]
)
def test_a_configuration_in_a_manifest_that_makes_no_sense_is_no_traceback(
    run: Path, sections: dict[str, object]
) -> None:
    saved_with(run, **sections)
    report = checkpoint(run)
    assert report.complete and report.problems == []
    request = ResumeRequest(run)
    try:
        plan_request(request, 1).refuse(request)
    except SftctlError:
        assert not report.resumable


def test_a_missing_tokenizer_is_an_obstacle_only_if_the_data_must_be_prepared_again(
    run: Path, own_cache: Path
) -> None:
    values = saved_with(run, model={"name": "tiny", "tokenizer": "/nowhere/tokenizer"})
    text = (run / "config.toml").read_text()
    text = text.replace('name = "tiny"', 'name = "tiny"\ntokenizer = "/nowhere/tokenizer"')
    (run / "config.toml").write_text(text)
    store = cached_store(values["data_fingerprint"])
    assert store.is_relative_to(own_cache) and checkpoint(run).resumable
    shutil.rmtree(store)
    report = checkpoint(run)
    assert report.obstacles == ["model.tokenizer: /nowhere/tokenizer: missing"]
    assert report.advice == (
        f"model.tokenizer in {run / 'config.toml'} names it: put it back, or correct the key"
    )


def test_a_path_that_the_shell_would_split_is_quoted_in_each_command(
    run: Path, distributed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sp ace"
    folder.mkdir()
    shutil.move(run, folder / "my run")
    shutil.copytree(distributed, folder / "dcp")
    monkeypatch.chdir(folder)
    for path, first in {
        folder / "my run": ["sftctl", "resume", str(folder / "my run"), "--epochs"],
        Path("my run"): ["sftctl", "resume", "my run", "--epochs"],
        folder / "my run/checkpoints/step-00000005": [
            *("sftctl", "resume", str(folder / "my run"), "--step")
        ],
        folder / "my run/final": ["sftctl", "train", "--model", str(folder / "my run/final")],
    }.items():
        advice = str(inspect_path(path).advice).strip("`")
        assert shlex.split(advice.partition("`")[0])[:4] == first
    advice = str(inspect_path(folder / "dcp").advice).split("`")[1]
    assert shlex.split(advice)[-2:] == [str(folder / "dcp"), f"{folder / 'dcp'}.pt"]
    with pytest.raises(SftctlError) as error:
        inspect_path(folder / "lost")
    assert f"`sftctl … '{folder / 'my run'}'`" in str(error.value.hint)
