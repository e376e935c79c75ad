"""Write a checkpoint so that it is whole or absent, whoever dies, and when.

DCP plans who writes which tensor; the commit is ours. Each act ends with a vote of all ranks, so
that all of them go on or all of them raise the same error.
"""

import contextlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_saver import save

from sftctl.checkpoint.directory import problems_of
from sftctl.checkpoint.layout import (
    MANIFEST_HASH_NAME,
    MANIFEST_NAME,
    CheckpointManifest,
    checkpoint_name,
    manifest_bytes,
    manifest_hash_line,
)
from sftctl.checkpoint.shard_writer import ShardWriter
from sftctl.disk import (
    DISK,
    Disk,
    FileEntry,
    commit_folder,
    hash_file,
    temporary_sibling,
    write_file,
)
from sftctl.errors import CheckpointError, SftctlError
from sftctl.world import World, local_part

T = TypeVar("T")

# One rank is no mistake here.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")


def save_checkpoint(
    root: Path,
    tensors: dict[str, torch.Tensor],
    manifest: CheckpointManifest,
    world: World,
    disk: Disk = DISK,
    *,
    parts: Mapping[str, torch.Tensor] | None = None,
    before: Callable[[], object] = lambda: None,
) -> Path:
    """Store `tensors` and `manifest` as root/step-N; when this returns, no power cut can undo it.

    Called by all ranks, with the same names in the same order; `files` and `aliases` of the
    manifest are filled in here. `parts` holds the bytes of this rank's part of each tensor where
    the tensors themselves go on changing. `before` is called first on rank 0: what the manifest
    speaks of must be on disk too. Raises the same CheckpointError on all ranks, with nothing left
    of the attempt and older checkpoints untouched.
    """
    target = root / checkpoint_name(manifest.step)
    # Rank 0's word on ties: another rank may hold an empty part, whose memory tells nothing.
    folder, aliases = world.broadcast((temporary_sibling(target), tied_names(tensors)))
    commit = _Commit(folder, target, world, disk)
    stored = {name: tensor for name, tensor in tensors.items() if name not in aliases}
    if parts is None:
        parts = {name: local_part(tensor) for name, tensor in stored.items()}
    try:
        commit.vote(lambda: commit.begin(before))
        written = commit.write_shards(stored, parts)
        files = {name: entry for entries in written for name, entry in sorted(entries.items())}
        full = replace(manifest, files=files, aliases=aliases)
        commit.vote(lambda: commit.seal(full, written[world.rank]))
        commit.vote(commit.publish)
    except CheckpointError:
        if world.is_main:
            with contextlib.suppress(OSError):
                disk.remove_tree(folder)
        raise
    return target


def tied_names(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Names whose tensor is the very memory of an earlier one -> the earlier name."""
    first: dict[object, str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        local = local_part(tensor)
        if local.numel():
            memory = (local.data_ptr(), local.dtype, local.shape, local.stride(), local.device)
            if (source := first.setdefault(memory, name)) != name:
                aliases[name] = source
    return aliases


@dataclass(frozen=True, slots=True)
class _Commit:
    """One attempt, on one rank: the acts of a commit, in the order of their methods."""

    folder: Path  # temporary, beside the target
    target: Path
    world: World
    disk: Disk

    def vote(self, act: Callable[[], T]) -> list[T]:
        """The value of `act` on every rank, or on every rank the same error if it failed on one."""
        value, problem, cause = None, None, None
        try:
            value = act()
        except Exception as error:  # whatever it was, the others wait
            problem, cause = _reason(error), error
        votes = self.world.gather((value, problem))
        problems = [problem for _, problem in votes if problem is not None]
        if problems:
            raise self.failure(problems[0]) from cause
        return [value for value, _ in votes]

    def failure(self, problem: str) -> CheckpointError:
        name, root = f"checkpoint step {int(self.target.name[5:])}", self.target.parent
        return CheckpointError(
            f"can't write {name} in {root}: {problem}",
            hint="the checkpoints before it are untouched",
        )

    def begin(self, before: Callable[[], object]) -> None:
        if self.world.is_main:
            self.refuse_existing()
            before()
            self.disk.make_folder(self.folder)

    def refuse_existing(self) -> None:
        if self.target.exists() or self.target.is_symlink():
            raise CheckpointError(f"{self.target.name} is there already")

    def write_shards(
        self, tensors: dict[str, torch.Tensor], parts: Mapping[str, torch.Tensor]
    ) -> list[dict[str, FileEntry]]:
        """Every rank its share, synced and hashed; gives the files of each.

        DCP holds its own votes. Anything else is raised on one rank alone, while the others wait
        inside DCP: that rank must leave, and the lost connection ends the others.
        """
        writer = ShardWriter(self.folder, parts, self.disk)
        try:
            save(
                tensors,
                storage_writer=writer,
                planner=DefaultSavePlanner(flatten_state_dict=False),
                process_group=self.world.group,
                no_dist=self.world.world_size == 1,
            )
        except CheckpointException as error:
            raise self.failure(_reason(error)) from error
        return self.world.gather(writer.entries)

    def seal(self, manifest: CheckpointManifest, own: dict[str, FileEntry]) -> None:
        """The manifest comes last; then every rank reads its own files back."""
        if self.world.is_main:
            data = manifest_bytes(manifest)
            write_file(self.folder / MANIFEST_NAME, [data], self.disk)
            write_file(self.folder / MANIFEST_HASH_NAME, [manifest_hash_line(data)], self.disk)
            if problems := problems_of(self.folder, verify=False):
                raise CheckpointError(f"read back: {'; '.join(problems)}")
        for name, entry in own.items():
            if hash_file(self.folder / name) != entry:
                raise CheckpointError(f"read back: {name}: not what was written")

    def publish(self) -> None:
        if self.world.is_main:
            self.refuse_existing()
            commit_folder(self.folder, self.target, self.disk)


def _reason(error: BaseException) -> str:
    """One line for people, the same on all ranks."""
    if isinstance(error, CheckpointException):  # DCP's own vote: rank -> (error, traceback)
        return _reason(error.failures[min(error.failures)][0])
    if isinstance(error, SftctlError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"
