"""Plain values that several layers use; field names end with the unit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SourceMetrics:
    """The part of a source in one step. An example that a weight repeats counts once for each
    repetition."""

    num_examples: int
    num_tokens: int
    num_target_tokens: int
    loss: float | None  # weighted mean over target tokens; None: no target tokens in this step
    token_accuracy: float | None  # share of target tokens that the model finds most likely

    def added_to(self, before: Mapping[str, int] | None) -> dict[str, int]:
        """The counts of all steps so far; `before` has the counts of the earlier steps."""
        names = ("num_examples", "num_tokens", "num_target_tokens")
        return {name: (before or {}).get(name, 0) + getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One optimizer step, over all ranks: one line of metrics.jsonl."""

    step: int  # updates done, 1 after the first
    epoch: int  # 0-based
    loss: float  # mean over the step's target tokens
    grad_norm: float  # L2, before clipping
    learning_rate: float  # of this update
    num_tokens: int  # without padding
    num_target_tokens: int
    num_padding_tokens: int
    examples_digest: int  # sum mod 2^64 of plan.hash64 of every example handed to the model
    step_time_s: float
    data_wait_s: float  # part of step_time_s
    peak_memory_bytes: int  # of the rank with the most: CUDA's peak, or the process's on CPU
    memory_bytes: int = 0  # held now, of the rank with the most
    num_overflows: int = 0  # of float16; each overflow halved the scale and repeated the step
    skipped: str | None = None  # why nothing was updated (train.on_nonfinite = skip)
    token_accuracy: float | None = None  # share of target tokens that the model finds most likely
    entropy: float | None = None  # mean over the target tokens, in nats
    sources: dict[str, SourceMetrics] | None = None  # by name; None: the sources have no names

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.step_time_s if self.step_time_s > 0 else 0.0


@dataclass(slots=True)
class RunSummary:
    """How a call of `run_training` ended."""

    run_dir: Path
    status: str = ""  # finished | stopped | nothing_to_do
    step: int = 0
    total_steps: int = 0
    first_validation_loss: float | None = None  # of the run; None: there was no validation
    validation_loss: float | None = None  # the last validation loss
    validation_step: int | None = None  # the step of the last validation
    best: float | None = None  # the best evaluation; step 0 does not count
    best_of: str = "validation loss"  # the name of the value in `best`
    best_step: int | None = None
    final_step: int | None = None  # the step whose weights are in final/
    ended_early: str | None = None  # why, if train.patience has ended the run
    to_train_longer: str | None = None  # the flags of `resume` that raise what ended the run
    loss: float | None = None  # of the last step in this call
    num_tokens: int = 0  # trained in this call, without padding
    num_skipped: int = 0  # steps of this call that updated nothing (train.on_nonfinite = skip)
    wall_time_s: float = 0.0
    training_time_s: float = 0.0  # of the steps, with their wait for data

    def add(self, metrics: StepMetrics) -> None:
        """Count one step of this call."""
        self.loss = metrics.loss
        self.num_tokens += metrics.num_tokens
        self.training_time_s += metrics.step_time_s
        self.num_skipped += metrics.skipped is not None
