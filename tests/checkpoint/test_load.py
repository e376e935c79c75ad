"""load: what a checkpoint fills, and what it refuses to fill."""

from pathlib import Path

import pytest
import torch

from sftctl import jsonio
from sftctl.checkpoint.load import load_tensors
from sftctl.checkpoint.save import save_checkpoint
from sftctl.errors import CorruptCheckpoint, IncompatibleCheckpoint
from tests.toys.checkpoints import ALONE, blank, equal, make_manifest, make_tensors, save_toy


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_toy(tmp_path, 7)


def test_a_prefix_selects_tensors(path: Path) -> None:
    expected = {k: v for k, v in make_tensors(7).items() if k.startswith("model.")}
    tensors = blank(expected)
    load_tensors(path, tensors, ALONE, prefix="model.")
    assert equal(tensors, expected)


def test_tensors_tied_in_the_checkpoint_may_be_separate_here(path: Path) -> None:
    tensors = {name: torch.ones_like(tensor) for name, tensor in make_tensors(7).items()}
    load_tensors(path, tensors, ALONE)
    assert equal(tensors, make_tensors(7))


def test_tensors_tied_here_must_be_tied_in_the_checkpoint(tmp_path: Path) -> None:
    apart = {name: tensor.clone() for name, tensor in make_tensors(7).items()}
    path = save_checkpoint(tmp_path, apart, make_manifest(7), ALONE)
    with pytest.raises(IncompatibleCheckpoint) as caught:
        load_tensors(path, blank(make_tensors(7)), ALONE)
    assert caught.value.message == (
        f"{path}: model.head.weight and model.embed.weight are tied in the model, "
        "but not in the checkpoint"
    )


def test_parameters_that_require_gradients_are_filled_in_place(path: Path) -> None:
    tensors = blank(make_tensors(7))
    weight = tensors["model.embed.weight"].requires_grad_()
    load_tensors(path, tensors, ALONE)
    assert torch.equal(weight, make_tensors(7)["model.embed.weight"])
    assert tensors["model.embed.weight"] is weight and weight.requires_grad


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model.mask": None}, "model.mask is unexpected"),
        ({"model.new": torch.ones(1)}, "model.new is missing"),
        (
            {"model.mask": torch.ones(8, dtype=torch.bool)},
            "model.mask is BOOL[7], expected BOOL[8]",
        ),
        ({"model.half": torch.ones(3, 5)}, "model.half is BF16[3, 5], expected F32[3, 5]"),
        (
            {f"model.{letter}": torch.ones(1) for letter in "abcde"},
            "model.a is missing; model.b is missing; model.c is missing; and 2 more",
        ),
    ],
)
def test_another_model_is_refused_with_the_first_differences(
    path: Path, changes: dict[str, torch.Tensor | None], problem: str
) -> None:
    merged = blank(make_tensors(7)) | changes
    tensors = {name: tensor for name, tensor in merged.items() if tensor is not None}
    with pytest.raises(IncompatibleCheckpoint) as caught:
        load_tensors(path, tensors, ALONE)
    assert caught.value.message == f"{path}: does not fit this model: {problem}"
    assert all((tensor == 1).all() for tensor in tensors.values())


def test_a_shard_whose_header_is_broken_is_named(path: Path) -> None:
    (path / "shard-00001.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CorruptCheckpoint, match="shard-00001.safetensors: not a safetensors head"):
        load_tensors(path, blank(make_tensors(7)), ALONE)


def test_a_shard_whose_header_contradicts_itself_cannot_be_read(path: Path) -> None:
    shard = path / "shard-00001.safetensors"
    length = int.from_bytes(shard.read_bytes()[:8], "little")
    header = jsonio.loads(shard.read_bytes()[8 : 8 + length])
    header["model.half"]["data_offsets"][1] -= 2  # one number less than its shape needs
    text = jsonio.dump_canonical(header).ljust(length)
    shard.write_bytes(shard.read_bytes()[:8] + text + shard.read_bytes()[8 + length :])
    with pytest.raises(CorruptCheckpoint, match="model.half: 28 bytes do not fit its shape"):
        load_tensors(path, blank(make_tensors(7)), ALONE)


def test_a_shard_cut_in_its_data_is_named(path: Path) -> None:
    shard = path / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CorruptCheckpoint, match="shard-00001.safetensors: .*: it is truncated"):
        load_tensors(path, blank(make_tensors(7)), ALONE)
