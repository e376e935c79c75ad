"""What decides the content of a token store, besides its inputs and its tokenizer."""

from dataclasses import dataclass
from typing import Literal

from sftctl.config.schema import Format, Overflow, TrainOn

Engine = Literal["auto", "hf"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareSettings:
    """What decides the content of a store, besides its inputs and its tokenizer."""

    format: Format = "auto"
    max_seq_len: int = 1024
    overflow: Overflow = "truncate"
    train_on: TrainOn = "assistant"
    val_fraction: float = 0.0
    strict: bool = False  # True: a row that can't be kept as it came is an error
    engine: Engine = "auto"  # hf: by the reference alone, however slow
