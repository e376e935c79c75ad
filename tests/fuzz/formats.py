"""One valid file or folder of every format, small, and the commands that read it."""

import gzip
import io
import json
import pickle
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.toys.checkpoints import save_toy
from tests.toys.foreign import (
    gguf_key,
    gguf_tensor,
    gguf_text,
    pickled_object,
    save_distributed,
    write_gguf,
)

_INSPECT = (
    ("inspect-ckpt", "{}"),
    ("inspect-ckpt", "{}", "--verify"),
    ("inspect-ckpt", "{}", "--tensors"),
    ("inspect-ckpt", "{}", "--json", "--verify", "--tensors"),
    ("inspect-ckpt", "{}", "{}"),
)
_PREPARE = (("prepare-data", "{}", "--output", "store", "--engine", "hf", "--workers", "1"),)
_TRAIN = (("train", "{}", "--print-config"),)
_CHECKPOINT, _DATA, _CONFIG = (0, 4), (0, 2, 3), (0, 2, 3)


@dataclass(frozen=True)
class Format:
    """How a valid example is made, and the commands that read it."""

    make: Callable[[Path], Path]
    commands: Sequence[Sequence[str]] = _INSPECT
    exit_codes: Sequence[int] = _CHECKPOINT


def _safetensors(folder: Path) -> Path:
    tensors = {"a.weight": torch.ones(4, 3), "b": torch.zeros(2, dtype=torch.int64)}
    save_file(tensors, folder / "x.safetensors", metadata={"format": "pt"})
    return folder / "x.safetensors"


def _model(folder: Path) -> Path:
    _safetensors(folder).rename(folder / "model-00001-of-00001.safetensors")
    names = dict.fromkeys(("a.weight", "b"), "model-00001-of-00001.safetensors")
    index = {"metadata": {"total_size": 64}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"model_type": "llama", "torch_dtype": "float32", "transformers_version": "5.0.0"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _adapter(folder: Path) -> Path:
    save_file({"base.lora_A.weight": torch.ones(2, 3)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "peft_type": "LORA"}))
    return folder


def _state() -> dict[str, object]:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 1,
        "step": 300,
        "world_size": 2,
        "wandb_id": "abc",
        "scaler": {"scale": 65536.0},
    }


def _torch(folder: Path) -> Path:
    torch.save(_state(), folder / "x.pth")
    return folder / "x.pth"


def _old_torch(folder: Path) -> Path:
    torch.save(_state(), folder / "x.pth", _use_new_zipfile_serialization=False)
    return folder / "x.pth"


def _pickle(folder: Path) -> Path:
    (folder / "x.pt").write_bytes(pickle.dumps({"epoch": 1, "rates": [1e-3, (2, "a")]}, 4))
    return folder / "x.pt"


def _trainer(folder: Path) -> Path:
    state = {"global_step": 4, "max_steps": 10, "num_train_epochs": 2, "epoch": 0.8}
    history = [{"step": 4, "loss": 4.1, "learning_rate": 1e-5}, {"step": 4, "eval_loss": 4.0}]
    (folder / "trainer_state.json").write_text(json.dumps({**state, "log_history": history}))
    (folder / "config.json").write_text(json.dumps({"dtype": "float32"}))
    _safetensors(folder).rename(folder / "model.safetensors")
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "bf16": True}
    name = "transformers.training_args.TrainingArguments"
    (folder / "training_args.bin").write_bytes(pickled_object(name, options))
    torch.save(_state()["optimizer"], folder / "optimizer.pt")
    torch.save({"_last_lr": [1e-5], "last_epoch": 4}, folder / "scheduler.pt")
    torch.save(
        {"cpu": torch.get_rng_state(), "python": (3, (1, 2), None)}, folder / "rng_state.pth"
    )
    return folder


def _distributed(folder: Path) -> Path:
    return save_distributed(folder / "dcp")


def _gguf(folder: Path) -> Path:
    keys = [
        gguf_key("general.architecture", 8, gguf_text("llama")),
        gguf_key("tokens", 9, struct.pack("<IQ", 8, 3) + gguf_text("a") * 3),
        gguf_key("scores", 9, struct.pack("<IQ3f", 6, 3, 1.0, 2.0, 3.0)),
    ]
    tensors = [gguf_tensor("token_embd.weight", [4, 2]), gguf_tensor("q", [32], 8, 32)]
    return write_gguf(folder / "x.gguf", keys, tensors, data=bytes(96))


def _sftctl(folder: Path) -> Path:
    return save_toy(folder, 7)


_ROWS = [
    {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": "ü"}]}
    for n in range(8)
]
_LINES = "".join(json.dumps(row) + "\n" for row in _ROWS).encode()


def _jsonl(folder: Path) -> Path:
    (folder / "x.jsonl").write_bytes(_LINES)
    return folder / "x.jsonl"


def _json(folder: Path) -> Path:
    (folder / "x.json").write_text(json.dumps(_ROWS))
    return folder / "x.json"


def _gzip(folder: Path) -> Path:
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(_LINES))
    return folder / "x.jsonl.gz"


def _zstd(folder: Path) -> Path:
    import zstandard

    (folder / "x.jsonl.zst").write_bytes(zstandard.compress(_LINES))
    return folder / "x.jsonl.zst"


def _parquet(folder: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_ROWS), stream)
    (folder / "x.parquet").write_bytes(stream.getvalue())
    return folder / "x.parquet"


def _toml(folder: Path) -> Path:
    text = '[optim]\nlearning_rate = 1e-4\n[train]\nepochs = 2\n[model]\nname = "small"\n'
    (folder / "x.toml").write_text(text)
    return folder / "x.toml"


FORMATS = {
    "safetensors": Format(_safetensors),
    "model": Format(_model),
    "adapter": Format(_adapter),
    "torch": Format(_torch),
    "old-torch": Format(_old_torch),
    "pickle": Format(_pickle),
    "trainer": Format(_trainer),
    "distributed": Format(_distributed),
    "gguf": Format(_gguf),
    "sftctl": Format(_sftctl),
    "jsonl": Format(_jsonl, _PREPARE, _DATA),
    "json": Format(_json, _PREPARE, _DATA),
    "gzip": Format(_gzip, _PREPARE, _DATA),
    "zstd": Format(_zstd, _PREPARE, _DATA),
    "parquet": Format(_parquet, _PREPARE, _DATA),
    "toml": Format(_toml, _TRAIN, _CONFIG),
}
