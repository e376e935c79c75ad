"""Saving: what the training loop calls to save checkpoints."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch

from sftctl.checkpoint.amend import amend_manifest
from sftctl.checkpoint.background import BackgroundSaver, SaveOutcome
from sftctl.checkpoint.directory import KeepBest
from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.config.load import config_to_dict
from sftctl.config.schedule import get_lr
from sftctl.errors import CheckpointError, SftctlError
from sftctl.runs.base import Base, identify, identify_start
from sftctl.runs.differences import versions
from sftctl.runs.log import RunLog
from sftctl.runs.place import RunPlace
from sftctl.tracking import status
from sftctl.tracking.tracker import Tracker
from sftctl.train.engine.state import manifest_fields
from sftctl.train.rescue import rescue
from sftctl.train.session import Session
from sftctl.train.store_check import StoreCheck
from sftctl.words import format_bytes

MAX_FAILURES = 3
"""A run ends after this many failed saves in a row."""

_UNCHECKED, _WRONG_DATA, _GONE = 1, 1 << 20, 1 << 21  # values of `_trouble`


class Saving:
    """Starts saves between steps, runs them in the background, and reports their results."""

    def __init__(
        self, session: Session, tracker: Tracker, log: RunLog | None, check: StoreCheck
    ) -> None:
        checkpoint, plan = session.config.checkpoint, session.plan
        first = plan.manifest.step if plan and plan.manifest else None
        self._session, self._tracker, self._log, self._check = session, tracker, log, check
        self._saver = BackgroundSaver(
            session.run.checkpoints,
            checkpoint.keep,
            session.state.tensors(),
            session.world,
            in_background=session.config.saves_on_the_way,
            best=KeepBest(session.config.keep_best, str(session.config.evaluation.goal)),
        )
        self._saver.protected_step = first  # not deleted before the store is checked
        self._facts = session.world.on_main(session.run.facts)
        self._base = session.world.on_main(lambda: _base_of(session))
        self._place = RunPlace(session.run.path) if session.world.is_main else None
        self._folder = RunPlace(session.run.checkpoints) if session.world.is_main else None
        self._requested_step = first
        self._failures: list[CheckpointError] = []  # since the last good save

    def record_validation(self) -> None:
        """Add the validation result to the manifest of the checkpoint from which this session
        continues.

        The result is missing if a signal came between the step and its validation.
        """
        plan, progress = self._session.plan, self._session.state.progress
        if plan is None or plan.manifest is None or plan.checkpoint is None:
            return
        validated_before = (plan.manifest.validation or {}).get("step")
        if progress.step == plan.manifest.step != validated_before and progress.is_validated:
            path, full = plan.checkpoint, replace(plan.manifest, validation=progress.validation)
            self._session.world.on_main(lambda: amend_manifest(path, full))

    def poll(self) -> None:
        """Report the last save if it has ended.

        Raises CheckpointError after MAX_FAILURES failures in a row. Raises DataError if the store
        is wrong: a state that was trained on wrong data must not be saved.
        """
        self._report(self._saver.ended())
        worst = self._session.world.max(self._trouble())
        if worst == 0:
            self._saver.protected_step = None
        if worst < _UNCHECKED + MAX_FAILURES:
            return
        self._check.require_right()
        self._require_place(is_gone=worst == _GONE)
        self._report(self._saver.wait())  # this rank may not know the last failure yet
        raise CheckpointError(
            f"{MAX_FAILURES} saves in a row failed: {self._failures[-1].message}",
            hint="fix the cause; `sftctl resume` then continues from the last good checkpoint",
        )

    def start(self) -> None:
        """Save the current state in the background. Returns as soon as the state is copied.

        Only one save runs at a time, so this call first waits for the previous save.
        """
        started = time.perf_counter()
        self._report(self._saver.wait())
        self._require_folder()
        if len(self._failures) < MAX_FAILURES:  # otherwise the next `poll` ends the run
            self._requested_step = self._session.state.progress.step
            self._saver.start(self._manifest(), self._before_save, started)

    def finish(self) -> None:
        """Check the store, save the current state if it is not saved yet, and wait for the save.

        Raises DataError if the store is wrong, and CheckpointError if the save fails.
        """
        status.doing(f"saving {format_bytes(self._session.state.checkpoint_bytes)}")
        self._report(self._saver.wait())
        self._check.wait()
        worst = self._session.world.max(self._trouble())
        self._require_place(is_gone=worst == _GONE)
        step = self._session.state.progress.step
        if worst == 0 and self._saver.protected_step not in (None, step):
            self._saver.protected_step = None
            self._warn(self._saver.retire() if self._session.world.is_main else None)
        if self._requested_step != step or self._failures:
            self._require_folder()
            outcome = self._saver.save_now(self._manifest(), self._before_save)
            self._report(outcome)
            if outcome.error is not None:
                raise outcome.error

    def _trouble(self) -> int:
        """The problem that this rank knows, as a number; 0: no problem.

        The worst problem has the largest number. The ranks use the maximum over all ranks.
        """
        if self._place is not None and not self._place.is_here():
            return _GONE
        is_running = self._check.is_running  # read first: after the end, `is_wrong` can't change
        if self._check.is_wrong:
            return _WRONG_DATA
        return _UNCHECKED + len(self._failures) if self._failures else is_running * _UNCHECKED

    def _require_place(self, *, is_gone: bool) -> None:
        """If the run directory is gone, save the state elsewhere and raise CheckpointError."""
        if is_gone:
            self._report(self._saver.wait())
            raise rescue(self._session, self._place, self._log, self._manifest(), self._facts)

    def _require_folder(self) -> None:
        """If only the folder of the checkpoints was moved or deleted, create it again and warn."""
        root, step = self._session.run.checkpoints, self._session.state.progress.step
        if self._folder is None or self._place is None or root.exists():
            return
        if self._place.is_here():
            moved = self._folder.moved_to()
            where = f"moved to {moved}" if moved is not None else "deleted"
            what = f"{root}: {where} while the run trained; step {step} is saved in a new folder"
            self._tracker.event("warning", step, message=what)
            with suppress(OSError):  # the save will fail, and will report the reason
                root.mkdir()
                self._folder.close()
                self._folder = RunPlace(root)

    def close(self) -> None:
        """Wait for the running save, and release what is open."""
        self._report(self._saver.wait())
        if self._folder is not None:
            self._folder.close()
        if self._place is not None:
            self._place.close()

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
        self._warn(outcome.warning, outcome.step)

    def _warn(self, message: str | None, step: int | None = None) -> None:
        if message is not None:
            step = self._session.state.progress.step if step is None else step
            self._tracker.event("warning", step, message=message)

    def _before_save(self) -> None:
        """On rank 0: sync the log, then raise CheckpointError if the run directory is gone.

        Without this check, the save would create a new directory. The check comes last, directly
        before the save, because the sync takes time.
        """
        if self._log is not None:
            self._log.sync()
        if self._place is not None and not self._place.is_here():
            raise CheckpointError("the run directory is gone")

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
            source_fingerprints=session.inputs.source_fingerprints,
            set_fingerprints=session.inputs.set_fingerprints,
            config=config_to_dict(session.config),
            versions=versions(torch.backends.cpu.get_cpu_capability()),
            wandb_run_id=self._facts["wandb_run_id"],
            run_id=self._facts["run_id"],
            base=self._base,
            metrics_bytes=self._log.metrics_bytes if self._log is not None else 0,
        )


def _base_of(session: Session) -> Base | None:
    """The frozen base of an adapter run, with the hashes of its files; None: no adapter."""
    if not session.config.adapter.lora:
        return None
    plan = session.plan
    known = plan.manifest.base if plan is not None and plan.manifest is not None else None
    found = identify(session.config.model.name, known)
    adapter = session.config.adapter
    if adapter.quantize is not None:
        found["quantize"] = adapter.quantize
    if known is not None and "start" in known:  # the folder of the start may not exist any more
        found["start"] = known["start"]
    elif known is None and adapter.start is not None:
        found["start"] = identify_start(adapter.start)
    return found


@contextmanager
def open_saving(
    session: Session, tracker: Tracker, log: RunLog | None, check: StoreCheck
) -> Iterator[Saving]:
    """The Saving for a training loop.

    At the end of the context, a running save is completed. After other errors than a SftctlError it
    is not, because other ranks may not take part.
    """
    saving = Saving(session, tracker, log, check)
    try:
        yield saving
    except SftctlError:
        saving.close()
        raise
    saving.close()
