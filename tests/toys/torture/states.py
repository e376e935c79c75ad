"""What a disk may hold after a power cut: the legal states of a recorded session.

A name or a byte is certain once its folder or file was synced after it was changed. Of everything
else any part may be there: each change of names by itself, each write whole, lost, torn at a
sector, or as zeros. Moving a name is one change, certain with either folder. What was there before
the session is certain.
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
    """The operations before a cut that no sync covers."""
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
    """States after a cut before operation `until`: the corners, then `drawn` ones."""
    for fate in _fates(disk.log, uncertain(disk.log, until), drawn, rng):
        tree = disk.tree.copy()
        for number, op in enumerate(disk.log[:until]):
            _apply(op, fate.get(number, "whole"), tree)
        yield dict(_paths(tree, disk.root, ""))


def _fates(
    log: list[Operation], open_ones: list[int], drawn: int, rng: random.Random
) -> Iterator[dict[int, str]]:
    """For every uncertain operation: whole, lost, or a way in which a write is torn."""
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
    """What of a write is there: whole | zeros | torn N: some sectors | holes N: some are zeros."""
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
    """All that can be reached from a folder: a file's bytes, None for a folder."""
    yield path, tree.files.get(node)
    for name, inner in sorted(tree.folders.get(node, {}).items()):
        yield from _paths(tree, inner, f"{path}/{name}")


_CHANCE = re.compile(r"(?<=/)(\.t[a-z]+-[^/]*-|abandoned-)[0-9a-f-]+(?=/|$)")


def state_hash(state: State) -> bytes:
    """Equal for equal states; random parts of names count for nothing."""
    digest = hashlib.sha256()
    for path, data in state.items():
        name = _CHANCE.sub(r"\1", path)
        kind = "folder" if data is None else f"{len(data)} bytes"
        digest.update(f"{name}: {kind}\n".encode() + (data or b""))
    return digest.digest()


def materialise(state: State, run: Path) -> None:
    for path, data in state.items():
        if data is None:
            os.mkdir(f"{run}{path}")
        else:
            descriptor = os.open(f"{run}{path}", os.O_WRONLY | os.O_CREAT, 0o644)
            os.write(descriptor, data)
            os.close(descriptor)
