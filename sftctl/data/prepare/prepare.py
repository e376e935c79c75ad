"""The work of `prepare-data`: make a token store from files. An error leaves no partial store."""

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sftctl import jsonio
from sftctl.config.schema import DataConfig, RunConfig
from sftctl.data.manifest import StoreManifest
from sftctl.data.prepare.builder import Progress, build_store, silent
from sftctl.data.prepare.existing_store import (
    hash_files,
    make_way,
    readable_manifest,
    require_store_or_nothing,
    same_store,
    what_differs,
)
from sftctl.data.prepare.fingerprint import PrepareOptions, StoreInputs
from sftctl.data.sample import SAMPLE_TOKENIZER, sample_files
from sftctl.data.storage.hashes import block_hashes
from sftctl.disk import refusals
from sftctl.environment import cache_folder
from sftctl.errors import ConfigError, DataError, EngineDiffers, LayoutDiffers
from sftctl.folders import new_folder
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer

_MAKE_ROOM = "free some disk space there, or choose another --output"
_MAKE_ROOM_IN_CACHE = "free some disk space there, or set XDG_CACHE_HOME to another folder"
_LOOK = "to see such rows, prepare without --strict and with --show 3"


@dataclass(frozen=True, slots=True)
class PreparedStore:
    """A store's manifest, and how the store was made."""

    manifest: StoreManifest
    is_reused: bool = False
    replaced: str | None = None  # why the earlier store at `output` could not be reused


def default_store(inputs: Sequence[Path]) -> Path:
    """The output path if `--output` is not given: `chats.store` for the input `chats.jsonl.gz`."""
    if not inputs:
        return Path("sample.store")
    name = inputs[0].absolute().name.partition(".")[0] if str(inputs[0]) != "-" else ""
    usable = "".join(letter for letter in name if letter not in "*?[]")
    return Path(f"{usable or 'data'}.store")


def prepare_files(
    inputs: Sequence[Path],
    validation_inputs: Sequence[Path],
    output: Path,
    config: RunConfig,
    on_progress: Callable[[Progress], None] = silent,
    options: PrepareOptions = PrepareOptions(),
) -> PreparedStore:
    """Prepare files with the configured tokenizer and template. No inputs: the bundled sample."""
    if not inputs:
        train, validation = sample_files()
        inputs, validation_inputs = [train], validation_inputs or [validation]
    tokenizer = load_tokenizer(
        config.model.tokenizer or str(SAMPLE_TOKENIZER),
        config.data.chat_template,
        config.data.template_options,
        template_required=config.data.format != "text",
        new_tokens=config.model.new_tokens,
    ).with_engine(options.engine)
    return prepare_store(
        inputs, output, tokenizer, config.data, validation_inputs, on_progress, options
    )


def prepare_store(
    inputs: Sequence[Path],
    output: Path,
    tokenizer: ChatTokenizer,
    data: DataConfig,
    validation_inputs: Sequence[Path] = (),
    on_progress: Callable[[Progress], None] = silent,
    options: PrepareOptions = PrepareOptions(),
) -> PreparedStore:
    """Make the store at `output`. An existing store with the same fingerprint is reused.

    A store with another fingerprint is replaced when the new store is complete. Raises ConfigError
    if `output` is not a store, and DataError for bad inputs.
    """
    require_store_or_nothing(output)
    if data.val_fraction and validation_inputs:
        raise ConfigError(
            "a validation fraction and validation inputs can't be used together",
            hint="leave out --val-fraction or --val-input",
        )
    with StoreInputs.found(inputs, tokenizer, data, validation_inputs, options) as made_from:
        found = same_store(output, made_from.fingerprint())
        if found is not None and not (options.strict and found.has_notes):
            return PreparedStore(found, is_reused=True)
        with refusals(output, DataError, _how_to_make_room(output)):
            return _write_exactly(output, made_from, on_progress)


def _how_to_make_room(output: Path) -> str:
    """The hint for a full disk. `train` writes its stores to the cache, and has no --output."""
    with suppress(ConfigError):
        if output.absolute().is_relative_to(cache_folder()):
            return _MAKE_ROOM_IN_CACHE
    return _MAKE_ROOM


def _write_exactly(
    output: Path, made_from: StoreInputs, on_progress: Callable[[Progress], None]
) -> PreparedStore:
    """Write a store. If a fast method is wrong for a row, write the complete store again
    without this method."""
    while True:
        try:
            return _write(output, made_from, on_progress)
        except EngineDiffers as problem:
            tokenizer = made_from.tokenizer.by_reference(problem.message)
        except LayoutDiffers as problem:
            tokenizer = made_from.tokenizer.without_content_use()
            made_from = replace(made_from, layout_differs=problem.message)
        made_from = replace(made_from, tokenizer=tokenizer)


def _write(
    output: Path, made_from: StoreInputs, on_progress: Callable[[Progress], None]
) -> PreparedStore:
    existed, old = output.exists(), readable_manifest(output)
    fingerprint = made_from.fingerprint()
    try:
        with new_folder(output, make_way=partial(make_way, output, fingerprint)) as folder:
            manifest = build_store(folder, made_from, on_progress)
            if made_from.options.strict and not manifest.audit.passed:
                what = "; ".join(manifest.audit.problems())
                raise DataError(f"{output}: the mask audit failed: {what}", _LOOK)
            made_from.tokenizer.save(folder / "tokenizer")
            files = hash_files(folder)
            manifest = replace(manifest, files=files, block_sha256=block_hashes(folder, files))
            (folder / "manifest.json").write_bytes(jsonio.dump_pretty(manifest))
    except OSError as problem:
        if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        found = same_store(output, fingerprint)  # another process has just made it
        if found is None:
            raise
        return PreparedStore(found, is_reused=True)
    return PreparedStore(manifest, replaced=what_differs(old, manifest) if existed else None)
