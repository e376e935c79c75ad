"""DDP and FSDP train the same run, on two and three ranks, and each continues the other's.

Starting ranks takes seconds, so each number of ranks is started once and does everything.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sftctl import jsonio
from sftctl.checkpoint.load import load_tensors
from sftctl.runs.effects import ROUNDED
from sftctl.world import start_world
from tests.toys.ranks import run_in_turn
from tests.toys.runs import metrics_of, same_run, stored_tensors, toy_data
from tests.toys.steps import ALONE, equal, make_config, make_state, steps_of, take, weights_of
from tests.toys.strategies import (
    NUM_STEPS,
    SETTINGS,
    SMALL_HEADS,
    Comparison,
    Divergence,
    Overflow,
    Saved,
    Shares,
    config_of,
    count_shares,
    diverge,
    overflow_once,
    resume_copy,
    save_and_load,
    train_run,
    train_steps,
)

LAST = "checkpoints/step-00000008"
SETTINGS_ON = {2: tuple(SETTINGS), 3: ("clipped",)}
"""Number of ranks -> the settings that are compared there."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What one rank found."""

    comparisons: dict[str, Comparison]
    shares: Shares
    overflow: Overflow
    divergence: Divergence
    saved: Saved


def try_everything(folder: Path) -> Findings:
    """Everything that is tried in one world."""
    with start_world("cpu") as world:
        comparisons = {
            name: Comparison(*(train_steps(s, world, **SETTINGS[name]) for s in ("fsdp", "ddp")))
            for name in SETTINGS_ON[world.world_size]
        }
        return Findings(
            comparisons,
            count_shares(world),
            overflow_once(world),
            diverge(config_of("fsdp"), world),
            save_and_load(world, folder / f"on-{world.world_size}"),
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strategies")
    toy_data(folder)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> dict[int, list[Findings]]:
    """Number of ranks -> what each rank found. Their runs are in `folder`.

    One run is handed on: from two ranks with DDP to two with FSDP, to one, to three with DDP.
    """
    new, resume = partial(train_run, folder), partial(resume_copy, folder)
    two = run_in_turn(
        2,
        [
            partial(try_everything, folder),
            partial(new, "ddp", strategy="ddp"),
            partial(new, "fsdp", strategy="fsdp"),
            partial(resume, "fsdp again", "fsdp", 3, strategy="fsdp"),
            partial(resume, "handed to fsdp", "ddp", 2, strategy="fsdp"),
        ],
    )
    resume("handed to one", "handed to fsdp", 4)
    three = run_in_turn(
        3,
        [
            partial(try_everything, folder),
            partial(resume, "handed on", "handed to one", 6, strategy="ddp"),
            partial(resume, "three", "fsdp", 3, strategy="fsdp"),
            partial(resume, "three again", "three", 5, strategy="fsdp"),
        ],
    )
    return {2: [rank[0] for rank in two], 3: [rank[0] for rank in three]}


Ranks = dict[int, list[Findings]]
on_two_and_three = pytest.mark.parametrize("num_ranks", [2, 3])


# ---------------------------------------------------------------------------- steps


FLOAT32 = [(n, name) for n, names in SETTINGS_ON.items() for name in names if "float" not in name]


@pytest.mark.parametrize(("num_ranks", "setting"), FLOAT32)
def test_fsdp_makes_the_same_updates_as_ddp(ranks: Ranks, num_ranks: int, setting: str) -> None:
    for found in ranks[num_ranks]:
        assert found.comparisons[setting].gradient_distance < 1e-5
        assert found.comparisons[setting].update_distance < 1e-5


def test_frozen_weights_stay_and_have_no_optimizer_state_under_both(ranks: Ranks) -> None:
    comparison = ranks[2][0].comparisons["frozen"]
    for steps in (comparison.fsdp, comparison.ddp):
        moved = {name.partition(".")[2] for name, change in steps.movement.items() if change.any()}
        trained = {name for name in moved if name.endswith(".weight")}
        assert "model.layers.1.mlp.up_proj.weight" in trained
        assert not any("embed_tokens" in name or ".layers.0." in name for name in moved)
        assert {name.rpartition(".")[0] for name in moved - trained} == trained


@pytest.mark.parametrize(("num_ranks", "setting"), FLOAT32)
def test_fsdp_and_ddp_report_the_same_metrics_on_every_rank(
    ranks: Ranks, num_ranks: int, setting: str
) -> None:
    for found in ranks[num_ranks]:
        fsdp, ddp = found.comparisons[setting].fsdp.facts, found.comparisons[setting].ddp.facts
        assert fsdp == ranks[num_ranks][0].comparisons[setting].fsdp.facts
        assert len(fsdp) == len(ddp) == NUM_STEPS
        for line, other in zip(fsdp, ddp, strict=True):
            assert line == pytest.approx(other, rel=1e-6)
            assert line["examples_digest"] == other["examples_digest"]
            assert line["num_tokens"] == other["num_tokens"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_learns_alike_under_both(ranks: Ranks, dtype: str) -> None:
    mixed, plain = (ranks[2][0].comparisons[name] for name in (dtype, "plain"))
    for key, bound in (("loss", 1e-3), ("grad_norm", 1e-2)):
        assert [line[key] for line in mixed.fsdp.facts] == pytest.approx(
            [line[key] for line in mixed.ddp.facts], rel=bound
        )
    assert [line["loss"] for line in mixed.fsdp.facts] != [
        line["loss"] for line in plain.fsdp.facts
    ]


@on_two_and_three
def test_fewer_validation_examples_than_ranks_are_evaluated_alike(
    ranks: Ranks, num_ranks: int
) -> None:
    for found in ranks[num_ranks]:
        compared = found.comparisons["clipped"]
        for fsdp, ddp in zip(compared.fsdp.validation, compared.ddp.validation, strict=True):
            assert fsdp is not None and ddp is not None
            assert fsdp.num_target_tokens == ddp.num_target_tokens
            assert fsdp.validation_loss == pytest.approx(ddp.validation_loss, rel=1e-6)


@on_two_and_three
def test_each_rank_holds_its_share_of_weights_and_moments(ranks: Ranks, num_ranks: int) -> None:
    shares = [found.shares for found in ranks[num_ranks]]
    total = shares[0].num_in_all
    assert sum(each.num_here for each in shares) == total
    assert max(each.num_here for each in shares) < 1.1 * total / num_ranks
    assert shares[0].num_groups == 3  # two layers and the rest


@on_two_and_three
def test_an_overflow_on_one_rank_repeats_the_step_on_all(ranks: Ranks, num_ranks: int) -> None:
    for found in ranks[num_ranks]:
        assert (found.overflow.scale, found.overflow.step) == (2.0**15, 1)
        assert found.overflow.facts == found.overflow.expected
        assert found.overflow.is_same_state


@on_two_and_three
def test_a_gradient_that_is_not_finite_on_one_rank_stops_all(ranks: Ranks, num_ranks: int) -> None:
    for found in ranks[num_ranks]:
        assert found.divergence.message == (
            "step 1 (epoch 1): the gradient norm is nan; the weights are those of step 0; "
            "examples of the step: 0, 1, 4, 7, 8"
        )
        assert found.divergence.is_unchanged


@on_two_and_three
def test_shares_of_any_size_are_saved_and_read_on_one_rank(
    ranks: Ranks, num_ranks: int, folder: Path
) -> None:
    state = make_state(make_config(), **SMALL_HEADS)
    path = folder / f"on-{num_ranks}" / "checkpoints" / "step-00000001"
    load_tensors(path, state.tensors(), ALONE)
    saved = [found.saved for found in ranks[num_ranks]]
    assert {name: tensor.tolist() for name, tensor in state.tensors().items()} == {
        name: array.tolist() for name, array in saved[0].tensors.items()
    }
    assert all(each.is_restored for each in saved)
    assert [each.num_norm_weights for each in saved] == {2: [2, 2], 3: [2, 2, 0]}[num_ranks]


# ---------------------------------------------------------------------------- runs


def column(run: Path, key: str) -> list[Any]:
    return [line[key] for line in metrics_of(run)]


def validation_losses(run: Path) -> list[float]:
    events = jsonio.read_lines(run / "events.jsonl")
    return [line["validation_loss"] for line in events if line["event"] == "evaluation"]


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize("name", ["fsdp", "handed on", "three"])
def test_a_run_is_the_same_under_any_strategy_and_after_a_change_of_strategy(
    folder: Path, name: str
) -> None:
    for key in ("step", "epoch", "examples_digest", "learning_rate", "num_tokens"):
        assert column(folder / name, key) == column(folder / "ddp", key)
    for key in ("loss", "grad_norm"):
        assert column(folder / name, key) == pytest.approx(column(folder / "ddp", key), rel=1e-5)
    assert validation_losses(folder / name)[-1] == pytest.approx(
        validation_losses(folder / "ddp")[-1], rel=1e-5
    )


@pytest.mark.usefixtures("ranks")
def test_a_run_that_is_handed_on_records_each_change(folder: Path) -> None:
    changes = [
        line["message"]
        for line in jsonio.read_lines(folder / "handed on" / "events.jsonl")
        if line["event"] == "changed" and "->" in line["message"]
    ]
    assert [text for text in changes if "strategy" in text] == [
        f"train.strategy: ddp -> fsdp: {ROUNDED}",
        f"train.strategy: fsdp -> ddp: {ROUNDED}",
    ]
    assert [text for text in changes if text.startswith("ranks: ")] == [
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
def test_the_final_model_of_a_sharded_run_is_complete(folder: Path) -> None:
    ours, theirs = (stored_tensors(folder / name / "final") for name in ("fsdp", "ddp"))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------------------- one rank


def test_on_one_rank_both_strategies_are_the_same_plain_module() -> None:
    weights = []
    for strategy in ("ddp", "fsdp"):
        config = make_config(strategy=strategy)
        state = make_state(config)
        assert not state.is_sharded
        take(state, steps_of(config)[0], config)
        weights.append(weights_of(state))
    assert equal(*weights)
