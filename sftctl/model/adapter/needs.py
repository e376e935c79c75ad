"""Refuse an adapter if its base, the strategy or the packages do not fit. Loads no torch."""

from importlib.util import find_spec
from pathlib import Path

from sftctl.config.existing_adapter import CONFIG_NAME, WEIGHTS_NAME
from sftctl.config.schema import RunConfig
from sftctl.errors import ConfigError
from sftctl.model.presets import is_preset
from sftctl.words import in_shell


def require_base(config: RunConfig) -> None:
    """ConfigError for an adapter on random weights, for alpha 0, and for nf4 with FSDP.

    Call this only for a new run. A run that an older version began may have such settings.
    """
    adapter = config.adapter
    if adapter.lora and adapter.alpha == 0:
        raise ConfigError(
            "adapter.alpha: 0: the adapter would add nothing to the model",
            hint="leave it out, or take a number above 0",
        )
    if adapter.lora and is_preset(config.model.name):
        raise ConfigError(
            f"adapter.lora: the preset {config.model.name} has random weights, and an adapter "
            "leaves them as they are",
            hint="--model with a trained model: a directory, a file or a hub name",
        )
    if adapter.quantize is None:
        return
    if config.train.strategy == "fsdp":
        raise ConfigError(
            "adapter.quantize: nf4 can't be combined with strategy fsdp: fsdp can't shard 4-bit "
            "weights",
            hint="--strategy ddp, where each rank holds the quantized base",
        )
    require_bitsandbytes()


def require_bitsandbytes() -> None:
    """ConfigError if bitsandbytes is not installed. Does not import bitsandbytes."""
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "adapter.quantize: nf4 needs bitsandbytes, which is not installed",
            hint="pip install 'sftctl[qlora]'",
        )


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder has an adapter in peft's format, from any tool.

    With a complete model next to it, it is still an adapter: transformers and peft read it so.
    """
    if not (folder / CONFIG_NAME).is_file():
        return False
    return (folder / WEIGHTS_NAME).is_file() or not (folder / "config.json").is_file()


def refuse_adapter(folder: Path, settings: object, *, has_weights: bool) -> None:
    """ConfigError if a folder should be a model, but is an adapter or the run of an adapter.

    `settings` is the content of the folder's adapter_config.json, or None. `has_weights`: the
    folder has the weights of a complete model. An adapter's weights next to them are refused too.
    """
    if not (folder / "config.json").is_file() and (folder / "final/adapter_config.json").is_file():
        raise ConfigError(
            f"{folder}: a run of an adapter, not a model",
            hint=f"`sftctl export {in_shell(folder)} --merge --output DIR` merges it into "
            f"its base; or --adapter {in_shell(folder / 'final')} continues to train it",
        )
    if isinstance(settings, dict) and (not has_weights or is_adapter_folder(folder)):
        base = settings.get("base_model_name_or_path") or settings.get("model")
        raise ConfigError(
            f"{folder}: an adapter of {base or 'an unnamed base'}, not a model",
            hint=f"`sftctl export {in_shell(folder)} --merge --output DIR` merges the two; give "
            "that folder",
        )


def broken_package(name: str, problem: Exception) -> ConfigError:
    """The error for a package that is installed but can't be imported."""
    reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
    return ConfigError(
        f"{name} can't be imported: {reason}",
        hint="install it again, and what it imports (peft imports bitsandbytes if it is there)",
    )
