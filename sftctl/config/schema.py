"""RunConfig: all settings of a run. The docstring under each field is its help text."""

from dataclasses import dataclass, field
from datetime import date as Date
from pathlib import Path
from typing import Annotated, Any, Literal

from sftctl.config.adapter import AdapterConfig
from sftctl.config.bounds import (
    Amount,
    Bounds,
    Count,
    CountFrom0,
    PartOfOne,
)
from sftctl.config.evaluation import EvaluationConfig
from sftctl.config.optim import OptimConfig
from sftctl.config.sources import SourceConfig, check_sources
from sftctl.config.template_options import check_options
from sftctl.config.tracking import TrackingConfig
from sftctl.errors import ConfigError

Auto = Literal["auto"]
Format = Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text"]
Overflow = Literal["truncate", "split", "drop"]
TrainOn = Literal["assistant", "last", "all"]
SpecialText = Literal["keep", "refuse", "escape"]

DEFAULT_MAX_SEQ_LEN = 1024
DEFAULT_MICRO_BATCH_TOKENS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The model to train."""

    name: str = "small"
    """A preset (tiny, small, minimind-3, minimind-3-moe), a Hugging Face directory, a hub name, a
    .gguf file, or a .pth file of MiniMind."""
    tokenizer: str | None = None
    """Hugging Face tokenizer: a directory or hub name. Unset: the tokenizer of the prepared store;
    without a store, the tokenizer of the model; for a preset, the bundled tokenizer."""
    new_tokens: list[str] | None = None
    """Special tokens to add to the tokenizer. Set the same tokens for prepare-data and train. The
    model's embeddings and head get new rows. The initial value of a new row is the mean of the old
    rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The conversations to train on, and how they are loaded."""

    path: str | None = None
    """A prepared store, or a file, folder or pattern of conversations to prepare. Unset: the
    bundled sample."""
    sources: tuple[SourceConfig, ...] | None = None
    """A mixture: [[data.sources]] with name, path and weight (default 1). With weight 0.3, an epoch
    trains 30% of a source's examples, and the next epoch trains others. With weight 2.5, an epoch
    trains all examples twice, and half of them a third time."""
    format: Format = "auto"
    """Format of the rows in a file; auto: found from the keys of each row."""
    max_seq_len: Annotated[int, Bounds(at_least=2, below=2**63)] | None = None
    """Maximum length of an example, in tokens. `overflow` decides what happens to a longer example.
    Unset: the maximum length of the store, or 1024 when a file is prepared."""
    overflow: Overflow = "truncate"
    """What to do with a row that is too long: truncate it, split it before user turns, or drop
    it."""
    train_on: TrainOn = "assistant"
    """Which tokens are targets: all assistant turns, the last assistant turn, or everything."""
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's chat template. chatml: a common template that
    needs no file."""
    template_options: dict[str, Any] | None = None
    """Options of the chat template, such as enable_thinking = false, in [data.template_options].
    They are saved as defaults in the template of the store and the model."""
    reasoning_weight: Annotated[float, Bounds(at_least=0, at_most=10**6)] = 1.0
    """Weight of an assistant's reasoning in the loss. It is multiplied by the weight of the
    message. 0: reasoning is not trained."""
    leading_assistant: Literal["keep", "drop"] = "keep"
    """What to do with assistant turns before the first user turn: keep them, or drop them. If the
    template refuses them, the row is dropped."""
    columns: str | None = None
    """Other names of columns, as in prompt=question,completion=body.answer: the column question is
    read as prompt. A dot means a key inside an object."""
    special_text: SpecialText = "keep"
    """What to do if a message contains the text of a special token: keep the text (it becomes the
    token), refuse the row, or escape the text with a zero-width space."""
    date: str | None = None
    """The date (YYYY-MM-DD) for chat templates that write today's date. Unset: the day on which the
    data is prepared. The run records the date."""
    val_fraction: PartOfOne = 0.0
    """Fraction of a file's rows to use for validation, from 0 to below 1. A hash of each row
    decides whether it is used."""
    num_workers: CountFrom0 = 0
    """Number of loader processes of each rank. 0: the training process loads the data."""
    pin_memory: Literal["auto", "on", "off"] = "auto"
    """Page-locked memory for batches, which makes copies to a GPU faster. auto: on with CUDA.
    Without a GPU it has no effect."""
    prefetch_factor: Count = 2
    """How many steps each loader process prepares in advance."""
    persistent_workers: bool = True
    """Keep the loader processes between epochs."""

    def __post_init__(self) -> None:
        check_options(self.template_options or {})
        check_sources(self.sources or (), self.path)
        if self.date is not None:
            try:
                Date.fromisoformat(self.date)
            except ValueError:
                raise ConfigError(
                    f"data.date: {self.date} is not a date", hint="as in data.date = 2026-11-01"
                ) from None

    @property
    def example_tokens(self) -> int:
        """The maximum length for preparing files: `max_seq_len`, or the default if it is unset."""
        return self.max_seq_len or DEFAULT_MAX_SEQ_LEN


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The training loop."""

    def __post_init__(self) -> None:
        if self.reduction == "exact" and self.strategy != "ddp":
            raise ConfigError(
                f"train.reduction: exact can't be combined with strategy {self.strategy}",
                hint="set train.strategy = ddp, or train.reduction = plain",
            )
        if self.patience and not self.eval_interval:
            raise ConfigError(
                f"train.patience: {self.patience}, but train.eval_interval is 0: nothing is "
                "evaluated before the last step",
                hint="--eval-interval N evaluates every N steps",
            )

    epochs: Count = 2
    """How many times each example is trained."""
    max_steps: Count | None = None
    """Maximum number of steps. `epochs` can end the run earlier."""
    batch_size: Count = 16
    """Number of examples in a batch, on all ranks together."""
    accumulation_steps: Count = 1
    """Number of batches in a step. A step trains batch_size × accumulation_steps examples, on all
    ranks together."""
    micro_batch_tokens: Count | Auto = DEFAULT_MICRO_BATCH_TOKENS
    """Maximum number of tokens in one forward pass with several examples. It changes memory and
    speed. The update stays the same, except for rounding. auto: on CUDA a number that is computed
    from the model's shape and the GPU's memory, else 1024."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer, and compute the layer again in the backward pass. This
    needs less memory, and a third more time. The update is the same."""
    compile: bool = False
    """Compile each layer with torch.compile. This takes minutes at the start. It is meant for CUDA,
    where it has not been measured."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs. auto: CUDA if available, else CPU. mps: the GPU of a Mac."""
    reduction: Literal["plain", "exact"] = "plain"
    """How gradients are summed over micro-batches and ranks. plain: in float32. exact: in 64-bit
    integers, so a run can be resumed on any number of ranks with the same bits. exact needs ddp."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How several ranks hold the model. ddp: each rank has a complete copy. fsdp: each rank has a
    part of the weights, gradients and optimizer state, for models that do not fit on one rank. On
    one rank, both are the same."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The type of the model's computation. bfloat16: with copies of the float32 weights. float16:
    with autocast. auto on CUDA: bfloat16 if the GPU supports it, else float16. auto on a CPU:
    bfloat16 if the processor has bfloat16 instructions and the model's hidden size is at least 512,
    else float32."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do if a loss or gradient is not finite. stop: end the run before the weights change.
    skip: skip the update of this step, and continue."""
    eval_interval: CountFrom0 = 0
    """Evaluate every N steps, and always at the start and at the end. 0: only at the start and at
    the end."""
    patience: CountFrom0 = 0
    """End the run after this number of evaluations in a row without an improvement. 0: never. Needs
    `eval_interval`."""
    min_delta: Amount = 0.0
    """How much better an evaluation has to be to count as an improvement for `patience`."""
    final: Literal["auto", "best", "last"] = "auto"
    """Which weights final/ gets. best: those of the step with the best evaluation. last: those of
    the last step. auto: best if the data has a validation set, else last."""
    collective_timeout_s: Count = 600
    """How many seconds a rank waits in a step for another rank that does not answer. Then the run
    ends with an error."""
    seed: Annotated[int, Bounds(at_least=0, below=2**63)] = 0
    """Random seed. It decides the order of the examples, dropout, and the initial weights of a
    preset."""
    freeze: list[str] | None = None
    """Parameters that are not trained: shell patterns on their names, such as *.mlp.*, or
    embeddings, head, layers[:4] (the first four), layers[-2:] (the last two)."""
    train_only: list[str] | None = None
    """The only parameters that are trained, written as in `freeze`. `freeze` is applied after
    `train_only`."""

    @property
    def pass_tokens(self) -> int:
        """`micro_batch_tokens` as a number. The default if it is still auto."""
        tokens = self.micro_batch_tokens
        return DEFAULT_MICRO_BATCH_TOKENS if tokens == "auto" else tokens

    @property
    def global_batch_size(self) -> int:
        """Examples per optimizer step, over all ranks."""
        return self.batch_size * self.accumulation_steps

    def total_steps(self, steps_per_epoch: int, steps_before: int = 0, epoch: int = 0) -> int:
        """Steps of the complete run, if epoch number `epoch` begins after `steps_before` steps."""
        total = steps_before + steps_per_epoch * (self.epochs - epoch)
        return total if self.max_steps is None else min(total, self.max_steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When to save, and how many checkpoints to keep."""

    save_interval: CountFrom0 = 100
    """Save every N steps, and always the last step. 0: only the last step."""
    keep: Count = 3
    """Number of checkpoints to keep. An older checkpoint is deleted only after a newer one is
    verified."""
    keep_best: CountFrom0 = 0
    """How many checkpoints with the best evaluations to keep, in addition to the newest ones. If
    `train.final` is best, at least 1 is kept. If `keep_best` is above 0, a step with a new best
    evaluation is always saved."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """All settings of a run."""

    output_dir: Path | None = None
    """The run directory. Unset: a folder in runs/, named after the model and the time."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def keep_best(self) -> int:
        """How many of the best checkpoints are kept, in addition to the newest."""
        return max(self.checkpoint.keep_best, self.train.final == "best")

    @property
    def saves_the_best(self) -> bool:
        """Whether a step with a new best evaluation is always saved."""
        return self.keep_best > 0 and self.train.eval_interval > 0

    @property
    def saves_on_the_way(self) -> bool:
        """Whether a step before the last may be saved."""
        return self.checkpoint.save_interval > 0 or self.saves_the_best


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "adapter": AdapterConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "checkpoint": CheckpointConfig,
    "evaluation": EvaluationConfig,
    "tracking": TrackingConfig,
}
