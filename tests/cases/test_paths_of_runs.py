"""What people type in place of a run, and runs that were moved: each hint is typed as it is."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl.data.sample import sample_files
from sftctl.environment import cache_folder
from tests.toys.commands import Result

Sftctl = Callable[..., Result]


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows and a run of three steps on them."""
    from sftctl.config.load import load_config
    from sftctl.train.run import run_training

    folder = tmp_path_factory.mktemp("work") / "w"
    folder.mkdir()
    rows = sample_files()[0].read_bytes().splitlines(keepends=True)[:12]
    (folder / "rows.jsonl").write_bytes(b"".join(rows))
    values = {"model.name": "tiny", "data.path": str(folder / "rows.jsonl"), "train.max_steps": 3}
    values |= {"train.batch_size": 4, "checkpoint.save_interval": 1, "checkpoint.keep": 9}
    run_training(load_config(None, {**values, "output_dir": str(folder / "run")}))
    return folder


@pytest.fixture
def run(work: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may continue."""
    return Path(shutil.copytree(work / "run", tmp_path / "run"))


@pytest.mark.parametrize(
    ("part", "what", "command"),
    [
        ("checkpoints/step-00000002", "a checkpoint; resume needs its run", "--step 2"),
        ("checkpoints/step-00000003", "a checkpoint; resume needs its run", ""),
        ("checkpoints/step-00000001/manifest.json", "a part of a run; resume needs the run", ""),
        ("checkpoints", "a part of a run; resume needs the run", ""),
        ("final", "a part of a run; resume needs the run", ""),
        ("final/config.json", "a part of a run; resume needs the run", ""),
        ("model", "a part of a run; resume needs the run", ""),
        ("config.toml", "a part of a run; resume needs the run", ""),
        ("run.json", "a part of a run; resume needs the run", ""),
        ("metrics.jsonl", "a part of a run; resume needs the run", ""),
    ],
)
def test_resume_of_a_part_of_a_run_names_the_command(
    sftctl: Sftctl, run: Path, part: str, what: str, command: str
) -> None:
    result = sftctl("resume", run / part)
    assert result.exit_code == 4
    assert result.error == f"error: {run / part}: {what}"
    typed = f"sftctl resume {run} {command}".strip()
    assert f"hint: type `{typed}`" in result.stderr
    assert sftctl(*shlex.split(typed)[1:], "--dry-run").exit_code == 0


def test_a_part_of_a_run_is_no_run_for_other_commands_either(sftctl: Sftctl, run: Path) -> None:
    for command in (["report", run / "config.toml"], ["chat", run / "run.json"]):
        assert (
            f"hint: it is a part of a run: `sftctl {command[0]} {run}`" in sftctl(*command).stderr
        )


def test_train_names_the_command_that_makes_a_model_of_a_checkpoint(
    sftctl: Sftctl, run: Path
) -> None:
    model = run / "checkpoints/step-00000002"
    result = sftctl("train", "--model", model, "--dry-run")
    assert result.exit_code == 2
    assert result.error == f"error: model {model}: a checkpoint of a run, not a model"
    typed = shlex.split(result.stderr.partition("hint: `")[2].partition("`")[0])
    assert typed == ["sftctl", "export", str(model)]
    assert sftctl(*typed[1:], "--output", run.parent / "made").exit_code == 0
    assert sftctl("train", "--model", run.parent / "made", "--dry-run").exit_code == 0


@pytest.mark.parametrize("cache", ["kept", "lost"])
def test_a_moved_run_continues_or_names_the_key_that_has_to_be_corrected(
    sftctl: Sftctl,
    work: Path,
    tmp_path: Path,
    cache: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rows were moved with it. Their prepared store is in the cache, or it is not."""
    if cache == "lost":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder().is_relative_to(tmp_path) == (cache == "lost")
    moved = Path(shutil.copytree(work, tmp_path / "moved"))
    config = moved / "run/config.toml"
    old, text = tmp_path / "gone/rows.jsonl", config.read_text()
    config.write_text(text.replace(str(work / "rows.jsonl"), str(old)))
    key = f"data.path in {config} names it: put it back, or correct the key"
    for command in (["resume", moved / "run", "--dry-run"], ["resume", moved / "run"]):
        result = sftctl(*command)
        assert (result.exit_code, result.error) == (3, f"error: data.path: {old}: missing")
        assert f"hint: {key}" in result.stderr
    assert key in sftctl("inspect-ckpt", moved / "run").stdout.replace("\n", " ")
    config.write_text(text.replace(str(work), str(moved)))
    assert sftctl("resume", moved / "run").exit_code == 0


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("data.chat_template", '[data]\nchat_template = "/nowhere/x.jinja"'),
        ("model.tokenizer", '[model]\ntokenizer = "/nowhere/tokenizer"'),
    ],
)
def test_every_path_in_config_toml_is_named_with_its_key(
    sftctl: Sftctl,
    run: Path,
    key: str,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # the store is not in it
    config = run / "config.toml"
    section, setting = line.split("\n")
    config.write_text(config.read_text().replace(section, f"{section}\n{setting}"))
    result = sftctl("resume", run)
    path = setting.split('"')[1]
    assert (result.exit_code, result.error) == (2, f"error: {key}: {path}: missing")
    assert f"hint: {key} in {config} names it" in result.stderr
