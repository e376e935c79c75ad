"""A disk that records every call, as operations on nodes (inodes) and names."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from sftctl.disk import Disk


@dataclass(frozen=True)
class Tree:
    """Folders and files by node."""

    folders: dict[int, dict[str, int]] = field(default_factory=dict)  # name -> node
    files: dict[int, bytes] = field(default_factory=dict)

    def copy(self) -> "Tree":
        return Tree({node: {**names} for node, names in self.folders.items()}, {**self.files})


@dataclass(frozen=True)
class Names:
    """Names that are added to folders or removed (None); a power cut keeps all of them or none."""

    changes: tuple[tuple[int, str, int | None], ...]


@dataclass(frozen=True)
class Write:
    node: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Truncate:
    node: int
    num_bytes: int


@dataclass(frozen=True)
class Sync:
    node: int


@dataclass(frozen=True)
class MarkReached:
    """The session reached a progress mark; nothing is done to the disk."""

    mark: tuple[str, int]


Operation = Names | Write | Truncate | Sync | MarkReached


class RecordingDisk(Disk):
    """Does every call and records it. `run` is the folder whose operations count: node `root`."""

    def __init__(self, run: Path) -> None:
        self.log: list[Operation] = []
        self.tree = Tree()  # as it was at first; nodes that are made later are empty
        self._nodes: dict[int, int] = {}  # inode -> node; the system reuses inode numbers
        self.root = self._add(run)

    def on_mark(self, name: str, step: int) -> None:
        """Record a progress mark of the session."""
        self.log.append(MarkReached((name, step)))

    def _new_node(self, path: Path) -> int:
        node = len(self.tree.folders) + len(self.tree.files)
        self._nodes[path.stat().st_ino] = node
        if path.is_dir():
            self.tree.folders[node] = {}
        else:
            self.tree.files[node] = b""
        return node

    def _add(self, path: Path) -> int:
        node = self._new_node(path)
        if path.is_dir():
            names = {entry.name: self._add(entry) for entry in path.iterdir()}
            self.tree.folders[node].update(names)
        else:
            self.tree.files[node] = path.read_bytes()
        return node

    def _node(self, path: Path) -> int:
        return self._nodes[path.stat().st_ino]

    def _made(self, path: Path) -> None:
        self.log.append(Names(((self._node(path.parent), path.name, self._new_node(path)),)))

    def make_folder(self, path: Path) -> None:
        assert path.parent.is_dir()
        super().make_folder(path)
        self._made(path)

    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        self._made(path)
        return descriptor

    def open_to_append(self, path: Path) -> int:
        is_new = not path.exists()
        descriptor = super().open_to_append(path)
        if is_new:
            self._made(path)
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        status = os.fstat(descriptor)
        written = super().write(descriptor, data)
        node, offset = self._nodes[status.st_ino], status.st_size
        self.log.append(Write(node, offset, bytes(data[:written])))
        return written

    def truncate(self, descriptor: int, num_bytes: int) -> None:
        super().truncate(descriptor, num_bytes)
        self.log.append(Truncate(self._nodes[os.fstat(descriptor).st_ino], num_bytes))

    def sync(self, descriptor: int) -> None:
        self.log.append(Sync(self._nodes[os.fstat(descriptor).st_ino]))

    def rename(self, source: Path, target: Path) -> None:
        old, new, node = self._node(source.parent), self._node(target.parent), self._node(source)
        super().rename(source, target)
        self.log.append(Names(((old, source.name, None), (new, target.name, node))))

    def remove_file(self, path: Path) -> None:
        self.log.append(Names(((self._node(path.parent), path.name, None),)))
        super().remove_file(path)

    def remove_tree(self, path: Path) -> None:
        for entry in [*sorted(path.rglob("*"), reverse=True), path]:
            self.log.append(Names(((self._node(entry.parent), entry.name, None),)))
        super().remove_tree(path)
