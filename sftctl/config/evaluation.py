"""EvaluationConfig: validation sets, metrics of generated answers, and the value to improve."""

from dataclasses import dataclass
from typing import Annotated

from sftctl.config.bounds import Bounds, Count
from sftctl.config.sources import require_different
from sftctl.errors import ConfigError

METRICS = {"loss": "min", "perplexity": "min", "token_accuracy": "max", "entropy": None}
"""Measured value -> "min" or "max" is better. None: the user must choose the direction."""
OWN_SET = "validation"
"""The name of the validation set that is a part of the training data."""
_TAKEN = (
    *(*METRICS, "num_target_tokens", "num_prompts"),
    *("step", "set", "number", "messages", "reference", "answer"),
)
"""Names that a metric can't have, because they are used for other values in the records."""
_HINT = 'as in evaluation.best = "chat.token_accuracy", or "max chat.entropy"'


@dataclass(frozen=True, kw_only=True, slots=True)
class SetConfig:
    """A validation set."""

    name: str
    """The name of the set in metrics and reports."""
    path: str | None = None
    """A file, folder or pattern of conversations, or a prepared store. If a store has a validation
    split, only this split is used."""
    fraction: Annotated[float, Bounds(at_least=0, below=1)] | None = None
    """Instead of a path: hold out this fraction of the training rows for the set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """What a run is evaluated on, and how the best step is chosen."""

    sets: tuple[SetConfig, ...] | None = None
    """Validation sets in addition to the validation part of the data: [[evaluation.sets]] with
    name, and path or fraction."""
    best: str = "loss"
    """The value that decides which step is best: loss (the mean over the target tokens of all
    sets), perplexity, token_accuracy, entropy or a metric. chat.loss is the loss of the set chat.
    If it is unclear which direction is better, write min or max before the name."""
    metrics: list[str] | None = None
    """Python functions that score generated answers, as module:function. The module is imported
    from the working directory or the Python path, so your code runs. Not available with fsdp."""
    num_prompts: Count = 32
    """How many rows of each validation set the model answers for the metrics."""
    max_new_tokens: Count = 128
    """Maximum length of an answer, in tokens."""

    def __post_init__(self) -> None:
        goal, own = self.goal, self.metric_names
        sets = self.sets or ()
        require_different((one.name for one in sets), "evaluation.sets", "set")
        for one in sets:
            if (one.path is None) == (one.fraction is None):
                raise ConfigError(
                    f"evaluation.sets: {one.name}: needs either a path or a fraction",
                    hint='path = "FILE", or fraction = 0.02 of the training data',
                )
        if sum(one.fraction is not None for one in sets) > 1:
            raise ConfigError(
                "evaluation.sets: two sets have a fraction, but the training data is split once",
                hint="keep one fraction, and give the other set a path",
            )
        if goal.metric not in (*METRICS, *own):
            raise ConfigError(
                f"evaluation.best: {self.best}: {goal.metric} is not measured; there are "
                f"{', '.join((*METRICS, *own))}",
                hint=_HINT,
            )
        if goal.direction not in ("min", "max"):
            raise ConfigError(f"evaluation.best: {self.best}: min or max?", hint=_HINT)

    @property
    def goal(self) -> "Goal":
        """`best` as a Goal."""
        return Goal.parsed(self.best)

    @property
    def metric_names(self) -> dict[str, str]:
        """Name of the function -> `module:function`, for each metric."""
        found: dict[str, str] = {}
        for path in self.metrics or ():
            module, colon, name = path.partition(":")
            if not (module and colon and name.isidentifier()):
                raise ConfigError(
                    f"evaluation.metrics: {path} is not module:function",
                    hint='as in evaluation.metrics = ["mymodule:exact_match"]',
                )
            if name in _TAKEN or name in found:
                taken = "is a reserved name" if name in _TAKEN else "is named twice"
                raise ConfigError(
                    f"evaluation.metrics: {path}: {name} {taken}",
                    hint="rename the function: its name is the name of the metric",
                )
            found[name] = path
        return found

    @property
    def fraction(self) -> float | None:
        """The fraction of the training data that is held out as a set. None: no set has one."""
        return next((one.fraction for one in self.sets or () if one.fraction is not None), None)

    @property
    def own_name(self) -> str:
        """The name of the validation set that is a part of the training data."""
        return next((one.name for one in self.sets or () if one.fraction is not None), OWN_SET)


@dataclass(frozen=True, slots=True)
class Goal:
    """The measured value that decides which step is the best."""

    set_name: str | None  # None: all sets together
    metric: str
    direction: str  # min | max

    @classmethod
    def parsed(cls, text: str) -> "Goal":
        """The goal in a text such as `loss`, `chat.loss` or `max chat.entropy`."""
        said, _, rest = text.strip().rpartition(" ")
        name, _, metric = rest.rpartition(".")
        return cls(name or None, metric, said.strip() or METRICS.get(metric) or "")

    @property
    def is_loss(self) -> bool:
        """Whether the goal is the default: the loss of all sets."""
        return self == LOSS

    def __str__(self) -> str:
        where = "" if self.set_name is None else f"{self.set_name}."
        return f"{self.direction} {where}{self.metric}"

    @property
    def shown(self) -> str:
        """The goal as words for a sentence: `validation loss`, `token_accuracy of chat`."""
        name = "validation loss" if self.metric == "loss" else self.metric
        return name if self.set_name is None else f"{self.metric} of {self.set_name}"


LOSS = Goal(None, "loss", "min")
