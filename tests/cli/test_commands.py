"""The commands as a user types them: prepare, train, stop, resume, inspect, export, chat."""

import hashlib
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

from sftctl.data.sample import sample_files
from sftctl.data.store import TokenStore
from tests.toys.commands import Result
from tests.toys.runs import events_of, metrics_of, same_run
from tests.toys.warm import WarmCommand, run_warm

Sftctl = Callable[..., Result]
TINY = ["train", "--model", "tiny", "--max-steps", "3", "--batch-size", "8"]


def test_without_a_command_the_help_is_printed(sftctl: Sftctl) -> None:
    result = sftctl()
    assert result.exit_code == 0
    for command in ("prepare-data", "train", "resume", "inspect-ckpt", "bench-loader", "export"):
        assert command in result.stdout
    assert sftctl("--version").stdout.startswith("sftctl ")


@pytest.mark.parametrize(
    ("words", "completed"), [("sftctl tr", "train"), ("sftctl train --ep", "--epochs")]
)
def test_a_shell_completes_commands_and_flags(words: str, completed: str) -> None:
    asked = {"_SFTCTL_COMPLETE": "complete_bash", "COMP_WORDS": words}
    done = subprocess.run(
        [Path(sys.executable).parent / "sftctl"],
        env=os.environ | asked | {"COMP_CWORD": str(words.count(" "))},
        capture_output=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout.decode().split()) == (0, [completed])


def test_the_command_line_does_not_grow_unnoticed(sftctl: Sftctl) -> None:
    """A new flag needs a reason: then this list changes with it."""
    flags = set(re.findall(r"--[a-z-]+", sftctl("train", "--help").stdout))
    assert flags == {
        "--data", "--max-seq-len", "--num-workers", "--pin-memory", "--model", "--tokenizer",
        "--chat-template", "--mix", "--lora", "--no-lora", "--adapter", "--learning-rate", "--lr",
        "--grad-clip", "--epochs", "--max-steps", "--batch-size",
        "--accumulation-steps", "--micro-batch-tokens", "--device", "--dtype", "--eval-interval",
        "--seed", "--save-interval", "--keep", "--log-interval", "--wandb", "--no-wandb",
        "--wandb-project", "--output-dir", "--nproc-per-node", "--strategy", "--compile",
        "--no-compile", "--max-restarts", "--auto-resume", "--verify-data", "--set",
        "--print-config", "--dry-run", "--json", "--help",
    }  # fmt: skip


def rows_of_the_sample() -> tuple[int, int]:
    """The number of rows to train on and to validate with."""
    train, validation = (path.read_bytes().count(b"\n") for path in sample_files())
    return train, validation


def test_prepared_data_is_trained_inspected_exported_and_asked(
    sftctl: Sftctl, tmp_path: Path
) -> None:
    result = sftctl("prepare-data", "--output", "store", "--json")
    manifest = json.loads(result.stdout)
    store = TokenStore.open(tmp_path / "store")
    assert manifest["num_target_tokens"] == sum(
        int(example.loss_mask.sum()) for example in iter(store)
    )
    assert manifest["rows_read"] == manifest["rows_kept"] == sum(rows_of_the_sample())

    result = sftctl(*TINY, "--data", "store", "--output-dir", "run", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["step"] == 3
    assert "\x1b" not in result.stderr
    assert "finished" not in result.stderr  # the closing lines on stdout say so, once

    report = json.loads(sftctl("inspect-ckpt", "run", "--verify", "--json").stdout)
    assert (report["step"], report["epoch"], report["step_in_epoch"]) == (3, 0, 3)
    assert report["complete"] and report["verified"] and report["resumable"]
    assert report["problems"] == []

    assert sftctl("export", "run", "--output", "hf", "--dtype", "bfloat16").exit_code == 0
    assert (tmp_path / "hf/model.safetensors").stat().st_mode & 0o777 == 0o644
    written = sftctl("export", "run", "--output", "out", "--format", "gguf", "--dtype", "bf16")
    assert written.exit_code == 0 and "read again:" in written.stdout
    assert "rows are the same" in written.stdout and (tmp_path / "out/model.gguf").is_file()
    for path in ("run", "hf", "run/checkpoints/step-00000003"):
        answer = sftctl("chat", path, "--prompt", "Hello", "--max-new-tokens", 4)
        assert answer.exit_code == 0


def test_an_exported_model_is_the_trained_one_in_plain_transformers(
    sftctl: Sftctl, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sftctl.trained.open import open_trained

    assert sftctl(*TINY, "--output-dir", "run").exit_code == 0
    assert sftctl("export", "run", "--output", "hf").exit_code == 0
    ours = open_trained(tmp_path / "run/checkpoints/step-00000003").model
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    ids = AutoTokenizer.from_pretrained(tmp_path / "hf")("The capital", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(ours(**ids).logits, theirs(**ids).logits)


def test_damage_found_by_verify_is_exit_4_and_named(sftctl: Sftctl, tmp_path: Path) -> None:
    assert sftctl(*TINY, "--output-dir", "run").exit_code == 0
    shard = next((tmp_path / "run/checkpoints/step-00000003").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    assert sftctl("inspect-ckpt", "run").exit_code == 0
    result = sftctl("inspect-ckpt", "run", "--verify", "--json")
    assert result.exit_code == 4
    assert shard.name in result.error
    assert json.loads(result.stdout)["verified"] is False
    result = sftctl("resume", "run")
    assert result.exit_code == 4 and shard.name in result.error


def test_print_config_is_a_configuration_that_trains(sftctl: Sftctl, tmp_path: Path) -> None:
    template = sftctl(*TINY, "--print-config").stdout
    (tmp_path / "run.toml").write_text(template)
    assert "max_steps = 3" in template
    assert sftctl("train", "run.toml", "--output-dir", "run").exit_code == 0
    assert len(metrics_of(tmp_path / "run")) == 3


def test_a_dry_run_shows_what_would_run(sftctl: Sftctl, tmp_path: Path) -> None:
    plan = json.loads(sftctl(*TINY, "--dry-run", "--json").stdout)
    num_examples, _ = rows_of_the_sample()
    assert (plan["total_steps"], plan["num_examples"]) == (3, num_examples)
    assert f"{-(-num_examples // 8)} per epoch" in sftctl(*TINY, "--dry-run").stdout
    assert list(tmp_path.iterdir()) == []


def test_auto_resume_continues_an_existing_run(sftctl: Sftctl, tmp_path: Path) -> None:
    command = [*TINY, "--output-dir", "run", "--auto-resume"]
    assert sftctl(*command).exit_code == 0
    assert "already finished" in sftctl(*command).stdout
    assert sftctl(*command, "--seed", 5).exit_code == 4  # as resume refuses it


def test_show_marks_the_trained_tokens(sftctl: Sftctl) -> None:
    result = sftctl("prepare-data", "--output", "store", "--show", 2)
    assert result.exit_code == 0
    assert len(re.findall(r"<\|im_start\|>assistant\n«[^»]+<\|im_end\|>»", result.stdout)) >= 2


def test_wandb_offline_logs_into_the_run(sftctl: Sftctl, tmp_path: Path) -> None:
    assert sftctl(*TINY, "--output-dir", "run", "--wandb").exit_code == 0
    assert list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
    run_id = json.loads((tmp_path / "run/run.json").read_text())["wandb_run_id"]
    report = json.loads(sftctl("inspect-ckpt", "run", "--json").stdout)
    assert report["wandb_run_id"] == run_id


def _wait_for_lines(path: Path, count: int, process: WarmCommand) -> None:
    deadline = time.monotonic() + 300
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


STOPS = [
    (signal.SIGTERM, 75, ()),
    (signal.SIGINT, 75, ()),
    (signal.SIGUSR1, 75, ("--nproc-per-node", "2")),
    (signal.SIGTERM, 75, ("--nproc-per-node", "2")),
    (signal.SIGKILL, -signal.SIGKILL, ()),
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = run_warm(*LONG, "--output-dir", str(folder / "run"))
    assert done.returncode == 0, done.stderr
    return folder / "run"


LONG = ["train", "--model", "tiny", "--max-steps", "60", "--batch-size", "4"]
LONG += ["--save-interval", "7", "--log-interval", "1000"]


@pytest.mark.parametrize(("number", "exit_code", "ranks"), STOPS)
def test_a_stopped_run_resumes_to_the_same_run(
    tmp_path: Path,
    uninterrupted: Path,
    number: signal.Signals,
    exit_code: int,
    ranks: tuple[str, ...],
) -> None:
    process = WarmCommand(*LONG, "--output-dir", "run", *ranks)
    _wait_for_lines(tmp_path / "run/metrics.jsonl", 9, process)
    os.kill(process.pid, number)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == exit_code, stderr.decode()
    if exit_code == 75:
        assert events_of(tmp_path / "run")[-1] == "stopped"
        assert b"sftctl resume run" in stdout
        [answer] = [line for line in stderr.splitlines() if line.startswith(b"stopping: ")]
        assert answer.endswith(b"Ctrl-C again leaves without saving.")
    process = WarmCommand("resume", "run", *ranks)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr.decode()
    lines, reference = metrics_of(tmp_path / "run"), metrics_of(uninterrupted)
    assert [line["examples_digest"] for line in lines] == [
        line["examples_digest"] for line in reference
    ]
    if not ranks:
        assert same_run(lines) == same_run(reference)
        assert _digest(tmp_path / "run") == _digest(uninterrupted)


def test_a_killed_rank_is_named_and_ends_the_run_in_seconds(tmp_path: Path) -> None:
    process = WarmCommand(*LONG, "--output-dir", "run", "--nproc-per-node", "2")
    _wait_for_lines(tmp_path / "run/metrics.jsonl", 9, process)
    os.kill(_ranks_of(process.pid)[-1], signal.SIGKILL)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 1
    assert b"error: rank 1 was killed by SIGKILL" in stderr
    assert b"stopping: " not in stderr  # torch's agent ends rank 0 with SIGTERM: nothing is saved
    assert b"hint: `sftctl resume run` continues from the last checkpoint" in stderr


def test_ranks_whose_parent_is_killed_save_and_leave(tmp_path: Path) -> None:
    process = WarmCommand(*LONG, "--output-dir", "run", "--nproc-per-node", "2")
    _wait_for_lines(tmp_path / "run/metrics.jsonl", 9, process)
    ranks = _ranks_of(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 300
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert events_of(tmp_path / "run")[-1] == "stopped"


def _ranks_of(pid: int) -> list[int]:
    """The rank processes of a launcher, in the order they were started."""
    ranks = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == pid and b"spawn_main" in command:
            ranks.append(int(folder.name))
    return sorted(ranks)


def _digest(run: Path) -> str:
    return hashlib.sha256((run / "final/model.safetensors").read_bytes()).hexdigest()
