"""Values that several layers use. The names of fields end with the unit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SourceMetrics:
    """What one source contributed to a step. An example that is repeated counts each time."""

    num_examples: int
    num_tokens: int
    num_target_tokens: int
    loss: float | None  # weighted mean over target tokens; None: the step has none of this source
    token_accuracy: float | None  # share of target tokens with the highest probability

    def added_to(self, before: Mapping[str, int] | None) -> dict[str, int]:
        """The counts of all steps so far. `before` has those of the earlier steps."""
        names = ("num_examples", "num_tokens", "num_target_tokens")
        return {name: (before or {}).get(name, 0) + getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One optimizer step, over all ranks: one line of metrics.jsonl."""

    step: int  # number of updates, 1 after the first
    epoch: int  # from 0
    loss: float  # the weighted mean over the step's target tokens
    grad_norm: float  # the L2 norm before clipping
    learning_rate: float  # of this update
    num_tokens: int  # without padding
    num_target_tokens: int
    num_padding_tokens: int
    examples_digest: int  # sum of the hashes of all trained examples (plan.hash64), mod 2^64
    step_time_s: float
    data_wait_s: float  # time waiting for data, a part of step_time_s
    peak_memory_bytes: int  # highest of the ranks; on CUDA of the GPU, on a CPU of the process
    memory_bytes: int = 0  # now, on the rank with the most
    num_overflows: int = 0  # float16 overflows; each halved the loss scale and repeated the step
    skipped: str | None = None  # why there was no update (train.on_nonfinite = skip)
    token_accuracy: float | None = None  # share of target tokens with the highest probability
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
    first_validation_loss: float | None = None  # the first of the run; None: no validation
    validation_loss: float | None = None  # the last validation loss
    validation_step: int | None = None  # the step of the last validation
    best: float | None = None  # the best evaluation; step 0 does not count
    best_of: str = "validation loss"  # the name of the value in `best`
    best_step: int | None = None
    final_step: int | None = None  # the step whose weights are in final/
    ended_early: str | None = None  # the reason, if train.patience has ended the run
    to_train_longer: str | None = None  # flags of `resume` that raise the limit of the run
    loss: float | None = None  # of the last step in this call
    num_tokens: int = 0  # trained in this call, without padding
    num_skipped: int = 0  # steps of this call without an update (train.on_nonfinite = skip)
    wall_time_s: float = 0.0
    training_time_s: float = 0.0  # of all steps, with the time waiting for data

    def add(self, metrics: StepMetrics) -> None:
        """Add one step of this call."""
        self.loss = metrics.loss
        self.num_tokens += metrics.num_tokens
        self.training_time_s += metrics.step_time_s
        self.num_skipped += metrics.skipped is not None
