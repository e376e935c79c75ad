"""Who is told about this session: the run's own log, the console, and W&B if asked for."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from sftctl.config.load import config_to_dict
from sftctl.tracking.console import make_console_tracker
from sftctl.tracking.runlog import RunLog
from sftctl.tracking.tracker import NullTracker, Tracker, TrackerGroup
from sftctl.tracking.wandb import WandbTracker
from sftctl.train.resume import ResumePlan
from sftctl.train.session import Session
from sftctl.world import World


@contextmanager
def open_trackers(session: Session, world: World) -> Iterator[tuple[Tracker, RunLog | None]]:
    """The trackers of this rank, told how the session begins; only rank 0 has any."""
    if not world.is_main:
        yield NullTracker(), None
        return
    manifest = session.plan.manifest if session.plan is not None else None
    with ExitStack() as stack:
        log = RunLog(session.run.path, manifest.metrics_bytes if manifest is not None else 0)
        stack.callback(log.close)
        group = TrackerGroup(required=[log], optional=_optional(session))
        stack.callback(group.close)
        _tell_beginning(session, group)
        yield group, log


def _optional(session: Session) -> list[Tracker]:
    config, progress = session.config, session.state.progress
    trackers: list[Tracker] = [
        make_console_tracker(
            total_steps=session.total_steps,
            steps_per_epoch=session.steps_per_epoch,
            epochs=config.train.epochs,
            log_interval=config.tracking.log_interval,
            first_step=progress.step,
        )
    ]
    if config.tracking.wandb:
        trackers.append(
            WandbTracker(
                session.run.path,
                config.tracking.wandb_project,
                session.run.facts()["wandb_run_id"],
                config_to_dict(config),
                resumed=session.plan is not None,
            )
        )
    return trackers


def _tell_beginning(session: Session, tracker: Tracker) -> None:
    step = session.state.progress.step
    for warning in session.warnings:
        tracker.event("warning", step, message=warning)
    if session.plan is not None:
        _tell_plan(session.plan, step, tracker)
        return
    store = session.inputs.train
    tracker.event(
        "started",
        step,
        run_dir=str(session.run.path),
        store=str(store.path.absolute()),
        data_fingerprint=store.manifest.fingerprint,
        num_examples=len(store),
        num_target_tokens=store.manifest.num_target_tokens,
        total_steps=session.total_steps,
        num_parameters=sum(p.numel() for p in session.state.loss_module.parameters()),
    )


def _tell_plan(plan: ResumePlan, step: int, tracker: Tracker) -> None:
    checkpoint = plan.checkpoint.name if plan.checkpoint is not None else "no checkpoint"
    tracker.event("resumed", step, checkpoint=checkpoint, run_dir=str(plan.run_dir))
    for text in plan.skipped:
        tracker.event("warning", step, message=f"damaged, not used: {text}")
    for name in plan.abandoned:
        tracker.event("changed", step, message=f"{name} lies beyond this point: moved away")
    for difference in plan.differences:
        tracker.event("changed", step, message=str(difference))
