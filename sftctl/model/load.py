"""Load and save causal language models of `transformers`."""

import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from sftctl.disk import system_errors
from sftctl.errors import CheckpointError, ConfigError, lacks_memory
from sftctl.model.folder.load_errors import from_hub_or_disk
from sftctl.model.folder.names_twice import require_one_value
from sftctl.model.folder.other_kinds import require_trainable
from sftctl.model.folder.read_files import has_weights, require_file_read
from sftctl.model.folder.tied_head import require_tied_files, require_tied_head
from sftctl.model.folder.tokenizer_files import require_embeddings
from sftctl.model.folder.weight_names import RENAMES, Names, Warn, forget_renames, renamed
from sftctl.model.folder.weight_values import values_of
from sftctl.model.gguf.file import require_whole_model, set_sizes, unread_scaling, unused_tensors
from sftctl.model.minimind import load_minimind, minimind_configuration
from sftctl.model.presets import is_preset, preset_config
from sftctl.model.source import (
    NO_CODE,
    ModelSource,
    on_stderr,
    quiet,
    require_model_folder,
    tell_of_code,
)
from sftctl.model.tokenizer.library_warnings import library_warnings
from sftctl.model.tokenizer.new_tokens import grow_configuration, grow_model, new_ids
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Stored = Literal["auto"]  # the word of transformers for the dtype in which weights are stored


def load_model(
    name: str,
    tokenizer: ChatTokenizer,
    seed: int,
    warn: Warn = on_stderr,
    new_tokens: Sequence[str] | None = None,
    dtype: torch.dtype | Stored = torch.float32,
) -> "PreTrainedModel":
    """The model that training starts from.

    A preset gets random weights in float32, drawn with `seed`; its vocabulary has all tokens. A
    pretrained model is loaded in `dtype`, and its embeddings get rows for `new_tokens`.
    """
    if is_preset(name):
        torch.manual_seed(seed)
        return from_configuration(configuration(name, tokenizer))
    model = load_pretrained(name, warn, dtype)
    grow_model(model, new_ids(tokenizer, new_tokens or ()))
    return model


def configuration(
    name: str,
    tokenizer: ChatTokenizer,
    new_tokens: Sequence[str] | None = None,
    warn: Warn = on_stderr,
) -> "PretrainedConfig":
    """The `transformers` configuration of the model that `load_model` would load."""
    if is_preset(name):
        kinds = ("bos_token_id", "eos_token_id", "pad_token_id")
        ids = {kind: getattr(tokenizer.hf, kind) for kind in kinds}
        return preset_config(name, tokenizer.vocab_size, **ids)
    source = ModelSource.of(name)
    require_model_folder(name, warn)
    if source.is_minimind:
        config: PretrainedConfig = minimind_configuration(Path(source.location))
    else:
        config = _configuration(name, source, warn)
    grow_configuration(config, new_ids(tokenizer, new_tokens or ()))
    return config


def _configuration(name: str, source: ModelSource, warn: Warn) -> "PretrainedConfig":
    """The configuration of a pretrained model; ConfigError if it can't be trained here."""
    quiet()
    from transformers import AutoConfig

    if source.is_gguf:
        require_whole_model(source.gguf_path)
    with from_hub_or_disk(f"model {name}", source), library_warnings(f"model {name}", warn):
        config = AutoConfig.from_pretrained(source.location, **source.arguments)
        if source.is_gguf:
            set_sizes(config, source.gguf_path)
    require_trainable(name, config)
    tell_of_code(source, warn)
    return config


def load_pretrained(
    name: str, warn: Warn = on_stderr, dtype: torch.dtype | Stored = torch.float32
) -> "PreTrainedModel":
    """Load the model of a directory, a hub name, a .gguf or a .pth file, with weights in `dtype`.

    With "auto", weights keep the dtype in which they are stored (float32 for .gguf and .pth files).
    Raises ConfigError if a weight is missing in the files, or is not finite. `warn` receives a line
    about unused tensors, and a line about prefixes that were removed from names.
    """
    quiet()
    source = ModelSource.of(name)
    require_model_folder(name, warn)
    if source.is_minimind:
        narrow = torch.float32 if dtype == "auto" else dtype
        return load_minimind(Path(source.location), warn, narrow)
    config = _configuration(name, source, warn)  # raises its errors before any weight is loaded
    require_file_read(name, Path(name))
    options = {"dtype": torch.float32 if source.is_gguf and dtype == "auto" else dtype}
    model, names = _from_files(name, source, config, options, warn)
    if source.is_gguf:
        unused = unused_tensors(model, source.gguf_path)
        names = replace(names, unexpected={*names.unexpected, *unused})
        if problem := unread_scaling(model.config, source.gguf_path):
            warn(f"model {name}: {problem}")
    names.require(f"model {name}", warn)
    require_tied_head(name, model)
    values_of(model).require(f"model {name}", warn)
    return model


def require_names(name: str, config: "PretrainedConfig", warn: Warn = on_stderr) -> None:
    """ConfigError if a weight of the model is missing in the files of a folder. Reads only headers.

    Other models, such as .gguf files, are checked when they are loaded.
    """
    source, folder = ModelSource.of(name), Path(name)
    if source.is_gguf or not has_weights(folder):
        return
    require_file_read(name, folder)
    _, names = _from_files(name, source, config, {"device_map": "meta"}, warn)
    names.require(f"model {name}", warn)
    require_tied_files(name, config, folder)


def _from_files(
    name: str, source: ModelSource, config: "PretrainedConfig", options: dict[str, Any], warn: Warn
) -> "tuple[PreTrainedModel, Names]":
    """The model, perhaps with missing weights, and how names without known prefixes fit
    the model.
    """
    said: list[str] = []
    model, names = _named_as_it_is(name, source, config, options, said.append)
    if names.has_prefixes and not source.is_gguf:
        require_one_value(name, Path(source.location))
    if names.is_renamed:
        found, options, said = names.unexpected, {**options, "key_mapping": RENAMES}, []
        model, names = _named_as_it_is(name, source, config, options, said.append)
        if names.is_loaded and (line := renamed(f"model {name}", found)):
            said.append(line)
        forget_renames(model)
    for line in said:
        warn(line)
    return model, names


def _named_as_it_is(
    name: str, source: ModelSource, config: "PretrainedConfig", options: dict[str, Any], warn: Warn
) -> "tuple[PreTrainedModel, Names]":
    from transformers import AutoModelForCausalLM

    options = {"dtype": torch.float32, **_dense(source, config), **options}
    with from_hub_or_disk(f"model {name}", source), library_warnings(f"model {name}", warn):
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                source.location,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **source.arguments,
                **options,
            )
        except RuntimeError as problem:  # transformers could not stack or split tensors
            if lacks_memory(problem) or "conversion of the weights" not in str(problem):
                raise
            raise ConfigError(
                f"model {name}: its tensors can't be put together as config.json says: one of an "
                "expert's may be missing or of another shape",
                hint="copy or download the model again",
            ) from problem
    model.config.__dict__.pop("auto_map", None)  # else a saved config.json would name code to run
    names = Names(info["missing_keys"], info["unexpected_keys"], [*info["mismatched_keys"]])
    return model, names


def _dense(source: ModelSource, config: "PretrainedConfig") -> dict[str, Any]:
    """Arguments to dequantize a .gguf file, because quantized weights can't be trained."""
    if not source.is_gguf:
        return {}
    from transformers import GgufConfig

    return {"quantization_config": GgufConfig(dequantize=True), "config": config}


def read_gguf(file: Path, config: "PretrainedConfig") -> "PreTrainedModel":
    """A model of this configuration with the weights of a .gguf file, dequantized to float32.

    ConfigError if a weight of the model is not in the file.
    """
    quiet()
    from transformers import LlamaConfig

    source = ModelSource.of(str(file))
    # In a .gguf file, a Mistral model is a Llama model. So the reader needs a Llama configuration.
    if config.model_type == "mistral":
        values = config.to_dict()
        known = {key: values[key] for key in LlamaConfig().to_dict() if key in values}
        config = LlamaConfig(**known | {"model_type": "llama"})
    model, names = _named_as_it_is(str(file), source, config, {}, on_stderr)
    names.require(f"model {file}", on_stderr)
    return model


def load_architecture(folder: Path) -> "PreTrainedModel":
    """The model of `folder/config.json` with random weights, which a checkpoint must replace."""
    from transformers import AutoConfig, GenerationConfig

    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder / 'config.json'}: missing", hint="the run's model/ folder was changed or lost"
        )
    with from_hub_or_disk(f"model {folder}", ModelSource.of(str(folder))):
        model = from_configuration(
            AutoConfig.from_pretrained(folder, local_files_only=True, **NO_CODE)
        )
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def save_architecture(model: "PreTrainedModel", folder: Path) -> None:
    """Write config.json and generation_config.json, from which a resume builds the model."""
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


MAX_SHARD_BYTES = 5 * 10**9
"""If the weights are larger, they are written to several files with an index."""


def save_pretrained(
    model: "PreTrainedModel",
    tokenizer: ChatTokenizer,
    folder: Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a plain Hugging Face directory: weights, configuration, tokenizer, template."""
    with system_errors():
        model.save_pretrained(folder, max_shard_size=max_shard_bytes)
    # config.json has the mode that the umask gives to new files.
    mode = stat.S_IMODE((folder / "config.json").stat().st_mode)
    for weights in folder.glob("*.safetensors"):
        weights.chmod(mode)  # safetensors lets only the owner read its files
    tokenizer.save(folder)


def check_fit(model: "PreTrainedModel", tokenizer: ChatTokenizer, max_seq_len: int) -> None:
    """ConfigError if the model has too few embeddings for the tokenizer, or too few positions."""
    rows = model.get_input_embeddings().num_embeddings
    require_embeddings(tokenizer.hf, tokenizer.name, rows)
    positions = max_positions(model)
    if positions is not None and max_seq_len > positions:
        raise ConfigError(
            f"data.max_seq_len: {max_seq_len} is beyond the model's {positions} positions",
            hint=f"prepare the data again with --max-seq-len {positions}",
        )


def max_positions(model: "PreTrainedModel") -> int | None:
    """The model's maximum sequence length in tokens; None if it has no maximum."""
    return getattr(model.config, "max_position_embeddings", None)


def from_configuration(config: "PretrainedConfig") -> "PreTrainedModel":
    """The model of a configuration, in float32, with random weights."""
    quiet()
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, **NO_CODE)
