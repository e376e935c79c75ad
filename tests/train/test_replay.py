"""A replay confirms an unchanged run and finds what was changed in another."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sftctl import jsonio
from sftctl.checkpoint.layout import read_manifest
from sftctl.checkpoint.save import save_checkpoint
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.errors import ConfigError, CorruptCheckpoint, NoCheckpoint, Stopped
from sftctl.runs.directory import RunDir
from sftctl.train.launch import run_on_ranks
from sftctl.train.replay import replay
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from sftctl.train.stop import StopRequest
from sftctl.world import ALONE
from tests.toys.runs import stored_tensors, toy_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    config = toy_config(
        folder, checkpoint__save_interval=5, train__dtype="float16", data__val_fraction=0.2
    )
    run_training(config)
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run with checkpoints at steps 5 and 10 (and the end)."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def files_of(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_a_replay_of_an_unchanged_run_is_equal_and_changes_nothing(run: Path) -> None:
    before = files_of(run)
    verdict = replay(run)
    assert verdict.is_equal and verdict.differences == ()
    last, before_last = sorted(read_manifest(p).step for p in (run / "checkpoints").iterdir())[
        -1:-3:-1
    ]
    assert (verdict.from_step, verdict.to_step) == (before_last, last)
    assert verdict.num_tensors > 50
    assert verdict.lines()[1].startswith("equal, bit for bit: examples_digest, loss, ")
    assert files_of(run) == before


def test_changed_metrics_are_found(run: Path) -> None:
    lines = list(jsonio.read_lines(run / "metrics.jsonl"))
    last = lines[-1]["step"]
    lines[-1] |= {"loss": lines[-1]["loss"] + 1e-12, "examples_digest": 7}
    (run / "metrics.jsonl").write_bytes(b"".join(jsonio.dump_line(line) for line in lines))
    verdict = replay(run)
    assert [text.split(" was ")[0] for text in verdict.differences] == [
        f"step {last}: examples_digest",
        f"step {last}: loss",
    ]


def replace_last(run: Path, tensor: str = "", **facts: Any) -> None:
    """Replace a run's last checkpoint by one with a changed tensor or counter and right hashes."""
    path = sorted((run / "checkpoints").iterdir())[-1]
    manifest, tensors = read_manifest(path), stored_tensors(path)
    tensors |= {name: tensors[source] for name, source in manifest.aliases.items()}
    if tensor:
        tensors[tensor][0] += 1e-3
    shutil.rmtree(path)
    save_checkpoint(path.parent, tensors, replace(manifest, **facts), ALONE)


def test_a_changed_tensor_is_found_by_name(run: Path) -> None:
    name = "optimizer.model.norm.weight.exp_avg"
    replace_last(run, name)
    (difference,) = replay(run).differences
    assert difference.startswith(f"{name}: by at most 0.001")


def test_a_changed_counter_is_found(run: Path) -> None:
    replace_last(run, tokens_seen=1)
    (difference,) = replay(run).differences
    assert difference.startswith("tokens_seen was 1, is ")


def keep_last(run: Path) -> None:
    for path in sorted((run / "checkpoints").iterdir())[:-1]:
        shutil.rmtree(path)


def test_the_only_checkpoint_is_replayed_from_step_0(run: Path) -> None:
    keep_last(run)
    before = files_of(run)
    verdict = replay(run)
    assert verdict.differences == ()
    last = read_manifest(*(run / "checkpoints").iterdir()).step
    assert (verdict.from_step, verdict.to_step) == (0, last)
    assert verdict.lines()[0].startswith(f"{run}: steps 1 to {last} trained again in ")
    assert files_of(run) == before


def test_a_replay_from_step_0_starts_with_the_weights_of_the_base_model(
    finished: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(finished / "final", tmp_path / "base")
    config = toy_config(
        tmp_path, model__name=str(base), model__tokenizer=str(SAMPLE_TOKENIZER),
        train__max_steps=2, checkpoint__save_interval=0,
    )  # fmt: skip
    run = run_training(config).run_dir
    assert replay(run).differences == ()
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(NoCheckpoint) as raised:
        replay(run)
    assert raised.value.message.startswith(
        f"{run}: the only checkpoint is step-00000002, and the model at step 0 can't be loaded: "
    )
    assert str(base) in raised.value.message and "\n" not in raised.value.message


def test_a_replay_from_step_0_that_differs_names_what_a_resume_changed(
    tmp_path: Path,
) -> None:
    run = run_training(toy_config(tmp_path, checkpoint__save_interval=4)).run_dir
    config = RunDir.open(run).config()
    faster = replace(config, optim=replace(config.optim, learning_rate=5e-4))
    RunDir(run).write_config(faster)
    allowed = frozenset({"optim.learning_rate"})
    for step in (8, 4):  # the second resume goes back: only its change is part of the run
        run_training(faster, ResumeRequest(run, step=step, allow=allowed))
    assert replay(run).differences == ()  # from step 8 to step 12
    keep_last(run)
    *_, change = replay(run).differences
    assert change == (
        "the run was changed at step 4 (optim.learning_rate: 0.001 -> 0.0005: 12 steps in all; "
        "learning rate of step 5 0.000666 -> 0.000333): steps after it may differ"
    )


def test_a_run_without_a_checkpoint_can_not_be_replayed(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(NoCheckpoint, match="no checkpoint to compare a replay with"):
        replay(run)


def test_a_damaged_checkpoint_can_not_be_replayed(run: Path) -> None:
    shard = next(sorted((run / "checkpoints").iterdir())[-1].glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptCheckpoint, match=shard.name):
        replay(run)


def test_a_replay_can_be_stopped_by_a_signal(run: Path, tmp_path: Path) -> None:
    (tmp_path / "stop").write_text("SIGTERM")
    with pytest.raises(Stopped, match="by SIGTERM"):
        replay(run, stop=StopRequest(tmp_path / "stop"))


def test_a_run_of_two_ranks_is_replayed_on_two_ranks(tmp_path: Path) -> None:
    run_on_ranks(2, run_training, toy_config(tmp_path, checkpoint__save_interval=5))
    with pytest.raises(ConfigError) as raised:
        replay(tmp_path / "run")
    assert raised.value.hint == "--nproc-per-node 2"
    assert run_on_ranks(2, replay, tmp_path / "run").is_equal
    keep_last(tmp_path / "run")
    verdict = run_on_ranks(2, replay, tmp_path / "run")
    assert verdict.is_equal and verdict.from_step == 0
