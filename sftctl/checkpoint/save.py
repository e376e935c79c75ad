"""Write a checkpoint that is complete or absent, even if any rank dies at any moment.

torch's DCP plans which rank writes which tensor. Everything else is done here, in four parts:
begin, write, seal, publish. Each part ends with a vote, in which every rank tells the others
whether it succeeded. Then all continue, or all raise the same error.
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

from sftctl.checkpoint.damage import problems_of
from sftctl.checkpoint.layout import (
    MANIFEST_HASH_NAME,
    MANIFEST_NAME,
    CheckpointManifest,
    checkpoint_name,
    manifest_bytes,
    manifest_hash_line,
    step_of,
)
from sftctl.checkpoint.shard_writer import ShardWriter
from sftctl.disk import DISK, Disk, FileEntry, hash_file, temporary_sibling, write_file
from sftctl.errors import CheckpointError, SftctlError
from sftctl.folders import commit_folder
from sftctl.world import World, local_part

T = TypeVar("T")

# DCP warns if there is a single rank, which is normal here.
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
    """Write `tensors` and `manifest` to root/step-N. When this returns, the checkpoint survives a
    power cut.

    All ranks call this with the same names in the same order. `files` and `aliases` of the manifest
    are filled in here. If the tensors can change during the writing, `parts` must have a copy of
    this rank's part of each tensor. `before` is called first, on rank 0, to sync files that the
    manifest refers to. If the save fails, all ranks raise the same CheckpointError. Then the new
    checkpoint does not exist, and older checkpoints are unchanged.
    """
    target = root / checkpoint_name(manifest.step)
    # Rank 0 finds the tied tensors. On another rank, the local part of a tensor may be empty, and
    # the address of an empty tensor says nothing.
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
    """The tied tensors: name -> name of the earlier tensor with which it shares all its memory."""
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
    """One attempt to write a checkpoint, on one rank. Methods are called in the order below."""

    folder: Path  # the temporary folder next to the target
    target: Path
    world: World
    disk: Disk

    def vote(self, act: Callable[[], T]) -> list[T]:
        """Call `act` on every rank. Returns all values, or raises the same error on every rank."""
        value, problem, cause = None, None, None
        try:
            value = act()
        except Exception as error:  # whatever it is: the other ranks wait for this rank's vote
            problem, cause = _reason(error), error
        votes = self.world.gather((value, problem))
        problems = [problem for _, problem in votes if problem is not None]
        if problems:
            raise self.failure(problems[0]) from cause
        return [value for value, _ in votes]

    def failure(self, problem: str) -> CheckpointError:
        name, root = f"checkpoint step {step_of(self.target.name)}", self.target.parent
        return CheckpointError(
            f"can't write {name} in {root}: {problem}",
            hint="older checkpoints are untouched",
        )

    def begin(self, before: Callable[[], object]) -> None:
        if self.world.is_main:
            self.refuse_existing()
            before()
            self.disk.make_folder(self.folder)

    def refuse_existing(self) -> None:
        if self.target.exists() or self.target.is_symlink():
            raise CheckpointError(f"{self.target.name} exists already")

    def write_shards(
        self, tensors: dict[str, torch.Tensor], parts: Mapping[str, torch.Tensor]
    ) -> list[dict[str, FileEntry]]:
        """Let every rank write, sync and hash its part. Returns the files of each rank.

        DCP reports most errors to all ranks. Another error is raised on one rank only, while the
        other ranks wait inside DCP. This rank must then exit: the lost connection ends the other
        ranks.
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
        """Write the manifest. Then let every rank read its own files again and compare hashes."""
        if self.world.is_main:
            data = manifest_bytes(manifest)
            write_file(self.folder / MANIFEST_NAME, [data], self.disk)
            write_file(self.folder / MANIFEST_HASH_NAME, [manifest_hash_line(data)], self.disk)
            if problems := problems_of(self.folder, verify=False):
                raise CheckpointError(f"read back: {'; '.join(problems)}")
        for name, entry in own.items():
            if hash_file(self.folder / name) != entry:
                raise CheckpointError(f"read back: {name}: differs from what was written")

    def publish(self) -> None:
        if self.world.is_main:
            self.refuse_existing()
            commit_folder(self.folder, self.target, self.disk)


def _reason(error: BaseException) -> str:
    """The reason of an error as one line. It is the same on all ranks."""
    if isinstance(error, CheckpointException):  # DCP's own vote: rank -> (error, traceback)
        return _reason(error.failures[min(error.failures)][0])
    if isinstance(error, SftctlError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"
