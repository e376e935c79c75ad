"""Write one safetensors shard per rank, directly from the memory of the tensors, and hash it.

torch's own writer builds the file in memory twice while it holds the GIL. This stops the process
for seconds, even with a small model. torch's reader and plain safetensors can read these files.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from sftctl.checkpoint.tensor_index import NUMBER_TYPES, SUFFIX
from sftctl.disk import Disk, FileEntry, write_file
from sftctl.errors import CheckpointError

DTYPE_NAMES = {getattr(torch, known.torch): name for name, known in NUMBER_TYPES.items()}
"""torch's dtype -> its name in safetensors."""


class ShardWriter(HuggingFaceStorageWriter):
    """Writes for torch's DCP into an existing folder. `entries` lists the files of this rank.

    DCP plans with the tensors of the state. The bytes come from `parts`, which has this rank's part
    of each tensor.
    """

    def __init__(self, folder: Path, parts: Mapping[str, torch.Tensor], disk: Disk) -> None:
        super().__init__(path=str(folder), save_distributed=True)
        self.folder = folder
        self.parts = parts
        self.disk = disk
        self.entries: dict[str, FileEntry] = {}

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Do not create the folder, unlike the parent class. A rank that does not see rank 0's
        folder must fail.
        """
        return plan

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's part of the plan. A rank without tensors writes no file."""
        # Large dtypes first. The header's length is a multiple of 8, so all tensors are aligned.
        items = sorted(plan.items, key=lambda item: (-_dtype(item).itemsize, item.index.fqn))
        if items:
            assert plan.storage_data is not None  # set by the parent's prepare_global_plan
            name = f"shard-{plan.storage_data['shard_index']:05d}{SUFFIX}"
            pieces = _shard_pieces(items, self.parts)
            self.entries[name] = write_file(self.folder / name, pieces, self.disk)
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(item.index, _num_bytes(item), None) for item in items])
        return done


def _shard_pieces(
    items: list[WriteItem], parts: Mapping[str, torch.Tensor]
) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file. One tensor at a time is copied to the CPU."""
    yield _header(items)
    for item in items:
        part = parts[item.index.fqn].detach().cpu().contiguous()
        if part.numel():  # an empty array has no memory to view
            yield part.flatten().view(torch.uint8).numpy().data


def _header(items: list[WriteItem]) -> bytes:
    entries: dict[str, object] = {}
    offsets: dict[str, object] = {}
    position = 0
    for item in items:
        name, end = item.index.fqn, position + _num_bytes(item)
        if name in entries:
            raise CheckpointError(f"{name}: one rank holds several pieces of it")
        if _dtype(item) not in DTYPE_NAMES:
            raise CheckpointError(f"{name}: {_dtype(item)} can't be stored")
        entries[name] = {
            "dtype": DTYPE_NAMES[_dtype(item)],
            "shape": list(_chunk(item).sizes),
            "data_offsets": [position, end],
        }
        offsets[name] = {"saved_offsets": list(_chunk(item).offsets)}
        position = end
    entries["__metadata__"] = {"format": "pt", "DCP_SHARDING_INFO": json.dumps(offsets)}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _chunk(item: WriteItem) -> ChunkStorageMetadata:
    assert item.tensor_data is not None  # only tensors are saved
    return item.tensor_data.chunk


def _dtype(item: WriteItem) -> torch.dtype:
    assert item.tensor_data is not None
    return item.tensor_data.properties.dtype


def _num_bytes(item: WriteItem) -> int:
    return int(_chunk(item).sizes.numel()) * _dtype(item).itemsize
