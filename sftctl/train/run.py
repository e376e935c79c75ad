"""run_training: the page to read first.

A run is made ready (session.py), then `training_steps` yields one StepMetrics for every optimizer
step. Whoever wants to act between steps stands in the `for` below.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

from sftctl.checkpoint.directory import newest_good
from sftctl.checkpoint.load import load_tensors
from sftctl.config.schema import RunConfig
from sftctl.data.loader import deaths_told
from sftctl.disk import new_folder
from sftctl.errors import CheckpointError
from sftctl.metrics import RunSummary, StepMetrics
from sftctl.model.load import load_architecture, save_pretrained
from sftctl.tracking.tracker import Tracker
from sftctl.train.evaluate import evaluate
from sftctl.train.memory import shortage_told
from sftctl.train.resume import ResumeRequest
from sftctl.train.samples import tell_samples
from sftctl.train.saving import Saving, open_saving
from sftctl.train.session import Session, new_session, resumed_session
from sftctl.train.step import train_step
from sftctl.train.stop import StopRequest
from sftctl.train.trackers import open_trackers
from sftctl.world import ALONE, World, start_world


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
            return _summary(session, "nothing_to_do", None, 0, 0.0)
        with (
            shortage_told(session.shape.micro_batch_tokens),
            open_trackers(session, world) as (tracker, log),
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
    started, num_tokens, loss = time.perf_counter(), 0, None
    progress, save_interval = session.state.progress, session.config.checkpoint.save_interval
    signal_name = _validate(session, world, tracker, stop)
    steps = training_steps(session, world) if signal_name is None else iter(())
    for metrics in steps:
        tracker.log(metrics)
        if metrics.skipped is not None:
            message = (
                f"step {metrics.step}: {metrics.skipped}: no update, the weights are as before"
            )
            tracker.event("warning", metrics.step, message=message)
        num_tokens, loss = num_tokens + metrics.num_tokens, metrics.loss
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
        tell_samples(session, world, tracker, stop)
    return stop.requested(world)


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
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        load_tensors(checkpoint, tensors, ALONE, prefix="model.")
        try:
            with new_folder(run.final) as folder:
                save_pretrained(model, session.inputs.tokenizer, folder)
        except OSError as problem:
            reason = problem.strerror or problem
            raise CheckpointError(f"{run.final}: can't be written: {reason}") from problem

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
