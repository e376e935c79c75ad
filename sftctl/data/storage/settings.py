"""Refuses a store that was prepared with other settings than the settings of the run."""

import hashlib
from pathlib import Path
from typing import Any

from sftctl.config.schema import DataConfig
from sftctl.data.manifest import StoreManifest
from sftctl.errors import ConfigError, DataError
from sftctl.words import counted

_COMPARED = (
    *("train_on", "overflow", "format", "val_fraction", "leading_assistant"),
    *("special_text", "columns", "reasoning_weight"),
)


def require_settings(store: Path, manifest: StoreManifest, data: DataConfig) -> None:
    """Raise DataError or ConfigError if a store was prepared with other settings.

    A setting of the run that has its default value is not compared.
    """
    for key in _COMPARED:
        wanted, stored = getattr(data, key), getattr(manifest, key)
        if wanted not in (stored, getattr(DataConfig(), key)):
            raise DataError(
                f"{store}: prepared with {key} {stored}, but the run asks for {wanted}",
                f"prepare the data again, or remove data.{key}",
            )
    if data.template_options is not None and data.template_options != manifest.template_options:
        raise DataError(
            f"{store}: prepared with the template options {_listed(manifest.template_options)}, "
            f"but the run asks for {_listed(data.template_options)}",
            "prepare the data again, or remove data.template_options",
        )
    if data.chat_template is not None and manifest.template_hash not in _hashes(
        data.chat_template, manifest.template_options
    ):
        raise DataError(
            f"{store}: prepared with another chat template than {data.chat_template}",
            "prepare the data again, or remove data.chat_template",
        )
    if data.date is not None and manifest.date not in (None, data.date):
        raise DataError(
            f"{store}: prepared with the date {manifest.date}, but the run asks for {data.date}",
            "prepare the data again, or remove data.date",
        )
    longest = manifest.length_quantiles["max"]
    if data.max_seq_len is not None and longest > data.max_seq_len:
        raise ConfigError(
            f"data.max_seq_len: {data.max_seq_len}, but {store} holds an example of "
            f"{counted(longest, 'token')}",
            hint="prepare the data again with --max-seq-len, or remove it from the run",
        )


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items()) or "of the template"


def _hashes(name: str, options: dict[str, Any]) -> list[str]:
    """All hashes that a template with this name can have."""
    from sftctl.model.tokenizer.chat_templates import possible_templates
    from sftctl.model.tokenizer.template_options import (
        with_options,
    )  # slow to import and rarely needed

    texts = [with_options(template, options) for template in possible_templates(name)]
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts]
