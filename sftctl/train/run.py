"""run_training: the file to read first.

`opening.py` prepares a run. Then `training_steps` yields one StepMetrics per optimizer step. The
loop in `_train` does everything that happens between two steps.
"""

import math
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from sftctl.config.evaluation import METRICS, Goal
from sftctl.config.schema import RunConfig
from sftctl.data.loading.loader import loader_death_as_error
from sftctl.data.loading.microbatch import StepBatch
from sftctl.errors import TrainingDiverged
from sftctl.metrics import RunSummary, StepMetrics
from sftctl.runs.choosing import end_of_patience, final_step
from sftctl.runs.log import last_step_of
from sftctl.runs.resumable import flags_to_raise
from sftctl.tracking import status
from sftctl.tracking.tracker import Tracker
from sftctl.train.announce import open_trackers
from sftctl.train.answers.judge import Judged, judge
from sftctl.train.answers.samples import show_samples
from sftctl.train.engine.compiled import compiler_as_error
from sftctl.train.engine.evaluate import Evaluation, evaluate_sets, of_all
from sftctl.train.engine.step import train_step
from sftctl.train.final import write_final
from sftctl.train.opening import new_session, resumed_session
from sftctl.train.outlook import Outlook
from sftctl.train.preflight.rehearsal import out_of_memory_as_error
from sftctl.train.resume import ResumeRequest
from sftctl.train.saving import Saving, open_saving
from sftctl.train.session import Session
from sftctl.train.stop import StopRequest
from sftctl.train.store_check import open_store_check, verify_now
from sftctl.words import in_shell
from sftctl.world import World, start_world


def run_training(
    config: RunConfig,
    resume: ResumeRequest | None = None,
    *,
    stop: StopRequest | None = None,
    verify_data: bool = False,
) -> RunSummary:
    """Train a new run of `config`, or continue the run that `resume` names. Every rank calls this.

    With `verify_data`, the store is hashed before anything is loaded; otherwise during the
    training. A given `stop` must already listen for signals. Without `stop`, this call listens for
    signals.

    Returns when the run is finished, or when a signal has stopped it and its state is saved. Raises
    a SftctlError for every cause that a user can fix.
    """
    train = config.train
    with (
        nullcontext(stop) if stop is not None else StopRequest() as listening,
        start_world(train.device, train.collective_timeout_s, listening.check) as world,
        compiler_as_error(listening),
        _open_session(config, resume, world, listening, verify_data) as session,
    ):
        if session.is_complete:
            return _ended(RunSummary(session.run.path), session, "nothing_to_do")
        with (
            open_trackers(session) as (tracker, log),
            out_of_memory_as_error(session.shape.micro_batch_tokens),
            open_store_check(session, is_verified=verify_data) as check,
            open_saving(session, tracker, log, check) as saving,
            loader_death_as_error(),
        ):
            return _train(session, tracker, saving)


def _open_session(
    config: RunConfig,
    resume: ResumeRequest | None,
    world: World,
    stop: StopRequest,
    verify_data: bool,
) -> AbstractContextManager[Session]:
    verify = partial(verify_now, world=world) if verify_data else None
    if resume is None:
        return new_session(config, world, stop, verify)
    return resumed_session(resume, world, stop, verify)


def _train(session: Session, tracker: Tracker, saving: Saving) -> RunSummary:
    started, summary = time.perf_counter(), RunSummary(session.run.path)
    progress, config = session.state.progress, session.config
    session.stop.outlook = outlook = Outlook(session)
    validate_if_due(session, tracker)
    saving.record_validation()
    outlook.begin_step()
    with closing(training_steps(session)) as steps:
        for metrics in steps:
            outlook.end_step(metrics)
            summary.add(metrics)
            report(metrics, tracker)
            saving.poll()
            validate_if_due(session, tracker)
            is_new_best = config.saves_the_best and progress.is_best
            if is_due(metrics.step, config.checkpoint.save_interval) or is_new_best:
                saving.start()
            outlook.begin_step()
    outlook.end_step()
    saving.finish()
    end = "finished" if session.stop.agreed is None else "stopped"
    if end == "finished":
        _report_end_of_patience(session, tracker, summary)
        write_final(session, tracker)
        tracker.event("finished", progress.step)
    else:
        tracker.event("stopped", progress.step, signal=session.stop.agreed)
    status.doing("")
    summary.wall_time_s = time.perf_counter() - started
    return _ended(summary, session, end)


def training_steps(session: Session) -> Generator[StepMetrics]:
    """Train one step after the other, until the run ends or all ranks agree to stop.

    If they agree to stop, `session.stop.agreed` is the name of the signal; otherwise it is None.
    The loader processes end with this generator, also if a caller closes it early.
    """
    progress = session.state.progress
    batches: Iterator[StepBatch] = iter(())
    with closing(session.loader()) as loader:
        while session.stop.requested(session.world) is None and not session.has_ended:
            asked = time.perf_counter()
            batch = next(batches, None)
            if batch is None:  # the epoch is over, or none has begun
                batches = loader.steps(progress.epoch, progress.step_in_epoch)
                batch = next(batches)
            data_wait_s = time.perf_counter() - asked
            yield train_step(session.state, batch, session.rules, session.world, data_wait_s)


def is_due(step: int, interval: int) -> bool:
    """Whether `step` is a multiple of `interval`; False for an interval of 0."""
    return interval > 0 and step % interval == 0


def report(metrics: StepMetrics, tracker: Tracker) -> None:
    """Report a step, and warn if it was skipped."""
    tracker.log(metrics)
    if metrics.skipped is not None:
        message = f"step {metrics.step}: {metrics.skipped}: no update, the weights are unchanged"
        tracker.event("warning", metrics.step, message=message)


def validate_if_due(session: Session, tracker: Tracker) -> None:
    """Evaluate all validation sets at step 0, at each interval and at the last step.

    If a signal comes, the results are dropped, and the resumed run evaluates all sets again.
    """
    progress, sets, config = session.state.progress, session.inputs.sets, session.config
    is_an_end = progress.step in (0, session.total_steps)
    due = is_an_end or is_due(progress.step, config.train.eval_interval)
    if not sets or progress.is_validated or not due:
        return
    found = evaluate_sets(session.state, sets, session.shape, session.world, session.stop)
    judged = judge(session, tracker) if found is not None else None
    if found is None or judged is None:
        return
    result, goal = of_all(found), config.evaluation.goal
    value = _chosen_by(goal, found, judged)
    progress.validated(result.validation_loss, config.train.min_delta, goal, value)
    values = result.values()
    values["validation_loss"] = values.pop("loss")
    if judged.of_all is not None:
        values["metrics"] = judged.of_all.values
        values["num_prompts"] = judged.of_all.num_prompts
    if len(found) > 1 or config.evaluation.sets or judged.sets:
        values["sets"] = {name: one.values() | judged.of(name) for name, one in found.items()}
    tracker.event("evaluation", progress.step, **values, **_standing(session))
    _require_finite(result.validation_loss, session, tracker)
    show_samples(session, tracker)


def _chosen_by(goal: Goal, found: Mapping[str, Evaluation], judged: Judged) -> float:
    """The value that chooses the best step; NaN if a metric has no value."""
    if goal.metric in METRICS:
        chosen = of_all(found) if goal.set_name is None else found[goal.set_name]
        return float(chosen.values()[goal.metric])
    judgement = judged.of_all if goal.set_name is None else judged.sets[goal.set_name]
    value = judgement.values[goal.metric] if judgement is not None else None
    return math.nan if value is None else value


def _standing(session: Session) -> dict[str, Any]:
    """The best evaluation so far, and the number of evaluations since then if the run has patience.

    Empty before the first evaluation after step 0.
    """
    validation: dict[str, Any] = session.state.progress.validation or {}
    if validation.get("best_step") is None:
        return {}
    best = {"best": validation["best"], "best_step": validation["best_step"]}
    if not session.config.evaluation.goal.is_loss:
        best["goal"] = session.config.evaluation.goal.shown
    patience = session.config.train.patience
    return best | ({"waited": validation["waited"], "patience": patience} if patience else {})


def _require_finite(loss: float, session: Session, tracker: Tracker) -> None:
    """Report a warning if a validation loss is not finite.

    At step 0, raise TrainingDiverged instead: no example was trained yet, so the model is the
    cause.
    """
    step, stops = session.state.progress.step, session.config.train.on_nonfinite == "stop"
    if math.isfinite(loss):
        return
    what = f"step {step}: the validation loss is {loss}"
    if step == 0 and stops:
        raise TrainingDiverged(
            f"{what} before any update: the loss of the loaded model is not finite",
            hint=f"`sftctl inspect-ckpt {in_shell(session.config.model.name)} --tensors` counts "
            "NaNs in weights; with --dtype float16 numbers overflow: try float32",
        )
    tracker.event("warning", step, message=what)


def _report_end_of_patience(session: Session, tracker: Tracker, summary: RunSummary) -> None:
    """Report that patience has ended the run before its last step.

    A session without a new step does not report an end that an earlier session has reported. There
    are two such sessions: the earlier one died before `finished`, or final/ is written again.
    """
    progress, run = session.state.progress, session.run.path
    if progress.validation is None or progress.step >= session.total_steps:
        return
    is_reported = not summary.num_tokens and last_step_of(run, "ended_early") == progress.step
    if session.is_out_of_patience and not is_reported:
        tracker.event(
            "ended_early",
            progress.step,
            reason=end_of_patience(progress.validation),
            best_step=progress.validation.get("best_step"),
        )


def _ended(summary: RunSummary, session: Session, status: str) -> RunSummary:
    """The summary with the state at the end of the session."""
    validation: dict[str, Any] = session.state.progress.validation or {}
    step, total_steps = session.state.progress.step, session.total_steps
    is_early = session.is_out_of_patience and step < total_steps
    return replace(
        summary,
        status=status,
        step=step,
        total_steps=total_steps,
        first_validation_loss=validation.get("first"),
        validation_loss=validation.get("last"),
        validation_step=validation.get("step"),
        best=validation.get("best"),
        best_of=session.config.evaluation.goal.shown,
        best_step=validation.get("best_step"),
        final_step=final_step(session.run) if status != "stopped" else None,
        ended_early=end_of_patience(validation) if is_early else None,
        to_train_longer=_to_train_longer(session) if step >= total_steps else None,
    )


def _to_train_longer(session: Session) -> str:
    """The flags of `resume` for a longer run, such as `--epochs N`."""
    progress, train = session.state.progress, session.config.train
    before = progress.step - progress.step_in_epoch
    by_epochs = replace(train, max_steps=None)
    return flags_to_raise(
        train, by_epochs.total_steps(session.steps_per_epoch, before, progress.epoch)
    )
