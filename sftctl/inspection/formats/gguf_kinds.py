"""Recognise a .gguf file that is not one complete model, and say what is missing."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftctl.inspection.formats.files import Files, first_bytes
from sftctl.inspection.formats.weights import show_tensors
from sftctl.inspection.inspection import Inspection, Tensors
from sftctl.model.gguf.kind import READ_BY_TRANSFORMERS, kind_by_first_bytes
from sftctl.model.gguf.tokenizer_keys import tokenizer_fault
from sftctl.words import in_shell

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_MOST_PARTS = 10_000
_NOT_A_MODEL = {
    "adapter": "an adapter: merge it into its base first",
    "mmproj": "the projector of a vision model, not a language model",
    "imatrix": "an importance matrix, not a model",
    "dataset": "a data set, not a model",
    "vocab": "a vocabulary alone, not a model",
}
_BLOCK = {  # architecture -> tensors that every block has
    "llama": ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm"),
    "qwen2": ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm"),
    "qwen3": ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm"),
    "qwen3moe": ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm"),
    "gemma2": ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm"),
    "gemma3": ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm"),
    "phi3": ("attn_norm", "attn_qkv", "attn_output", "ffn_norm"),
    "mamba": ("attn_norm", "ssm_in", "ssm_conv1d", "ssm_x", "ssm_dt", "ssm_out"),
}
_FEED_FORWARD = {  # further tensors in blocks without experts
    "llama": ("ffn_gate", "ffn_up", "ffn_down"),
    "qwen2": ("ffn_gate", "ffn_up", "ffn_down"),
    "qwen3": ("ffn_gate", "ffn_up", "ffn_down"),
    "gemma2": ("ffn_gate", "ffn_up", "ffn_down"),
    "gemma3": ("ffn_gate", "ffn_up", "ffn_down"),
    "phi3": ("ffn_up", "ffn_down"),
}


def inspect_unread(path: Path) -> Inspection | None:
    """Inspect a file that is not GGUF of version 2 or 3. None for a file that is."""
    kind = kind_by_first_bytes(first_bytes(path))
    if kind is None:
        return None
    files = Files.of(path)
    if kind.remedy is None:
        files.problems[:] = [f"{path.name}: {kind.what}"]
        return files.inspection(kind.name, {})
    obstacle = kind.what
    advice = f"`{kind.remedy.format(path)}` {kind.does}"
    return replace(files.inspection(kind.name, {}, advice), obstacles=[obstacle])


def misnamed_part(path: Path, values: Mapping[str, Any]) -> tuple[str, str] | None:
    """(problem, remedy) for a part whose file name contradicts its metadata, which count; else
    None.
    """
    number, count = values.get("split.no", 0), values.get("split.count")
    if not isinstance(count, int) or not isinstance(number, int) or count < 2:
        return None
    match = _PART.fullmatch(path.name)
    if match is not None and (int(match[2]), int(match[3])) == (number + 1, count):
        return None
    problem = f"{path.name}: part {number + 1} of {count}, and its name does not lead to the others"
    names = f"NAME-{1:05d}-of-{count:05d}.gguf"
    own = f"NAME-{number + 1:05d}-of-{count:05d}.gguf"
    return problem, f"name the parts {names} and so on, in one folder; this one is {own}"


def parts_of(path: Path, values: Mapping[str, Any]) -> tuple[list[Path], list[str]]:
    """The parts of a split model that exist, and the names of those that are missing.

    The metadata decides, as in llama.cpp. The name must agree, else the other parts have no names.
    """
    count = values.get("split.count")
    if not isinstance(count, int) or count < 2 or misnamed_part(path, values):
        return [path], []
    match = _PART.fullmatch(path.name)
    assert match is not None
    names = [
        f"{match[1]}-{i:05d}-of-{match[3]}.gguf" for i in range(1, min(count, _MOST_PARTS) + 1)
    ]
    there = [path.parent / name for name in names if (path.parent / name).is_file()]
    return there, [name for name in names if not (path.parent / name).is_file()]


def judge_gguf(
    path: Path, values: Mapping[str, Any], tensors: Tensors, num_parts: int
) -> tuple[str, list[str], list[str], str]:
    """(name of the format, problems, notes, advice) for a file whose header was read."""
    arch, kind = str(values.get("general.architecture", "?")), str(values.get("general.type", ""))
    look = show_tensors(path)
    if not tensors and "tokenizer.ggml.tokens" in values:
        kind = "vocab"
    if arch in ("clip", "mmproj"):
        kind = "mmproj"
    if kind in _NOT_A_MODEL:
        base = values.get("general.base_model.0.name")
        of = f" of {base}" if isinstance(base, str) else ""
        what = "GGUF LoRA adapter" if values.get("adapter.type") == "lora" else f"GGUF {kind}"
        return f"{what} file", [], [f"{_NOT_A_MODEL[kind]}{of}"], look
    count = values.get("split.count")
    if isinstance(count, int) and count > 1:
        return _judge_part(path, values, len(tensors), count, num_parts)
    names = {name.removeprefix("model.") for name in tensors}
    lost = _lost(arch, values, names)
    if lost:
        shown = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        return "GGUF file", [f"{path.name}: {len(lost)} tensors are missing: {shown}"], [], look
    notes = []
    if path.suffix != ".gguf":
        own = in_shell(path.with_suffix(".gguf"))
        notes.append(f"train needs the ending .gguf: `mv {in_shell(path)} {own}`")
    if arch not in READ_BY_TRANSFORMERS:
        notes.append(f"architecture {arch}: transformers can't read it, so train can't either")
    if fault := tokenizer_fault(values):
        notes.append(f"{fault}: train needs --tokenizer DIR")
    elif "tokenizer.chat_template" not in values:
        notes.append("no chat template in it: train needs --chat-template FILE")
    train = f"`sftctl train --model {in_shell(path)}` starts a run from its weights"
    return "GGUF file", [], notes, look if notes else train


def _judge_part(
    path: Path, values: Mapping[str, Any], num_tensors: int, count: int, num_parts: int
) -> tuple[str, list[str], list[str], str]:
    number = values.get("split.no")
    total = values.get("split.tensors.count")
    which = f"part {number + 1} of {count}" if isinstance(number, int) else f"one of {count} parts"
    problems = []
    if num_parts == count and isinstance(total, int) and total != num_tensors:
        problems = [f"{path.name}: {num_tensors} tensors in all parts, but it says {total}"]
    note = "train reads one file: `llama-gguf-split --merge` of llama.cpp puts the parts together"
    return f"GGUF split model, {which}", problems, [note], show_tensors(path)


def _lost(arch: str, values: Mapping[str, Any], names: set[str]) -> list[str]:
    """The missing tensors of a model with this architecture and this number of blocks."""
    blocks = values.get(f"{arch}.block_count")
    if arch not in _BLOCK or not isinstance(blocks, int):
        return []
    is_dense = not values.get(f"{arch}.expert_count")
    parts = (*_BLOCK[arch], *(_FEED_FORWARD.get(arch, ()) if is_dense else ()))
    wanted = ["token_embd.weight", "output_norm.weight"]
    wanted += [f"blk.{i}.{part}.weight" for i in range(min(blocks, 10_000)) for part in parts]
    return [name for name in wanted if name not in names]
