"""The hashes of a store's files: made when it is written, checked when it is trained on.

A file over 16 MiB has a hash for each 16 MiB. So a check says which part of a file is wrong, and
finds it sooner. Nothing here loads torch or numpy.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from sftctl.data.manifest import PREPARE_AGAIN, SPLITS, StoreManifest
from sftctl.disk import FileEntry
from sftctl.errors import DataError

BLOCK_BYTES = 1 << 24
_READ = (*SPLITS, "tokenizer")  # the folders that training reads


def block_hashes(store: Path, files: Mapping[str, FileEntry]) -> dict[str, list[str]]:
    """The SHA-256 of each block, for every file of several blocks."""
    return {
        name: [hashlib.sha256(block).hexdigest() for block in _blocks(store / name)]
        for name, entry in files.items()
        if entry.num_bytes > BLOCK_BYTES
    }


def require_sizes(store: Path, manifest: StoreManifest, folders: Iterable[str] = _READ) -> None:
    """DataError if a file that training reads is missing or has another size."""
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
    """The first changed file among those that training reads, and the place; None: all are
    right."""
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
                block += more  # one call may read only a part
            yield block
