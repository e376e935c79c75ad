"""Checkpoints of other tools: kind, content, missing files, and the next command."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from sftctl.inspection.inspect import FORMATS, inspect_path
from tests.toys.commands import Result
from tests.toys.models import toy_base, with_tokenizer
from tests.toys.tools.accelerate import save_by_accelerate, save_fsdp_by_accelerate
from tests.toys.tools.adapters import save_adapter, save_mlx_adapter, save_mlx_model
from tests.toys.tools.deepspeed import (
    save_pipeline,
    save_trainer_zero,
    save_universal,
    save_zero,
)
from tests.toys.tools.others import (
    save_lightning,
    save_lightning_folder,
    save_local_states,
    save_megatron,
    save_megatron_sharded,
    save_nemo,
    save_nemo_folder,
    save_orbax,
    save_torchtune,
    save_verl,
    save_verl_by_megatron,
)

Make = Callable[[Path], Path]
NEEDS = re.compile(r"needs (DeepSpeed|verl|Lightning|Orbax)")
MODULES = {  # of scripts, where the packages are installed without them
    "accelerate": "accelerate.commands.accelerate_cli",
    "gguf-convert-endian": "gguf.scripts.gguf_convert_endian",
}
EMPTY = "not a complete file of torch.save: it ends before its last opcode"
SHOW = "shows its tensors"


@dataclass(frozen=True)
class Case:
    """How a checkpoint is made, and what inspect-ckpt must say of it."""

    make: Make
    format: str
    step: int | None = None
    epoch: float | None = None
    ranks: int | None = None
    problems: tuple[str, ...] = ()
    next: str | None = None  # a part of the advice; None: problems leave none


def without(make: Make, *names: str) -> Make:
    """The same with files or folders lost."""

    def made(folder: Path) -> Path:
        path = make(folder)
        for name in names:
            lost = path / name
            shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
        return path

    return made


def model(folder: Path) -> Path:
    """A model that the sample's tokenizer fits."""
    toy_base(vocab_size=2048, max_position_embeddings=2048).save_pretrained(folder)
    return with_tokenizer(folder)


def distcp(folder: Path) -> Path:
    return save_fsdp_by_accelerate(folder) / "pytorch_model_fsdp_0"


def two_tags(folder: Path) -> Path:
    save_zero(folder, 2, step=5)
    (folder / "latest").unlink()
    save_zero(folder, 2, step=10)
    return folder


def two_model_ranks(folder: Path) -> Path:
    tag = save_zero(folder, 0)
    shutil.copy(tag / "mp_rank_00_model_states.pt", tag / "mp_rank_01_model_states.pt")
    return tag


def verl_with_model(folder: Path) -> Path:
    step = save_verl(folder)
    model(step / "actor" / "huggingface")
    return step


def half_of_an_adapter(folder: Path) -> Path:
    """An adapter whose matrices B were lost."""
    file = save_adapter(folder) / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if "lora_A" in name}, file)
    return folder


def orbax_of_folders(folder: Path) -> Path:
    """A step in Orbax's older layout: a folder for each array, the tree as msgpack."""
    step = folder / "checkpoint_500"
    for name in ("params.embed", "params.layers_0.kernel"):
        (step / name).mkdir(parents=True)
        (step / name / ".zarray").write_text("{}")
    (step / "checkpoint").write_bytes(b"\x81")
    return step


def fsdp_of_a_trainer(folder: Path, metadata: bytes) -> Path:
    """`checkpoint-20` of transformers' Trainer under FSDP, with these bytes as `.metadata`."""
    inner = folder / "pytorch_model_fsdp_0"
    inner.mkdir()
    (folder / "trainer_state.json").write_text('{"global_step": 20, "epoch": 0.5}')
    (inner / ".metadata").write_bytes(metadata)
    (inner / "__0_0.distcp").write_bytes(b"PK")
    return folder


def with_text(folder: Path, file: Path, text: str) -> Path:
    """The folder, after the text was written over a file in it."""
    file.write_text(text)
    return folder


DEEPSPEED: dict[str, Case] = {
    "zero 1": Case(lambda f: save_zero(f, 1), "DeepSpeed ZeRO-1", 10, None, 2, next="zero_to_fp32"),
    "zero 2": Case(
        lambda f: save_zero(f, 2).parent, "DeepSpeed ZeRO-2", 10, None, 2, next="zero_to_fp32"
    ),
    "zero 3": Case(
        lambda f: save_zero(f, 3, ranks=4), "DeepSpeed ZeRO-3", 10, None, 4, next="zero_to_fp32"
    ),
    "float16": Case(
        lambda f: save_zero(f, 2, dtype="fp16"), "DeepSpeed ZeRO-2", 10, None, 2, next="zero_to"
    ),
    "no zero": Case(
        lambda f: save_zero(f, 0).parent, "DeepSpeed (no ZeRO)", 10, None, 2,
        next="pytorch_model.bin",
    ),
    "no zero, two parts": Case(
        two_model_ranks,
        "DeepSpeed (no ZeRO)", 10, None, 2, next="engine.load_checkpoint(",
    ),
    "pipeline": Case(
        lambda f: save_pipeline(f).parent, "DeepSpeed pipeline", 10, None, 2,
        next="engine.load_checkpoint(",
    ),
    "universal": Case(save_universal, "DeepSpeed universal", 10, None, 2, next="load_universal"),
    "universal, a lost weight": Case(
        without(lambda f: save_universal(f).parent, "global_step10_universal/zero/b/fp32.pt"),
        "DeepSpeed universal", 10, None, 2, ("global_step10_universal/zero/b/fp32.pt: missing",),
    ),
    "two tags": Case(two_tags, "DeepSpeed ZeRO-2", 10, None, 2, next="zero_to_fp32"),
    "a lost rank": Case(
        without(lambda f: save_zero(f, 2), "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"),
        "DeepSpeed ZeRO-2", 10, None, 2,
        ("bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt: missing",),
    ),
    "a lost shard of zero 3": Case(
        without(lambda f: save_zero(f, 3), "zero_pp_rank_0_mp_rank_00_model_states.pt"),
        "DeepSpeed ZeRO-3", 10, None, 2, ("zero_pp_rank_0_mp_rank_00_model_states.pt: missing",),
    ),
    "lost weights": Case(
        without(lambda f: save_zero(f, 2), "mp_rank_00_model_states.pt"),
        "DeepSpeed ZeRO-2", 10, None, 2, ("mp_rank_00_model_states.pt: missing",),
    ),
    "no script": Case(
        without(lambda f: save_zero(f, 2).parent, "zero_to_fp32.py", "latest"),
        "DeepSpeed ZeRO-2", 10, None, 2, next="python -m deepspeed.utils.zero_to_fp32",
    ),
    "latest names another": Case(
        lambda f: with_text(f, save_zero(f, 2).parent / "latest", "global_step99"),
        "DeepSpeed ZeRO-2", 10, None, 2, ("global_step99: missing, but latest names it",),
    ),
    "a trainer's": Case(
        lambda f: save_trainer_zero(f, 2), "Trainer checkpoint, DeepSpeed ZeRO-2", 10, 0.5, 2,
        next="sftctl train",
    ),
    "a trainer's without weights": Case(
        lambda f: save_trainer_zero(f, 3, gathered=False),
        "Trainer checkpoint, DeepSpeed ZeRO-3", 10, 0.5, 2, next="zero_to_fp32",
    ),
    "a trainer's with a lost rank": Case(
        without(
            lambda f: save_trainer_zero(f, 2),
            "global_step10/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
        ),
        "Trainer checkpoint, DeepSpeed ZeRO-2", 10, 0.5, 2,
        ("global_step10/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt: missing",),
    ),
}  # fmt: skip

ACCELERATE: dict[str, Case] = {
    "whole": Case(save_by_accelerate, "accelerate checkpoint", 3, 1, 1, next="load_state"),
    "a folder of them": Case(
        lambda f: save_by_accelerate(f).parent, "accelerate checkpoint", 3, 1, 1, next="load_state"
    ),
    "with a model's configuration": Case(
        lambda f: with_tokenizer(_with_config(save_by_accelerate(f))),
        "accelerate checkpoint", 3, 1, 1, next="sftctl train --model",
    ),
    "lost weights": Case(
        without(save_by_accelerate, "model.safetensors"),
        "accelerate checkpoint", 3, 1, 1, ("model.safetensors: missing",),
    ),
    "fsdp": Case(
        save_fsdp_by_accelerate, "accelerate checkpoint", 7, None, 2, next="accelerate merge"
    ),
    "fsdp, a lost random state": Case(
        without(save_fsdp_by_accelerate, "random_states_0.pkl"),
        "accelerate checkpoint", None, None, 1, ("random_states_0.pkl: missing",),
    ),
    "fsdp, not finished": Case(
        lambda f: save_fsdp_by_accelerate(f, finished=False), "accelerate checkpoint", 7, None, 2,
        (
            "optimizer_0/.metadata: missing; rank 0 writes it last, so the save was not finished",
            "pytorch_model_fsdp_0/.metadata: missing; rank 0 writes it last, so the save was not "
            "finished",
        ),
    ),
    "its weights alone": Case(distcp, "torch.distributed checkpoint", ranks=1, next="dcp_to_torch"),
    "its weights without metadata": Case(
        without(distcp, ".metadata"), "torch.distributed checkpoint", ranks=1,
        problems=(".metadata: missing; rank 0 writes it last, so the save was not finished",),
    ),
    "its metadata alone": Case(
        without(distcp, "__0_0.distcp"), "torch.distributed checkpoint",
        problems=("__0_0.distcp: missing",),
    ),
}  # fmt: skip


def _with_config(checkpoint: Path) -> Path:
    base = toy_base(vocab_size=2048, max_position_embeddings=2048)
    base.config.save_pretrained(checkpoint)
    return checkpoint


OTHERS: dict[str, Case] = {
    "megatron": Case(save_megatron, "Megatron checkpoint (a folder", 100, None, 2, next=SHOW),
    "megatron, pipeline": Case(
        lambda f: save_megatron(f, 2, 2).parent, "Megatron checkpoint", 100, None, 4, next=SHOW
    ),
    "megatron, a lost rank": Case(
        without(lambda f: save_megatron(f, 2, 2), "mp_rank_01_001"),
        "Megatron checkpoint", 100, None, 4, ("mp_rank_01_001/model_optim_rng.pt: missing",),
    ),
    "megatron, a rank without its file": Case(
        without(save_megatron, "mp_rank_01/model_optim_rng.pt"),
        "Megatron checkpoint", 100, None, 2, ("mp_rank_01/model_optim_rng.pt: missing",),
    ),
    "megatron, tracker ahead": Case(
        lambda f: with_text(
            f, save_megatron(f).parent / "latest_checkpointed_iteration.txt", "200"
        ),
        "Megatron checkpoint", 100, None, 2,
        ("../iter_0000200: missing, but latest_checkpointed_iteration.txt names it",),
    ),
    "megatron, a rank's file is empty": Case(
        lambda f: with_text(
            save_megatron(f), f / "iter_0000100" / "mp_rank_01" / "model_optim_rng.pt", ""
        ),
        "Megatron checkpoint", 100, None, 2,
        (f"mp_rank_01/model_optim_rng.pt: {EMPTY}",),
    ),
    "megatron, sharded": Case(
        save_megatron_sharded, "Megatron checkpoint (torch_dist)", 100, None, 4, next=SHOW
    ),
    "megatron, sharded, above": Case(
        lambda f: save_megatron_sharded(f).parent, "Megatron checkpoint (torch_dist)", 100, None, 4,
        next=SHOW,
    ),
    "megatron, sharded, not finished": Case(
        without(save_megatron_sharded, ".metadata"),
        "Megatron checkpoint (torch_dist)", 100, None, 4,
        (".metadata: missing; rank 0 writes it last, so the save was not finished",),
    ),
    "megatron, sharded, a lost file": Case(
        without(save_megatron_sharded, "__0_0.distcp"),
        "Megatron checkpoint (torch_dist)", 100, None, 4, ("__0_0.distcp: missing",),
    ),
    "megatron, sharded, no common.pt": Case(
        without(save_megatron_sharded, "common.pt"),
        "Megatron checkpoint (torch_dist)", 100, problems=("common.pt: missing",),
    ),
    "megatron, sharded, no common.pt, above": Case(
        lambda f: without(save_megatron_sharded, "common.pt")(f).parent,
        "Megatron checkpoint (torch_dist)", 100, problems=("common.pt: missing",),
    ),
    "megatron, torch_dcp": Case(
        without(save_megatron_sharded, "common.pt", "metadata.json"),
        "Megatron checkpoint (torch_dcp)", 100, ranks=1, next="dcp_to_torch",
    ),
    "an adapter with half of its matrices": Case(
        half_of_an_adapter, "PEFT adapter directory",
        problems=(
            "adapter_model.safetensors: half of the adapter's matrices are missing: "
            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
        ),
    ),
    "fsdp by accelerate, .metadata is empty": Case(
        lambda f: with_text(
            save_fsdp_by_accelerate(f), f / "checkpoint_7/pytorch_model_fsdp_0/.metadata", ""
        ),
        "accelerate checkpoint", 7, None, 2, (f"pytorch_model_fsdp_0/.metadata: {EMPTY}",),
    ),
    "fsdp by a Trainer, .metadata is another pickle": Case(
        lambda f: fsdp_of_a_trainer(f, b"\x80\x04N."),
        "transformers Trainer checkpoint", 20, 0.5,
        problems=("pytorch_model_fsdp_0/.metadata: describes no checkpoint",),
    ),
    "verl": Case(save_verl, "verl checkpoint (actor)", 20, None, 2, next="verl.model_merger"),
    "verl, output": Case(
        lambda f: save_verl(f, 4).parent, "verl checkpoint (actor)", 20, None, 4, next="verl"
    ),
    "verl, a role": Case(
        lambda f: save_verl(f) / "actor", "verl checkpoint (actor)", 20, None, 2, next="verl"
    ),
    "verl, sft": Case(
        lambda f: save_verl(f, roles=()), "verl checkpoint", 20, None, 2, next="verl"
    ),
    "verl, two roles, a lost rank": Case(
        without(
            lambda f: save_verl(f, roles=("actor", "critic")),
            "critic/optim_world_size_2_rank_1.pt",
        ),
        "verl checkpoint (actor, critic)", 20, None, 2,
        ("critic/optim_world_size_2_rank_1.pt: missing",),
    ),
    "verl, exported": Case(
        verl_with_model, "verl checkpoint", 20, None, 2, next="sftctl train --model"
    ),
    "verl by megatron": Case(
        save_verl_by_megatron, "verl checkpoint (actor; Megatron)", 20, next="--backend megatron"
    ),
    "verl by megatron, a role": Case(
        lambda f: save_verl_by_megatron(f, "parts") / "actor",
        "verl checkpoint (actor; Megatron)", 20, next="--backend megatron",
    ),
    "verl by megatron, output, a lost file": Case(
        lambda f: without(save_verl_by_megatron, "actor/dist_ckpt/__0_0.distcp")(f).parent,
        "verl checkpoint (actor; Megatron)", 20,
        problems=("actor/dist_ckpt/__0_0.distcp: missing",),
    ),
    "verl by megatron, older": Case(
        lambda f: save_verl_by_megatron(f, "ranks"), "verl checkpoint (actor; Megatron)", 20,
        next="--backend megatron",
    ),
    "verl by megatron, older, a rank without its file": Case(
        without(lambda f: save_verl_by_megatron(f, "ranks"), "actor/model/mp_rank_01/model.pt"),
        "verl checkpoint (actor; Megatron)", 20,
        problems=("actor/model/mp_rank_01/model.pt: missing",),
    ),
    "lightning": Case(
        lambda f: save_lightning(f / "x.ckpt"), "Lightning checkpoint file", 30, 2, next=SHOW
    ),
    "lightning, weights alone": Case(
        lambda f: save_lightning(f / "x.ckpt", weights_only=True),
        "Lightning checkpoint file", 30, 2, next=SHOW,
    ),
    "lightning, folder": Case(
        lambda f: save_lightning_folder(f / "x.ckpt"), "Lightning checkpoint folder (FSDP)", 30, 2,
        1, next="consolidate_checkpoint",
    ),
    "lightning, folder without meta": Case(
        lambda f: save_lightning_folder(f / "x.ckpt", meta=False),
        "Lightning checkpoint folder (FSDP)", ranks=1,
        problems=("meta.pt: missing; it has the step, the epoch and the callbacks",),
    ),
    "lightning, deepspeed": Case(
        lambda f: save_zero(f / "x.ckpt", 2).rename(f / "x.ckpt/checkpoint").parent,
        "Lightning checkpoint folder, DeepSpeed ZeRO-2", 10, None, 2,
        ("global_step10: missing, but latest names it",),
    ),
    "nemo": Case(lambda f: save_nemo(f / "x.nemo"), "NeMo model archive", next="tar -xf"),
    "nemo, gzip": Case(
        lambda f: save_nemo(f / "x.nemo", compressed=True), "NeMo model archive", next="tar -xf"
    ),
    "nemo without weights": Case(
        lambda f: save_nemo(f / "x.nemo", without="model_weights.ckpt"), "NeMo model archive",
        problems=("x.nemo: model_weights.ckpt: missing in the archive",),
    ),
    "nemo 2": Case(save_nemo_folder, "NeMo checkpoint folder", 100, 1, 4, next=SHOW),
    "torchtune": Case(save_torchtune, "torchtune checkpoint", 44, 2, next=SHOW),
    "torchtune, output": Case(
        lambda f: save_torchtune(f).parent, "torchtune checkpoint", 44, 2, next=SHOW
    ),
    "torchtune, older": Case(
        lambda f: save_torchtune(f, old=True), "torchtune checkpoint", 44, 2, next=SHOW
    ),
    "torchtune with a tokenizer": Case(
        lambda f: with_tokenizer(save_torchtune(f, parts=1)), "torchtune checkpoint", 44, 2,
        next="sftctl train --model",
    ),
    "torchtune, a lost part": Case(
        lambda f: _lose_part(save_torchtune(f)), "torchtune checkpoint", 44, 2, None,
        ("model-00002-of-00002.safetensors: missing, model.safetensors.index.json refers to it",),
    ),
    "orbax": Case(save_orbax, "Orbax checkpoint (JAX)", 1000, next="PyTreeCheckpointer"),
    "orbax, a folder of steps": Case(
        lambda f: save_orbax(save_orbax(f, step=2000).parent).parent,
        "Orbax checkpoint (JAX)", 2000, next="PyTreeCheckpointer",
    ),
    "orbax, an item": Case(
        lambda f: save_orbax(f, "params") / "params", "Orbax checkpoint", next="PyTreeCheckpointer"
    ),
    "orbax, arrays in folders": Case(
        orbax_of_folders, "Orbax checkpoint (JAX)", 500, next="PyTreeCheckpointer"
    ),
    "orbax, a lost database": Case(
        without(save_orbax, "default/manifest.ocdbt"), "Orbax checkpoint (JAX)", 1000,
        problems=("default/manifest.ocdbt: missing",),
    ),
    "orbax, not finished": Case(
        lambda f: (save_orbax(f) / "default").rename(
            f / "1000" / "default.orbax-checkpoint-tmp-7"
        ).parent,
        "Orbax checkpoint (JAX)", 1000,
        problems=("default.orbax-checkpoint-tmp-7: was not finished",),
    ),
    "local states": Case(
        lambda f: save_local_states(f / "x"), "one torch file for each rank", 999, None, 3,
        next="shows one rank's file",
    ),
    "local states, a lost rank": Case(
        without(lambda f: save_local_states(f / "x"), "model_0000999.rank_1.pth"),
        "one torch file for each rank", 999, None, 3, ("model_0000999.rank_1.pth: missing",),
    ),
}  # fmt: skip


def _lose_part(folder: Path) -> Path:
    (folder / "model-00002-of-00002.safetensors").unlink()
    return folder


def mlx(folder: Path, *, quantized: bool) -> Path:
    base = toy_base(vocab_size=2048, max_position_embeddings=2048)
    return with_tokenizer(save_mlx_model(folder / "m", base, quantized=quantized))


MODELS: dict[str, Case] = {
    "model": Case(lambda f: model(f / "m"), "Hugging Face model directory", next="sftctl train"),
    "adapter": Case(save_adapter, "PEFT adapter directory (LORA)", next=SHOW),
    "unsloth's adapter": Case(
        lambda f: save_adapter(f, "unsloth/llama-3-8b-bnb-4bit"),
        "Unsloth adapter directory (LORA)", next=SHOW,
    ),
    "unsloth's newer adapter": Case(
        lambda f: save_adapter(f, auto_mapping={"unsloth_fixed": True}),
        "Unsloth adapter directory (LORA)", next=SHOW,
    ),
    "llama-factory's adapter": Case(
        lambda f: save_adapter(f, card="---\ntags:\n- llama-factory\n- trl\n---\n"),
        "LLaMA-Factory adapter directory (LORA)", next=SHOW,
    ),
    "trl's adapter": Case(
        lambda f: save_adapter(f, card="---\nbase_model: o/b\ntags:\n- lora\n- trl\n---\n# x"),
        "TRL adapter directory (LORA)", next=SHOW,
    ),
    "an adapter with a card of nobody": Case(
        lambda f: save_adapter(f, card="# trl\n- trl\n| steps | 7 of 9 |\n"),
        "PEFT adapter directory (LORA)", next=SHOW,
    ),
    "adapter without weights": Case(
        without(save_adapter, "adapter_model.safetensors"), "PEFT adapter directory (LORA)",
        problems=("adapter_model.safetensors: missing",),
    ),
    "mlx": Case(lambda f: mlx(f, quantized=False), "MLX model directory", next="sftctl train"),
    "mlx, 4 bits": Case(
        lambda f: mlx(f, quantized=True), "MLX model directory, quantized to 4", next=SHOW
    ),
    "mlx adapter": Case(
        lambda f: save_mlx_adapter(f / "a"), "MLX adapter directory (lora)", next=SHOW
    ),
}  # fmt: skip

CASES = {
    f"{group}: {name}": case
    for group, cases in (
        ("deepspeed", DEEPSPEED),
        ("accelerate", ACCELERATE),
        ("others", OTHERS),
        ("models", MODELS),
    )
    for name, case in cases.items()
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_is_named_and_its_next_command_works(
    tmp_path: Path, name: str, sftctl: Callable[..., Result]
) -> None:
    case = CASES[name]
    path = case.make(tmp_path)
    found = inspect_path(path)
    assert case.format in found.format
    facts = found.facts
    assert (facts.get("step"), facts.get("epoch")) == (case.step, case.epoch)
    assert facts.get("world_size") == case.ranks
    assert sorted(found.problems) == sorted(case.problems)
    assert found.complete == (not case.problems)
    assert not found.resumable  # a checkpoint of another tool, whatever it holds
    if case.next is None:
        assert found.advice is None
    else:
        assert found.advice is not None and case.next in found.advice
    result = sftctl("inspect-ckpt", path)
    assert result.exit_code == (4 if case.problems else 0), result.stderr
    for command in re.findall(r"`([^`]+)`", found.advice or ""):
        typed(command, tmp_path, sftctl, can_run=NEEDS.search(found.advice or "") is None)


def typed(command: str, folder: Path, sftctl: Callable[..., Result], *, can_run: bool) -> None:
    """Run a command as it is shown. A command for a tool that is not installed only has to
    parse."""
    words = shlex.split(command)
    if words[0] == "sftctl":
        short = ["--max-steps", "1", "--batch-size", "4", "--output-dir", folder / "run"]
        extra = short if words[1] == "train" else []
        result = sftctl(*words[1:], *extra)
        assert result.exit_code == 0, result.stderr
    elif can_run or Path(words[1]).is_file():
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        if words[0] in MODULES and shutil.which(words[0], path=path) is None:
            words = ["python", "-m", MODULES[words[0]], *words[1:]]
        words[0] = sys.executable if words[0] == "python" else words[0]
        done = subprocess.run(
            words, capture_output=True, env={**os.environ, "PATH": path}, cwd=folder, check=False
        )
        assert done.returncode == 0, done.stderr.decode()


def test_accelerate_itself_loads_what_the_advice_says(tmp_path: Path) -> None:
    from accelerate import Accelerator
    from torch.optim import AdamW
    from torch.optim.lr_scheduler import ConstantLR

    path = save_by_accelerate(tmp_path)
    (path / "custom_checkpoint_0.pkl").unlink()
    accelerator = Accelerator(cpu=True)
    base = toy_base(vocab_size=2048, max_position_embeddings=2048)
    optimizer = AdamW(base.parameters(), lr=1e-3)
    accelerator.prepare(base, optimizer, ConstantLR(optimizer, factor=1.0))
    advice = inspect_path(path).advice or ""
    call = advice.partition(" in the script")[0]
    assert call == f"accelerator.load_state({str(path)!r})"
    accelerator.load_state(str(path))


def test_tensors_that_are_sharded_over_ranks_are_data(tmp_path: Path) -> None:
    """verl saves them as they are; torch.load(weights_only=True) takes them too."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        mesh = init_device_mesh("cpu", (1,))
        tensors = {
            "a": distribute_tensor(torch.ones(8, 4), mesh, [Shard(0)]),
            "b": distribute_tensor(torch.ones(3), mesh, [Replicate()]),
        }
        torch.save(tensors, tmp_path / "x.pt")
    finally:
        dist.destroy_process_group()
    found = inspect_path(tmp_path / "x.pt")
    assert found.problems == []


def test_every_format_recognises_one_of_these(tmp_path: Path) -> None:
    names = set()
    for number, case in enumerate(CASES.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = case.make(folder)
        names.add(next(one.name for one in FORMATS if one.recognises(path)))
    elsewhere = {
        "a run of sftctl", "its final model", "one of its checkpoints", ".gguf", ".safetensors",
        "a folder of checkpoint-N",
    }  # fmt: skip
    assert {one.name for one in FORMATS} - names == elsewhere
