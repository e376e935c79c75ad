"""The values that are sent to services. They have the same names in every service."""

from collections.abc import Callable, Mapping

from sftctl.metrics import StepMetrics

Values = dict[str, float]
_MEASURED = ("perplexity", "token_accuracy", "entropy")


def step_values(metrics: StepMetrics) -> Values:
    """The values of one step. Values of a named source are under `sources/NAME/`."""
    values = {
        "train/loss": metrics.loss,
        "train/grad_norm": metrics.grad_norm,
        "train/learning_rate": metrics.learning_rate,
        "train/epoch": metrics.epoch,
        "train/tokens_per_s": metrics.tokens_per_s,
        "train/step_time_s": metrics.step_time_s,
        "train/peak_memory_bytes": metrics.peak_memory_bytes,
        "train/memory_bytes": metrics.memory_bytes,
        "data/num_tokens": metrics.num_tokens,
        "data/num_target_tokens": metrics.num_target_tokens,
        "data/num_padding_tokens": metrics.num_padding_tokens,
        "data/wait_s": metrics.data_wait_s,
    }
    measured = {"train/token_accuracy": metrics.token_accuracy, "train/entropy": metrics.entropy}
    values |= {name: value for name, value in measured.items() if value is not None}
    for name, source in (metrics.sources or {}).items():
        values[f"sources/{name}/num_tokens"] = source.num_tokens
        if source.loss is not None:
            values[f"sources/{name}/loss"] = source.loss
        if source.token_accuracy is not None:
            values[f"sources/{name}/token_accuracy"] = source.token_accuracy
    return values


def evaluation_values(fields: Mapping[str, object]) -> Values:
    """The values of one evaluation: `validation/` for all sets, `validation/NAME/` for one set."""
    of_all = {"loss": fields["validation_loss"]} | {key: fields.get(key) for key in _MEASURED}
    metrics, sets = fields.get("metrics"), fields.get("sets")
    of_all |= metrics if isinstance(metrics, dict) else {}
    groups = {"validation": of_all}
    groups |= (
        {f"validation/{name}": values for name, values in sets.items()}
        if isinstance(sets, dict)
        else {}
    )
    return {
        f"{where}/{key}": float(value)
        for where, values in groups.items()
        for key, value in values.items()
        if not key.startswith("num_") and isinstance(value, (int, float))
    }


class Rows:
    """Sends one row for each step, to a service that can't change a row later.

    A row is sent when the next step begins. So the row also has the evaluation of its step. Steps
    up to `last_step` are not sent, because the service already has them.
    """

    def __init__(self, send: Callable[[int, Values], object], last_step: int) -> None:
        self._send, self._sent = send, last_step
        self._step, self._row = 0, Values()

    def add(self, step: int, values: Values) -> None:
        """Add values to the row of `step`."""
        if step != self._step:
            self.flush()
        self._step = step
        self._row |= values

    def add_evaluation(self, step: int, values: Values) -> None:
        """Add an evaluation to the row of its step.

        If a session is stopped before an evaluation, it has already sent the row of the step. The
        next session begins with this evaluation, which is then sent separately.
        """
        if step == self._sent and step > 0 and self._step == 0:
            self._send(step, values)
        else:
            self.add(step, values)

    def flush(self) -> None:
        """Send the current row, if it has values and was not sent before."""
        if self._row and self._step > self._sent:
            self._send(self._step, self._row)
            self._sent = self._step
        self._row = Values()
