"""Runs moved, stores cut or changed, terminals closed at random moments; damaged final models."""

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from sftctl.checkpoint.directory import newest_good
from tests.toys.runs import assert_same_end, toy_data, whole_lines
from tests.toys.torture.processes import Ranks, catches, forked, sftctl

pytestmark = pytest.mark.torture

NUM_TRIES = 8
NUM_STEPS = 60
TOKENS, MASK = "train/tokens-00000.npy", "train/loss_mask-00000.npy"


def flip_bit(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position // 8] ^= 1 << position % 8
    file.write_bytes(data)


def ended(*arguments: object) -> tuple[int, str]:
    """The exit code and the output of a command that nothing disturbs."""
    with forked(sftctl, *map(str, arguments)) as ranks:
        (code,) = ranks.ended()
        return code, ranks.printed()


def train(store: Path, run: Path, num_workers: int) -> list[str]:
    return [
        "train", "--model", "tiny", "--data", str(store), "--output-dir", str(run), "--epochs", "9",
        "--max-steps", str(NUM_STEPS), "--batch-size", "2", "--save-interval", "7", "--keep", "3",
        "--num-workers", str(num_workers),
    ]  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store, and beside it the end of an undisturbed run: reference/."""
    code, printed = ended("prepare-data", toy_data(tmp_path), "--output", tmp_path / "store")
    assert code == 0, printed
    code, printed = ended(*train(tmp_path / "store", tmp_path / "reference", 0))
    assert code == 0, printed
    return tmp_path / "store"


def disturbed(
    store: Path, run: Path, draw: random.Random, act: Callable[[], object]
) -> tuple[int, str]:
    """How a run ends to which `act` happens after a random step."""
    at = draw.randrange(1, NUM_STEPS - 10)
    with forked(sftctl, *train(store, run, draw.choice((0, 1)))) as ranks:
        while ranks.all_run and len(whole_lines(run / "metrics.jsonl")) < at:
            time.sleep(0.001)
        act()
        (code,) = ranks.ended()
        return code, ranks.printed()


def test_a_moved_run_loses_no_step(tmp_path: Path, store: Path) -> None:
    draw = random.Random(1)
    for number in range(NUM_TRIES):
        run, new = tmp_path / f"run-{number}", tmp_path / f"moved-{number}"
        code, printed = disturbed(store, run, draw, partial(run.rename, new))
        assert code == 4 and f"was moved to {new} while it trained" in printed, printed
        assert not run.exists()
        saved = newest_good(new / "checkpoints").manifest.step
        assert saved == len(whole_lines(new / "metrics.jsonl"))
        assert ended("resume", new)[0] == 0
        assert_same_end(new, tmp_path / "reference")


def test_a_store_that_shrinks_is_one_line_and_the_last_save_is_whole(
    tmp_path: Path, store: Path
) -> None:
    draw = random.Random(2)
    for number in range(NUM_TRIES):
        file, run = store / draw.choice((TOKENS, MASK)), tmp_path / f"run-{number}"
        original = file.read_bytes()
        size = draw.randrange(0, len(original) // 8)
        code, printed = disturbed(store, run, draw, partial(os.truncate, file, size))
        lines = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert code == 3 and len(lines) == 1 and str(file) in lines[0], printed
        assert "Traceback" not in printed
        file.write_bytes(original)
        assert ended("resume", run)[0] == 0
        assert_same_end(run, tmp_path / "reference")


def test_a_store_that_was_changed_never_gives_a_final_model(tmp_path: Path, store: Path) -> None:
    draw = random.Random(3)
    for number in range(NUM_TRIES):
        file, run = store / draw.choice((TOKENS, MASK)), tmp_path / f"run-{number}"
        original = file.read_bytes()
        flip_bit(file, draw.randrange(128 * 8, len(original) * 8))
        code, printed = ended(*train(store, run, draw.choice((0, 1))))
        assert code == 3 and str(store) in printed, printed
        assert not (run / "final").exists()
        file.write_bytes(original)


def test_a_damaged_final_model_is_found_and_made_again(tmp_path: Path, store: Path) -> None:
    draw, run = random.Random(4), tmp_path / "reference"
    final = run / "final"
    before = {path.name: path.read_bytes() for path in final.iterdir()}
    for _ in range(NUM_TRIES):
        file = final / draw.choice(sorted(before))
        flip_bit(file, draw.randrange(8 * len(before[file.name])))
        code, printed = ended("inspect-ckpt", run, "--verify")
        assert code == 4 and str(final) in printed, printed
        assert ended("chat", run / "final", "--prompt", "Hi", "--max-new-tokens", "2")[0] == 4
        code, printed = ended("resume", run)
        assert code == 0 and "final/ is written again" in printed, printed
        assert {path.name: path.read_bytes() for path in final.iterdir()} == before


def test_a_closed_terminal_loses_no_step(tmp_path: Path, store: Path) -> None:
    draw = random.Random(5)
    for number in range(NUM_TRIES):
        run = tmp_path / f"run-{number}"
        with forked(sftctl, *train(store, run, 1)) as ranks:
            _wait_until_it_hears(ranks)
            while ranks.all_run and len(whole_lines(run / "metrics.jsonl")) < 1:
                time.sleep(0.001)
            ranks.wait(draw.uniform(0, 0.3))
            ranks.signal(signal.SIGHUP)
            (code,) = ranks.ended()
        assert code in (75, 0), code
        assert newest_good(run / "checkpoints").manifest.step == len(
            whole_lines(run / "metrics.jsonl")
        )
        assert ended("resume", run)[0] == 0
        assert_same_end(run, tmp_path / "reference")


def _wait_until_it_hears(ranks: Ranks) -> None:
    while ranks.all_run and not catches(ranks.processes[0].pid, signal.SIGHUP):
        time.sleep(0.001)
