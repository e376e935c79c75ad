"""run_training: the page to read first.

A run is made ready (session.py), then `training_steps` yields one StepMetrics for every optimizer
step. Whoever wants to act between steps stands in the `for` below.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from sftctl.checkpoint.directory import retire
from sftctl.checkpoint.layout import CheckpointManifest, checkpoint_name
from sftctl.checkpoint.load import load_tensors
from sftctl.checkpoint.save import save_checkpoint
from sftctl.config.load import config_to_dict
from sftctl.config.schema import RunConfig
from sftctl.disk import new_folder
from sftctl.errors import CheckpointError
from sftctl.metrics import RunSummary, StepMetrics
from sftctl.model.load import load_architecture, save_pretrained
from sftctl.tracking.runlog import RunLog
from sftctl.tracking.tracker import Tracker
from sftctl.train.evaluate import evaluate
from sftctl.train.optim import get_lr
from sftctl.train.resume import ResumeRequest
from sftctl.train.session import Session, new_session, resumed_session
from sftctl.train.step import train_step
from sftctl.train.stop import StopRequest
from sftctl.train.trackers import open_trackers
from sftctl.train.versions import versions
from sftctl.world import World, start_world


def run_training(
    config: RunConfig, resume: ResumeRequest | None = None, *, stop_file: Path | None = None
) -> RunSummary:
    """Train a new run of `config`, or go on with the run that `resume` names.

    Called on every rank. Returns when the run is finished or, after a signal, saved; raises a
    SftctlError for what a user can mend.
    """
    with start_world(config.train.device) as world:
        session_of = (
            new_session(config, world) if resume is None else resumed_session(resume, world)
        )
        with session_of as session, StopRequest(stop_file) as stop:
            if session.state.progress.step >= session.total_steps:
                return _complete(session, world)
            with open_trackers(session, world) as (tracker, log):
                return _train(session, world, stop, tracker, log)


def _train(
    session: Session, world: World, stop: StopRequest, tracker: Tracker, log: RunLog | None
) -> RunSummary:
    started, num_tokens, loss = time.perf_counter(), 0, None
    progress, config = session.state.progress, session.config
    status = "finished"
    if progress.step == 0:
        _evaluate(session, world, tracker)
    for metrics in training_steps(session, world):
        tracker.log(metrics)
        num_tokens, loss = num_tokens + metrics.num_tokens, metrics.loss
        is_last = metrics.step == session.total_steps
        if is_last or _due(metrics.step, config.train.eval_interval):
            _evaluate(session, world, tracker)
        signal_name = None if is_last else stop.requested(world)
        if is_last or signal_name or _due(metrics.step, config.checkpoint.save_interval):
            _save(session, world, tracker, log)
        if signal_name:
            tracker.event("stopped", metrics.step, signal=signal_name)
            status = "stopped"
            break
    if status == "finished":
        _write_final(session, world)
        tracker.event("finished", progress.step)
    return _summary(session, status, loss, num_tokens, time.perf_counter() - started)


def training_steps(session: Session, world: World) -> Iterator[StepMetrics]:
    """Train step after step from where the state stands to the run's last step."""
    progress, loader = session.state.progress, session.loader(world)
    while progress.step < session.total_steps:
        batches = loader.steps(progress.epoch, progress.step_in_epoch)
        while progress.step < session.total_steps:
            asked = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            data_wait_s = time.perf_counter() - asked
            yield train_step(session.state, batch, session.rules, world, data_wait_s)


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


def _evaluate(session: Session, world: World, tracker: Tracker) -> None:
    if session.inputs.validation is None:
        return
    result = evaluate(session.state, session.inputs.validation, session.shape, world)
    session.state.progress.validated(result.validation_loss)
    tracker.event(
        "evaluation",
        session.state.progress.step,
        validation_loss=result.validation_loss,
        num_target_tokens=result.num_target_tokens,
    )


def _save(session: Session, world: World, tracker: Tracker, log: RunLog | None) -> None:
    """A checkpoint of the state as it is, verified; then old ones go."""
    started = time.perf_counter()
    manifest = _manifest(session, world, log.sync() if log is not None else 0)
    root = session.run.checkpoints
    try:
        path = save_checkpoint(root, session.state.tensors(), manifest, world)
    except CheckpointError as error:
        tracker.event("save_failed", manifest.step, error=error.message)
        raise
    if world.is_main:
        num_bytes = sum(file.stat().st_size for file in path.iterdir())
        seconds = time.perf_counter() - started
        tracker.event("saved", manifest.step, path=path.name, num_bytes=num_bytes, seconds=seconds)
        try:
            retire(root, session.config.checkpoint.keep)
        except OSError as problem:  # too many checkpoints are no reason to stop
            message = f"{root}: old checkpoints can't be removed: {problem.strerror}"
            tracker.event("warning", manifest.step, message=message)


def _manifest(session: Session, world: World, metrics_bytes: int) -> CheckpointManifest:
    progress, config = session.state.progress, session.config
    return CheckpointManifest(
        **progress.state_dict(),
        total_steps=session.total_steps,
        steps_per_epoch=session.steps_per_epoch,
        learning_rate=get_lr(progress.step, session.total_steps, config.optim),
        global_batch_size=session.shape.global_batch_size,
        micro_batch_tokens=session.shape.micro_batch_tokens,
        cut_for_ranks=session.shape.cut_for_ranks,
        num_threads=torch.get_num_threads(),
        world_size=world.world_size,
        dtype=config.train.dtype,
        scaler=session.state.scaler.state_dict() or None,
        data_fingerprint=session.inputs.train.manifest.fingerprint,
        config=config_to_dict(config),
        versions=versions(),
        wandb_run_id=session.run.facts()["wandb_run_id"],
        metrics_bytes=metrics_bytes,
    )


def _complete(session: Session, world: World) -> RunSummary:
    """A run that has no step left: make the final model if a crash has kept it from being there."""
    if not session.run.final.is_dir():
        _write_final(session, world)
    return _summary(session, "nothing_to_do", None, 0, 0.0)


def _write_final(session: Session, world: World) -> None:
    """The trained model, as its last checkpoint has it, as a Hugging Face directory."""

    def write() -> None:
        model = load_architecture(session.run.model_folder)
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        last = session.run.checkpoints / checkpoint_name(session.state.progress.step)
        load_tensors(last, tensors, World(0, 0, 1, torch.device("cpu")), prefix="model.")
        try:
            with new_folder(session.run.final) as folder:
                save_pretrained(model, session.inputs.tokenizer, folder)
        except OSError as problem:
            reason = problem.strerror or problem
            raise CheckpointError(f"{session.run.final}: can't be written: {reason}") from problem

    world.on_main(write)


def _summary(
    session: Session, status: str, loss: float | None, num_tokens: int, wall_time_s: float
) -> RunSummary:
    validation = session.state.progress.validation or {}
    return RunSummary(
        run_dir=session.run.path,
        status=status,
        step=session.state.progress.step,
        total_steps=session.total_steps,
        first_validation_loss=validation.get("first"),
        validation_loss=validation.get("last"),
        loss=loss,
        num_tokens=num_tokens,
        wall_time_s=wall_time_s,
    )
