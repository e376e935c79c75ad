"""One rank, two ranks, two ranks under torchrun: the same steps and the same updates."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sftctl.model.load import load_model
from sftctl.model.tokenizer.tokenizer import load_tokenizer
from tests.real.conftest import column, sftctl

pytestmark = pytest.mark.real

LAUNCHES: dict[str, dict[str, Any]] = {
    "one rank": {},
    "two ranks": {"ranks": ("--nproc-per-node", 2)},
    "torchrun": {"torchrun": 2},
}
MODEL, SEED, NUM_STEPS = "small", 0, 20
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def store(shared_data: Path, folder: Path) -> Path:
    sftctl(
        "prepare-data", shared_data / "alpaca_en_demo.json", "--output", folder / "store",
        "--tokenizer", shared_data / "minimind_tokenizer", "--max-seq-len", 128,
    )  # fmt: skip
    return folder / "store"


def runs(folder: Path, store: Path, num_steps: int) -> dict[str, Path]:
    """One run for each launch. Clipping is off: it would hide a wrong scale of the gradient."""
    result = {}
    for name, launch in LAUNCHES.items():
        result[name] = folder / f"{name} {num_steps}".replace(" ", "-")
        sftctl(
            "train", "--model", MODEL, "--data", store, "--batch-size", 8, "--seed", SEED,
            "--max-steps", num_steps, "--grad-clip", 0, "--output-dir", result[name],
            *launch.get("ranks", ()), torchrun=launch.get("torchrun"),
        )  # fmt: skip
    return result


@pytest.fixture(scope="module")
def twenty_steps(folder: Path, store: Path) -> dict[str, Path]:
    return runs(folder, store, NUM_STEPS)


@pytest.fixture(scope="module")
def single_step(folder: Path, store: Path) -> dict[str, Path]:
    return runs(folder, store, 1)


def relative_distance(a: Tensors, b: Tensors) -> float:
    """||a - b|| / ||a||, over all tensors together."""
    assert a.keys() == b.keys()
    difference = sum(float((a[name] - b[name]).double().square().sum()) for name in a)
    size = sum(float(tensor.double().square().sum()) for tensor in a.values())
    return math.sqrt(difference / size)


def test_every_launch_trains_the_same_examples_in_every_step(twenty_steps: dict[str, Path]) -> None:
    digests = column(twenty_steps["one rank"], "examples_digest")
    assert len(set(digests)) == NUM_STEPS
    for name in ("two ranks", "torchrun"):
        assert column(twenty_steps[name], "examples_digest") == digests, name


def test_every_launch_computes_the_same_first_gradient(single_step: dict[str, Path]) -> None:
    gradients = {name: first_gradient(run) for name, run in single_step.items()}
    for name in ("two ranks", "torchrun"):
        assert relative_distance(gradients["one rank"], gradients[name]) <= 1e-5, name


def first_gradient(run: Path) -> Tensors:
    """AdamW's first moment after one step: (1 - beta1) times the gradient."""
    shards = (run / "checkpoints" / "step-00000001").glob("*.safetensors")
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    moments = {name: t for name, t in tensors.items() if name.endswith(".exp_avg")}
    assert moments and all(tensor.any() for tensor in moments.values())
    return moments


def test_every_launch_changes_the_weights_equally_in_twenty_steps(
    twenty_steps: dict[str, Path],
) -> None:
    updates = {name: update(run) for name, run in twenty_steps.items()}
    for name in ("two ranks", "torchrun"):
        assert relative_distance(updates["one rank"], updates[name]) <= 1e-3, name


def update(run: Path) -> Tensors:
    """Final weights minus the first weights, which the seed decides."""
    tokenizer = load_tokenizer(str(run / "model"))
    first = load_model(MODEL, tokenizer, SEED).state_dict()
    last = load_file(run / "final" / "model.safetensors")
    return {name: tensor - first[name] for name, tensor in last.items()}
