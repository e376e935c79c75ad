"""The trackers of a session: the run's own log, the console, and the services that the
configuration names."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

from sftctl.config.load import config_to_dict
from sftctl.data.manifest import is_prepared
from sftctl.data.prepare.notes import accounting
from sftctl.data.storage.joined import Store
from sftctl.data.store import TokenStore
from sftctl.errors import SftctlError
from sftctl.jsonio import read_lines
from sftctl.machine import load_warning
from sftctl.model.adapter.nf4 import num_quantized
from sftctl.runs.log import RunLog
from sftctl.runs.mixtures import sources_with_paths
from sftctl.tracking.console import has_panel, make_console_tracker
from sftctl.tracking.lines import RunShape
from sftctl.tracking.services import TrackedRun, open_service
from sftctl.tracking.tracker import NullTracker, Tracker, TrackerGroup
from sftctl.train.answers.samples import why_no_samples
from sftctl.train.engine.flops import matmul_flops_per_s, model_flops
from sftctl.train.engine.state import COMPUTE_DTYPES
from sftctl.train.resume import ResumePlan
from sftctl.train.session import Session


@contextmanager
def open_trackers(session: Session) -> Iterator[tuple[Tracker, RunLog | None]]:
    """Open the trackers of rank 0 and report how the session starts. Other ranks get a NullTracker.

    An exception inside the context is reported as the event `failed` and raised again.
    """
    if not session.world.is_main:
        yield NullTracker(), None
        return
    manifest = session.plan.manifest if session.plan is not None else None
    with ExitStack() as stack:
        keep_bytes, step = (manifest.metrics_bytes, manifest.step) if manifest else (0, None)
        log = RunLog(session.run.path, keep_bytes, last_step=step)
        stack.callback(log.close)
        problems = [log.repaired] if log.repaired is not None else []
        group = TrackerGroup(required=[log], optional=_optional(session, problems))
        stack.callback(group.close)
        _report_start(session, group, problems)
        try:
            yield group, log
        except Exception as error:
            with suppress(Exception):  # an error in the report must not replace the first error
                _report_failure(error, session.state.progress.step, group)
            raise


def _optional(session: Session, problems: list[str]) -> list[Tracker]:
    """The console and the services that can be opened.

    For each service that fails, the reason is appended to `problems`.
    """
    config, progress = session.config, session.state.progress
    shape = RunShape(
        total_steps=session.total_steps,
        steps_per_epoch=session.steps_per_epoch,
        epochs=config.train.epochs,
        log_interval=config.tracking.log_interval,
        first_step=progress.step,
        name=session.run.path.name,
    )
    if has_panel():
        shape = _with_past(_with_speeds(shape, session), session)
    console = make_console_tracker(shape)
    session.stop.show = console.stopping
    trackers: list[Tracker] = [console]
    for name in config.tracking.services:
        try:
            service = open_service(name, _tracked_run(session))
        except SftctlError:
            raise  # such as "not logged in": the user should fix this before the training starts
        except Exception as error:  # a broken service must not prevent the training
            shown = {"wandb": "W&B"}.get(name, name)
            problems.append(f"{shown} gets no reports: {type(error).__name__}: {error}")
        else:
            trackers.append(service)
            warning = getattr(service, "warning", None)
            problems += [warning] if warning is not None else []
    return trackers


def _tracked_run(session: Session) -> TrackedRun:
    tracking, plan, facts = session.config.tracking, session.plan, session.run.facts()
    return TrackedRun(
        run_dir=session.run.path,
        project=tracking.wandb_project,
        config=config_to_dict(session.config),
        kept_step=plan.manifest.step if plan is not None and plan.manifest is not None else -1,
        resumed=plan is not None,
        run_id=facts["run_id"],
        wandb_run_id=facts["wandb_run_id"],
        model=session.run.final if tracking.wandb_artifact else None,
    )


def _with_speeds(shape: RunShape, session: Session) -> RunShape:
    """Add the speeds that the panel's MFU needs. All ranks count as fast as this rank."""
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


def _with_past(shape: RunShape, session: Session) -> RunShape:
    """Add the losses of earlier sessions, so that the curve in the panel starts at step 1."""
    if session.plan is None:
        return shape
    lines = read_lines(session.run.path / "metrics.jsonl")
    losses = [loss for line in lines if isinstance(loss := line.get("loss"), (int, float))]
    known = session.state.progress.validation
    past = (known["first"], known["last"], known["step"]) if known is not None else None
    return replace(shape, past_losses=losses, past_validation=past)


def _report_start(session: Session, tracker: Tracker, problems: list[str]) -> None:
    step = session.state.progress.step
    no_samples = why_no_samples(session)
    problems += [no_samples] if no_samples is not None else []
    if session.plan is not None and (busy := load_warning()) is not None:
        problems.append(f"machine: {busy}")  # for a new run, the pre-flight warns
    for warning in (*session.warnings, *problems):
        tracker.event("warning", step, message=warning)
    if session.plan is not None:
        _report_plan(session.plan, step, session.total_steps, tracker)
        return
    store, weights = session.inputs.train, session.state.weights
    tracker.event(
        "started",
        step,
        run_dir=str(session.run.path),
        store=str(store.path.absolute()),
        **_stores(store),
        data_fingerprint=store.manifest.fingerprint,
        num_examples=len(store),
        num_target_tokens=store.manifest.num_target_tokens,
        total_steps=session.total_steps,
        dtype=session.state.dtype,
        device=session.world.device.type,
        num_parameters=sum(weight.numel() for weight in weights.named.values())
        + num_quantized(session.state.loss_module),
        num_trained=sum(weight.numel() for weight in weights.trained),
    )
    data = session.config.data
    given = [source.path for source in sources_with_paths(data)] or [data.path]
    for path, part in zip(given, store.parts, strict=True):
        if path is not None and not is_prepared(path):
            _report_rows(part, tracker)


def _stores(store: Store) -> dict[str, list[str]]:
    """The paths of all stores, if the run has several; else {}."""
    paths = [str(part.path.absolute()) for part in store.parts]
    return {"stores": paths} if len(paths) > 1 else {}


def _report_rows(store: TokenStore, tracker: Tracker) -> None:
    """Report how many rows were kept and dropped in the files that this session prepared."""
    manifest = store.manifest
    tracker.event(
        "data",
        0,
        message=accounting(manifest, store.path),
        rows_read=manifest.rows_read,
        rows_kept=manifest.rows_kept,
        rows_dropped=manifest.rows_dropped,
        ledger=str((store.path / "ledger.jsonl").absolute()),
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
        total_steps=total_steps,  # a resume may have raised it
    )
    for text in plan.skipped:
        tracker.event("warning", step, message=f"damaged, not used: {text}")
    for text in plan.final_problems:
        tracker.event("warning", step, message=f"final/ is written again: {text}")
    for name in plan.abandoned:
        tracker.event("changed", step, message=f"{name} is from a later step: moved away")
    for difference in plan.differences:
        tracker.event("changed", step, message=str(difference))
