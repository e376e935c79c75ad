"""RunConfig: every setting of a run, its type, its default, and a docstring that is its help."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from sftctl.config.bounds import Amount, Bounds, Count, CountFrom0, PartOfOne, Share
from sftctl.errors import ConfigError

Auto = Literal["auto"]
Format = Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion"]
Overflow = Literal["truncate", "split", "drop"]
TrainOn = Literal["assistant", "last", "all"]

DEFAULT_MAX_SEQ_LEN = 1024
DEFAULT_MICRO_BATCH_TOKENS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The model to train."""

    name: str = "small"
    """A preset (tiny, small, minimind-3, minimind-3-moe), a Hugging Face directory, a hub name, a
    .gguf file, or MiniMind's own .pth weights."""
    tokenizer: str | None = None
    """Hugging Face tokenizer: a directory or hub name. Unset: the prepared data's, else the
    model's, else (for a preset) the bundled one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The conversations to train on, and how they are loaded."""

    path: str | None = None
    """A prepared store, or a file, folder or pattern of conversations to prepare. Unset: the
    bundled sample."""
    format: Format = "auto"
    """Format of the rows in a file."""
    max_seq_len: Annotated[int, Bounds(at_least=2)] | None = None
    """Maximum length of an example, in tokens; `overflow` decides what happens to a longer one.
    Unset: the store's own, or 1024 when a file is prepared."""
    overflow: Overflow = "truncate"
    """What to do with a longer example: truncate it, split it at turn boundaries, or drop it."""
    train_on: TrainOn = "assistant"
    """Which tokens are targets: every assistant turn, the last one, or everything."""
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's chat template."""
    val_fraction: PartOfOne = 0.0
    """Fraction of a file's rows held out for validation, chosen by their hash; in [0, 1)."""
    num_workers: CountFrom0 = 0
    """Loader processes per rank; 0 loads in the training process."""
    pin_memory: Literal["auto", "on", "off"] = "auto"
    """Page-locked batches, for copies to a GPU; auto: on with CUDA. No effect without a GPU."""
    prefetch_factor: Count = 2
    """Steps that each loader process prepares in advance."""
    persistent_workers: bool = True
    """Keep the loader processes between epochs."""

    @property
    def example_tokens(self) -> int:
        """`max_seq_len` as a number: the default where it is unset and a file is prepared."""
        return self.max_seq_len or DEFAULT_MAX_SEQ_LEN


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW and its learning rate."""

    learning_rate: Amount | Auto = "auto"
    """Peak learning rate. auto: 1e-3 for a preset (random weights), 2e-5 for pretrained weights."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up: along half a cosine, linearly, or not at
    all."""
    warmup_steps: CountFrom0 = 0
    """Steps of linear warm-up before the schedule."""
    min_lr_ratio: Share = 0.1
    """The cosine and linear schedules end at this fraction of `learning_rate`; in [0, 1]."""
    weight_decay: Amount = 0.01
    """Decoupled weight decay, on matrices only (not on norms and biases)."""
    beta1: PartOfOne = 0.9
    """Decay of AdamW's first moment."""
    beta2: PartOfOne = 0.999
    """Decay of AdamW's second moment."""
    eps: Amount = 1e-8
    """AdamW's denominator term."""
    grad_clip: Amount = 1.0
    """Maximum gradient norm (L2 over all parameters); 0 disables clipping."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The training loop."""

    def __post_init__(self) -> None:
        if self.reduction == "exact" and self.strategy != "ddp":
            raise ConfigError(
                f"train.reduction: exact can't be combined with strategy {self.strategy}",
                hint="train.strategy = ddp, or train.reduction = plain",
            )

    epochs: Count = 2
    """How many times each example is trained."""
    max_steps: Count | None = None
    """Maximum number of steps; `epochs` can end the run earlier."""
    batch_size: Count = 16
    """Examples per accumulation window, over all ranks."""
    accumulation_steps: Count = 1
    """Windows per step: a step trains batch_size × accumulation_steps examples, over all ranks."""
    micro_batch_tokens: Count | Auto = DEFAULT_MICRO_BATCH_TOKENS
    """Maximum tokens of several examples in one forward pass. It affects memory and speed, never
    the update. auto: on CUDA chosen from the model's shape and the GPU's memory, else 1024."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer, and run the layer again in the backward pass: less memory,
    a third more time, the same update."""
    compile: bool = False
    """Compile each layer with torch.compile: minutes at the start, faster steps on CUDA."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto: CUDA if available."""
    reduction: Literal["plain", "exact"] = "plain"
    """How gradients are summed over micro-batches and ranks: plain, in float32; exact, in 64-bit
    integers, so that a run has the same bits on any number of ranks. Needs ddp."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How several ranks hold the model: ddp, each has a copy; fsdp, each has a part of weights,
    gradients and optimizer state, for models that do not fit. On one rank they are the same."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the model computes in. bfloat16: copies of float32 weights; float16: autocast. auto:
    float32 on CPU, bfloat16 on CUDA (float16 if the GPU has no bfloat16)."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do if a loss or gradient is not finite: stop the run before the weights change, or
    skip that step's update and continue."""
    eval_interval: CountFrom0 = 0
    """Validate every N steps, and always at the start and the end; 0: only then."""
    collective_timeout_s: Count = 600
    """Seconds that ranks wait in a step for one that does not answer, before they give up."""
    seed: Annotated[int, Bounds(at_least=0, below=2**63)] = 0
    """Random seed (order of the examples, dropout, a preset's initial weights)."""

    @property
    def pass_tokens(self) -> int:
        """`micro_batch_tokens` as a number; the default if no run has resolved its auto yet."""
        tokens = self.micro_batch_tokens
        return DEFAULT_MICRO_BATCH_TOKENS if tokens == "auto" else tokens

    @property
    def global_batch_size(self) -> int:
        """Examples per optimizer step, over all ranks."""
        return self.batch_size * self.accumulation_steps

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of the complete run."""
        total = steps_per_epoch * self.epochs
        return total if self.max_steps is None else min(total, self.max_steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When to save, and how many checkpoints to keep."""

    save_interval: CountFrom0 = 100
    """Save every N steps; the last step is always saved. 0: only the last."""
    keep: Count = 3
    """Checkpoints to keep; an older one is deleted only after a newer one was verified."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """What is logged, and where."""

    log_interval: Count = 10
    """Steps between two lines on the console (metrics.jsonl has every step)."""
    wandb: bool = False
    """Also log to Weights & Biases (WANDB_MODE=offline works)."""
    wandb_project: str = "sftctl"
    """W&B project."""
    wandb_artifact: bool = False
    """Also upload the finished model (`final/`) to W&B, as an artifact."""
    samples: CountFrom0 = 0
    """Number of validation prompts to answer at each evaluation, for you to read. The run does not
    change. Not available with fsdp."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything needed to start a run again."""

    output_dir: Path | None = None
    """The run directory itself. Unset: runs/ and a name made of model and time."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "checkpoint": CheckpointConfig,
    "tracking": TrackingConfig,
}
