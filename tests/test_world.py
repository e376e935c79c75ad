"""world: collectives on two ranks and on one, devices, local parts."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from sftctl.errors import ConfigError, DataError
from sftctl.world import ALONE, choose_device, exact_dtype, local_part, start_world
from tests.toys.ranks import run_ranks


def collectives() -> dict[str, object]:
    """One value of each collective, and what on_main does."""
    with start_world("cpu") as world:
        rank, calls = world.rank, []

        def call() -> str:
            calls.append(rank)
            return "value"

        def fail() -> None:
            raise DataError(f"on rank {rank}", "a hint")

        found: dict[str, object] = {
            "rank": (rank, world.local_rank, world.world_size, world.is_main),
            "sum": world.sum(torch.tensor([1.0, rank])).tolist(),
            "share": world.share(torch.tensor([rank + 5])).tolist(),
            "max": world.max(10 + rank),
            "gather": world.gather({"rank": rank}),
            "broadcast": world.broadcast(f"from {rank}"),
            "for_saving": world.for_saving().gather(rank),
            "on_main": world.on_main(call),
            "calls": calls,
        }
        with pytest.raises(DataError) as caught:
            world.on_main(fail)
        found["error"] = (caught.value.message, caught.value.hint)
        shard = distribute_tensor(torch.arange(3), init_device_mesh("cpu", (2,)), [Shard(0)])
        found["local_part"] = local_part(shard).tolist()
        return found


def test_two_ranks() -> None:
    one, two = run_ranks(2, collectives)
    assert one.pop("rank") == (0, 0, 2, True)
    assert two.pop("rank") == (1, 1, 2, False)
    assert (one.pop("calls"), two.pop("calls")) == ([0], [])
    assert (one.pop("local_part"), two.pop("local_part")) == ([0, 1], [2])
    assert one == two
    assert one == {
        "sum": [2.0, 1.0],
        "share": [5],
        "max": 11,
        "gather": [{"rank": 0}, {"rank": 1}],
        "broadcast": "from 0",
        "for_saving": [0, 1],
        "on_main": "value",
        "error": ("on rank 0", "a hint"),
    }


def test_one_rank_needs_no_process_group() -> None:
    with start_world("cpu") as world:
        assert world == ALONE
    tensor = torch.tensor([1.0, 2.0])
    assert ALONE.sum(tensor) is tensor and ALONE.share(tensor) is tensor
    assert local_part(tensor) is tensor
    assert ALONE.max(3) == 3
    assert ALONE.gather("a") == ["a"] and ALONE.broadcast("a") == "a"
    assert ALONE.on_main(lambda: "value") == "value"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused() -> None:
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="torch finds no CUDA device"):
        choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_with_a_gpu_auto_is_the_local_ranks_own() -> None:
    assert choose_device("auto", 0) == choose_device("cuda", 0) == torch.device("cuda", 0)
    assert choose_device("cpu") == torch.device("cpu")


def test_a_macs_gpu_is_for_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps") == torch.device("mps")
    assert exact_dtype(torch.device("mps")) == torch.float32
    assert exact_dtype(torch.device("cpu")) == torch.float64
    with pytest.raises(ConfigError, match="a Mac has one GPU, and several ranks were asked for"):
        choose_device("mps", local_rank=1)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this is a Mac")
def test_mps_elsewhere_is_refused() -> None:
    with pytest.raises(ConfigError, match="mps is set, but torch finds no Metal device"):
        choose_device("mps")
