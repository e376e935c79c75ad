"""What can be refused in the first second, before torch is loaded."""

from pathlib import Path

from sftctl.config.schema import RunConfig
from sftctl.data.sources import require_input
from sftctl.model.presets import PRESETS
from sftctl.model.source import ModelSource, require_model_folder, require_tokenizer_folder
from sftctl.train.rundir import refuse_existing


def check_before_loading(config: RunConfig) -> None:
    """Raise for paths that are not there, and for an output directory that is."""
    if config.output_dir is not None:
        refuse_existing(config.output_dir)
    if config.data.path is not None:
        require_input(Path(config.data.path))
    if config.model.name not in PRESETS:
        ModelSource.of(config.model.name)
        require_model_folder(config.model.name)
    if config.model.tokenizer is not None:
        ModelSource.of(config.model.tokenizer)
        require_tokenizer_folder(config.model.tokenizer)
