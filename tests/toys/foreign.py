"""Checkpoints of other tools, made by those tools on a toy model."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Qwen3Config

Tensors = dict[str, torch.Tensor]


def toy_model(tied: bool = False) -> Any:
    """A two-layer model of 6,768 parameters, 25 tensors."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "head_dim": 8}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    return AutoModelForCausalLM.from_config(Qwen3Config(**sizes, **heads, tie_word_embeddings=tied))


def toy_optimizer(model: Any) -> torch.optim.AdamW:
    """AdamW after one step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.arange(8)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    return optimizer


class Counting(Dataset[dict[str, torch.Tensor]]):
    """Twenty rows of eight tokens."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.arange(8) + index % 10
        return {"input_ids": ids, "labels": ids}


def train_by_trainer(folder: Path) -> Path:
    """transformers' Trainer: two epochs of 5 steps, checkpoints at 4, 8 and 10."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        save_steps=4,
        logging_steps=2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    Trainer(toy_model(), arguments, train_dataset=Counting()).train()
    return folder


def save_minimind(folder: Path) -> tuple[Path, Path]:
    """The dictionary that MiniMind saves for `--from_resume`, and its weights in half precision."""
    model = toy_model()
    optimizer = toy_optimizer(model)
    half = {name: tensor.half().cpu() for name, tensor in model.state_dict().items()}
    resume, weights = folder / "full_sft_512_resume.pth", folder / "full_sft_512.pth"
    torch.save(
        {
            "model": half,
            "optimizer": optimizer.state_dict(),
            "epoch": 1,
            "step": 300,
            "world_size": 2,
            "wandb_id": "abc123",
            "scaler": torch.amp.GradScaler("cpu").state_dict(),
        },
        resume,
    )
    torch.save(half, weights)
    return resume, weights


def save_distributed(folder: Path) -> Path:
    """A folder of torch.distributed.checkpoint, numbers beside the tensors."""
    import torch.distributed.checkpoint as dcp

    model = toy_model()
    optimizer = toy_optimizer(model)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    dcp.save({**state, "step": 7, "epoch": 0}, checkpoint_id=folder)
    return folder
