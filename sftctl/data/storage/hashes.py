"""Hashes of the files of a store. They are computed when a store is written, and checked in
training.

A file over 16 MiB has one hash for each block of 16 MiB. So a check shows which part of the file is
wrong, and it ends at the first wrong block. This module does not load torch or numpy.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from sftctl.data.manifest import PREPARE_AGAIN, SPLITS, StoreManifest
from sftctl.disk import FileEntry
from sftctl.errors import DataError

BLOCK_BYTES = 1 << 24
_READ = (*SPLITS, "tokenizer")  # training reads these folders


def block_hashes(store: Path, files: Mapping[str, FileEntry]) -> dict[str, list[str]]:
    """File -> SHA-256 of each block. Only files with more than one block are included."""
    return {
        name: [hashlib.sha256(block).hexdigest() for block in _blocks(store / name)]
        for name, entry in files.items()
        if entry.num_bytes > BLOCK_BYTES
    }


def require_sizes(store: Path, manifest: StoreManifest, folders: Iterable[str] = _READ) -> None:
    """Raise DataError if a file that training reads is missing, or has a wrong size."""
    for name, entry in _files_in(manifest, folders):
        try:
            size = (store / name).stat().st_size
        except OSError as problem:
            what = "missing from the store" if isinstance(problem, FileNotFoundError) else problem
            raise DataError(f"{store / name}: {what}", PREPARE_AGAIN) from problem
        if size != entry.num_bytes:
            raise DataError(
                f"{store / name}: damaged: {size} bytes, the manifest says {entry.num_bytes}",
                PREPARE_AGAIN,
            )


def first_wrong(store: Path, manifest: StoreManifest) -> str | None:
    """A text about the first changed file that training reads. None if no file has changed."""
    for name, entry in _files_in(manifest, _READ):
        try:
            wrong = _wrong_part(store / name, entry, manifest.block_sha256.get(name, []))
        except OSError as problem:
            wrong = f"{problem.strerror}"
        if wrong is not None:
            return f"{name}: {wrong}"
    return None


def _files_in(manifest: StoreManifest, folders: Iterable[str]) -> Iterator[tuple[str, FileEntry]]:
    wanted = set(folders)
    for name, entry in sorted(manifest.files.items()):
        if name.partition("/")[0] in wanted:
            yield name, entry


def _wrong_part(file: Path, entry: FileEntry, hashes: list[str]) -> str | None:
    whole, num_bytes = hashlib.sha256(), 0
    for number, block in enumerate(_blocks(file)):
        begin, num_bytes = num_bytes, num_bytes + len(block)
        if not hashes:
            whole.update(block)
        elif hashes[number : number + 1] != [hashlib.sha256(block).hexdigest()]:
            return f"bytes {begin} to {num_bytes} have changed (different SHA-256)"
    if num_bytes != entry.num_bytes:
        return f"{num_bytes} bytes, the manifest says {entry.num_bytes}"
    if not hashes and whole.hexdigest() != entry.sha256:
        return "its content was changed (different SHA-256)"
    return None


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb", buffering=0) as opened:
        while block := opened.read(BLOCK_BYTES):
            while len(block) < BLOCK_BYTES and (more := opened.read(BLOCK_BYTES - len(block))):
                block += more  # one call may return less than a block
            yield block
