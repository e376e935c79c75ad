"""What accelerate's `save_state` writes, by accelerate itself."""

import pickle
from pathlib import Path

import torch

from tests.toys.foreign import toy_model
from tests.toys.models import toy_base


def save_by_accelerate(folder: Path) -> Path:
    """`checkpoint_0` after three steps, with a scheduler and a registered counter."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = toy_base(vocab_size=2048, max_position_embeddings=2048)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    for _ in range(3):
        ids = torch.arange(8)[None]
        accelerator.backward(model(input_ids=ids, labels=ids).loss)
        optimizer.step()
        optimizer.zero_grad()
    accelerator.save_state(str(folder / "checkpoint_0"), safe_serialization=True)
    with (folder / "checkpoint_0" / "custom_checkpoint_0.pkl").open("wb") as file:
        pickle.dump({"epoch": 1, "step": 3}, file)
    return folder / "checkpoint_0"


def save_fsdp_by_accelerate(folder: Path, *, finished: bool = True) -> Path:
    """The folders of FSDP's sharded state dict: weights and optimizer as .distcp files."""
    from torch.distributed.checkpoint.state_dict_saver import save

    checkpoint = folder / "checkpoint_7"
    model = toy_model()
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        inner = checkpoint / name
        save({"model": model.state_dict()}, checkpoint_id=inner)
        if not finished:
            (inner / ".metadata").unlink()
    for rank in range(2):
        with (checkpoint / f"random_states_{rank}.pkl").open("wb") as file:
            pickle.dump({"step": 7, "random_state": 1}, file)
    torch.save({"last_epoch": 7}, checkpoint / "scheduler.bin")
    return checkpoint
