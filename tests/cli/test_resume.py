"""sftctl resume, as a user types it: the plan, refusals, the replay, restarts, early stops."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl.checkpoint.layout import manifest_hash_line
from sftctl.cli import train_commands
from sftctl.errors import Stopped
from sftctl.jsonio import dump_pretty, loads
from sftctl.train.resume import ResumeRequest
from tests.toys.commands import Result
from tests.toys.runs import events_of, metrics_of, same_run
from tests.toys.warm import WarmCommand, run_warm

Sftctl = Callable[..., Result]
SHORT = ["train", "--model", "tiny", "--max-steps", "6", "--batch-size", "4"]
SHORT += ["--save-interval", "2", "--log-interval", "1000"]


@pytest.fixture
def run(sftctl: Sftctl, tmp_path: Path) -> Path:
    """A finished run with checkpoints at steps 2, 4 and 6."""
    assert sftctl(*SHORT, "--output-dir", "run").exit_code == 0
    return tmp_path / "run"


def test_a_replay_prints_its_verdict(sftctl: Sftctl, run: Path) -> None:
    result = sftctl("resume", "run", "--verify-replay")
    assert result.exit_code == 0
    assert "run: steps 5 to 6 trained again in " in result.stdout
    assert "equal, bit for bit: examples_digest, loss, learning_rate, grad_norm" in result.stdout
    verdict = json.loads(sftctl("resume", "run", "--verify-replay", "--json").stdout)
    assert (verdict["from_step"], verdict["to_step"], verdict["differences"]) == (4, 6, [])


def test_a_replay_that_differs_is_exit_4(sftctl: Sftctl, run: Path) -> None:
    record = run / "metrics.jsonl"
    changed = re.sub(
        r'(?<=examples_digest":)\d', lambda digit: str(int(digit[0]) % 9 + 1), record.read_text()
    )
    record.write_text(changed)
    result = sftctl("resume", "run", "--verify-replay")
    assert result.exit_code == 4
    assert result.error.startswith("error: run: the replay differs: step 5: examples_digest was ")
    assert "differs: step 6: examples_digest" in result.stdout


def test_the_plan_is_printed_first_and_alone_by_a_dry_run(sftctl: Sftctl, run: Path) -> None:
    plan = "resume run from step-00000004: step 4 of 6, epoch 1, step 4 of 310 in it, 16 examples"
    result = sftctl("resume", "run", "--step", 4, "--dry-run")
    assert result.exit_code == 0 and result.stdout.startswith(plan)
    assert events_of(run)[-1] == "finished"
    result = sftctl("resume", "run", "--step", 4)
    assert result.exit_code == 0 and result.stderr.startswith(plan)


def test_a_difference_that_needs_allow_is_named_with_its_flag(sftctl: Sftctl, run: Path) -> None:
    config = run / "config.toml"
    config.write_text(config.read_text().replace("weight_decay = 0.01", "weight_decay = 0.1"))
    result = sftctl("resume", "run", "--step", 4, "--dry-run")
    assert result.exit_code == 4
    assert "needs --allow optim.weight_decay: optim.weight_decay: 0.01 -> 0.1" in result.stdout
    assert "would be a different run: optim.weight_decay: 0.01 -> 0.1" in result.error
    assert sftctl("resume", "run", "--step", 4).exit_code == 4
    allow = ("--allow", "optim.weight_decay")
    allowed = sftctl("resume", "run", "--step", 4, "--dry-run", *allow)
    assert allowed.exit_code == 0 and "needs --allow" not in allowed.stdout
    done = sftctl("resume", "run", "--step", 4, *allow)
    assert done.exit_code == 0
    assert "changed: optim.weight_decay: 0.01 -> 0.1: other updates from here on" in done.stderr
    unknown = sftctl("resume", "run", "--allow", "train.seed")
    assert unknown.exit_code == 2 and "--allow train.seed: impossible: the steps" in unknown.error


def test_auto_resume_keeps_the_device_of_the_run(sftctl: Sftctl, run: Path) -> None:
    config = run / "config.toml"
    config.write_text(config.read_text().replace('device = "auto"', 'device = "cuda"'))
    by_resume = sftctl("resume", "run", "--epochs", 3)
    by_train = sftctl(*SHORT, "--max-steps", 8, "--output-dir", "run", "--auto-resume")
    by_plan = sftctl("resume", "run", "--epochs", 3, "--dry-run")
    for result in (by_resume, by_train, by_plan):
        assert result.exit_code == 2
        assert "train.device: cuda is set, but torch finds no CUDA device" in result.error
    for result in (by_resume, by_plan):
        assert 'hint: train.device = "auto" in config.toml uses what is' in result.stderr
    assert "hint: --device auto uses what is" in by_train.stderr


def test_a_signal_ends_a_dry_run_before_it_prepares_data_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    request = ResumeRequest(run)
    with train_commands.listening() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Stopped, match="by SIGINT before training began"):
            train_commands.describe_resume(request, 1, stop, verify_data=False, as_json=False)
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_step_with_max_restarts_is_refused(
    sftctl: Sftctl, run: Path, more: tuple[str, ...]
) -> None:
    result = sftctl("resume", "run", "--step", 4, "--max-restarts", 1, *more)
    assert result.exit_code == 2
    assert "--step with --max-restarts: a restart would continue from the newest" in result.error


@pytest.mark.parametrize("flag", ["--dry-run", "--step 2", "--epochs 3", "--max-restarts 1"])
def test_a_replay_refuses_flags_that_it_would_ignore(sftctl: Sftctl, flag: str) -> None:
    result = sftctl("resume", "run", "--verify-replay", *flag.split())
    assert result.exit_code == 2
    assert (
        result.error
        == "error: --verify-replay can be combined only with --nproc-per-node and --json"
    )


def test_auto_resume_prints_the_plan_too(sftctl: Sftctl, run: Path) -> None:
    result = sftctl(*SHORT, "--output-dir", "run", "--auto-resume")
    assert result.exit_code == 0
    assert result.stderr.startswith("resume run from step-00000006: step 6 of 6")


def test_a_run_that_cannot_be_locked_is_refused(sftctl: Sftctl, run: Path) -> None:
    (run / ".lock").unlink()
    (run / ".lock").mkdir()
    result = sftctl("resume", "run")
    assert result.exit_code == 4
    assert result.error.startswith("error: run/.lock: not a file")


def test_the_hint_to_resume_is_given_only_for_a_run(
    sftctl: Sftctl, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    hints = {name: sftctl(*SHORT, "--output-dir", name).stderr for name in ("folder", "run")}
    assert "hint: choose another --output-dir" in hints["folder"]
    assert "hint: continue it with `sftctl resume run`, or choose another" in hints["run"]


SIGNAL_AT_TORCH = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Finder())
from sftctl.cli.app import app
app(prog_name="sftctl")
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["resume", "run"],
        ["resume", "run", "--verify-replay"],
        [*SHORT, "--output-dir", "run", "--auto-resume"],
    ],
)
def test_every_way_to_resume_catches_signals_before_torch_is_loaded(
    run: Path, arguments: list[str]
) -> None:
    command = [sys.executable, "-c", SIGNAL_AT_TORCH, *arguments]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 75, done.stderr.decode()
    assert b"stopped: by SIGTERM" in done.stderr
    assert metrics_of(run)[-1]["step"] == 6 and (run / "final").is_dir()


def test_signals_that_follow_a_stop_do_not_change_its_exit_code(tmp_path: Path) -> None:
    process = WarmCommand(*LONG[:-2], "--output-dir", "run")
    events = tmp_path / "run" / "events.jsonl"
    wait_until(lambda: events.exists() and b"started" in events.read_bytes(), process)
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.005)
    assert process.returncode == 75, process.communicate()


def start(*arguments: str, group: bool = False) -> subprocess.Popen[bytes]:
    """`sftctl …`, perhaps in a process group of its own."""
    command, pipe = [sys.executable, "-m", "sftctl", *arguments], subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, start_new_session=group)


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen[bytes] | WarmCommand
) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)


def hears(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process handles SIGTERM by now."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(caught, 16) >> signal.SIGTERM - 1 & 1)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_while_torch_is_loading_is_exit_75_and_leaves_nothing(
    tmp_path: Path, ranks: int
) -> None:
    process = start(*SHORT, "--output-dir", "run", "--nproc-per-node", str(ranks))
    wait_until(lambda: hears(process), process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 75, stderr.decode()
    assert b"stopped: by SIGTERM" in stderr and b": nothing to save, nothing lost" in stderr
    assert b"hint: run the same command again" in stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_the_group_while_ranks_start_is_exit_75(
    tmp_path: Path, number: signal.Signals
) -> None:
    """A terminal's Ctrl-C, `timeout` and SLURM send signals to the group."""
    process = start(*SHORT, "--output-dir", "run", "--nproc-per-node", "2", group=True)
    wait_until(lambda: len(ranks_of(process.pid)) == 2, process)
    os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 75, stderr.decode()
    assert b"Traceback" not in stderr
    assert b"stopped: by " + number.name.encode() in stderr
    assert not (tmp_path / "run").exists()


LONG = ["train", "--model", "tiny", "--max-steps", "40", "--batch-size", "4"]
LONG += ["--save-interval", "5", "--log-interval", "1000", "--nproc-per-node", "2"]


def test_a_run_whose_rank_is_killed_restarts_and_ends_as_if_nothing_had_happened(
    tmp_path: Path,
) -> None:
    assert run_warm(*LONG, "--output-dir", "whole").returncode == 0
    process = WarmCommand(*LONG, "--output-dir", "run", "--max-restarts", "1")
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 12, process)
    os.kill(ranks_of(process.pid)[-1], signal.SIGKILL)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr.decode()
    assert b"rank 1 was killed by SIGKILL: restart 1 of 1" in stderr
    assert same_run(metrics_of(tmp_path / "run")) == same_run(metrics_of(tmp_path / "whole"))
    models = [
        (tmp_path / name / "final/model.safetensors").read_bytes() for name in ("run", "whole")
    ]
    assert models[0] == models[1]


def test_what_a_restart_cannot_fix_is_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{\n")
    done = run_warm(*LONG, "--data", "bad.jsonl", "--max-restarts", "5")
    assert done.returncode == 3
    assert b"restart " not in done.stderr and b"error: " in done.stderr


def ranks_of(pid: int) -> list[int]:
    """The rank processes of a launcher, in the order they were started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    return sorted(child for child, command in commands.items() if b"spawn_main" in command)


def test_a_dry_run_of_auto_resume_describes_the_resume(sftctl: Sftctl, run: Path) -> None:
    options = ("--output-dir", "run", "--auto-resume", "--dry-run")
    result = sftctl(*SHORT, *options)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("resume run from step-00000006: step 6 of 6")
    assert json.loads(sftctl(*SHORT, *options, "--json").stdout)["manifest"]["step"] == 6
    refused = sftctl(*SHORT, *options, "--seed", 3)
    assert refused.exit_code == 4
    assert "can't continue: train.seed: 0 -> 3" in refused.error
    new = sftctl(*SHORT, "--output-dir", "new", "--auto-resume", "--dry-run")
    assert new.exit_code == 0 and "\nrun         new\n" in new.stdout
    assert not (run.parent / "new").exists()


def test_auto_resume_takes_a_free_option_and_writes_it_to_config_toml(
    sftctl: Sftctl, run: Path
) -> None:
    (run / "final").rename(run / "final-before")
    result = sftctl(*SHORT, "--output-dir", "run", "--auto-resume", "--keep", 2, "--max-steps", 8)
    assert result.exit_code == 0, result.stderr
    assert "changed: checkpoint.keep: 3 -> 2: the same steps" in result.stderr
    assert metrics_of(run)[-1]["step"] == 8
    assert "keep = 2" in (run / "config.toml").read_text()


def test_a_run_that_max_steps_ended_says_what_trains_longer(sftctl: Sftctl, run: Path) -> None:
    before = (run / "config.toml").read_bytes()
    refused = sftctl("resume", "run", "--epochs", 9)
    assert refused.exit_code == 2
    assert refused.error == (
        "error: --epochs 9: nothing to train: train.max_steps: 6 steps, and the checkpoint is of "
        "step 6"
    )
    assert (run / "config.toml").read_bytes() == before
    assert sftctl("resume", "run", "--epochs", 9, "--dry-run").exit_code == 2
    advice = json.loads(sftctl("inspect-ckpt", "run", "--json").stdout)["advice"]
    assert advice == "sftctl resume run --max-steps N   (to train longer)"
    longer = sftctl("resume", "run", "--max-steps", 7)
    assert longer.exit_code == 0 and metrics_of(run)[-1]["step"] == 7


def test_a_dry_run_ends_with_the_exit_code_of_the_resume(sftctl: Sftctl, run: Path) -> None:
    config = run / "config.toml"
    config.write_text(config.read_text().replace("max_steps = 6", "max_steps = 5"))
    codes = [sftctl("resume", "run", *flags).exit_code for flags in ((), ("--dry-run",))]
    assert codes == [2, 2]


def test_inspect_ckpt_and_resume_report_lost_checkpoints_alike(sftctl: Sftctl, run: Path) -> None:
    (run / "checkpoints").rename(run / "elsewhere")
    inspected, resumed = sftctl("inspect-ckpt", "run"), sftctl("resume", "run", "--dry-run")
    assert (inspected.exit_code, resumed.exit_code) == (4, 4)
    assert inspected.stderr == resumed.stderr
    assert "no checkpoint, but events.jsonl has one of step 6" in inspected.error
    (run / "events.jsonl").unlink()
    (run / "final").rename(run / "elsewhere" / "final")
    inspected = sftctl("inspect-ckpt", "run")
    assert inspected.error == "error: run: the run has no checkpoint yet"
    assert sftctl("resume", "run", "--dry-run").exit_code == 0


def test_a_link_in_place_of_the_only_checkpoint_is_one_answer_too(
    sftctl: Sftctl, run: Path
) -> None:
    (run / "checkpoints").rename(run / "elsewhere")
    (run / "checkpoints").mkdir()
    (run / "checkpoints/step-00000006").symlink_to(run / "elsewhere/step-00000006")
    inspected, resumed = sftctl("inspect-ckpt", "run"), sftctl("resume", "run", "--dry-run")
    assert (inspected.exit_code, inspected.stderr) == (resumed.exit_code, resumed.stderr)
    assert "step-00000006: a link or a file, not a folder" in inspected.error


def test_a_checkpoint_of_a_newer_format_is_incomplete_in_verdict_and_table(
    sftctl: Sftctl, run: Path
) -> None:
    path = run / "checkpoints/step-00000006"
    data = dump_pretty(loads((path / "manifest.json").read_bytes()) | {"format_version": 2})
    (path / "manifest.json").write_bytes(data)
    (path / "manifest.json.sha256").write_bytes(manifest_hash_line(data))
    result = sftctl("inspect-ckpt", "run")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["complete", "no"] in lines and ["resumable", "no"] in lines
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("step-00000006")]
    assert row.split()[-1] == "no"
    assert sftctl("resume", "run", "--dry-run").exit_code == 4
