"""save and load on two gloo ranks, and between two ranks and one."""

from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from sftctl.checkpoint.damage import problems_of
from sftctl.checkpoint.directory import list_checkpoints
from sftctl.checkpoint.layout import read_manifest
from sftctl.checkpoint.load import load_tensors
from sftctl.checkpoint.save import save_checkpoint
from sftctl.checkpoint.tensor_index import stored_tensors
from sftctl.disk import DISK
from sftctl.errors import CheckpointError
from sftctl.world import World, start_world
from tests.toys.checkpoints import (
    ALONE,
    FULL,
    FailingDisk,
    blank,
    equal,
    make_manifest,
    make_tensors,
    save_toy,
    sharded,
    with_one_row,
)
from tests.toys.ranks import run_ranks

ONE_RANK, REPLICAS, SHARDED, ONE_TENSOR, FAILED = 1, 2, 3, 4, 5
FAILURES = [  # an error on one rank, and the reason that both ranks report
    (FULL, "No space left on device"),
    (OSError("the library's own words"), "OSError: the library's own words"),  # no strerror
    (RuntimeError("a bug"), "RuntimeError: a bug"),
    (CheckpointError("ours"), "ours"),
]
PLACES = [(0, "before"), (0, "shard"), (1, "shard")]


def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: t.full_tensor() if isinstance(t, DTensor) else t for k, t in tensors.items()}


def failure_of(root: Path, world: World, rank: int, place: str, error: Exception) -> str:
    """The exception of this rank if `rank` gets `error` in an act of the commit."""
    disk = FailingDisk(at=3, error=error) if (world.rank, place) == (rank, "shard") else DISK

    def before() -> None:
        if place == "before":
            raise error

    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(root, make_tensors(), make_manifest(FAILED), world, disk, before=before)
    return caught.value.message


def save_and_load_on_a_rank(root: Path) -> dict[str, object]:
    """Everything that needs two ranks, in one function, so that they start once."""
    with start_world("cpu") as world:
        found: dict[str, object] = {}

        def save(step: int, tensors: dict[str, torch.Tensor]) -> None:
            save_checkpoint(root, tensors, make_manifest(step), world)

        save(REPLICAS, make_tensors(REPLICAS))
        save(SHARDED, sharded(with_one_row(make_tensors(SHARDED))))
        save(ONE_TENSOR, {"model.weight": torch.ones(3)})
        found["failures"] = [
            failure_of(root, world, rank, place, error)
            for error, _ in FAILURES
            for rank, place in PLACES
        ]
        replicas = blank(make_tensors())
        load_tensors(root / "step-00000001", replicas, world)
        found["one to two replicas"] = equal(replicas, make_tensors(ONE_RANK))
        parts = sharded(blank(make_tensors()))
        load_tensors(root / "step-00000001", parts, world)
        found["one to two parts"] = equal(whole(parts), make_tensors(ONE_RANK))
        parts = sharded(with_one_row(blank(make_tensors())))
        load_tensors(root / "step-00000003", parts, world)
        found["two to two parts"] = equal(whole(parts), with_one_row(make_tensors(SHARDED)))
        return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, object]]]:
    root = tmp_path_factory.mktemp("run") / "checkpoints"
    save_toy(root, ONE_RANK)
    return root, run_ranks(2, save_and_load_on_a_rank, root)


Saved = tuple[Path, list[dict[str, object]]]


def test_replicas_are_stored_once_and_shared_between_the_ranks(saved: Saved) -> None:
    path = saved[0] / "step-00000002"
    manifest = read_manifest(path)
    assert list(manifest.files) == ["shard-00001.safetensors", "shard-00002.safetensors"]
    one, two = (stored_tensors(path, [name]) for name in manifest.files)
    assert not one.keys() & two.keys()
    one_bytes, two_bytes = (sum(t.num_bytes for t in part.values()) for part in (one, two))
    assert abs(one_bytes - two_bytes) <= one["model.embed.weight"].num_bytes
    assert problems_of(path, verify=True) == []
    tensors = blank(make_tensors())
    load_tensors(path, tensors, ALONE)
    assert equal(tensors, make_tensors(REPLICAS))


def test_shards_of_two_ranks_become_complete_tensors_on_one(saved: Saved) -> None:
    tensors = with_one_row(blank(make_tensors()))
    load_tensors(saved[0] / "step-00000003", tensors, ALONE)
    assert equal(tensors, with_one_row(make_tensors(SHARDED)))
    assert read_manifest(saved[0] / "step-00000003").aliases == {
        "model.head.weight": "model.embed.weight",
        "model.row.tied": "model.row",
    }


@pytest.mark.parametrize("case", ["one to two replicas", "one to two parts", "two to two parts"])
def test_two_ranks_read_what_one_or_two_wrote(saved: Saved, case: str) -> None:
    assert [found[case] for found in saved[1]] == [True, True]


def test_a_rank_with_nothing_to_write_writes_no_file(saved: Saved) -> None:
    assert sorted(file.name for file in (saved[0] / "step-00000004").iterdir()) == [
        "manifest.json",
        "manifest.json.sha256",
        "shard-00001.safetensors",
    ]


def test_a_failure_on_one_rank_is_the_same_error_on_all_and_leaves_nothing(saved: Saved) -> None:
    root, found = saved
    begin = f"can't write checkpoint step 5 in {root}: "
    expected = [begin + reason for _, reason in FAILURES for _ in PLACES]
    assert [each["failures"] for each in found] == [expected, expected]
    assert sorted(root.iterdir()) == list_checkpoints(root)
    assert [path.name[-1] for path in list_checkpoints(root)] == ["1", "2", "3", "4"]


class Interrupted(torch.Tensor):
    """Raises when DCP asks for its state, before any vote, as a signal handler may."""

    def state_dict(self) -> dict[str, object]:
        raise ChildProcessError("a loader process was killed")

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        raise NotImplementedError


def save_while_one_rank_raises(root: Path) -> None:
    with start_world("cpu", timeout_s=600) as world:
        tensor = torch.ones(3)
        if world.rank == 1:
            tensor = tensor.as_subclass(Interrupted)
        save_checkpoint(root, {"model.weight": tensor}, make_manifest(1), world)


def test_a_rank_that_raises_alone_exits_at_once_and_the_others_do_not_wait(
    tmp_path: Path,
) -> None:
    with pytest.raises((ChildProcessError, RuntimeError)):
        run_ranks(2, save_while_one_rank_raises, tmp_path, timeout_s=300)
    assert list_checkpoints(tmp_path) == []
