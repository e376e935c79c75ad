"""AdapterConfig: the settings of a LoRA adapter."""

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from sftctl.config.bounds import RANKS, Amount, PartOfOne
from sftctl.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """A LoRA adapter: small matrices that are trained instead of the weights of the model."""

    lora: bool = False
    """Train a LoRA adapter of a pretrained model. The model's own weights do not change."""
    start: str | None = None
    """A directory with a PEFT adapter of sftctl or another tool. Its training is continued. Rank,
    alpha, targets and similar settings come from its adapter_config.json. Implies lora."""
    rank: Annotated[int, RANKS] = 16
    """Rank of the two matrices that are trained for each target."""
    alpha: Amount = 32.0
    """Scale of the adapter: its output is multiplied by alpha / rank."""
    dropout: PartOfOne = 0.0
    """Dropout on the inputs of the adapter in training, from 0 to below 1."""
    targets: list[str] | None = None
    """Linear layers that get an adapter: names such as q_proj, or shell patterns such as
    *.layers.0.*. Unset: every linear layer of the transformer blocks."""
    use_rslora: bool = False
    """Multiply by alpha / sqrt(rank) in place of alpha / rank, so that the scale does not shrink at
    large ranks (rsLoRA)."""
    use_dora: bool = False
    """Also train the norm of each row of a target's weight (DoRA). This is slower."""
    modules_to_save: list[str] | None = None
    """Modules that are trained and saved completely, such as embeddings and head. If
    `model.new_tokens` is set, embeddings and head are always trained."""
    quantize: Literal["nf4"] | None = None
    """nf4: store the linear layers of the frozen blocks in 4 bits, as in QLoRA. Unset: store them
    in `base_dtype`. nf4 needs bitsandbytes: pip install 'sftctl[qlora]'."""
    base_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The type of the frozen weights that are not quantized. auto: the type of the model's
    computation (`train.dtype`)."""

    def __post_init__(self) -> None:
        changed = [one.name for one in fields(self) if getattr(self, one.name) != one.default]
        if changed and not self.lora:
            raise ConfigError(
                f"adapter.{changed[0]}: set, but no adapter is trained",
                hint="add --lora, or lora = true in [adapter]",
            )
