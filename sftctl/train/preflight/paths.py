"""Refuse wrong paths in the first second, before torch is loaded."""

from dataclasses import replace
from pathlib import Path

from sftctl.checkpoint.layout import MANIFEST_NAME
from sftctl.config.existing_adapter import require_agreement
from sftctl.config.schema import RunConfig
from sftctl.data.reading.sources import require_input
from sftctl.errors import ConfigError
from sftctl.model.adapter.needs import require_base
from sftctl.model.presets import is_preset
from sftctl.model.source import ModelSource, require_model_folder, require_tokenizer_folder
from sftctl.runs.directory import new_run_path
from sftctl.runs.final import require_sound
from sftctl.runs.newest import run_around
from sftctl.words import in_shell

_OF_CHECKPOINTS = (MANIFEST_NAME, "config.json", "adapter_config.json")  # the others: of models


def check_before_loading(config: RunConfig) -> RunConfig:
    """Check all paths, and return the configuration with the run directory filled in.

    Raises an error for a missing input, for a run directory that exists or can't be created, and
    for a model or adapter that was changed after sftctl wrote it.
    """
    require_base(config)
    require_agreement(config.adapter)
    if config.adapter.start is not None:
        require_sound(Path(config.adapter.start))
    config = replace(config, output_dir=new_run_path(config))
    for path in (config.data.path, *(source.path for source in config.data.sources or ())):
        if path is not None:
            require_input(Path(path))
    if not is_preset(config.model.name):
        _refuse_checkpoint(Path(config.model.name))
        ModelSource.of(config.model.name)
        require_model_folder(config.model.name)
        require_sound(Path(config.model.name))
    if config.model.tokenizer is not None:
        ModelSource.of(config.model.tokenizer)
        require_tokenizer_folder(config.model.tokenizer)
    return config


def _refuse_checkpoint(path: Path) -> None:
    """ConfigError for a checkpoint of a run as the model: it has no configuration of a model."""
    is_model = (path / "config.json").is_file() or (path / "adapter_config.json").is_file()
    if (
        (path / MANIFEST_NAME).is_file()
        and not is_model
        and run_around(path.absolute()) is not None
    ):
        raise ConfigError(
            f"model {path}: a checkpoint of a run, not a model",
            hint=f"`sftctl export {in_shell(path)}` makes a model of it",
        )
