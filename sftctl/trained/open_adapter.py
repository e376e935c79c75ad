"""Open an adapter with its base: from a peft directory, a run's final/, or a checkpoint."""

from dataclasses import replace
from pathlib import Path

import torch

from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.checkpoint.load import load_weights
from sftctl.errors import ConfigError
from sftctl.model.adapter.attach import AdapterFile, Attached, attach
from sftctl.model.adapter.base import adapter_of
from sftctl.model.adapter.lora import lora_config, saved_tensors
from sftctl.model.adapter.needs import is_adapter_folder
from sftctl.model.adapter.save import CONFIG_NAME, save_adapter
from sftctl.model.fake import fake_model
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer
from sftctl.runs.base import Base, base_location, require_same_base
from sftctl.runs.directory import RunDir
from sftctl.words import in_shell

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def open_adapter(
    folder: Path,
    dtype: torch.dtype,
    recorded: Base | None = None,
    chat_template: str | None = None,
    *,
    on_source: bool = False,
    where: Path | None = None,
    base: str | None = None,
) -> tuple[Attached, ChatTokenizer]:
    """Load the base in `dtype` with the adapter in `folder` on it, and the tokenizer.

    The tokenizer is the folder's own, or else the base's. The base must be the `recorded` one;
    without a record, any base is accepted. A base that was in nf4 is dequantized; with `on_source`
    it has its weights before the quantization. Errors about another base name the path `where`; the
    default is `folder`. `base` replaces the name in the adapter's settings, if the caller has
    compared it with the record.
    """
    adapter = AdapterFile.read(folder)
    if base is not None:
        adapter = replace(adapter, base=base)
    elif recorded is not None:
        require_same_base(where or folder, recorded, adapter.base)
    _require_base(adapter)
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
    named = str(folder) if has_tokenizer else adapter.base
    tokenizer = load_tokenizer(named, chat_template)
    form = None if on_source or recorded is None else recorded.get("quantize")
    location = base_location(adapter.base, recorded)
    return attach(adapter, dtype, location, form=form), tokenizer


def _require_base(adapter: AdapterFile) -> None:
    """ConfigError if the base does not exist. The message names the file with the base's path."""
    is_path = adapter.base.startswith((".", "/", "~")) or adapter.base.count("/") > 1
    if is_path and not Path(adapter.base).exists():
        raise ConfigError(
            f"{adapter.folder / CONFIG_NAME}: its base {adapter.base} is not there",
            hint="put the base back, or set base_model_name_or_path to where it is",
        )
    if is_adapter_folder(Path(adapter.base)):
        raise ConfigError(
            f"{adapter.folder / CONFIG_NAME}: its base {adapter.base} is itself an adapter",
            hint=f"`sftctl export {in_shell(adapter.base)} --merge --output DIR` makes a model of "
            "that; then set base_model_name_or_path to DIR",
        )


def write_adapter(
    run: RunDir, checkpoint: Path, manifest: CheckpointManifest, folder: Path
) -> None:
    """Write the adapter of a checkpoint as a directory in peft's format, with its tokenizer."""
    config = run.resolved_config()
    tokenizer = load_tokenizer(str(run.model_folder))
    named = config.model
    fake = fake_model(
        named.name, tokenizer, torch.device("cpu"), named.new_tokens, adapter_of(config)
    )
    shapes = {name: tensor.shape for name, tensor in saved_tensors(fake.model).items()}
    tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    load_weights(checkpoint, tensors, manifest)
    revision = (manifest.base or {}).get("revision")
    save_adapter(tensors, lora_config(fake.model), named.name, revision, folder)
    tokenizer.save(folder)
