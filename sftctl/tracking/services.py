"""Opens the services that a run is logged to. `tracking.trackers` has their names."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sftctl.errors import ConfigError
from sftctl.tracking.swanlab import SwanLabTracker
from sftctl.tracking.swanlab import require_login as require_swanlab_login
from sftctl.tracking.tensorboard import TensorBoardTracker
from sftctl.tracking.tracker import Tracker
from sftctl.tracking.trackio import TrackioTracker
from sftctl.tracking.wandb import WandbTracker, require_login


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """What a service needs to know about a run when a session begins."""

    run_dir: Path
    project: str
    config: dict[str, Any]
    kept_step: int  # step of the checkpoint from which this session continues; -1: no checkpoint
    resumed: bool
    run_id: str
    wandb_run_id: str | None
    model: Path | None  # folder to upload to W&B at the end


def _wandb(run: TrackedRun) -> Tracker:
    assert run.wandb_run_id is not None
    return WandbTracker(
        run.run_dir,
        run.project,
        run.wandb_run_id,
        run.config,
        resumed=run.resumed,
        model=run.model,
    )


def _tensorboard(run: TrackedRun) -> Tracker:
    return TensorBoardTracker(run.run_dir, run.kept_step, resumed=run.resumed)


def _trackio(run: TrackedRun) -> Tracker:
    return TrackioTracker(run.run_dir, run.project, run.config, resumed=run.resumed)


def _swanlab(run: TrackedRun) -> Tracker:
    return SwanLabTracker(run.run_dir, run.project, run.run_id, run.config, resumed=run.resumed)


_OPENED_BY: dict[str, Callable[[TrackedRun], Tracker]] = {
    "wandb": _wandb,
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "swanlab": _swanlab,
}

_LOGINS: dict[str, Callable[[], None]] = {
    "wandb": require_login,
    "swanlab": require_swanlab_login,
}


def open_service(name: str, run: TrackedRun) -> Tracker:
    """Open the tracker with this name.

    Raises ConfigError if the user is not logged in, and any error of the service. The tracker may
    have an attribute `warning` about a problem that is not an error.
    """
    return _OPENED_BY[name](run)


def require_service(name: str) -> None:
    """Raise ConfigError if the package of a service is not installed, or a login is missing."""
    if find_spec(name) is None:
        raise ConfigError(
            f"tracking.trackers: {name} is not installed", hint=f"pip install 'sftctl[{name}]'"
        )
    if name in _LOGINS:
        _LOGINS[name]()
