"""Plain values that several layers use; field names end with the unit."""

from dataclasses import dataclass
from pathlib import Path


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
    num_overflows: int = 0  # float16 overflows; each halved the scale and repeated the step
    skipped: str | None = None  # why nothing was updated (train.on_nonfinite = skip)

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
    validation_loss: float | None = None  # the last one
    validation_step: int | None = None  # of the last one
    loss: float | None = None  # of the last step in this call
    num_tokens: int = 0  # trained in this call, without padding
    num_skipped: int = 0  # steps of this call that updated nothing (train.on_nonfinite = skip)
    wall_time_s: float = 0.0

    def add(self, metrics: StepMetrics) -> None:
        """Count one step of this call."""
        self.loss = metrics.loss
        self.num_tokens += metrics.num_tokens
        self.num_skipped += metrics.skipped is not None
