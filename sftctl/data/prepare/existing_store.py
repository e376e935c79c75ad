"""Decides whether an existing store at the output path is reused, replaced or refused."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from sftctl.data.manifest import SPLITS, StoreManifest
from sftctl.data.reading.folders import is_store
from sftctl.data.store import TokenStore
from sftctl.disk import FileEntry, hash_file, refusals, require_utf8
from sftctl.environment import usable_cores
from sftctl.errors import ConfigError, DataError
from sftctl.folders import remove_folder, require_makeable

_ENTRIES = {"manifest.json", "ledger.jsonl", "tokenizer", *SPLITS}
_OUTCOMES = {
    "fingerprint",
    "files",
    "block_sha256",
    "audit",
    "engine_reason",
    "engine_rows_checked",
    "sources",
    "splits",
    "length_quantiles",
    "tokenizer",
    "special_text_first",
    "left_out",
    "first_rows",
}


def require_store_or_nothing(output: Path) -> None:
    """Raise ConfigError if `output` exists and is not a store, or contains other files."""
    hint = "name another output, or remove it first"
    require_utf8(output, ConfigError)
    if not os.path.lexists(output):
        with refusals(output, ConfigError, hint):
            require_makeable(output)
        return
    if output.is_symlink() or not output.is_dir() or not is_store(output):
        raise ConfigError(f"{output}: exists already, and is not a token store", hint)
    others = {*os.listdir(output)} - _ENTRIES
    if manifest := readable_manifest(output):
        there = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
        others |= there - {*manifest.files, "manifest.json"}
    if others:
        other = min(others)
        raise ConfigError(
            f"{output}: exists already, and {other} in it is not part of a store", hint
        )


def same_store(output: Path, fingerprint: str) -> StoreManifest | None:
    """The manifest of the store at `output`. None if the store is damaged or has another
    fingerprint."""
    with suppress(DataError):
        manifest = StoreManifest.read(output)
        if manifest.fingerprint != fingerprint:
            return None
        for split in SPLITS:
            TokenStore.open(output, split)
        if hash_files(output) == manifest.files:
            return manifest
    return None


def readable_manifest(output: Path) -> StoreManifest | None:
    """The manifest of the store at `output`, or None if none can be read."""
    with suppress(DataError):
        return StoreManifest.read(output)
    return None


def hash_files(store: Path) -> dict[str, FileEntry]:
    """File name -> size and hash, for all files of a store except its manifest."""
    paths = sorted(path for path in store.rglob("*") if path.is_file())
    names = [str(path.relative_to(store)) for path in paths]
    with ThreadPoolExecutor(usable_cores()) as threads:
        entries = dict(zip(names, threads.map(hash_file, paths), strict=True))
    entries.pop("manifest.json", None)
    return entries


def make_way(output: Path, fingerprint: str) -> None:
    """Remove the store at `output`, so that a new store can get this name.

    A store with the given fingerprint is kept, because another process has just made it. Anything
    that is not a store is kept too.
    """
    with suppress(FileNotFoundError):  # another process has removed it
        if is_store(output) and same_store(output, fingerprint) is None:
            remove_folder(output)


def what_differs(old: StoreManifest | None, new: StoreManifest) -> str:
    """Why the old store is not reused, as text. `old`: its manifest; None: it can't be read."""
    if old is None:
        return "this version can't read the old store"
    named = [
        f"{key.name} {getattr(old, key.name)} → {getattr(new, key.name)}"
        for key in fields(StoreManifest)
        if key.name not in _OUTCOMES
        and not key.name.startswith(("num_", "rows_", "tokens_"))
        and getattr(old, key.name) != getattr(new, key.name)
        and not key.name.endswith("_hash")
    ]
    hashed = {
        "the tokenizer": old.tokenizer_hash != new.tokenizer_hash,
        "the chat template": old.template_hash != new.template_hash,
        "the inputs": [s.sha256 for s in old.sources] != [s.sha256 for s in new.sources],
    }
    changed = [f"{what} changed" for what, differs in hashed.items() if differs]
    return "; ".join([*changed, *named]) or "the old store was damaged"
