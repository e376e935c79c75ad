"""Replay: train the steps up to the last checkpoint again, and compare every bit."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from sftctl.checkpoint.directory import list_checkpoints, newest_good
from sftctl.checkpoint.layout import CheckpointManifest, read_manifest, step_of
from sftctl.checkpoint.load import load_tensors
from sftctl.config.load import config_from_dict
from sftctl.errors import ConfigError, NoCheckpoint, Stopped
from sftctl.jsonio import read_lines
from sftctl.runs.directory import RunDir
from sftctl.runs.effects import allowable_keys
from sftctl.tracking import status
from sftctl.train.engine.compiled import compiler_as_error
from sftctl.train.engine.state import manifest_fields, numbers_in
from sftctl.train.opening import restored_session
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import training_steps
from sftctl.train.session import Session
from sftctl.train.stop import StopRequest
from sftctl.words import counted, in_shell
from sftctl.world import World, local_part, start_world

COMPARED = ("examples_digest", "loss", "learning_rate", "grad_norm", "num_tokens")


@dataclass(frozen=True, slots=True)
class ReplayVerdict:
    """Whether the steps that were trained again gave the same results."""

    run_dir: Path
    from_step: int
    to_step: int
    num_tensors: int  # compared tensors, of the model and of the optimizer
    differences: tuple[str, ...]  # empty: every bit is equal
    wall_time_s: float

    @property
    def is_equal(self) -> bool:
        """Whether the replay gave the same bits as the run."""
        return not self.differences

    def lines(self) -> list[str]:
        """The verdict as text."""
        stretch = f"steps {self.from_step + 1} to {self.to_step} trained again"
        head = f"{self.run_dir}: {stretch} in {self.wall_time_s:.1f} s"
        if self.is_equal:
            compared = ", ".join(COMPARED)
            return [head, f"equal, bit for bit: {compared}, {self.num_tensors} tensors"]
        return [head, *(f"differs: {text}" for text in self.differences)]


def replay(run_dir: Path, *, stop: StopRequest | None = None) -> ReplayVerdict:
    """Train again from the second-last checkpoint (or from step 0) to the last one, and compare.

    All ranks call this together. Nothing in the run directory changes. Raises NoCheckpoint if there
    is no checkpoint to compare with, or if the state at step 0 is needed and can't be loaded.
    Raises ConfigError if the checkpoint was written by another number of ranks.
    """
    started = time.perf_counter()
    run = RunDir.open(run_dir)
    run.require_own_parts()
    earlier, last = _stretch(run)
    target = read_manifest(last)
    config = config_from_dict(target.config)
    first_step = int(read_manifest(earlier).step) if earlier is not None else 0
    restored_step = first_step if earlier is not None else target.step
    request = ResumeRequest(run_dir, step=restored_step, allow=frozenset(allowable_keys()))
    with (
        nullcontext(stop) if stop is not None else StopRequest() as listening,
        start_world(
            config.train.device, config.train.collective_timeout_s, listening.check
        ) as world,
        compiler_as_error(listening),
    ):
        _require_same_ranks(last, target, world)
        world.on_main(lambda: newest_good(run.checkpoints, target.step))  # or CorruptCheckpoint
        with restored_session(
            request, world, listening, config, initial=earlier is None
        ) as session:
            differences = [
                *_different_steps(session, target.step),
                *_different_progress(session, target),
                *_different_tensors(session, last, target),
            ]
            num_tensors = len(session.state.tensors())
    if differences and earlier is None:
        differences += _changes(run, target.step)
    wall_time_s = time.perf_counter() - started
    return ReplayVerdict(
        run_dir, first_step, target.step, num_tensors, tuple(differences), wall_time_s
    )


def _stretch(run: RunDir) -> tuple[Path | None, Path]:
    """The two ends of the replay: the second-last checkpoint and the last checkpoint.

    The first is None if the run has only one checkpoint. The replay then starts at step 0.
    """
    found = list_checkpoints(run.checkpoints)
    if not found or step_of(found[-1].name) == 0:
        raise NoCheckpoint(
            f"{run.checkpoints}: no checkpoint to compare a replay with",
            hint=f"`sftctl resume {in_shell(run.path)}` trains the run and saves one",
        )
    return (found[-2] if len(found) > 1 else None), found[-1]


def _changes(run: RunDir, last_step: int) -> list[str]:
    """The changes between step 0 and `last_step` that resumes recorded in the run's events."""
    changes: list[tuple[int, str]] = []
    for event in read_lines(run.path / "events.jsonl"):
        step = event["step"]
        if event["event"] == "resumed":  # a resume replaced the steps after its own step
            changes = [change for change in changes if change[0] < step]
        elif event["event"] == "changed" and " -> " in event["message"] and 0 < step < last_step:
            changes.append((step, event["message"]))
    return [
        f"the run was changed at step {step} ({message}): steps after it may differ"
        for step, message in changes
    ]


def _require_same_ranks(last: Path, target: CheckpointManifest, world: World) -> None:
    if target.world_size != world.world_size:
        raise ConfigError(
            f"{last}: written by {counted(target.world_size, 'rank')}, and this replay has "
            f"{world.world_size}: sums are rounded differently",
            hint=f"--nproc-per-node {target.world_size}",
        )


def _different_steps(session: Session, last_step: int) -> Iterator[str]:
    """Train to `last_step`, and compare each step with its line in metrics.jsonl."""
    lines = read_lines(session.run.path / "metrics.jsonl")
    recorded = {line["step"]: line for line in lines}
    status.doing(f"training again up to step {last_step}")
    for metrics in training_steps(session):
        line = recorded.get(metrics.step, {})
        for key in COMPARED:
            was, now = line.get(key), getattr(metrics, key)
            if was != now:
                yield f"step {metrics.step}: {key} was {was}, is {now}"
        status.doing(f"training again: step {metrics.step} of {last_step}")
        if metrics.step == last_step:
            status.doing("comparing")
            return
    raise Stopped(
        f"by {session.stop.agreed} at step {session.state.progress.step} of a replay; "
        "nothing changed",
        hint="run the same command again",
    )


def _different_progress(session: Session, target: CheckpointManifest) -> Iterator[str]:
    """Compare all numbers of the state but `validation`, because a replay does not validate."""
    recorded, found = (manifest_fields(n) for n in (numbers_in(target), session.state.numbers()))
    for key in found.keys() - {"validation"}:
        if found[key] != recorded[key]:
            yield f"{key} was {recorded[key]}, is {found[key]}"


def _different_tensors(session: Session, last: Path, target: CheckpointManifest) -> list[str]:
    """The tensors that differ from the checkpoint's, each with its largest difference.

    All ranks get the same list.
    """
    here = session.state.tensors()
    there = {name: torch.empty_like(tensor) for name, tensor in here.items()}
    load_tensors(last, there, session.world, manifest=target)
    mine = [
        f"{name}: by at most {float((local_part(there[name]) - part).abs().max()):.3g}"
        for name, tensor in here.items()
        if not torch.equal(local_part(there[name]), part := local_part(tensor))
    ]
    return sorted({text for texts in session.world.gather(mine) for text in texts})
