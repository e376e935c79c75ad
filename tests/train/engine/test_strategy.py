"""DDP and FSDP are the same run, on two and three ranks, and each goes on where the other stopped.

A start of ranks costs seconds, so each number of ranks is started once and does everything.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from sftctl import jsonio
from sftctl.checkpoint.load import load_tensors
from sftctl.runs.differences import ROUNDED
from tests.toys.runs import metrics_of, same_run, stored_tensors, toy_data
from tests.toys.steps import (
    ALONE,
    equal,
    make_config,
    make_state,
    steps_of,
    take,
    weights_of,
)
from tests.toys.strategies import (
    COMPARED,
    HEADS,
    NUM_STEPS,
    Found,
    all_steps,
    do_on_ranks,
    go_on,
    start,
)

LAST = "checkpoints/step-00000008"
DDP, FSDP = ({"strategy": name} for name in ("ddp", "fsdp"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strategies")
    toy_data(folder)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> dict[int, list[Found]]:
    """Number of ranks -> what each of them found. The chain: 2 of DDP, 2 of FSDP, 1, 3 of DDP."""
    two = do_on_ranks(
        2, all_steps, folder,
        (start, ("ddp",), DDP), (start, ("fsdp",), FSDP), (go_on, ("fsdp again", "fsdp", 3), FSDP),
        (go_on, ("chain on fsdp", "ddp", 2), FSDP),
    )  # fmt: skip
    go_on(folder, "chain on one", "chain on fsdp", 4)
    three = do_on_ranks(
        3, all_steps, folder,
        (go_on, ("chain", "chain on one", 6), DDP),
        (go_on, ("three", "fsdp", 3), FSDP), (go_on, ("three again", "three", 5), FSDP),
    )  # fmt: skip
    return {2: two, 3: three}


Ranks = dict[int, list[Found]]
both_worlds = pytest.mark.parametrize("num_ranks", [2, 3])


# ---------------------------------------------------------------------------- steps


FLOAT32 = [(n, name) for n, names in COMPARED.items() for name in names if "float" not in name]


@pytest.mark.parametrize(("num_ranks", "setting"), FLOAT32)
def test_fsdp_makes_the_updates_of_ddp(ranks: Ranks, num_ranks: int, setting: str) -> None:
    for found in ranks[num_ranks]:
        compared = found["compared"][setting]
        assert compared["gradient"] < 1e-5
        assert compared["update"] < 1e-5


@pytest.mark.parametrize(("num_ranks", "setting"), FLOAT32)
def test_fsdp_tells_what_ddp_tells_on_every_rank(
    ranks: Ranks, num_ranks: int, setting: str
) -> None:
    for found in ranks[num_ranks]:
        ours, theirs = found["compared"][setting]["metrics"]
        assert ours == ranks[num_ranks][0]["compared"][setting]["metrics"][0]
        assert len(ours) == len(theirs) == NUM_STEPS
        for line, other in zip(ours, theirs, strict=True):
            assert line == pytest.approx(other, rel=1e-6)
            assert line["examples_digest"] == other["examples_digest"]
            assert line["num_tokens"] == other["num_tokens"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_learns_alike_under_both(ranks: Ranks, dtype: str) -> None:
    ours, theirs = ranks[2][0]["compared"][dtype]["metrics"]
    for key in ("loss", "grad_norm"):
        assert [line[key] for line in ours] == pytest.approx(
            [line[key] for line in theirs], rel=0.01
        )
    plain, _ = ranks[2][0]["compared"]["plain"]["metrics"]
    assert [line["loss"] for line in ours] != [line["loss"] for line in plain]


@both_worlds
def test_fewer_validation_examples_than_ranks_are_evaluated_alike(
    ranks: Ranks, num_ranks: int
) -> None:
    for found in ranks[num_ranks]:
        ours, theirs = found["compared"]["clipped"]["validation"]
        assert [e.num_target_tokens for e in ours] == [e.num_target_tokens for e in theirs]
        assert [e.validation_loss for e in ours] == pytest.approx(
            [e.validation_loss for e in theirs], rel=1e-6
        )


@both_worlds
def test_each_rank_holds_its_share_of_weights_and_moments(ranks: Ranks, num_ranks: int) -> None:
    shares = [found["held"] for found in ranks[num_ranks]]
    (_, total, groups), *_ = shares
    assert sum(mine for mine, _, _ in shares) == total
    assert max(mine for mine, _, _ in shares) < 1.1 * total / num_ranks
    assert groups == 3  # two layers and the rest


@both_worlds
def test_an_overflow_on_one_rank_repeats_the_step_on_all(ranks: Ranks, num_ranks: int) -> None:
    for found in ranks[num_ranks]:
        overflown = found["overflown"]
        assert (overflown["scale"], overflown["step"]) == (2.0**15, 1)
        assert overflown["metrics"][0] == overflown["metrics"][1]
        assert overflown["same"]


@both_worlds
def test_a_gradient_that_is_no_number_on_one_rank_stops_all(ranks: Ranks, num_ranks: int) -> None:
    for found in ranks[num_ranks]:
        message, unchanged = found["diverged"]
        assert message == (
            "step 1 (epoch 0): the gradient norm is nan; the weights are those of step 0; "
            "examples of the step: 0, 1, 4, 7, 8"
        )
        assert unchanged


@both_worlds
def test_shares_of_any_size_are_saved_and_read_on_one_rank(
    ranks: Ranks, num_ranks: int, folder: Path
) -> None:
    state = make_state(make_config(), **HEADS)
    path = folder / f"on-{num_ranks}" / "checkpoints" / "step-00000001"
    load_tensors(path, state.tensors(), ALONE)
    expected = ranks[num_ranks][0]["saved"][0]
    assert {name: tensor.tolist() for name, tensor in state.tensors().items()} == {
        name: array.tolist() for name, array in expected.items()
    }
    assert all(found["saved"][1] for found in ranks[num_ranks])
    assert [found["saved"][2] for found in ranks[num_ranks]] == {2: [2, 2], 3: [2, 2, 0]}[num_ranks]


# ---------------------------------------------------------------------------- runs


def column(run: Path, key: str) -> list[Any]:
    return [line[key] for line in metrics_of(run)]


def validation_losses(run: Path) -> list[float]:
    events = jsonio.read_lines(run / "events.jsonl")
    return [line["validation_loss"] for line in events if line["event"] == "evaluation"]


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize("name", ["fsdp", "chain", "three"])
def test_a_run_is_the_same_under_any_strategy_and_across_them(folder: Path, name: str) -> None:
    """The chain began on two ranks of DDP, went on with FSDP, on one rank, on three of DDP."""
    for key in ("step", "epoch", "examples_digest", "learning_rate", "num_tokens"):
        assert column(folder / name, key) == column(folder / "ddp", key)
    for key in ("loss", "grad_norm"):
        assert column(folder / name, key) == pytest.approx(column(folder / "ddp", key), rel=1e-5)
    assert validation_losses(folder / name)[-1] == pytest.approx(
        validation_losses(folder / "ddp")[-1], rel=1e-5
    )


@pytest.mark.usefixtures("ranks")
def test_the_chain_tells_where_it_changed(folder: Path) -> None:
    told = [
        line["message"]
        for line in jsonio.read_lines(folder / "chain" / "events.jsonl")
        if line["event"] == "changed" and "->" in line["message"]
    ]
    assert [text for text in told if "strategy" in text] == [
        f"train.strategy: ddp -> fsdp: {ROUNDED}",
        f"train.strategy: fsdp -> ddp: {ROUNDED}",
    ]
    assert [text for text in told if text.startswith("ranks: ")] == [
        f"ranks: 2 -> 1: {ROUNDED}",
        f"ranks: 1 -> 3: {ROUNDED}",
    ]


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize(("run", "resumed"), [("fsdp", "fsdp again"), ("three", "three again")])
def test_a_resumed_fsdp_run_is_the_run_that_never_stopped(
    folder: Path, run: str, resumed: str
) -> None:
    assert same_run(metrics_of(folder / resumed)) == same_run(metrics_of(folder / run))
    for shard in sorted((folder / run / LAST).glob("*.safetensors")):
        assert (folder / resumed / LAST / shard.name).read_bytes() == shard.read_bytes()
    final = "final/model.safetensors"
    assert (folder / resumed / final).read_bytes() == (folder / run / final).read_bytes()


@pytest.mark.usefixtures("ranks")
def test_the_final_model_of_shares_is_whole(folder: Path) -> None:
    ours, theirs = (stored_tensors(folder / name / "final") for name in ("fsdp", "ddp"))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------------------- one rank


def test_on_one_rank_there_is_nothing_to_share_out() -> None:
    weights = []
    for strategy in ("ddp", "fsdp"):
        config = make_config(strategy=strategy)
        state = make_state(config)
        assert state.module is state.loss_module and not state.lockstep
        take(state, steps_of(config)[0], config)
        weights.append(weights_of(state))
    assert equal(*weights)
