"""Refuse .gguf files that are not one complete model in version 2 or 3. Loads no library."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sftctl.disk import read_refusals
from sftctl.errors import ConfigError
from sftctl.words import in_shell

LFS_POINTER = b"version https://git-lfs"
LFS_PROBLEM = "a Git LFS pointer, not the file itself"
_GGML = (b"lmgg", b"fmgg", b"tjgg", b"algg", b"ggml", b"ggmf", b"ggjt", b"ggla")
READ_BY_TRANSFORMERS = (
    *("llama", "mistral", "qwen2", "qwen2moe", "gpt-oss", "lfm2", "qwen3", "qwen3moe", "falcon"),
    *("phi3", "bloom", "stablelm", "gpt2", "starcoder2", "mamba", "nemotron", "gemma2", "gemma3"),
    *("gemma4", "deci", "minimax-m2", "qwen35", "qwen35moe"),
)
"""The architectures of causal language models that transformers can read from a .gguf file."""


_LONGEST_HEADER_OF_PART = 1 << 16
_NUMBERS = {2: 2, 3: 2, 4: 4, 5: 4, 10: 8, 11: 8}  # number of an integer type -> its bytes
_ORDERS: tuple[Literal["little"], Literal["big"]] = ("little", "big")


@dataclass(frozen=True, slots=True)
class GgufKind:
    """A file that can't be read as GGUF: its format, and what to do."""

    name: str  # the format
    what: str  # the problem
    remedy: str | None = None  # a command that helps, with `{}` for the file
    does: str = ""  # what this command does


def kind_by_first_bytes(first: bytes) -> GgufKind | None:
    """Judge a file by its first eight or more bytes. None: GGUF version 2 or 3, or an unknown
    format.
    """
    if first.startswith(LFS_POINTER[: len(first)]) and len(first) >= 8:
        return GgufKind("Git LFS pointer", LFS_PROBLEM)
    if first.lower().startswith((b"<!doctyp", b"<html")):
        return GgufKind("web page", "a web page, not the file itself")
    if first.startswith(_GGML):
        what = "a GGML file from before GGUF (2023): convert the original model again"
        return GgufKind("GGML file", what)
    if not first.startswith(b"GGUF") or len(first) < 8:
        return None
    little, big = (int.from_bytes(first[4:8], order) for order in _ORDERS)
    if little == 1:
        what = "GGUF version 1 (2023), which no tool reads any more: convert the original again"
        return GgufKind("GGUF file, version 1", what)
    if little <= 0xFFFF and little not in (2, 3):
        what = f"GGUF version {little}, which is not known: only versions 2 and 3 are read"
        return GgufKind(f"GGUF file, version {little}", what)
    if little > 0xFFFF and big <= 0xFFFF:
        return GgufKind(
            f"GGUF file, big-endian, version {big}",
            "big-endian numbers, which neither llama.cpp nor transformers reads on this machine",
            "gguf-convert-endian {} little",
            "turns them in place, after it asks",
        )
    return None


def require_readable(path: Path) -> None:
    """ConfigError for a Git LFS pointer, or a version that is not supported."""
    with read_refusals(path, ConfigError, "make it readable"), path.open("rb") as file:
        kind = kind_by_first_bytes(file.read(8))
    if kind is not None:
        hint = f"`{kind.remedy.format(in_shell(path))}` {kind.does}" if kind.remedy else None
        if kind.what == LFS_PROBLEM:
            hint = "`git lfs pull` in its folder downloads the file"
        raise ConfigError(f"{path}: {kind.what}", hint or "take a file of GGUF version 2 or 3")


def require_model(path: Path, metadata: Mapping[str, Any]) -> None:
    """ConfigError if the metadata of a .gguf file does not describe one complete model."""
    kind, count = metadata.get("general.type", "model"), metadata.get("split.count", 1)
    if kind != "model":
        adapter = "an adapter: merge it into its base first"
        what = adapter if kind == "adapter" else f"of type {kind}, not a model"
        raise ConfigError(
            f"{path}: {what}", hint=f"`sftctl inspect-ckpt {in_shell(path)}` shows its contents"
        )
    if isinstance(count, int) and count > 1:
        number = int(metadata.get("split.no", 0))
        raise ConfigError(
            f"{path}: part {number + 1} of a model in {count} parts",
            hint="`llama-gguf-split --merge FIRST_PART OUT.gguf` of llama.cpp puts them together",
        )


def split_in(path: Path) -> dict[str, int]:
    """The numbers of `split.no` and `split.count` near the beginning of a .gguf file.

    Later parts of a model have few keys besides these, and transformers can't read them.
    """
    with path.open("rb") as file:
        begin = file.read(_LONGEST_HEADER_OF_PART)
    found = {}
    for key in ("split.no", "split.count"):
        at = begin.find(key.encode()) + len(key)
        size = _NUMBERS.get(int.from_bytes(begin[at : at + 4], "little"))
        if at >= len(key) and size is not None:
            found[key] = int.from_bytes(begin[at + 4 : at + 4 + size], "little")
    return found
