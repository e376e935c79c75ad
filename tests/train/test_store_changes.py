"""A store shrinks or changes during training: one line, exit 3, and the last save is complete."""

import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest

from sftctl import jsonio
from sftctl.checkpoint.directory import list_checkpoints, newest_good
from sftctl.config.load import load_config
from sftctl.config.schema import RunConfig
from sftctl.data.manifest import StoreManifest
from sftctl.data.storage.background_check import BackgroundCheck
from sftctl.data.storage.hashes import block_hashes, first_wrong
from sftctl.errors import DataError
from sftctl.metrics import StepMetrics
from sftctl.runs.directory import RunDir
from sftctl.tracking.tracker import Tracker
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import report, run_training
from tests.toys.commands import Result
from tests.toys.commands import sftctl as sftctl
from tests.toys.runs import assert_same_end, events_of, toy_data

Sftctl = Callable[..., Result]
TOKENS, MASK = "train/tokens-00000.npy", "train/loss_mask-00000.npy"


@pytest.fixture
def store(tmp_path: Path, sftctl: Sftctl) -> Path:
    done = sftctl("prepare-data", toy_data(tmp_path), "--output", "store")
    assert done.exit_code == 0
    return tmp_path / "store"


def config_for(store: Path, name: str, num_workers: int = 0) -> RunConfig:
    values = {
        "output_dir": str(store.parent / name),
        "model.name": "tiny",
        "data.path": str(store),
        "data.num_workers": num_workers,
        "train.batch_size": 4,
        "train.epochs": 3,
        "checkpoint.save_interval": 2,
        "tracking.log_interval": 1000,
    }
    return load_config(None, values)


def message_of_its_end(config: RunConfig) -> str:
    """The message of the DataError that ends a run; its loader process has ended before it.

    The store is hashed at the start: in the background, that could find the change first.
    """
    with pytest.raises(DataError) as error:
        run_training(config, verify_data=True)
    assert active_children() == []
    assert error.value.hint is not None and error.value.hint.startswith("restore the files")
    return error.value.message


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_store_that_shrinks_is_one_line_and_the_resumed_run_is_the_same(
    store: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    run_training(config_for(store, "reference", num_workers))
    original = (store / TOKENS).read_bytes()

    def shrink(metrics: StepMetrics, tracker: Tracker) -> None:
        report(metrics, tracker)
        if metrics.step == 3:
            (store / TOKENS).write_bytes(original[:200])  # the same file, now shorter

    with monkeypatch.context() as patch:
        patch.setattr("sftctl.train.run.report", shrink)
        message = message_of_its_end(config_for(store, "run", num_workers))
    assert message.startswith(f"{store / TOKENS}: became shorter while it was used")
    assert "\n" not in message
    run = RunDir(store.parent / "run")
    assert events_of(run.path)[-1] == "failed"
    assert newest_good(run.checkpoints).path == list_checkpoints(run.checkpoints)[-1]
    (store / TOKENS).write_bytes(original)
    run_training(run.config(), ResumeRequest(run.path))
    assert_same_end(run.path, store.parent / "reference")


def test_an_error_between_two_steps_ends_the_loader_processes_too(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(metrics: StepMetrics, tracker: Tracker) -> None:
        assert len(active_children()) == 1
        raise DataError("it has changed", "restore the files")

    monkeypatch.setattr("sftctl.train.run.report", fail)
    assert message_of_its_end(config_for(store, "run", num_workers=1)) == "it has changed"


def change(file: Path) -> None:
    """A change that nothing but a hash can find: the last token now counts, or no longer."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_store_that_was_changed_ends_the_run_before_its_last_save(
    sftctl: Sftctl, store: Path, ranks: int
) -> None:
    change(store / MASK)
    train = ["train", "--data", store, "--model", "tiny", "--output-dir", "run", "--epochs", 3]
    result = sftctl(*train, "--save-interval", 0, "--nproc-per-node", ranks)
    words = f"error: {store}/{MASK}: its content was changed (different SHA-256)"
    assert (result.exit_code, result.error) == (3, words)
    assert "hint: steps after step 0, where this session began, may have had" in result.stderr
    assert not Path("run/final").exists()
    assert list_checkpoints(Path("run/checkpoints")) == []


def test_a_resume_checks_the_store_again(sftctl: Sftctl, store: Path) -> None:
    train = ["train", "--data", store, "--model", "tiny", "--output-dir", "run", "--max-steps", 2]
    assert sftctl(*train).exit_code == 0
    change(store / MASK)
    result = sftctl("resume", "run", "--max-steps", 4)
    assert result.exit_code == 3 and str(store / MASK) in result.error
    assert "`sftctl resume run --step 2`" in result.stderr
    change(store / MASK)
    assert sftctl("resume", "run", "--step", 2).exit_code == 0


class HeldCheck(BackgroundCheck):
    """A check that gets no time: the trainer makes it at its end."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)


@pytest.mark.parametrize("is_wrong", [True, False])
def test_the_checkpoint_to_go_back_to_is_kept_until_the_store_is_checked(
    sftctl: Sftctl, store: Path, monkeypatch: pytest.MonkeyPatch, is_wrong: bool
) -> None:
    monkeypatch.setattr("sftctl.train.store_check.BackgroundCheck", HeldCheck)
    train = ["train", "--data", store, "--model", "tiny", "--output-dir", "run", "--max-steps", 2]
    assert sftctl(*train, "--keep", 1, "--save-interval", 1).exit_code == 0
    if is_wrong:
        change(store / MASK)
        result = sftctl("resume", "run", "--max-steps", 4)
        assert result.exit_code == 3 and "`sftctl resume run --step 2`" in result.stderr
        assert saved_steps()[0] == 2
        change(store / MASK)
        assert sftctl("resume", "run", "--step", 2).exit_code == 0
    else:
        assert sftctl("resume", "run", "--max-steps", 4).exit_code == 0
    assert saved_steps() == [4]


def saved_steps() -> list[int]:
    return [int(path.name[5:]) for path in list_checkpoints(Path("run/checkpoints"))]


@pytest.mark.parametrize("ranks", [1, 2])
def test_verify_data_refuses_before_anything_begins(
    sftctl: Sftctl, store: Path, ranks: int
) -> None:
    change(store / MASK)
    train = ["train", "--data", store, "--model", "tiny", "--output-dir", "run", "--max-steps", 2]
    result = sftctl(*train, "--verify-data", "--nproc-per-node", ranks)
    assert result.exit_code == 3 and str(store / MASK) in result.error
    assert not Path("run").exists()
    assert sftctl(*train, "--verify-data", "--dry-run").error == result.error
    change(store / MASK)
    assert sftctl(*train, "--verify-data").exit_code == 0
    change(store / MASK)
    before = events_of(Path("run"))
    for more in ((), ("--dry-run",)):
        resume = sftctl("resume", "run", "--max-steps", 4, "--verify-data", *more)
        assert resume.exit_code == 3 and str(store / MASK) in resume.error
    assert events_of(Path("run")) == before


def test_the_store_in_the_cache_is_checked_too(
    sftctl: Sftctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    train = ["train", "--data", toy_data(tmp_path), "--model", "tiny", "--max-steps", 2]
    assert sftctl(*train, "--output-dir", "first").exit_code == 0
    [mask] = (tmp_path / "cache").rglob("train/loss_mask-*.npy")
    change(mask)
    assert sftctl(*train, "--output-dir", "second").exit_code == 3
    mask.write_bytes(mask.read_bytes()[:-1])  # the size is looked at: such a store is made again
    assert sftctl(*train, "--output-dir", "third").exit_code == 0


def test_inspect_ckpt_reports_the_changed_store(sftctl: Sftctl, store: Path) -> None:
    train = ["train", "--data", store, "--model", "tiny", "--output-dir", "run", "--max-steps", 2]
    assert sftctl(*train).exit_code == 0
    assert "fits, verified" in sftctl("inspect-ckpt", "run", "--verify").stdout
    change(store / MASK)
    assert sftctl("inspect-ckpt", "run").exit_code == 0
    found = sftctl("inspect-ckpt", "run", "--verify", "--json")
    assert found.exit_code == 4 and f"{MASK}: its content was changed" in found.error
    report = jsonio.loads(found.stdout)
    assert not report["resumable"] and report["data_store"]["fits"] is False
    (store / MASK).write_bytes(b"")
    assert not jsonio.loads(sftctl("inspect-ckpt", "run", "--json").stdout)["resumable"]
    assert sftctl("resume", "run", "--max-steps", 4).exit_code == 3


def test_a_check_that_is_killed_is_made_by_the_trainer(store: Path) -> None:
    change(store / MASK)
    check = BackgroundCheck(store, StoreManifest.read(store))
    assert check._process is not None
    check._process.kill()
    check._process.wait()
    assert check.problem() == f"{MASK}: its content was changed (different SHA-256)"
    check.close()


def test_a_file_of_several_blocks_is_wrong_at_a_block(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sftctl.data.storage.hashes.BLOCK_BYTES", 1000)
    manifest = StoreManifest.read(store)
    blocks = block_hashes(store, manifest.files)
    assert len(blocks[TOKENS]) == -(-manifest.files[TOKENS].num_bytes // 1000) > 3
    new = replace(manifest, block_sha256=blocks)
    data = bytearray((store / TOKENS).read_bytes())
    assert first_wrong(store, new) is None and first_wrong(store, manifest) is None
    data[1234] ^= 8
    (store / TOKENS).write_bytes(data)
    words = "bytes 1000 to 2000 have changed (different SHA-256)"
    assert first_wrong(store, new) == f"{TOKENS}: {words}"
    assert first_wrong(store, manifest) == f"{TOKENS}: its content was changed (different SHA-256)"
    (store / TOKENS).write_bytes(data + b"more")
    assert first_wrong(store, new) is not None
    (store / TOKENS).unlink()
    assert first_wrong(store, new) == f"{TOKENS}: No such file or directory"


def test_a_check_that_gets_no_time_is_made_by_the_trainer(store: Path) -> None:
    change(store / MASK)
    check = BackgroundCheck(store, StoreManifest.read(store))
    assert check._process is not None
    check._process.send_signal(signal.SIGSTOP)
    check.hurry()
    assert check.problem() == f"{MASK}: its content was changed (different SHA-256)"
    check.close()
