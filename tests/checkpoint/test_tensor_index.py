"""tensor_index: the table of number types agrees with torch, numpy and safetensors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sftctl import jsonio
from sftctl.checkpoint.load import load_tensors
from sftctl.checkpoint.save import save_checkpoint
from sftctl.checkpoint.tensor_index import NUMBER_TYPES, tensors_of_file
from sftctl.errors import CorruptCheckpoint
from sftctl.world import ALONE
from tests.toys.checkpoints import make_manifest


@pytest.mark.parametrize("name", NUMBER_TYPES)
def test_every_number_type_is_written_and_read_back(tmp_path: Path, name: str) -> None:
    known = NUMBER_TYPES[name]
    data = torch.arange(24, dtype=torch.uint8) % 2  # bytes that are a valid bool too
    tensor = data.view(getattr(torch, known.torch))
    assert tensor.itemsize == known.num_bytes == np.dtype(known.numpy).itemsize
    path = save_checkpoint(tmp_path, {"model.a": tensor}, make_manifest(1), ALONE)
    [file] = path.glob("*.safetensors")
    stored = tensors_of_file(file)["model.a"]
    assert (stored.dtype, stored.num_bytes) == (name, 24)
    loaded = torch.zeros_like(tensor)
    load_tensors(path, {"model.a": loaded}, ALONE)
    assert torch.equal(loaded.view(torch.uint8), data)


def test_storage_names_are_torchs() -> None:
    for known in NUMBER_TYPES.values():
        if known.storage is not None:
            storage = getattr(torch, f"{known.storage}Storage")
            assert storage._dtype is getattr(torch, known.torch)


@pytest.mark.parametrize(("begin", "end"), [(-4, 0), (4, 0), (4, 12)])
def test_data_outside_the_file_is_refused(tmp_path: Path, begin: int, end: int) -> None:
    file = tmp_path / "a.safetensors"
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [begin, end]}
    header = jsonio.dump_canonical({"a": entry})
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CorruptCheckpoint) as caught:
        tensors_of_file(file)
    assert caught.value.message == (
        f"{file}: not a safetensors header: "
        f"data from byte {begin} to {end}, but the file has 8: it is truncated"
    )


def test_a_file_that_names_no_offsets_has_complete_tensors(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "any.safetensors")
    stored = tensors_of_file(tmp_path / "any.safetensors")["a"]
    assert (stored.shape, stored.parts[0].offsets, stored.is_whole) == ((2, 3), (0, 0), True)


def test_a_part_at_an_offset_belongs_to_a_larger_tensor(tmp_path: Path) -> None:
    sharding = {"DCP_SHARDING_INFO": json.dumps({"a": {"saved_offsets": [2, 0]}})}
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "part.safetensors", metadata=sharding)
    stored = tensors_of_file(tmp_path / "part.safetensors")["a"]
    assert (stored.shape, stored.num_elements, stored.is_whole) == ((4, 3), 6, False)
