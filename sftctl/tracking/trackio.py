"""Trackio. Only this file imports trackio, and only if a run logs to Trackio."""

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from sftctl.metrics import StepMetrics
from sftctl.tracking.values import Rows, Values, evaluation_values, step_values


class TrackioTracker:
    """Logs to Trackio's local database, under the name of the run directory.

    A resumed session continues the newest run with this name. Steps that are already in the
    database are not sent again. `trackio show` opens the dashboard. TRACKIO_DIR is the folder of
    the database.
    """

    def __init__(
        self, run_dir: Path, project: str, config: dict[str, Any], *, resumed: bool
    ) -> None:
        import trackio

        self._finish, self._is_open = trackio.finish, True
        with redirect_stdout(io.StringIO()):  # stdout is for the results of the command
            self._run = trackio.init(
                project=project,
                name=run_dir.name,
                config=config,
                resume="allow" if resumed else "never",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        last_step = self._run._next_step - 1 if resumed else -1  # there is no public API
        self._rows = Rows(self._send, last_step)

    def log(self, metrics: StepMetrics) -> None:
        self._rows.add(metrics.step, step_values(metrics))

    def event(self, name: str, step: int, **fields: object) -> None:
        if name == "evaluation":
            self._rows.add_evaluation(step, evaluation_values(fields))

    def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        with redirect_stdout(io.StringIO()):
            self._rows.flush()
            self._finish()  # after `self._run.finish()`, Trackio would finish the run again at exit

    def _send(self, step: int, values: Values) -> None:
        self._run.log(dict(values), step=step)
