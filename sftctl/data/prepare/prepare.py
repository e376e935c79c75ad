"""From files of conversations to a token store that is whole or absent, every row accounted for."""

import errno
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sftctl import jsonio
from sftctl.data.manifest import FORMAT_VERSION, SourceEntry, StoreManifest
from sftctl.data.masks.encode import MASK_RULES_VERSION
from sftctl.data.prepare.builder import Progress, StoreAssembly, silent
from sftctl.data.prepare.existing_store import (
    hash_files,
    make_way,
    readable_manifest,
    require_store_or_nothing,
    same_store,
    what_differs,
)
from sftctl.data.prepare.row_batches import Input
from sftctl.data.prepare.settings import PrepareSettings
from sftctl.data.reading.sources import Source, found_sources
from sftctl.disk import new_folder, refusals
from sftctl.errors import ConfigError, DataError, EngineDiffers
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

_MAKE_ROOM = "make room there, or choose another --output"
_LOOK = "look at them: prepare without --strict, with --show 3"


@dataclass(frozen=True, slots=True)
class PreparedStore:
    """A store, and whether it was made now."""

    manifest: StoreManifest
    is_reused: bool = False
    replaced: str | None = None  # why the store that stood there was made anew


def prepare_store(
    inputs: Sequence[Path],
    output: Path,
    tokenizer: ChatTokenizer,
    settings: PrepareSettings,
    validation_inputs: Sequence[Path] = (),
    on_progress: Callable[[Progress], None] = silent,
    num_workers: int = 1,
) -> PreparedStore:
    """Make the store at `output`, or reuse the one there if it was made of the same.

    Another store there is replaced once the new one is whole; what is no store is never touched.
    """
    require_store_or_nothing(output)
    if settings.val_fraction and validation_inputs:
        raise ConfigError(
            "a validation fraction and validation inputs exclude each other",
            hint="leave out --val-fraction or --val-input",
        )
    with found_sources(inputs) as train, found_sources(validation_inputs) as validation:
        fingerprint = _fingerprint(train, validation, tokenizer, settings)
        found = same_store(output, fingerprint)
        if found is not None and not (settings.strict and found.has_notes):
            return PreparedStore(found, is_reused=True)
        sources = [*train, *validation]
        share = settings.val_fraction
        assembly = partial(
            StoreAssembly,
            fingerprint,
            settings=settings,
            on_progress=on_progress,
            total_bytes=_total_bytes(sources),
        )
        entries = [SourceEntry(item.name, item.sha256, 0, {}) for item in sources]
        numbered = [Input(number, item, share) for number, item in enumerate(sources)]
        held_out = [replace(item, val_fraction=1.0) for item in numbered[len(train) :]]
        parts = [held_out, numbered[: len(train)]]
        with refusals(output, DataError, _MAKE_ROOM):
            try:
                made = assembly(tokenizer=tokenizer, sources=entries[:])
                return _write(output, made, parts, num_workers)
            except EngineDiffers as problem:  # all of it anew: which rows differ, nobody knows
                reference = tokenizer.by_reference(problem.message)
                made = assembly(tokenizer=reference, sources=entries[:])
                return _write(output, made, parts, num_workers)


def _total_bytes(sources: Sequence[Source]) -> int | None:
    """Of files that hold rows as text."""
    if all(source.path.suffix in (".jsonl", ".json") for source in sources):
        return sum(source.path.stat().st_size for source in sources)
    return None


def _write(
    output: Path, assembly: StoreAssembly, parts: Sequence[Sequence[Input]], num_workers: int
) -> PreparedStore:
    existed, old = output.exists(), readable_manifest(output)
    fingerprint = assembly.fingerprint
    try:
        with new_folder(output, make_way=partial(make_way, output, fingerprint)) as folder:
            with assembly.opened(folder):
                for part in parts:
                    assembly.add(part, num_workers)
            manifest = assembly.finish()
            if assembly.settings.strict and not manifest.audit.passed:
                what = "; ".join(manifest.audit.problems())
                raise DataError(f"{output}: the audit of the masks failed: {what}", _LOOK)
            assembly.tokenizer.save(folder / "tokenizer")
            manifest = replace(manifest, files=hash_files(folder))
            (folder / "manifest.json").write_bytes(jsonio.dump_pretty(manifest))
    except OSError as problem:
        if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        found = same_store(output, fingerprint)  # a second process made it meanwhile
        if found is None:
            raise
        return PreparedStore(found, is_reused=True)
    return PreparedStore(manifest, replaced=what_differs(old, manifest) if existed else None)


def store_fingerprint(
    inputs: Sequence[Path],
    tokenizer: ChatTokenizer,
    settings: PrepareSettings,
    validation_inputs: Sequence[Path] = (),
) -> str:
    """The fingerprint `prepare_store` would write, without tokenizing: a key for a cache."""
    with found_sources(inputs) as train, found_sources(validation_inputs) as validation:
        return _fingerprint(train, validation, tokenizer, settings)


def _fingerprint(
    train: Sequence[Source],
    validation: Sequence[Source],
    tokenizer: ChatTokenizer,
    settings: PrepareSettings,
) -> str:
    ingredients = {
        "format_version": FORMAT_VERSION,
        "mask_rules_version": MASK_RULES_VERSION,
        "train": [source.sha256 for source in train],
        "validation": [source.sha256 for source in validation],
        "tokenizer": tokenizer.content_hash,
        "template": tokenizer.template_hash,
        "settings": replace(settings, strict=False),  # strictness changes no store that is made
    }
    return hashlib.sha256(jsonio.dump_canonical(ingredients)).hexdigest()
