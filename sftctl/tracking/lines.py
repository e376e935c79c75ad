"""Shows progress as plain lines, for a pipe, a log file or a terminal without cursor control."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TextIO

from sftctl.metrics import StepMetrics
from sftctl.tracking import status
from sftctl.words import format_bytes, format_duration, parameters_text

_RECENT_STEPS = 50
_LONGEST_QUESTION, _LONGEST_REPLY = 30, 60  # in characters; longer texts are shown shortened
_EVENTS = {
    "started": "started {run_dir}: {parameters}, {num_examples:,} examples, "
    "{total_steps:,} steps, {dtype} on {device}",
    "data": "data {message}",
    "resumed": "resumed at step {step} from {checkpoint}",
    "evaluation": "evaluation at step {step}: validation loss {validation_loss:.4f}",
    "sample": "sample {number} at step {step}: {question}{reply}",
    "saved": "saved {name} ({size} in {seconds:.1f} s)",
    "save_failed": "save failed at step {step}: {error}",
    "stopped": "stopped by {signal} at step {step}",
    "ended_early": "ended at step {step}: {reason}",
    "finished": "finished at step {step}",
    "failed": "failed at step {step}",
    "warning": "warning: {message}",
}

HIDDEN_EVENTS = ("changed",)
"""Events that are not shown, because `resume` has already printed them."""

REPEATED_EVENTS = ("finished",)
"""Events that are not shown, because the command prints the same at its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunShape:
    """Facts about a run that a display needs before its first step."""

    total_steps: int
    steps_per_epoch: int
    epochs: int
    log_interval: int
    first_step: int  # updates done before this session
    name: str = "sftctl"  # name of the run
    flops_per_token: int = 0  # FLOPs of the model for each token; 0: unknown
    flops_per_target_token: int = 0  # additional FLOPs of the head for each target token
    peak_flops_per_s: float = 0.0  # sum over all ranks; 0: unknown
    past_losses: Sequence[float] = ()  # losses of the steps before this session
    past_validation: tuple[float, float, int] | None = None  # first loss, last loss, its step


class Pace:
    """Measures the speed of the last 50 steps. All values are 0 before the first step."""

    def __init__(self) -> None:
        self._recent: deque[StepMetrics] = deque(maxlen=_RECENT_STEPS)

    def add(self, metrics: StepMetrics) -> None:
        self._recent.append(metrics)

    @property
    def step_time_s(self) -> float:
        """Mean time of a step, in seconds."""
        return sum(one.step_time_s for one in self._recent) / max(1, len(self._recent))

    @property
    def tokens_per_s(self) -> float:
        return _ratio(sum(one.num_tokens for one in self._recent), self._total_s)

    @property
    def target_tokens_per_s(self) -> float:
        return _ratio(sum(one.num_target_tokens for one in self._recent), self._total_s)

    @property
    def padding_ratio(self) -> float:
        """The fraction of padding in all processed tokens."""
        padding = sum(one.num_padding_tokens for one in self._recent)
        return _ratio(padding, padding + sum(one.num_tokens for one in self._recent))

    def mfu(self, shape: RunShape) -> float:
        """Model FLOPs utilisation, from 0 to 1. Padding tokens and waiting time lower it."""
        done = shape.flops_per_token * self.tokens_per_s
        done += shape.flops_per_target_token * self.target_tokens_per_s
        return _ratio(done, shape.peak_flops_per_s)

    @property
    def data_wait_ratio(self) -> float:
        return _ratio(sum(one.data_wait_s for one in self._recent), self._total_s)

    @property
    def _total_s(self) -> float:
        return self.step_time_s * len(self._recent)


class LineTracker:
    """Writes a line every `log_interval` steps, at the last step, and for each event."""

    def __init__(self, shape: RunShape, stream: TextIO) -> None:
        self._shape, self._stream = shape, stream
        self._pace = Pace()

    def log(self, metrics: StepMetrics) -> None:
        self._pace.add(metrics)
        is_last = metrics.step == self._shape.total_steps
        if is_last or metrics.step % self._shape.log_interval == 0:
            self._write(step_line(metrics, self._pace, self._shape.total_steps))

    def event(self, name: str, step: int, **fields: object) -> None:
        if name not in (*HIDDEN_EVENTS, *REPEATED_EVENTS):
            self._write(event_line(name, step, fields))

    def stopping(self, line: str) -> None:
        """Write the answer to a signal. Other threads may call this."""
        self._write(line)

    def close(self) -> None:
        """Does nothing. The caller closes the stream."""

    def _write(self, line: str) -> None:
        with status.making_room():
            print(line, file=self._stream, flush=True)


def step_line(metrics: StepMetrics, pace: Pace, total_steps: int) -> str:
    """The line of a step: `step   120/640  epoch 1  loss 3.4121  …  5123 tok/s  …  eta 1:32`"""
    return (
        f"step {metrics.step:>5}/{total_steps}  epoch {metrics.epoch + 1}  loss {metrics.loss:.4f}"
        f"  lr {metrics.learning_rate:.1e}  grad {metrics.grad_norm:.3g}"
        f"  {pace.tokens_per_s:.0f} tok/s  wait {pace.data_wait_ratio:.1%}"
        f"  eta {format_duration(pace.step_time_s * (total_steps - metrics.step))}"
    )


def event_line(name: str, step: int, fields: dict[str, object]) -> str:
    """An event as one line of text, without control characters."""
    words: dict[str, object] = {"step": step} | fields
    if name == "saved":
        words["name"] = PurePath(str(fields["path"])).name
        words["size"] = format_bytes(int(str(fields["num_bytes"])))
    if name == "sample":
        question, reply = (" ".join(str(fields.get(n, "")).split()) for n in ("question", "reply"))
        if len(question) > _LONGEST_QUESTION:
            question = f"…{question[-_LONGEST_QUESTION:]}"
        words["question"] = f"{question} -> " if question else ""
        words["reply"] = reply if len(reply) <= _LONGEST_REPLY else reply[:_LONGEST_REPLY] + " …"
    if name == "started":
        number, trained = (int(str(fields[f"num_{what}"])) for what in ("parameters", "trained"))
        words["parameters"] = parameters_text(number, trained)
    line = _EVENTS.get(name, name + " at step {step}").format_map(words)
    if name == "evaluation":
        line += _standing(step, fields)
    return "".join(letter if letter.isprintable() else " " for letter in line)


def _standing(step: int, fields: dict[str, object]) -> str:
    """The end of the line of an evaluation: metrics, then numbers of each set, then the best step.

    A single set, and a best step that equals `step`, are not repeated.
    """
    sets = fields.get("sets")
    each = sets.items() if isinstance(sets, dict) and len(sets) > 1 else ()
    metrics = fields.get("metrics")
    names = list(metrics) if isinstance(metrics, dict) else []
    text = _metrics_text(metrics, names, ", ") + "".join(
        f", {name} {values['loss']:.4f}{_metrics_text(values, names, ' ')}" for name, values in each
    )
    step_of_best, best = fields.get("best_step"), fields.get("best")
    if step_of_best in (None, step) or not isinstance(best, float):
        return text
    goal = f" {fields['goal']}" if fields.get("goal") else ""
    waited = f", patience {fields['waited']}/{fields['patience']}" if fields.get("waited") else ""
    return f"{text} (best{goal} {best:.4f} at step {step_of_best}{waited})"


def _metrics_text(values: object, names: Sequence[str], before: str) -> str:
    """Metrics as text: `, exact_match 0.2500`. A metric without a number is left out."""
    found = {name: values.get(name) for name in names} if isinstance(values, dict) else {}
    numbers = {name: value for name, value in found.items() if isinstance(value, (int, float))}
    return "".join(f"{before}{name} {value:.4f}" for name, value in numbers.items())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
