"""run_training: the page to read first.

A run is made ready (session.py), then `training_steps` yields one StepMetrics for every optimizer
step. Whoever wants to act between steps stands in the `for` below.
"""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from sftctl.checkpoint.directory import newest_good
from sftctl.checkpoint.load import load_weights
from sftctl.config.schema import RunConfig
from sftctl.data.loader import deaths_told
from sftctl.disk import new_folder, refusals
from sftctl.errors import CheckpointError, TrainingDiverged
from sftctl.metrics import RunSummary, StepMetrics
from sftctl.model.load import load_architecture, save_pretrained
from sftctl.tracking.tracker import Tracker
from sftctl.train.announce import open_trackers
from sftctl.train.engine.evaluate import evaluate
from sftctl.train.engine.step import train_step
from sftctl.train.preflight.rehearsal import shortage_told
from sftctl.train.resume import ResumeRequest
from sftctl.train.samples import tell_samples
from sftctl.train.saving import Saving, open_saving
from sftctl.train.session import Session, new_session, resumed_session
from sftctl.train.stop import StopRequest
from sftctl.world import World, start_world


def run_training(
    config: RunConfig, resume: ResumeRequest | None = None, *, stop: StopRequest | None = None
) -> RunSummary:
    """Train a new run of `config`, or go on with the run that `resume` names.

    Called on every rank. `stop` is listening already, or this listens by itself. Returns when the
    run is finished or, after a signal, saved; raises a SftctlError for what a user can mend.
    """
    train = config.train
    with (
        nullcontext(stop) if stop is not None else StopRequest() as listening,
        start_world(train.device, train.collective_timeout_s) as world,
        _session(config, resume, world, listening) as session,
    ):
        if session.is_complete:
            return _summary(session, "nothing_to_do", _Done())
        with (
            open_trackers(session, world) as (tracker, log),
            shortage_told(session.shape.micro_batch_tokens),
            open_saving(session, world, tracker, log) as saving,
            deaths_told(),
        ):
            return _train(session, world, listening, tracker, saving)


def _session(
    config: RunConfig, resume: ResumeRequest | None, world: World, stop: StopRequest
) -> AbstractContextManager[Session]:
    if resume is None:
        return new_session(config, world, stop)
    return resumed_session(resume, world, stop)


def _train(
    session: Session, world: World, stop: StopRequest, tracker: Tracker, saving: Saving
) -> RunSummary:
    started, done = time.perf_counter(), _Done()
    progress, save_interval = session.state.progress, session.config.checkpoint.save_interval
    signal_name = _validate(session, world, tracker, stop)
    steps = training_steps(session, world) if signal_name is None else iter(())
    for metrics in steps:
        tracker.log(metrics)
        done.add(metrics)
        if metrics.skipped is not None:
            message = (
                f"step {metrics.step}: {metrics.skipped}: no update, the weights are as before"
            )
            tracker.event("warning", metrics.step, message=message)
        saving.poll()
        signal_name = _validate(session, world, tracker, stop)
        if signal_name is not None:
            break
        if _due(metrics.step, save_interval) and metrics.step < session.total_steps:
            saving.start()
    saving.finish()
    if signal_name is not None:
        tracker.event("stopped", progress.step, signal=signal_name)
    else:
        _write_final(session, world)
        tracker.event("finished", progress.step)
    status = "stopped" if signal_name is not None else "finished"
    done.wall_time_s = time.perf_counter() - started
    return _summary(session, status, done)


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


def _validate(session: Session, world: World, tracker: Tracker, stop: StopRequest) -> str | None:
    """Validate if it is time to and not done yet; gives the signal that asks to stop, if any.

    A validation that a signal ends early counts for nothing: the resumed run makes it.
    """
    signal_name, progress = stop.requested(world), session.state.progress
    is_end = progress.step in (0, session.total_steps)
    is_due = is_end or _due(progress.step, session.config.train.eval_interval)
    if signal_name or session.inputs.validation is None or not is_due or progress.is_validated:
        return signal_name
    result = evaluate(session.state, session.inputs.validation, session.shape, world, stop)
    if result is not None:
        progress.validated(result.validation_loss)
        tracker.event(
            "evaluation",
            progress.step,
            validation_loss=result.validation_loss,
            num_target_tokens=result.num_target_tokens,
        )
        _require_finite(result.validation_loss, session, tracker)
        tell_samples(session, world, tracker, stop)
    return stop.requested(world)


def _require_finite(loss: float, session: Session, tracker: Tracker) -> None:
    """Weights that give no finite loss before the first step are no examples' fault: say so."""
    step, stops = session.state.progress.step, session.config.train.on_nonfinite == "stop"
    if math.isfinite(loss):
        return
    what = f"step {step}: the validation loss is {loss}"
    if step == 0 and stops:
        raise TrainingDiverged(
            f"{what} before any update: the model that was loaded gives no finite loss",
            hint=f"`sftctl inspect-ckpt {session.config.model.name} --tensors` counts NaNs in "
            "weights; with --dtype float16 numbers overflow: try float32",
        )
    tracker.event("warning", step, message=f"{what}: no finite number")


def _write_final(session: Session, world: World) -> None:
    """The trained model as a Hugging Face directory, whole or absent.

    It is read from the last checkpoint: no rank needs to hold the whole model for it.
    """
    run = session.run

    def write() -> None:
        if run.final.is_dir():
            return
        checkpoint, _ = newest_good(run.checkpoints, session.state.progress.step)
        model = load_architecture(run.model_folder)
        load_weights(checkpoint, model)
        with refusals(run.final, CheckpointError), new_folder(run.final) as folder:
            save_pretrained(model, session.inputs.tokenizer, folder)

    world.on_main(write)


@dataclass
class _Done:
    """What this call has trained."""

    loss: float | None = None  # of the last step
    num_tokens: int = 0
    num_skipped: int = 0
    wall_time_s: float = 0.0

    def add(self, metrics: StepMetrics) -> None:
        self.loss = metrics.loss
        self.num_tokens += metrics.num_tokens
        self.num_skipped += metrics.skipped is not None


def _summary(session: Session, status: str, done: _Done) -> RunSummary:
    validation: dict[str, Any] = session.state.progress.validation or {}
    return RunSummary(
        run_dir=session.run.path,
        status=status,
        step=session.state.progress.step,
        total_steps=session.total_steps,
        first_validation_loss=validation.get("first"),
        validation_loss=validation.get("last"),
        validation_step=validation.get("step"),
        loss=done.loss,
        num_tokens=done.num_tokens,
        num_skipped=done.num_skipped,
        wall_time_s=done.wall_time_s,
    )
