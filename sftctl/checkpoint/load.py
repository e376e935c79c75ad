"""Fill tensors from a checkpoint with torch's reader. Any number of ranks can read it."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from sftctl.checkpoint.layout import CheckpointManifest, read_manifest
from sftctl.checkpoint.save import tied_names
from sftctl.checkpoint.shard_writer import DTYPE_NAMES
from sftctl.checkpoint.tensor_index import StoredTensor, stored_tensors
from sftctl.errors import CorruptCheckpoint, IncompatibleCheckpoint
from sftctl.world import ALONE, World


def load_tensors(
    path: Path,
    tensors: dict[str, torch.Tensor],
    world: World,
    prefix: str = "",
    manifest: CheckpointManifest | None = None,
    *,
    but_not: str | None = None,
) -> None:
    """Fill `tensors` in place. All ranks call this with the same names.

    Only tensors whose name begins with `prefix` are read. `but_not` excludes names that begin with
    it. For example, the prefix "model." excludes the optimizer. If names, shapes or dtypes differ,
    IncompatibleCheckpoint is raised and no tensor changes. The bytes are not verified here:
    `newest_good` does that. With `manifest`, the checkpoint's manifest is not read again.
    """
    manifest = manifest or read_manifest(path)
    stored = stored_tensors(path, manifest.files)
    aliases = manifest.aliases
    stored |= {name: stored[source] for name, source in aliases.items() if source in stored}
    wanted = {
        name: tensor
        for name, tensor in stored.items()
        if name.startswith(prefix) and not (but_not and name.startswith(but_not))
    }
    _require_fit(path, tensors, wanted)
    for name, source in tied_names(tensors).items():
        if aliases.get(name, name) != aliases.get(source, source):
            raise IncompatibleCheckpoint(
                f"{path}: {name} and {source} are tied in the model, but not in the checkpoint"
            )
    # Tied tensors are stored once, under one name. Fill one of the tensors from that name, then
    # copy it to the others.
    targets = {aliases[name]: tensor for name, tensor in tensors.items() if name in aliases}
    targets |= {name: tensor for name, tensor in tensors.items() if name not in aliases}
    try:
        load(
            targets,
            storage_reader=_reader(path, manifest),
            planner=DefaultLoadPlanner(flatten_state_dict=False),
            process_group=world.group,
            no_dist=world.world_size == 1,
        )
    except CheckpointException as error:
        first, _ = error.failures[min(error.failures)]
        raise CorruptCheckpoint(f"{path}: can't be read: {first}") from error
    for name in tensors.keys() & aliases.keys():
        tensors[name].detach().copy_(targets[aliases[name]].detach())


def _reader(path: Path, manifest: CheckpointManifest) -> HuggingFaceStorageReader:
    """torch's reader for the files that the manifest lists.

    By default, the reader would read every .safetensors file in the folder.
    """
    reader = HuggingFaceStorageReader(str(path))
    reader.fs = _ListedFiles(manifest.files)
    return reader


class _ListedFiles(FileSystem):
    """A file system in which only the files `names` exist."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(names)

    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        return [os.path.join(path, name) for name in self._names]


def load_weights(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    manifest: CheckpointManifest | None = None,
) -> None:
    """Fill the tensors of a model in place from a checkpoint, in one process.

    `weights` has the names of the model. Raises the errors of `load_tensors`.
    """
    tensors = {f"model.{name}": tensor.detach() for name, tensor in weights.items()}
    load_tensors(path, tensors, ALONE, "model.", manifest)


def _require_fit(
    path: Path, tensors: dict[str, torch.Tensor], stored: dict[str, StoredTensor]
) -> None:
    problems = [f"{name} is missing" for name in tensors if name not in stored]
    problems += [f"{name} is unexpected" for name in stored if name not in tensors]
    for name in tensors.keys() & stored.keys():
        here = DTYPE_NAMES.get(tensors[name].dtype), tuple(tensors[name].shape)
        there = stored[name].dtype, stored[name].shape
        if here != there:
            problems.append(f"{name} is {_described(*there)}, expected {_described(*here)}")
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise IncompatibleCheckpoint(
            f"{path}: does not fit this model: {'; '.join(sorted(problems)[:3])}{more}"
        )


def _described(dtype: str | None, shape: tuple[int, ...]) -> str:
    return f"{dtype}{list(shape)}"
