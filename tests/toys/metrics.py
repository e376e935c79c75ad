"""Steps of a made-up run, and trackers that remember their calls or fail."""

from typing import Any

from sftctl.metrics import StepMetrics
from sftctl.tracking.lines import RunShape


def step_metrics(step: int, loss: float = 3.4121) -> StepMetrics:
    """One step of a run with 320 steps an epoch: 512 tokens in 0.1 s, 1 ms of it waiting."""
    return StepMetrics(
        step=step,
        epoch=(step - 1) // 320,
        loss=loss,
        grad_norm=0.83,
        learning_rate=9.1e-4,
        num_tokens=512,
        num_target_tokens=300,
        num_padding_tokens=8,
        examples_digest=2**64 - 1,
        step_time_s=0.1,
        data_wait_s=0.001,
        peak_memory_bytes=10**9,
    )


def run_shape(log_interval: int = 10, first_step: int = 0, **past: Any) -> RunShape:
    return RunShape(
        total_steps=640,
        steps_per_epoch=320,
        epochs=2,
        log_interval=log_interval,
        first_step=first_step,
        name="run",
        flops_per_token=10,
        flops_per_target_token=4,
        peak_flops_per_s=2 * (10 * 5120 + 4 * 3000),
        **past,
    )


class Memory:
    """Remembers its calls."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.events: list[tuple[str, int, dict[str, object]]] = []
        self.closed = 0

    def log(self, metrics: StepMetrics) -> None:
        self.steps.append(metrics.step)

    def event(self, name: str, step: int, **fields: object) -> None:
        self.events.append((name, step, fields))

    def close(self) -> None:
        self.closed += 1


class Broken(Memory):
    """Remembers its calls, and raises in those that are named."""

    def __init__(self, *calls: str, error: type[Exception] = RuntimeError) -> None:
        super().__init__()
        self._calls, self._error = calls, error

    def log(self, metrics: StepMetrics) -> None:
        super().log(metrics)
        self._fail_in("log")

    def event(self, name: str, step: int, **fields: object) -> None:
        super().event(name, step, **fields)
        self._fail_in("event")

    def close(self) -> None:
        super().close()
        self._fail_in("close")

    def _fail_in(self, call: str) -> None:
        if call in self._calls:
            raise self._error("no route to host")
