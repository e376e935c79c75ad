"""Saving: the loop's interface to checkpoints."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sftctl.checkpoint.background import BackgroundSaver, SaveOutcome
from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.config.load import config_to_dict
from sftctl.config.schedule import get_lr
from sftctl.errors import CheckpointError, SftctlError
from sftctl.runs.differences import versions
from sftctl.runs.log import RunLog
from sftctl.tracking.tracker import Tracker
from sftctl.train.engine.state import manifest_fields
from sftctl.train.session import Session

MAX_FAILURES = 3
"""A run ends after this many failed saves in a row."""


class Saving:
    """Starts saves between steps, lets them run in the background, and reports how they end."""

    def __init__(self, session: Session, tracker: Tracker, log: RunLog | None) -> None:
        checkpoint = session.config.checkpoint
        self._session, self._tracker, self._log = session, tracker, log
        self._saver = BackgroundSaver(
            session.run.checkpoints,
            checkpoint.keep,
            session.state.tensors(),
            session.world,
            in_background=checkpoint.save_interval > 0,
        )
        plan = session.plan
        self._requested_step = plan.manifest.step if plan and plan.manifest else None
        self._failures: list[CheckpointError] = []  # in a row

    def poll(self) -> None:
        """Report a save that has ended; raise CheckpointError after MAX_FAILURES in a row."""
        self._report(self._saver.ended())
        if self._session.world.max(len(self._failures)) < MAX_FAILURES:
            return
        self._report(self._saver.wait())  # on a rank that has not polled the last one yet
        raise CheckpointError(
            f"{MAX_FAILURES} saves in a row failed: {self._failures[-1].message}",
            hint="fix the cause; `sftctl resume` then continues from the last good checkpoint",
        )

    def start(self) -> None:
        """Save the current state in the background; returns when the state is copied.

        Only one save runs at a time, so this waits for the one before.
        """
        started = time.perf_counter()
        self._report(self._saver.wait())
        if len(self._failures) < MAX_FAILURES:  # else the next poll ends the run
            self._requested_step = self._session.state.progress.step
            self._saver.start(self._manifest(), self._sync_log, started)

    def finish(self) -> None:
        """Wait until the current state is saved, unless it is already; raises CheckpointError."""
        self._report(self._saver.wait())
        if self._requested_step != self._session.state.progress.step or self._failures:
            outcome = self._saver.save_now(self._manifest(), self._sync_log)
            self._report(outcome)
            if outcome.error is not None:
                raise outcome.error

    def close(self) -> None:
        """Wait for the running save."""
        self._report(self._saver.wait())

    def _report(self, outcome: SaveOutcome | None) -> None:
        if outcome is None:
            return
        if outcome.error is not None:
            self._failures.append(outcome.error)
            self._tracker.event("save_failed", outcome.step, error=outcome.error.message)
            return
        self._failures.clear()
        if outcome.path is not None:
            self._tracker.event(
                "saved",
                outcome.step,
                path=outcome.path.name,
                num_bytes=outcome.num_bytes,
                seconds=outcome.seconds,
                wait_s=outcome.wait_s,
            )
        if outcome.warning is not None:
            self._tracker.event("warning", outcome.step, message=outcome.warning)

    def _sync_log(self) -> None:
        if self._log is not None:
            self._log.sync()

    def _manifest(self) -> CheckpointManifest:
        session, step = self._session, self._session.state.progress.step
        return CheckpointManifest(
            **manifest_fields(session.state.numbers()),
            total_steps=session.total_steps,
            steps_per_epoch=session.steps_per_epoch,
            learning_rate=get_lr(step, session.total_steps, session.config.optim),
            global_batch_size=session.shape.global_batch_size,
            micro_batch_tokens=session.shape.micro_batch_tokens,
            cut_for_ranks=session.shape.cut_for_ranks,
            num_threads=torch.get_num_threads(),
            world_size=session.world.world_size,
            dtype=session.config.train.dtype,
            data_fingerprint=session.inputs.train.manifest.fingerprint,
            config=config_to_dict(session.config),
            versions=versions(torch.backends.cpu.get_cpu_capability()),
            wandb_run_id=session.run.facts()["wandb_run_id"],
            metrics_bytes=self._log.metrics_bytes if self._log is not None else 0,
        )


@contextmanager
def open_saving(session: Session, tracker: Tracker, log: RunLog | None) -> Iterator[Saving]:
    """Saving for a loop. The running save ends first, also after an error that all ranks raise."""
    saving = Saving(session, tracker, log)
    try:
        yield saving
    except SftctlError:
        saving.close()
        raise
    saving.close()
