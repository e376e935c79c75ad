"""shard_writer: a plan that does not fit into one file."""

from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from sftctl.checkpoint.shard_writer import ShardWriter
from sftctl.disk import DISK
from sftctl.errors import CheckpointError


def test_two_pieces_of_one_tensor_do_not_fit_one_file(tmp_path: Path) -> None:
    planner = DefaultSavePlanner(flatten_state_dict=False)
    planner.set_up_planner({"model.a": torch.ones(2)}, is_coordinator=True)
    plan = planner.create_local_plan()
    writer = ShardWriter(tmp_path, {"model.a": torch.ones(2)}, DISK)
    [plan] = writer.prepare_global_plan([plan])
    plan.items.append(plan.items[0])
    with pytest.raises(CheckpointError, match="model.a: one rank holds several pieces of it"):
        writer.write_data(plan, planner)
    assert writer.entries == {}
