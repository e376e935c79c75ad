"""A model with MiniMind-3's shape learns from real rows, and kill -9 changes nothing."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from tests.real.conftest import column, events, metrics, num_steps, sftctl, sftctl_killed_at

pytestmark = pytest.mark.real

FILES = ("alpaca_en_demo.json", "alpaca_zh_demo.json", "glaive_toolcall_en_demo.json")
NUM_ROWS = (999, 1000, 300)


def prepare(shared_data: Path, output: Path, max_seq_len: int) -> dict[str, Any]:
    manifest = sftctl(
        "prepare-data", *[shared_data / name for name in FILES], "--output", output,
        "--tokenizer", shared_data / "minimind_tokenizer", "--max-seq-len", max_seq_len, "--json",
    )  # fmt: skip
    read: dict[str, Any] = json.loads(manifest)
    return read


@pytest.fixture(scope="module")
def store(shared_data: Path, folder: Path) -> Path:
    """Examples so short that a step takes three seconds on two cores."""
    prepare(shared_data, folder / "store-256", 256)
    return folder / "store-256"


def test_every_row_of_alpaca_and_glaive_is_kept_or_accounted_for(
    shared_data: Path, folder: Path
) -> None:
    manifest = prepare(shared_data, folder / "store-512", 512)
    assert [source["rows"] for source in manifest["sources"]] == list(NUM_ROWS)
    dropped = manifest["rows_dropped"]
    assert set(dropped) <= {"no_target"}  # a conversation whose answer begins beyond token 512
    assert manifest["rows_read"] == sum(NUM_ROWS)
    assert manifest["rows_read"] == manifest["rows_kept"] + sum(dropped.values())
    ledger = map(json.loads, (folder / "store-512" / "ledger.jsonl").read_text().splitlines())
    assert len(list(ledger)) == manifest["rows_truncated"] + sum(dropped.values())


@pytest.mark.parametrize(
    ("num_ranks", "num_steps_in_all", "save_interval", "killed_at"),
    [(1, 20, 8, 11), (2, 10, 4, 6)],
)
def test_a_killed_and_resumed_run_has_the_same_losses_and_weights(
    store: Path,
    folder: Path,
    num_ranks: int,
    num_steps_in_all: int,
    save_interval: int,
    killed_at: int,
) -> None:
    uninterrupted, killed = (folder / f"{name}-{num_ranks}" for name in ("whole", "killed"))
    ranks = ("--nproc-per-node", num_ranks)
    train = (
        "train", "--model", "minimind-3", "--data", store, "--batch-size", 8,
        "--max-steps", num_steps_in_all, "--save-interval", save_interval, "--keep", 1, *ranks,
    )  # fmt: skip
    sftctl(*train, "--output-dir", uninterrupted)
    sftctl_killed_at(killed_at, killed, *train, "--output-dir", killed)
    assert killed_at <= num_steps(killed) < num_steps_in_all

    sftctl("resume", killed, *ranks)

    assert [event["step"] for event in events(killed, "resumed")] == [save_interval]
    assert column(killed, "step") == list(range(1, num_steps_in_all + 1))
    assert set(column(killed, "epoch")) == {0}  # it was killed in the middle of an epoch
    assert metrics(killed) == metrics(uninterrupted)
    weights = [run / "final" / "model.safetensors" for run in (killed, uninterrupted)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    losses = column(uninterrupted, "loss")
    if num_ranks == 1:
        assert mean(losses[-5:]) < mean(losses[:5]) - 0.5
