"""The trackers of a session: the run's own log, the console, and W&B if it is enabled."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

from sftctl.config.load import config_to_dict
from sftctl.errors import SftctlError
from sftctl.runs.log import RunLog
from sftctl.tracking.console import has_panel, make_console_tracker
from sftctl.tracking.lines import RunShape
from sftctl.tracking.tracker import NullTracker, Tracker, TrackerGroup
from sftctl.tracking.wandb import WandbTracker
from sftctl.train.engine.flops import matmul_flops_per_s, model_flops
from sftctl.train.engine.state import COMPUTE_DTYPES
from sftctl.train.resume import ResumePlan
from sftctl.train.samples import why_no_samples
from sftctl.train.session import Session


@contextmanager
def open_trackers(session: Session) -> Iterator[tuple[Tracker, RunLog | None]]:
    """Open the trackers of rank 0 and report how the session starts; other ranks have none.

    An error that leaves the context is reported as the event `failed`.
    """
    if not session.world.is_main:
        yield NullTracker(), None
        return
    manifest = session.plan.manifest if session.plan is not None else None
    with ExitStack() as stack:
        log = RunLog(session.run.path, manifest.metrics_bytes if manifest is not None else 0)
        stack.callback(log.close)
        problems: list[str] = []
        group = TrackerGroup(required=[log], optional=_optional(session, problems))
        stack.callback(group.close)
        _report_start(session, group, problems)
        try:
            yield group, log
        except Exception as error:
            with suppress(Exception):  # reporting must not hide the error itself
                _report_failure(error, session.state.progress.step, group)
            raise


def _optional(session: Session, problems: list[str]) -> list[Tracker]:
    """The console and W&B. If W&B fails, append that to `problems`: the run starts without it."""
    config, progress = session.config, session.state.progress
    shape = RunShape(
        total_steps=session.total_steps,
        steps_per_epoch=session.steps_per_epoch,
        epochs=config.train.epochs,
        log_interval=config.tracking.log_interval,
        first_step=progress.step,
    )
    if has_panel():
        shape = _with_speeds(shape, session)
    trackers: list[Tracker] = [make_console_tracker(shape)]
    if config.tracking.wandb:
        try:
            wandb = _wandb(session)
        except SftctlError:
            raise  # not logged in: the user should fix that before training
        except Exception as error:  # any other problem of a service
            problems.append(f"W&B gets no reports: {type(error).__name__}: {error}")
        else:
            trackers.append(wandb)
            problems += [wandb.warning] if wandb.warning is not None else []
    return trackers


def _wandb(session: Session) -> WandbTracker:
    tracking = session.config.tracking
    return WandbTracker(
        session.run.path,
        tracking.wandb_project,
        session.run.facts()["wandb_run_id"],
        config_to_dict(session.config),
        resumed=session.plan is not None,
        model=session.run.final if tracking.wandb_artifact else None,
    )


def _with_speeds(shape: RunShape, session: Session) -> RunShape:
    """Add what the panel's MFU needs; it assumes that all ranks are as fast as this one."""
    per_token, per_target_token = model_flops(session.state.loss_module.model)
    dtype = COMPUTE_DTYPES[session.config.train.dtype]
    world = session.world
    peak = matmul_flops_per_s(world.device, dtype) * world.world_size
    return replace(
        shape,
        flops_per_token=per_token,
        flops_per_target_token=per_target_token,
        peak_flops_per_s=peak,
    )


def _report_start(session: Session, tracker: Tracker, problems: list[str]) -> None:
    step = session.state.progress.step
    no_samples = why_no_samples(session)
    problems += [no_samples] if no_samples is not None else []
    for warning in (*session.warnings, *problems):
        tracker.event("warning", step, message=warning)
    if session.plan is not None:
        _report_plan(session.plan, step, session.total_steps, tracker)
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


def _report_failure(error: Exception, step: int, tracker: Tracker) -> None:
    message = error.message if isinstance(error, SftctlError) else str(error)
    kind = type(error).__name__
    tracker.event("failed", step, kind=kind, message=" ".join(message.split()) or kind)


def _report_plan(plan: ResumePlan, step: int, total_steps: int, tracker: Tracker) -> None:
    checkpoint = plan.checkpoint.name if plan.checkpoint is not None else "no checkpoint"
    tracker.event(
        "resumed",
        step,
        checkpoint=checkpoint,
        run_dir=str(plan.run_dir),
        total_steps=total_steps,  # it may have grown
    )
    for text in plan.skipped:
        tracker.event("warning", step, message=f"damaged, not used: {text}")
    for name in plan.abandoned:
        tracker.event("changed", step, message=f"{name} is from a later step: moved away")
    for difference in plan.differences:
        tracker.event("changed", step, message=str(difference))
