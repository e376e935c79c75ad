"""The states that a disk may have after a power cut in a recorded session.

A change of a name or of bytes is certain if its folder or file was synced after it. Any other
change may be there or not: each change of names independently; each write complete, lost, torn at a
sector, or as zeros. A rename is one change, and certain if either folder was synced. Everything
from before the session is certain.
"""

import hashlib
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

from tests.toys.torture.recording import (
    Names,
    Operation,
    RecordingDisk,
    Sync,
    Tree,
    Truncate,
    Write,
)

SECTOR = 512
State = dict[str, bytes | None]
"""Path below the run -> bytes; None for a folder."""


def uncertain(log: list[Operation], until: int) -> list[int]:
    """The numbers of the operations before a cut that no sync covers."""
    synced: set[int] = set()
    found = []
    for number in range(until - 1, -1, -1):
        match log[number]:
            case Sync(node):
                synced.add(node)
            case Names(changes) if not synced & {folder for folder, _, _ in changes}:
                found.append(number)
            case Write(node) | Truncate(node) if node not in synced:
                found.append(number)
    return found[::-1]


def legal_states(
    disk: RecordingDisk, until: int, drawn: int, rng: random.Random
) -> Iterator[State]:
    """States after a cut before operation `until`: the extreme ones, then `drawn` random ones."""
    for fate in _fates(disk.log, uncertain(disk.log, until), drawn, rng):
        tree = disk.tree.copy()
        for number, op in enumerate(disk.log[:until]):
            _apply(op, fate.get(number, "whole"), tree)
        yield dict(_paths(tree, disk.root, ""))


def _fates(
    log: list[Operation], open_ones: list[int], drawn: int, rng: random.Random
) -> Iterator[dict[int, str]]:
    """For every uncertain operation: whole, lost, or how a write is torn."""
    names = {number for number in open_ones if isinstance(log[number], Names)}
    for kept in ("whole", "lost"):
        for data in ("whole", "lost", "zeros"):
            yield {number: kept if number in names else data for number in open_ones}
    for chosen in open_ones:
        yield {number: "whole" if number == chosen else "lost" for number in open_ones}
        yield {number: "lost" if number == chosen else "whole" for number in open_ones}
    for _ in range(min(drawn, 8 ** len(open_ones) - 1)):
        share = rng.choice((0.2, 0.5, 0.8))
        fate = {}
        for number in open_ones:
            fate[number] = "whole" if rng.random() < share else "lost"
            if isinstance(log[number], Write) and rng.random() < 0.6:
                fate[number] = f"{rng.choice(('torn', 'holes'))} {rng.getrandbits(16)}"
        yield fate


def _apply(op: Operation, fate: str, tree: Tree) -> None:
    match op:
        case _ if fate == "lost":
            return
        case Names(changes):
            for folder, name, node in changes:
                if node is None:
                    tree.folders[folder].pop(name, None)
                else:
                    tree.folders[folder][name] = node
        case Truncate(node, num_bytes):
            tree.files[node] = tree.files[node][:num_bytes]
        case Write(node, offset, data):
            data = _torn(offset, data, fate)
            before = tree.files[node].ljust(offset, b"\0")
            tree.files[node] = before[:offset] + data + before[offset + len(data) :]


def _torn(offset: int, data: bytes, fate: str) -> bytes:
    """The part of a write that is there. torn N: the first sectors; holes N: some are zeros."""
    kind, _, number = fate.partition(" ")
    if kind == "whole":
        return data
    if kind == "zeros":
        return bytes(len(data))
    ends = [*range(SECTOR - offset % SECTOR, len(data), SECTOR), len(data)]
    if kind == "torn":
        return data[: [0, *ends][int(number) % (len(ends) + 1)]]
    pieces = zip([0, *ends], ends, strict=False)
    return b"".join(
        data[start:end] if int(number) >> place % 16 & 1 else bytes(end - start)
        for place, (start, end) in enumerate(pieces)
    )


def _paths(tree: Tree, node: int, path: str) -> Iterator[tuple[str, bytes | None]]:
    """Everything below a folder: (path, bytes); None for a folder."""
    yield path, tree.files.get(node)
    for name, inner in sorted(tree.folders.get(node, {}).items()):
        yield from _paths(tree, inner, f"{path}/{name}")


_RANDOM_PART = re.compile(r"(?<=/)(\.t[a-z]+-[^/]*-|abandoned-)[0-9a-f-]+(?=/|$)")


def state_hash(state: State) -> bytes:
    """A hash of a state; random parts of names are ignored."""
    digest = hashlib.sha256()
    for path, data in state.items():
        name = _RANDOM_PART.sub(r"\1", path)
        kind = "folder" if data is None else f"{len(data)} bytes"
        digest.update(f"{name}: {kind}\n".encode() + (data or b""))
    return digest.digest()


def materialise(state: State, run: Path) -> None:
    """Write a state to a folder that does not exist yet."""
    for path, data in state.items():
        if data is None:
            os.mkdir(f"{run}{path}")
        else:
            descriptor = os.open(f"{run}{path}", os.O_WRONLY | os.O_CREAT, 0o644)
            os.write(descriptor, data)
            os.close(descriptor)
