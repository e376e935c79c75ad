"""Load and save causal language models of `transformers`."""

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sftctl.errors import CheckpointError, ConfigError
from sftctl.model.minimind import load_minimind, minimind_configuration
from sftctl.model.presets import is_preset, preset_config
from sftctl.model.source import ModelSource, from_hub_or_disk, quiet, require_model_folder
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def load_model(name: str, tokenizer: ChatTokenizer, seed: int) -> "PreTrainedModel":
    """The model that training starts from, in float32; a preset's weights are drawn with `seed`."""
    if is_preset(name):
        torch.manual_seed(seed)
        return from_configuration(configuration(name, tokenizer))
    return load_pretrained(name)


def configuration(name: str, tokenizer: ChatTokenizer) -> "PretrainedConfig":
    """The `transformers` configuration of the model that `load_model` would load."""
    if is_preset(name):
        hf = tokenizer.hf
        return preset_config(
            name,
            tokenizer.vocab_size,
            bos_token_id=hf.bos_token_id,
            eos_token_id=hf.eos_token_id,
            pad_token_id=hf.pad_token_id,
        )
    quiet()
    from transformers import AutoConfig

    source = ModelSource.of(name)
    require_model_folder(name)
    if source.is_minimind:
        return minimind_configuration(Path(source.location))
    with from_hub_or_disk(f"model {name}", source), redirect_stderr(StringIO()):
        return AutoConfig.from_pretrained(source.location, **source.arguments)


def load_pretrained(name: str) -> "PreTrainedModel":
    """The model of a directory, hub name, .gguf or .pth file, in float32."""
    quiet()
    from transformers import AutoModelForCausalLM

    source = ModelSource.of(name)
    require_model_folder(name)
    if source.is_minimind:
        return load_minimind(Path(source.location))
    # One of the progress bars can't be turned off, so stderr is redirected.
    with from_hub_or_disk(f"model {name}", source), redirect_stderr(StringIO()):
        return AutoModelForCausalLM.from_pretrained(
            source.location, dtype=torch.float32, **source.arguments, **_dense(source)
        )


def _dense(source: ModelSource) -> dict[str, Any]:
    """Dequantize a .gguf file: quantized weights can't be trained or saved."""
    if not source.is_gguf:
        return {}
    from transformers import GgufConfig

    return {"quantization_config": GgufConfig(dequantize=True)}


def load_architecture(folder: Path) -> "PreTrainedModel":
    """The model of `folder/config.json` with random weights, to be filled from a checkpoint."""
    from transformers import AutoConfig, GenerationConfig

    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder / 'config.json'}: missing", hint="the run's model/ folder was changed or lost"
        )
    with from_hub_or_disk(f"model {folder}", ModelSource.of(str(folder))):
        model = from_configuration(AutoConfig.from_pretrained(folder, local_files_only=True))
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def save_architecture(model: "PreTrainedModel", folder: Path) -> None:
    """Write config.json and generation_config.json, from which a resume builds the model."""
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


MAX_SHARD_BYTES = 5 * 10**9
"""Larger weights are split into several files with an index."""


def save_pretrained(
    model: "PreTrainedModel",
    tokenizer: ChatTokenizer,
    folder: Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a plain Hugging Face directory: weights, configuration, tokenizer, template."""
    model.save_pretrained(folder, max_shard_size=max_shard_bytes)
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)  # safetensors makes it readable by its owner only
    tokenizer.save(folder)


def check_fit(model: "PreTrainedModel", tokenizer: ChatTokenizer, max_seq_len: int) -> None:
    """Refuse more token ids than the model has embeddings, and examples too long for it."""
    rows = model.get_input_embeddings().num_embeddings
    if tokenizer.vocab_size > rows:
        raise ConfigError(
            f"tokenizer {tokenizer.name} has {tokenizer.vocab_size} ids, the model has embeddings "
            f"for {rows}",
            hint="prepare the data with the model's own tokenizer",
        )
    positions = max_positions(model)
    if positions is not None and max_seq_len > positions:
        raise ConfigError(
            f"data.max_seq_len: {max_seq_len} is beyond the model's {positions} positions",
            hint=f"prepare the data again with --max-seq-len {positions}",
        )


def max_positions(model: "PreTrainedModel") -> int | None:
    """The longest text that a model can take, in tokens; None if it has no limit."""
    return getattr(model.config, "max_position_embeddings", None)


def from_configuration(config: "PretrainedConfig") -> "PreTrainedModel":
    """The model of a configuration, in float32, with random weights."""
    quiet()
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
