"""The model that a run starts from: the configured model, or a frozen base with an adapter."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sftctl.config.adapter import AdapterConfig
from sftctl.config.schema import RunConfig
from sftctl.errors import ConfigError
from sftctl.model.adapter.lora import EMBEDDINGS, HEAD, add_adapter, quantizable_layers
from sftctl.model.adapter.nf4 import quantize
from sftctl.model.adapter.start import load_start
from sftctl.model.folder.weight_names import Warn
from sftctl.model.load import Stored, load_model
from sftctl.model.source import on_stderr
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def initial_model(
    config: RunConfig,
    tokenizer: ChatTokenizer,
    warn: Warn = on_stderr,
    location: str | None = None,
    *,
    with_start: bool = True,
) -> "PreTrainedModel":
    """The model at step 0.

    Random weights are drawn with the run's seed. A base is loaded from `location` if it is given. A
    run can start from an existing adapter; without `with_start` this adapter is not read, because a
    checkpoint will replace its weights. Raises the ConfigErrors of `load_pretrained`, `add_adapter`
    and `load_start`.
    """
    named, seed, adapter = config.model, config.train.seed, adapter_of(config)
    dtype = torch.float32 if adapter is None else base_dtype(config)
    is_quantized = adapter is not None and adapter.quantize is not None
    read_in: torch.dtype | Stored = "auto" if is_quantized else dtype
    model = load_model(location or named.name, tokenizer, seed, warn, named.new_tokens, read_in)
    if adapter is not None:
        if is_quantized:
            quantize(model, quantizable_layers(model, adapter.modules_to_save or ()), dtype)
        add_adapter(model, adapter, seed)
        if adapter.start is not None and with_start:
            load_start(model, Path(adapter.start), named.name)
    return model


def adapter_of(config: RunConfig) -> AdapterConfig | None:
    """The settings of the run's adapter, or None.

    If there are new tokens, embeddings and head are added to the modules that are trained
    completely.
    """
    adapter = config.adapter
    if not adapter.lora:
        return None
    if not config.model.new_tokens:
        return adapter
    whole = [EMBEDDINGS, HEAD, *(adapter.modules_to_save or ())]
    return replace(adapter, modules_to_save=list(dict.fromkeys(whole)))


def base_dtype(config: RunConfig) -> torch.dtype:
    """The dtype of the frozen weights. `train.dtype` must be resolved.

    ConfigError if `adapter.base_dtype` does not fit `train.dtype`.
    """
    asked, computes = config.adapter.base_dtype, config.train.dtype
    in_bfloat16 = computes == "bfloat16"
    if asked != "auto" and (asked == "bfloat16") != in_bfloat16:
        raise ConfigError(
            f"adapter.base_dtype: {asked} weights do not compute in {computes} (train.dtype)",
            hint="leave adapter.base_dtype out, or set --dtype too",
        )
    return torch.bfloat16 if in_bfloat16 else torch.float32
