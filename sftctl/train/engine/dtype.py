"""Choose the dtype for `train.dtype = auto`, and refuse a dtype that the device can't use."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from sftctl.config.schema import RunConfig
from sftctl.errors import ConfigError
from sftctl.machine import multiplies_bfloat16
from sftctl.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BFLOAT16_WIDTH = 512
"""The smallest hidden size for which `auto` chooses bfloat16 on a CPU with bfloat16 instructions.
From this size on, bfloat16 was measured to be faster than float32 (docs/measured/speed.md)."""


def choose_dtype(config: RunConfig, model: "PreTrainedModel", world: World) -> RunConfig:
    """Replace `train.dtype = auto` by a dtype. ConfigError for a dtype that the device can't use.

    On a CPU with bfloat16 products, a model that is wide enough gets bfloat16. Only rank 0's
    processor decides, and nothing is timed. So equal commands make the same choice.
    """
    setting = config.train.dtype
    if world.device.type == "mps":
        return _for_mps(config)
    cuda = world.device.type == "cuda"
    bfloat16 = not cuda or torch.cuda.is_bf16_supported()
    if setting == "bfloat16" and not bfloat16:
        raise ConfigError("train.dtype: this GPU has no bfloat16", hint="--dtype float16, or auto")
    if setting == "auto" and cuda:
        setting = "bfloat16" if bfloat16 else "float16"
    elif setting == "auto":
        is_wide = model.config.get_text_config().hidden_size >= BFLOAT16_WIDTH
        is_faster = is_wide and world.on_main(multiplies_bfloat16)
        setting = "bfloat16" if is_faster else "float32"
    return replace(config, train=replace(config.train, dtype=setting))


def _for_mps(config: RunConfig) -> RunConfig:
    """Choose or check the dtype on a Mac's GPU, which has no float64. float16 is refused there."""
    train = config.train
    if train.dtype == "float16":
        raise ConfigError("train.dtype: float16 is not used on mps", hint="--dtype bfloat16")
    if train.reduction == "exact":
        raise ConfigError(
            "train.reduction: exact sums need float64, which mps lacks", hint="leave it out"
        )
    dtype = "float32" if train.dtype == "auto" else train.dtype
    return replace(config, train=replace(train, dtype=dtype))
