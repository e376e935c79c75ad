"""TensorBoard. Only this file imports tensorboard, and only if a run logs to TensorBoard."""

import time
from pathlib import Path

from sftctl.metrics import StepMetrics
from sftctl.tracking.values import Values, evaluation_values, step_values

FOLDER = "tensorboard"


class TensorBoardTracker:
    """Writes one event file for each session: `tensorboard --logdir RUN/tensorboard` shows them.

    A resumed session trains the steps after `kept_step`, the step of its checkpoint, again. So it
    makes TensorBoard drop the old values of these steps. `kept_step` -1 also drops step 0. A step
    is written to disk before `log` returns.
    """

    def __init__(self, run_dir: Path, kept_step: int, *, resumed: bool) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(run_dir / FOLDER))
        if resumed:
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(
                Event(wall_time=time.time(), step=kept_step + 1, session_log=start)
            )
            self._writer.flush()

    def log(self, metrics: StepMetrics) -> None:
        self._write(metrics.step, step_values(metrics))

    def event(self, name: str, step: int, **fields: object) -> None:
        if name == "evaluation":
            self._write(step, evaluation_values(fields))
        if name == "sample":
            text = f"{fields['prompt']}\n\n{fields['reply']}"
            self._write_text(step, f"sample/{fields['number']}", text)

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, values: Values) -> None:
        found = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(step, self._summary(value=found))

    def _write_text(self, step: int, tag: str, text: str) -> None:
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        value = self._summary.Value(
            tag=tag,
            metadata=create_summary_metadata(display_name="", description=""),
            tensor=make_tensor_proto([text.encode()]),
        )
        self._add(step, self._summary(value=[value]))

    def _add(self, step: int, summary: object) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()
