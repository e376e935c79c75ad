"""Whether a token store fits a run; DataError with what differs where it does not."""

from pathlib import Path

from sftctl.config.schema import DataConfig, RunConfig
from sftctl.data.manifest import StoreManifest
from sftctl.errors import DataError
from sftctl.model.presets import is_preset
from sftctl.model.source import ModelSource
from sftctl.model.tokenizer.tokenizer import load_tokenizer


def require_fitting_store(config: RunConfig, path: Path) -> None:
    """Refuse a store of another tokenizer or template, or made in another way than asked for."""
    manifest = StoreManifest.read(path)
    _check_tokenizer(config, path, manifest)
    _check_settings(config.data, path, manifest)


def _check_tokenizer(config: RunConfig, path: Path, manifest: StoreManifest) -> None:
    """Refuse a store of another tokenizer than the model's own, or than the one asked for."""
    name = config.model.tokenizer
    if name is None:
        if is_preset(config.model.name) or ModelSource.of(config.model.name).is_minimind:
            return  # it takes the vocabulary of its data
        name = config.model.name
    tokenizer = load_tokenizer(name)
    if tokenizer.content_hash != manifest.tokenizer_hash:
        raise DataError(
            f"{path}: prepared with tokenizer {manifest.tokenizer}, which is not that of {name}",
            hint=f"prepare the data again with `--tokenizer {name}`",
        )


def _check_settings(data: DataConfig, path: Path, manifest: StoreManifest) -> None:
    """Refuse a store that was made in another way than was asked for; defaults ask for nothing."""
    for key in ("train_on", "overflow", "format", "val_fraction"):
        wanted, stored = getattr(data, key), getattr(manifest, key)
        if wanted not in (stored, getattr(DataConfig(), key)):
            raise DataError(
                f"{path}: prepared with {key} {stored}, the run asks for {wanted}",
                f"prepare the data again, or leave data.{key} out",
            )
    if data.chat_template is not None:
        template = load_tokenizer(str(path / "tokenizer"), Path(data.chat_template))
        if template.template_hash != manifest.template_hash:
            raise DataError(
                f"{path}: prepared with another chat template than {data.chat_template}",
                "prepare the data again, or leave data.chat_template out",
            )
