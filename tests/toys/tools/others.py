"""Megatron, verl, Lightning, NeMo, torchtune and dinov2, in their own file names and keys."""

import argparse
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import torch

from sftctl import jsonio
from tests.toys.foreign import toy_model, toy_optimizer
from tests.toys.models import toy_base


def save_megatron(root: Path, tensor: int = 2, pipeline: int = 1, step: int = 100) -> Path:
    """`iter_N` with a folder for each model-parallel rank, and the tracker file."""
    folder = root / f"iter_{step:07d}"
    arguments = argparse.Namespace(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        world_size=tensor * pipeline,
        train_iters=400,
        consumed_train_samples=step * 16,
        global_batch_size=16,
    )
    for first in range(tensor):
        for second in range(pipeline):
            end = f"_{second:03d}" if pipeline > 1 else ""
            inner = folder / f"mp_rank_{first:02d}{end}"
            inner.mkdir(parents=True)
            state: dict[str, Any] = {
                "args": arguments,
                "checkpoint_version": 3.0,
                "iteration": step,
                "model": {"embedding.word_embeddings.weight": torch.ones(32, 16)},
                "optimizer": {"optimizer": {"param_groups": [{"lr": 1e-4, "params": [0]}]}},
                "opt_param_scheduler": {"max_lr": 1e-4, "num_steps": step * 16},
            }
            torch.save(state, inner / "model_optim_rng.pt")
    (root / "latest_checkpointed_iteration.txt").write_text(str(step))
    return folder


def save_megatron_sharded(root: Path, step: int = 100, *, tracker: bool = True) -> Path:
    """The torch_dist layout: `.metadata`, `.distcp` files, `common.pt` and `metadata.json`."""
    from torch.distributed.checkpoint.state_dict_saver import save

    folder = root / f"iter_{step:07d}"
    weights = {"decoder.layers.mlp.linear_fc1.weight": torch.ones(8, 4)}
    save(weights, checkpoint_id=folder)
    arguments = argparse.Namespace(train_iters=400, consumed_train_samples=1600, world_size=4)
    common = {"args": arguments, "iteration": step, "checkpoint_version": 3.0}
    torch.save(common, folder / "common.pt")
    described = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    (folder / "metadata.json").write_bytes(jsonio.dump_line(described))
    if tracker:
        (root / "latest_checkpointed_iteration.txt").write_text(str(step))
    return folder


def save_verl(
    root: Path, ranks: int = 2, step: int = 20, *, roles: tuple[str, ...] = ("actor",)
) -> Path:
    """`global_step_N` with three files a rank for each role."""
    folder = root / f"global_step_{step}"
    for role in roles or ("",):
        inner = folder / role
        inner.mkdir(parents=True, exist_ok=True)
        for rank in range(ranks):
            end = f"world_size_{ranks}_rank_{rank}.pt"
            torch.save({"model.embed_tokens.weight": torch.ones(8, 4)}, inner / f"model_{end}")
            torch.save({"state": {}, "param_groups": []}, inner / f"optim_{end}")
            torch.save({"lr_scheduler": {}, "rng": {}}, inner / f"extra_state_{end}")
    (root / "latest_checkpointed_iteration.txt").write_text(str(step))
    return folder


def save_verl_by_megatron(root: Path, layout: str = "dist_ckpt") -> Path:
    """`global_step_N` of verl's Megatron backend, as three of its versions lay out a role."""
    folder = root / "global_step_20"
    actor = folder / "actor"
    if layout == "ranks":
        for rank in range(2):
            inner = actor / "model" / f"mp_rank_{rank:02d}"
            inner.mkdir(parents=True)
            torch.save({"embedding.word_embeddings.weight": torch.ones(8, 4)}, inner / "model.pt")
        (actor / "optim").mkdir()
        torch.save({}, actor / "optim" / "distrib_optim_pp0_tp0_cp0_dp0.pt")
        return folder
    parts = ("dist_ckpt",) if layout == "dist_ckpt" else ("model/dist_ckpt", "optimizer/dist_ckpt")
    for part in parts:
        made = save_megatron_sharded(root / "made", tracker=False)
        (actor / part).parent.mkdir(parents=True, exist_ok=True)
        made.rename(actor / part)
    (actor / "huggingface").mkdir()
    toy_base().config.save_pretrained(actor / "huggingface")
    (actor / "transformer_config.json").write_text("{}")
    return folder


def save_lightning(file: Path, *, weights_only: bool = False) -> Path:
    """What Lightning's `Trainer.save_checkpoint` writes, for a module with `self.model`."""
    model = toy_model()
    state: dict[str, Any] = {
        "epoch": 2,
        "global_step": 30,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "hyper_parameters": {"lr": 1e-3},
    }
    if not weights_only:
        optimizer = toy_optimizer(model)
        state |= {"optimizer_states": [optimizer.state_dict()], "lr_schedulers": []}
    torch.save(state, file)
    return file


def save_lightning_folder(folder: Path, *, meta: bool = True) -> Path:
    """The folder of Lightning's FSDP strategy with sharded state dicts."""
    from torch.distributed.checkpoint.state_dict_saver import save

    model = toy_model()
    moments = {f"{n}.exp_avg": torch.zeros_like(one) for n, one in model.named_parameters()}
    save({"model": model.state_dict(), "optimizer_0": {"state": moments}}, checkpoint_id=folder)
    if meta:
        state = {"epoch": 2, "global_step": 30, "pytorch-lightning_version": "2.5.0"}
        torch.save(state, folder / "meta.pt")
    return folder


def save_nemo(file: Path, *, without: str = "", compressed: bool = False) -> Path:
    """A `.nemo` archive: configuration, weights and tokenizer in a tar file."""
    members = {"model_config.yaml": b"a: 1\n", "model_weights.ckpt": b"x" * 64, "t.model": b"x"}
    with tarfile.open(file, "w:gz" if compressed else "w") as archive:
        for name, content in members.items():
            if name != without:
                entry = tarfile.TarInfo(f"./{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return file


def save_nemo_folder(root: Path) -> Path:
    """NeMo 2: `context` and `weights`; step and epoch are in the name."""
    folder = root / "m--val_loss=1.20-epoch=1-step=100-last"
    made = save_megatron_sharded(root / "made", tracker=False)
    folder.mkdir(parents=True)
    made.rename(folder / "weights")
    (folder / "context").mkdir()
    (folder / "context" / "io.json").write_text("{}")
    return folder


def save_torchtune(root: Path, *, parts: int = 2, state: bool = True, old: bool = False) -> Path:
    """`epoch_1` of a full fine-tune, newer or older names, with the recipe's state."""
    folder = root / "epoch_1"
    folder.mkdir(parents=True)
    model = toy_base(vocab_size=2048, max_position_embeddings=2048)
    if old:
        names = [*model.state_dict().items()]
        for part in range(parts):
            weights = dict(names[part::parts])
            torch.save(weights, folder / f"hf_model_{part + 1:04d}_1.pt")
    else:
        size = "1GB" if parts == 1 else "160KB"
        model.save_pretrained(folder, max_shard_size=size)
    if state:
        recipe = folder if old else root / "recipe_state"
        recipe.mkdir(exist_ok=True)
        optimizer = toy_optimizer(model).state_dict()
        torch.save(
            {
                "optimizer": optimizer, "epochs_run": 2, "total_epochs": 3, "seed": 1,
                "max_steps_per_epoch": None, "steps_run": 44,
            },
            recipe / "recipe_state.pt",
        )  # fmt: skip
    return folder


def save_local_states(folder: Path, ranks: int = 3) -> Path:
    """dinov2's local state dicts of FSDP: one file a rank."""
    folder.mkdir(parents=True)
    for rank in range(ranks):
        torch.save({"model": {"a": torch.ones(2)}}, folder / f"model_0000999.rank_{rank}.pth")
        (folder / f"last_checkpoint.rank_{rank}").write_text("model_0000999")
    return folder


def save_random_states(folder: Path) -> None:
    """One more rank's random state beside a gap."""
    with (folder / "random_states_2.pkl").open("wb") as file:
        pickle.dump({"step": 3}, file)


def save_orbax(root: Path, item: str = "default", step: int = 1000) -> Path:
    """One step of a CheckpointManager: an item with its tree, database, and file of arrays."""
    folder = root / str(step)
    inner = folder / item
    (inner / "d").mkdir(parents=True)
    (inner / "array_metadatas").mkdir()
    names = ("('params', 'embed')", "('params', 'layers_0', 'kernel')")
    tree = {name: {"value_metadata": {"value_type": "jax.Array"}} for name in names}
    (inner / "_METADATA").write_bytes(jsonio.dump_line({"tree_metadata": tree, "use_ocdbt": True}))
    (inner / "manifest.ocdbt").write_bytes(b"\x0c\xdb\xaf")
    (inner / "d" / "0123abcd").write_bytes(bytes(64))
    described = {"item_handlers": {item: "orbax.checkpoint.handlers"}, "metrics": {}}
    (folder / "_CHECKPOINT_METADATA").write_bytes(jsonio.dump_line(described))
    return folder
