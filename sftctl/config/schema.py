"""RunConfig: frozen data, a docstring under each field, the only place of a default."""

import ast
import inspect
import math
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from sftctl.errors import ConfigError

Auto = Literal["auto"]
Format = Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion"]
Overflow = Literal["truncate", "split", "drop"]
TrainOn = Literal["assistant", "last", "all"]

EVERY_KEY = "`sftctl train --print-config` shows every key, what it means and its default"
DEFAULT_MAX_SEQ_LEN = 1024
DEFAULT_MICRO_BATCH_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Bounds:
    """The range of a number, stated where its field is."""

    at_least: float
    at_most: float = math.inf
    below: float = math.inf

    def problem(self, value: float) -> str | None:
        """What is wrong with `value`, or None."""
        if not math.isfinite(value):
            return f"{value} is no number to work with"
        if value < self.at_least:
            return f"{value} is too small; at least {self.at_least}"
        if value > self.at_most:
            return f"{value} is too large; at most {self.at_most}"
        if value >= self.below:
            return f"{value} is too large; it must be below {self.below}"
        return None


Count = Annotated[int, Bounds(at_least=1, at_most=10**9)]
CountFrom0 = Annotated[int, Bounds(at_least=0, at_most=10**9)]
Amount = Annotated[float, Bounds(at_least=0)]
Share = Annotated[float, Bounds(at_least=0, at_most=1)]
PartOfOne = Annotated[float, Bounds(at_least=0, below=1)]


def beyond_bounds(key: str, value: object) -> str | None:
    """What is wrong with a value of the right type for a dotted key, or None."""
    if not isinstance(value, (int, float)):
        return None
    section, name = key.split(".")
    hint = get_type_hints(SECTIONS[section], include_extras=True)[name]
    return next((found for bounds in _bounds_in(hint) if (found := bounds.problem(value))), None)


def _bounds_in(hint: Any) -> list[Bounds]:
    """The bounds in `Annotated[int, Bounds(...)] | None` and the like."""
    if isinstance(hint, Bounds):
        return [hint]
    parts = (*getattr(hint, "__metadata__", ()), *get_args(hint))
    return [bounds for part in dict.fromkeys(parts) for bounds in _bounds_in(part)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """What is trained."""

    name: str = "small"
    """A preset (tiny, small, minimind-3, minimind-3-moe), a Hugging Face directory, a hub name, a
    .gguf file, or MiniMind's own .pth weights."""
    tokenizer: str | None = None
    """Hugging Face tokenizer: a directory or hub name. Unset: the prepared data's, else the
    model's, else (for a preset) the bundled one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which conversations, and how they reach the model."""

    path: str | None = None
    """A prepared store, or a file, folder or pattern of conversations to prepare. Unset: the
    bundled sample."""
    format: Format = "auto"
    """Shape of the rows of a file."""
    max_seq_len: Annotated[int, Bounds(at_least=2)] | None = None
    """Longest example, in tokens; a longer one is handled by `overflow`. Unset: the store's own, or
    1024 where a file is prepared."""
    overflow: Overflow = "truncate"
    """What happens to a longer example: it is cut short, split at turn boundaries, or dropped."""
    train_on: TrainOn = "assistant"
    """Which tokens are targets: every assistant turn, the last one, or everything."""
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's chat template."""
    val_fraction: PartOfOne = 0.0
    """Share of a file's rows kept for validation, chosen by their hash; in [0, 1)."""
    num_workers: CountFrom0 = 0
    """Loader processes per rank; 0 loads in the training process."""
    pin_memory: Literal["auto", "on", "off"] = "auto"
    """Page-locked batches, for copies to a GPU; auto: on with CUDA. No effect without a GPU."""
    prefetch_factor: Count = 2
    """Steps that each loader process holds ready."""
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
    """How the learning rate falls after the warm-up: by half a cosine, on a line, or not at all."""
    warmup_steps: CountFrom0 = 0
    """Steps of linear warm-up before the schedule."""
    min_lr_ratio: Share = 0.1
    """Cosine and line end at this share of `learning_rate`; in [0, 1]."""
    weight_decay: Amount = 0.01
    """Decoupled weight decay, on matrices only (not on norms and biases)."""
    beta1: PartOfOne = 0.9
    """Decay of AdamW's first moment."""
    beta2: PartOfOne = 0.999
    """Decay of AdamW's second moment."""
    eps: Amount = 1e-8
    """AdamW's denominator term."""
    grad_clip: Amount = 1.0
    """Largest gradient norm (L2 over all parameters); 0 does not clip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The loop."""

    def __post_init__(self) -> None:
        if self.reduction == "exact" and self.strategy != "ddp":
            raise ConfigError(
                f"train.reduction: exact does not go with strategy {self.strategy}",
                hint="train.strategy = ddp, or train.reduction = plain",
            )

    epochs: Count = 2
    """Times that every example is trained."""
    max_steps: Count | None = None
    """Stop after this many steps at the latest; `epochs` can end the run before."""
    batch_size: Count = 16
    """Examples per accumulation window, over all ranks."""
    accumulation_steps: Count = 1
    """Windows per step: a step trains batch_size × accumulation_steps examples, over all ranks."""
    micro_batch_tokens: Count | Auto = DEFAULT_MICRO_BATCH_TOKENS
    """Most tokens, padding included, of one forward pass: memory and speed, never the update. auto:
    on CUDA what the model's shape and the device's memory allow, else 1024."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer, and run the layer again in the backward pass: less memory,
    a third more time, the same update."""
    compile: bool = False
    """torch.compile of each layer: minutes at the start, faster steps on CUDA."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto: CUDA where there is one."""
    reduction: Literal["plain", "exact"] = "plain"
    """How gradients are summed over micro-batches and ranks: plain, in float32; exact, in 64-bit
    integers, so that a run has the same bits on any number of ranks. Needs ddp."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How several ranks hold the model: ddp, each a copy; fsdp, each a share of weights, gradients
    and optimizer state, for what does not fit. On one rank they are the same."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Autocast type; weights stay float32. auto: float32 on CPU, bfloat16 on CUDA (float16 where
    the GPU has none)."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is no finite number: stop the run before the weights are touched, or
    skip the update of that step and go on."""
    eval_interval: CountFrom0 = 0
    """Validate every so many steps, besides the start and the end; 0: only these."""
    collective_timeout_s: Count = 600
    """Seconds that ranks wait in a step for one that is silent, before they give up."""
    seed: Annotated[int, Bounds(at_least=0, below=2**63)] = 0
    """Of the order of the examples, of dropout, and of a preset's first weights."""

    @property
    def pass_tokens(self) -> int:
        """`micro_batch_tokens` as a number: the default where no run has resolved its auto yet."""
        tokens = self.micro_batch_tokens
        return DEFAULT_MICRO_BATCH_TOKENS if tokens == "auto" else tokens

    @property
    def global_batch_size(self) -> int:
        """Examples per optimizer step, over all ranks."""
        return self.batch_size * self.accumulation_steps

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of the whole run."""
        total = steps_per_epoch * self.epochs
        return total if self.max_steps is None else min(total, self.max_steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When the run is saved."""

    save_interval: CountFrom0 = 100
    """Save every so many steps; the last step is always saved. 0: only the last."""
    keep: Count = 3
    """Checkpoints kept; an older one goes only after a newer one was verified."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Who is told."""

    log_interval: Count = 10
    """Steps between two lines on the console (metrics.jsonl has every step)."""
    wandb: bool = False
    """Also log to Weights & Biases (WANDB_MODE=offline works)."""
    wandb_project: str = "sftctl"
    """W&B project."""
    wandb_artifact: bool = False
    """Also upload the finished model (`final/`) to W&B, as an artifact."""
    samples: CountFrom0 = 0
    """Prompts of the validation part that are answered at each evaluation, for you to read; never
    changes the run. Not under fsdp."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything a run needs to be started anew."""

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


def keys() -> list[str]:
    """All dotted keys, in the order of the schema."""
    return [f"{name}.{item.name}" for name, cls in SECTIONS.items() for item in fields(cls)]


def default_of(key: str) -> object:
    """The default of a dotted key; None where it is unset."""
    section, name = key.split(".")
    return next(item.default for item in fields(SECTIONS[section]) if item.name == name)


def choices(key: str) -> tuple[str, ...]:
    """The words that a dotted key takes, or nothing where it takes more than words."""
    hint = type_of(key)
    return get_args(hint) if get_origin(hint) is Literal else ()


def type_of(key: str) -> Any:
    """The type of a dotted key, without its bounds."""
    section, name = key.split(".")
    return get_type_hints(SECTIONS[section])[name]


@cache
def documentation() -> dict[str, str]:
    """The docstring under each field, by dotted key: the help texts and docs/config.md."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(RunConfig)))  # type: ignore[arg-type]
    section_of = {cls.__name__: name for name, cls in SECTIONS.items()}
    result: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in section_of:
            for item, text in zip(node.body, node.body[1:], strict=False):
                match item, text:
                    case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(words))):
                        key = f"{section_of[node.name]}.{name}"
                        one_of = f" One of {', '.join(choices(key))}." if choices(key) else ""
                        result[key] = " ".join(words.split()) + one_of
    return result
