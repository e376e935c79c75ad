"""Trackio: the only file that imports trackio, and only if a run asks for it."""

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from sftctl.metrics import StepMetrics
from sftctl.tracking.values import Rows, Values, evaluation_values, step_values


class TrackioTracker:
    """One run in Trackio's local database, under the name of the run directory.

    A resumed session continues the newest run of that name, and sends no step that it has already.
    `trackio show` opens the dashboard; TRACKIO_DIR is where the database is.
    """

    def __init__(
        self, run_dir: Path, project: str, config: dict[str, Any], *, resumed: bool
    ) -> None:
        import trackio

        self._finish, self._is_open = trackio.finish, True
        with redirect_stdout(io.StringIO()):  # stdout belongs to the command's results
            self._run = trackio.init(
                project=project,
                name=run_dir.name,
                config=config,
                resume="allow" if resumed else "never",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        last_step = self._run._next_step - 1 if resumed else -1  # Trackio has no public way
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
            self._finish()  # not the run's own method: Trackio would finish it again at exit

    def _send(self, step: int, values: Values) -> None:
        self._run.log(dict(values), step=step)
