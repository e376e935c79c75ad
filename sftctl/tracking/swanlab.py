"""SwanLab. Only this file imports swanlab, and only if a run logs to SwanLab."""

import io
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from sftctl.errors import ConfigError
from sftctl.metrics import StepMetrics
from sftctl.tracking.values import Rows, Values, evaluation_values, step_values

FOLDER = "swanlab"
_STATES = {"finished": "success", "stopped": "aborted", "failed": "crashed"}


class SwanLabTracker:
    """Logs all sessions of a run as one SwanLab run. SWANLAB_MODE=offline works.

    Each session writes a folder in RUN/swanlab. A resumed session repeats steps. Offline, steps in
    the folders of earlier sessions are not sent again. Online, the service ignores such steps.
    """

    def __init__(
        self, run_dir: Path, project: str, run_id: str, config: dict[str, Any], *, resumed: bool
    ) -> None:
        import swanlab

        last_step = -1
        if resumed and swanlab.Settings().mode != "online":
            last_step = _last_step(run_dir / FOLDER, run_id)
        with _no_side_effects():
            self._run = swanlab.init(
                project=project,
                name=run_dir.name,
                id=run_id,
                resume="allow",
                log_dir=str(run_dir / FOLDER),
                config=config,
                settings=swanlab.Settings(
                    interactive=False,
                    terminal=swanlab.Settings.Terminal(proxy_type="none"),
                    probe=swanlab.Settings.Probe(monitor=False, requirements=False),
                ),
            )
        self._rows = Rows(self._send, last_step)
        self._state = "crashed"  # an event changes this
        self._error: str | None = None

    def log(self, metrics: StepMetrics) -> None:
        self._rows.add(metrics.step, step_values(metrics))

    def event(self, name: str, step: int, **fields: object) -> None:
        if name == "evaluation":
            self._rows.add_evaluation(step, evaluation_values(fields))
        self._state = _STATES.get(name, self._state)
        if name == "failed":
            self._error = str(fields["message"])

    def close(self) -> None:
        if not self._run.alive:
            return
        with _no_side_effects():
            self._rows.flush()
            self._run.finish(state=self._state, error=self._error)

    def _send(self, step: int, values: Values) -> None:
        self._run.log(dict(values), step=step)


@contextmanager
def _no_side_effects() -> Iterator[None]:
    """Restore the handlers for Ctrl-C and for exceptions, which SwanLab replaces.

    Also discards what SwanLab prints, because stdout is for the results of the command.
    """
    on_error, on_sigint = sys.excepthook, signal.getsignal(signal.SIGINT)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        sys.excepthook = on_error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, on_sigint)


def _last_step(folder: Path, run_id: str) -> int:
    """The last step in the folders of earlier sessions. -1: there is none."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader  # there is no public API

    found = -1
    for path in folder.glob(f"run-*-{run_id}/*.swanlab"):
        if not path.stat().st_size:  # the session was killed before it wrote anything
            continue
        reader = DataStoreReader()
        reader.open(path)
        for data in reader:  # the file of a killed session may be incomplete; the loop then ends
            record = Record.FromString(data)
            if record.HasField("scalar"):
                found = max(found, record.scalar.step)
        reader.close()
    return found


def require_login() -> None:
    """Raise ConfigError if SwanLab needs a login. It needs none offline."""
    import swanlab

    try:
        settings = swanlab.Settings()
    except ValueError as refusal:  # a SWANLAB_… variable has a bad value
        reason = " ".join(line.strip() for line in str(refusal).splitlines()[1:3])
        raise ConfigError(
            f"SwanLab refuses a setting: {reason}",
            hint="correct the SWANLAB_… environment variables",
        ) from refusal
    if settings.mode == "online" and settings.api_key is None:
        raise ConfigError(
            "tracking.trackers: swanlab: not logged in",
            hint="log in with `swanlab login`, or set SWANLAB_MODE=offline",
        )
