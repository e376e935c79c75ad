"""run_training: the file to read first.

`session.py` gets a run ready, then `training_steps` yields one StepMetrics per optimizer step.
What happens between two steps is written in the loop of `_train`.
"""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from sftctl.checkpoint.directory import newest_good
from sftctl.checkpoint.load import load_weights
from sftctl.config.schema import RunConfig
from sftctl.data.loader import loader_death_as_error
from sftctl.data.microbatch import StepBatch
from sftctl.disk import new_folder, refusals
from sftctl.errors import CheckpointError, TrainingDiverged
from sftctl.metrics import RunSummary, StepMetrics
from sftctl.model.load import load_architecture, save_pretrained
from sftctl.tracking.tracker import Tracker
from sftctl.train.announce import open_trackers
from sftctl.train.engine.evaluate import evaluate
from sftctl.train.engine.step import train_step
from sftctl.train.preflight.rehearsal import out_of_memory_as_error
from sftctl.train.resume import ResumeRequest
from sftctl.train.samples import show_samples
from sftctl.train.saving import Saving, open_saving
from sftctl.train.session import Session, new_session, resumed_session
from sftctl.train.stop import StopRequest
from sftctl.world import World, start_world


def run_training(
    config: RunConfig, resume: ResumeRequest | None = None, *, stop: StopRequest | None = None
) -> RunSummary:
    """Train a new run of `config`, or continue the run that `resume` names.

    Every rank calls it. A `stop` must be listening already; without one, this call listens. Returns
    when the run is finished or, after a signal, saved. Raises a SftctlError if a user can fix it.
    """
    train = config.train
    with (
        nullcontext(stop) if stop is not None else StopRequest() as listening,
        start_world(train.device, train.collective_timeout_s) as world,
        _open_session(config, resume, world, listening) as session,
    ):
        if session.is_complete:
            return _ended(RunSummary(session.run.path), session, "nothing_to_do")
        with (
            open_trackers(session) as (tracker, log),
            out_of_memory_as_error(session.shape.micro_batch_tokens),
            open_saving(session, tracker, log) as saving,
            loader_death_as_error(),
        ):
            return _train(session, tracker, saving)


def _open_session(
    config: RunConfig, resume: ResumeRequest | None, world: World, stop: StopRequest
) -> AbstractContextManager[Session]:
    if resume is None:
        return new_session(config, world, stop)
    return resumed_session(resume, world, stop)


def _train(session: Session, tracker: Tracker, saving: Saving) -> RunSummary:
    started, summary = time.perf_counter(), RunSummary(session.run.path)
    progress, save_interval = session.state.progress, session.config.checkpoint.save_interval
    validate_if_due(session, tracker)
    for metrics in training_steps(session):
        summary.add(metrics)
        report(metrics, tracker)
        saving.poll()
        validate_if_due(session, tracker)
        if is_due(metrics.step, save_interval):
            saving.start()
    saving.finish()
    status = "finished" if session.stop.agreed is None else "stopped"
    if status == "finished":
        _write_final(session)
        tracker.event("finished", progress.step)
    else:
        tracker.event("stopped", progress.step, signal=session.stop.agreed)
    summary.wall_time_s = time.perf_counter() - started
    return _ended(summary, session, status)


def training_steps(session: Session) -> Iterator[StepMetrics]:
    """Train one step at a time, up to the run's last step or until all ranks agree to stop.

    `session.stop.agreed` is then the signal's name, or None.
    """
    progress, loader = session.state.progress, session.loader()
    batches: Iterator[StepBatch] = iter(())
    while session.stop.requested(session.world) is None and progress.step < session.total_steps:
        asked = time.perf_counter()
        batch = next(batches, None)
        if batch is None:  # the epoch is over, or none has begun
            batches = loader.steps(progress.epoch, progress.step_in_epoch)
            batch = next(batches)
        data_wait_s = time.perf_counter() - asked
        yield train_step(session.state, batch, session.rules, session.world, data_wait_s)


def is_due(step: int, interval: int) -> bool:
    """Whether something that happens every `interval` steps happens after `step`; 0: never."""
    return interval > 0 and step % interval == 0


def report(metrics: StepMetrics, tracker: Tracker) -> None:
    """Report a step, and warn if it was skipped."""
    tracker.log(metrics)
    if metrics.skipped is not None:
        message = f"step {metrics.step}: {metrics.skipped}: no update, the weights are unchanged"
        tracker.event("warning", metrics.step, message=message)


def validate_if_due(session: Session, tracker: Tracker) -> None:
    """Measure the validation loss at step 0, at each interval and at the last step, once each.

    A signal interrupts it. It then counts as not done, and the resumed run does it.
    """
    progress, store = session.state.progress, session.inputs.validation
    is_an_end = progress.step in (0, session.total_steps)
    due = is_an_end or is_due(progress.step, session.config.train.eval_interval)
    if store is None or progress.is_validated or not due:
        return
    result = evaluate(session.state, store, session.shape, session.world, session.stop)
    if result is None:
        return
    progress.validated(result.validation_loss)
    tracker.event(
        "evaluation",
        progress.step,
        validation_loss=result.validation_loss,
        num_target_tokens=result.num_target_tokens,
    )
    _require_finite(result.validation_loss, session, tracker)
    show_samples(session, tracker)


def _require_finite(loss: float, session: Session, tracker: Tracker) -> None:
    """Warn if a validation loss is not finite; before the first step, raise TrainingDiverged.

    At step 0 no example can be the cause, so the error names the model.
    """
    step, stops = session.state.progress.step, session.config.train.on_nonfinite == "stop"
    if math.isfinite(loss):
        return
    what = f"step {step}: the validation loss is {loss}"
    if step == 0 and stops:
        raise TrainingDiverged(
            f"{what} before any update: the loss of the loaded model is not finite",
            hint=f"`sftctl inspect-ckpt {session.config.model.name} --tensors` counts NaNs in "
            "weights; with --dtype float16 numbers overflow: try float32",
        )
    tracker.event("warning", step, message=what)


def _write_final(session: Session) -> None:
    """Write the trained model as a Hugging Face directory, complete or not at all.

    The weights come from the last checkpoint, so no rank has to hold the complete model.
    """
    run = session.run

    def write() -> None:
        if run.final.is_dir():
            return
        found = newest_good(run.checkpoints, session.state.progress.step)
        model = load_architecture(run.model_folder)
        load_weights(found.path, model, found.manifest)
        with refusals(run.final, CheckpointError), new_folder(run.final) as folder:
            save_pretrained(model, session.inputs.tokenizer, folder)

    session.world.on_main(write)


def _ended(summary: RunSummary, session: Session, status: str) -> RunSummary:
    """The summary with what the session's state says at the end."""
    validation: dict[str, Any] = session.state.progress.validation or {}
    return replace(
        summary,
        status=status,
        step=session.state.progress.step,
        total_steps=session.total_steps,
        first_validation_loss=validation.get("first"),
        validation_loss=validation.get("last"),
        validation_step=validation.get("step"),
    )
