"""DeepSpeed's folders, as `engine.save_checkpoint` and the Trainer write them."""

import shutil
from pathlib import Path
from typing import Any

import torch

from sftctl import jsonio
from sftctl.data.sample import SAMPLE_TOKENIZER
from tests.toys.foreign import toy_model
from tests.toys.models import toy_base

# The script that DeepSpeed puts into the folder needs DeepSpeed. This one takes the same arguments.
SCRIPT = """
import argparse, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("checkpoint_dir")
parser.add_argument("output_dir")
parser.add_argument("-t", "--tag")
given = parser.parse_args()
root = pathlib.Path(given.checkpoint_dir)
tag = given.tag or (root / "latest").read_text().strip()
assert (root / tag).is_dir(), tag
pathlib.Path(given.output_dir).mkdir()
"""


def save_zero(
    root: Path, stage: int, ranks: int = 2, step: int = 10, *, dtype: str = "bf16"
) -> Path:
    """`root` with `latest`, the script and `global_stepN`; the folder of the tag."""
    tag = root / f"global_step{step}"
    tag.mkdir(parents=True)
    (root / "latest").write_text(tag.name)
    (root / "zero_to_fp32.py").write_text(SCRIPT)
    model = toy_model()
    start = "bf16_" if dtype == "bf16" else ""
    shared: dict[str, Any] = {
        "global_steps": step,
        "global_samples": step * 8,
        "dp_world_size": ranks,
        "mp_world_size": 1,
        "param_shapes": [{name: one.shape for name, one in model.named_parameters()}],
        "ds_version": "0.17.0",
        "ds_config": {"zero_optimization": {"stage": stage}},
        "optimizer": None,
        "lr_scheduler": None,
    }
    weights = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    if stage < 3:
        torch.save({"module": weights, **shared}, tag / "mp_rank_00_model_states.pt")
    for rank in range(ranks if stage else 0):
        name = f"zero_pp_rank_{rank}_mp_rank_00"
        if stage == 3:
            empty = {key: torch.empty(0) for key in weights}
            torch.save({"module": empty, **shared}, tag / f"{name}_model_states.pt")
        flat = torch.ones(6768 // ranks)
        moments = {"step": torch.tensor(float(step)), "exp_avg": flat, "exp_avg_sq": flat}
        state: dict[str, Any] = {
            "zero_stage": stage,
            "partition_count": [ranks] if stage < 3 else ranks,
            "loss_scaler": None,
            "ds_version": "0.17.0",
        }
        groups = [{"lr": 9e-6, "betas": (0.9, 0.999), "params": [0]}]
        base = {"state": {0: moments}, "param_groups": groups}
        if stage < 3:
            state |= {"base_optimizer_state": base, "single_partition_of_fp32_groups": [flat]}
        else:
            state |= {"optimizer_state_dict": base, "fp32_flat_groups": [flat]}
        torch.save(
            {"optimizer_state_dict": state, "ds_version": "0.17.0"},
            tag / f"{start}{name}_optim_states.pt",
        )
    return tag


def save_pipeline(root: Path) -> Path:
    """A pipeline's tag: a file for each layer, and no weights in the file of the rank."""
    tag = save_zero(root, 0)
    file = tag / "mp_rank_00_model_states.pt"
    state = torch.load(file)
    for layer, (name, tensor) in enumerate(state["module"].items()):
        torch.save({name: tensor}, tag / f"layer_{layer:02d}-model_00-model_states.pt")
    torch.save({**state, "module": None}, file)
    return tag


def save_universal(root: Path) -> Path:
    """A tag that `ds_to_universal` wrote: a folder for each parameter."""
    tag = save_zero(root, 0)
    tag = tag.rename(root / f"{tag.name}_universal")
    (root / "latest").rename(root / "latest_universal").write_text(tag.name)
    for name in ("a", "b"):
        (tag / "zero" / name).mkdir(parents=True)
        for part in ("fp32", "exp_avg", "exp_avg_sq"):
            torch.save({"param": torch.ones(2)}, tag / "zero" / name / f"{part}.pt")
    return tag


def save_trainer_zero(folder: Path, stage: int, *, gathered: bool = True) -> Path:
    """A Trainer's checkpoint-10 under DeepSpeed; with or without the weights in one piece."""
    checkpoint = folder / "checkpoint-10"
    save_zero(checkpoint, stage)
    model = toy_base(vocab_size=2048, max_position_embeddings=2048)
    if gathered:
        model.save_pretrained(checkpoint)
    else:
        model.config.save_pretrained(checkpoint)
    for file in SAMPLE_TOKENIZER.iterdir():
        shutil.copy(file, checkpoint)
    state = {"global_step": 10, "max_steps": 40, "num_train_epochs": 2, "epoch": 0.5}
    (checkpoint / "trainer_state.json").write_bytes(jsonio.dump_line(state))
    for rank in range(2):
        torch.save({"cpu": torch.get_rng_state()}, checkpoint / f"rng_state_{rank}.pth")
    torch.save({"_last_lr": [9e-6]}, checkpoint / "scheduler.pt")
    return checkpoint
