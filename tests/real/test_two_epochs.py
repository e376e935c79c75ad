"""Two epochs of 500 steps, killed after epoch 1, step 300, and resumed from that step."""

import json
import shutil
from pathlib import Path

import pytest

from sftctl.data.plan import examples_digest
from tests.real.conftest import column, events, metrics, sftctl, sftctl_killed_at

pytestmark = pytest.mark.real

NUM_EXAMPLES, BATCH_SIZE, STEPS_PER_EPOCH, TOTAL_STEPS = 1000, 2, 500, 1000
LAUNCHES = {"two ranks under torchrun": 2, "one rank under torchrun": 1, "one rank, plain": None}


@pytest.fixture(scope="module")
def store(folder: Path) -> Path:
    """A thousand short conversations, all different."""
    with (folder / "sums.jsonl").open("w") as file:
        for i in range(NUM_EXAMPLES):
            a, b = divmod(i, 32)
            turns = [("user", f"What is {a} + {b}?"), ("assistant", f"{a} + {b} = {a + b}.")]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": messages}) + "\n")
    sftctl("prepare-data", folder / "sums.jsonl", "--output", folder / "store")
    return folder / "store"


def train(store: Path, run: Path) -> tuple[object, ...]:
    return (
        "train", "--model", "tiny", "--data", store, "--batch-size", BATCH_SIZE, "--epochs", 2,
        "--save-interval", 100, "--keep", 10, "--output-dir", run,
    )  # fmt: skip


@pytest.fixture(scope="module", params=LAUNCHES.items(), ids=lambda launch: launch[0])
def runs(
    request: pytest.FixtureRequest, folder: Path, store: Path
) -> tuple[int | None, Path, Path]:
    """Ranks under torchrun, the uninterrupted run, and a run killed soon after step 800.

    One rank under torchrun and one rank without are compared with the same uninterrupted run.
    """
    name, torchrun = request.param
    whole = folder / f"whole-{torchrun or 1}"
    if not whole.exists():
        sftctl(*train(store, whole), torchrun=torchrun)
    place = folder / name.replace(" ", "-")
    place.mkdir()
    killed = place / "killed"
    sftctl_killed_at(801, killed, *train(store, killed), torchrun=torchrun, saved=800)
    return torchrun, whole, killed


def test_the_uninterrupted_run_trains_every_example_once_an_epoch(
    runs: tuple[int | None, Path, Path],
) -> None:
    _, whole, _ = runs
    assert_two_whole_epochs(whole)


@pytest.mark.parametrize(
    ("stopped_at", "epoch", "step_in_epoch"), [(800, 1, 300), (500, 1, 0)],
    ids=["at epoch 1, step 300", "at the epoch boundary"],
)  # fmt: skip
def test_a_resumed_run_trains_exactly_the_steps_that_are_left(
    runs: tuple[int | None, Path, Path], stopped_at: int, epoch: int, step_in_epoch: int
) -> None:
    torchrun, whole, killed = runs
    run = killed.with_name(f"resumed-{stopped_at}")
    shutil.copytree(killed, run)
    lines_before = (run / "metrics.jsonl").read_bytes().splitlines()[:stopped_at]
    checkpoint = run / "checkpoints" / f"step-{stopped_at:08d}"
    position = json.loads(sftctl("inspect-ckpt", checkpoint, "--json"))
    assert (position["epoch"], position["step_in_epoch"]) == (epoch, step_in_epoch)

    sftctl("resume", run, "--step", stopped_at, torchrun=torchrun)

    assert [event["step"] for event in events(run, "resumed")] == [stopped_at]
    assert (run / "metrics.jsonl").read_bytes().splitlines()[:stopped_at] == lines_before
    assert_two_whole_epochs(run)
    assert metrics(run) == metrics(whole)
    weights = [path / "final" / "model.safetensors" for path in (run, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def assert_two_whole_epochs(run: Path) -> None:
    """Steps are consecutive, and each epoch has trained every example once."""
    assert column(run, "step") == list(range(1, TOTAL_STEPS + 1))
    assert column(run, "epoch") == [0] * STEPS_PER_EPOCH + [1] * STEPS_PER_EPOCH
    digests = column(run, "examples_digest")
    for epoch in (digests[:STEPS_PER_EPOCH], digests[STEPS_PER_EPOCH:]):
        assert sum(epoch) % (1 << 64) == examples_digest(range(NUM_EXAMPLES))
