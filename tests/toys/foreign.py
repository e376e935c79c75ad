"""Checkpoints of other tools: made by those tools on a toy model, or written byte by byte."""

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """A folder of torch.distributed.checkpoint, with numbers next to the tensors."""
    from torch.distributed.checkpoint.state_dict_saver import save

    model = toy_model()
    optimizer = toy_optimizer(model)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    save({**state, "step": 7, "epoch": 0}, checkpoint_id=folder)
    return folder


@dataclass(frozen=True)
class Storage:
    """A torch storage as a pickle refers to it: ("storage", type, key, location, elements)."""

    key: tuple[Any, ...] = ("storage", torch.FloatStorage, "0", "cpu", 4)


@dataclass(frozen=True)
class Rebuilt:
    """A tensor as torch.save pickles it, with any arguments: storage, offset, shape, strides."""

    storage: object = Storage()
    offset: object = 0
    shape: object = (4,)
    strides: object = (1,)

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.storage, self.offset, self.shape, self.strides)
        return torch._utils._rebuild_tensor_v2, (*arguments, False, {})


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        return obj.key if isinstance(obj, Storage) else None


def pickled(value: object) -> bytes:
    """The pickle that torch.save would write."""
    stream = io.BytesIO()
    _Pickler(stream, protocol=2).dump(value)
    return stream.getvalue()


def pickled_object(name: str, attributes: Mapping[str, object]) -> bytes:
    """The pickle of an object of the class `name`, which need not exist."""
    module, _, kind = name.rpartition(".")
    new = b"\x80\x02c" + f"{module}\n{kind}\n".encode() + b")\x81"
    return new + pickle.dumps(dict(attributes), 2)[2:-1] + b"b."


def write_archive(file: Path, data: bytes, **entries: bytes) -> Path:
    """A torch.save archive around a pickle; an entry is named `data_0` for `data/0`."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", data)
        for name, content in entries.items():
            archive.writestr(f"x/{name.replace('_', '/')}", content)
    return file


def metadata(**changes: Any) -> Any:
    """The content of `.metadata` for one tensor of four numbers in one chunk."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    chunk = ChunkStorageMetadata(changes.get("offsets", [0]), changes.get("sizes", [4]))
    chunks = changes.get("chunks", [chunk])
    size = changes.get("size", [4])
    tensor = TensorStorageMetadata(TensorProperties(torch.float32), size, chunks)
    place = _StorageInfo(
        changes.get("file", "__0_0.distcp"), changes.get("offset", 0), changes.get("length", 8)
    )
    index = MetadataIndex(changes.get("fqn", "a"), changes.get("offsets", [0]))
    index = index if changes.get("offsets") != 5 else MetadataIndex("a")
    names: dict[Any, Any] = {changes.get("name", "a"): tensor}
    return Metadata(names, storage_data={index: place})


def gguf_text(text: str) -> bytes:
    """A text in a GGUF header."""
    return struct.pack("<Q", len(text)) + text.encode()


def gguf_key(name: str, kind: int, value: bytes) -> bytes:
    """A key of a GGUF header: its name, the number of its type, its value."""
    return gguf_text(name) + struct.pack("<I", kind) + value


def gguf_tensor(name: str, shape: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    """A tensor's entry in a GGUF header; `shape` with the innermost axis first."""
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return gguf_text(name) + sizes + struct.pack("<IQ", kind, offset)


def write_gguf(
    file: Path,
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    *,
    data: bytes = b"",
    version: int = 3,
    num_keys: int | None = None,
) -> Path:
    """A .gguf file of these header entries, which may claim another number of keys."""
    counts = len(tensors), len(keys) if num_keys is None else num_keys
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join((*keys, *tensors))
    file.write_bytes(header + b"\0" * (-len(header) % 32) + data)
    return file
