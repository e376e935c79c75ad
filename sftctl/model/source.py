"""Sources of pretrained models and tokenizers: a directory, a .gguf or .pth file, or the hub."""

import logging
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from sftctl.errors import ConfigError
from sftctl.model.presets import PRESETS

_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "tekken.json")
_CHECK = "check the path: it is relative to the current folder"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What to pass to `from_pretrained`."""

    location: str
    arguments: dict[str, Any]

    @property
    def is_local(self) -> bool:
        """Whether it is on this disk."""
        return Path(self.location).exists()

    @property
    def is_gguf(self) -> bool:
        """Whether it is one .gguf file."""
        return "gguf_file" in self.arguments

    @property
    def is_minimind(self) -> bool:
        """Whether it is a file of MiniMind's weights, which has no tokenizer."""
        return self.location.endswith(".pth")

    @classmethod
    def of(cls, name: str) -> "ModelSource":
        """The source that `name` means; ConfigError if it looks like a path that does not exist."""
        path = Path(name)
        if path.suffix == ".gguf":
            if not path.is_file():
                raise ConfigError(f"{name}: no such file", hint=_CHECK)
            return cls(str(path.parent), {"gguf_file": path.name})
        if path.suffix == ".pth":
            if not path.is_file():
                raise ConfigError(f"{name}: no such file", hint=_CHECK)
            return cls(name, {})
        if path.is_dir():
            return cls(name, {"local_files_only": True})  # never ask the hub about a directory
        if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise ConfigError(f"{name}: no such directory", hint=_CHECK)
        if "/" not in name:
            near = get_close_matches(name, PRESETS, n=1)
            raise ConfigError(
                f"{name}: neither a preset ({', '.join(PRESETS)}) nor a directory, "
                ".gguf or .pth file or owner/name on the hub",
                hint=f"did you mean {near[0]}?" if near else _CHECK,
            )
        return cls(name, {} if hub_resolves() else {"local_files_only": True})


@cache
def hub_resolves() -> bool:
    """Whether the hub's host name resolves. If not, its library would retry for a minute.

    Then only files in the library's cache are used.
    """
    from huggingface_hub.constants import ENDPOINT

    if getproxies():  # the proxy may resolve names that this machine can't
        return True
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def quiet() -> None:
    """Silence the libraries' progress bars and warnings; problems are raised as our own errors."""
    from transformers.utils import logging as transformers_logging

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def require_model_folder(name: str) -> None:
    """Refuse a directory without a model."""
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ConfigError(
            f"{name}: no config.json in this directory, so there is no model in it",
            hint=_inside(folder, "config.json")
            or "a Hugging Face model has config.json and its weights in one directory",
        )


def require_tokenizer_folder(name: str) -> None:
    """Refuse a directory without a tokenizer."""
    folder = Path(name)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):
        raise ConfigError(
            f"{name}: no tokenizer.json in this directory, so there is no tokenizer in it",
            hint=_inside(folder, "tokenizer.json")
            or "`AutoTokenizer.from_pretrained(…).save_pretrained(DIR)` writes one",
        )


def _inside(folder: Path, name: str) -> str | None:
    """A hint that names the subfolder of a run or a store that has the file, if there is one."""
    found = [
        folder / inner for inner in ("final", "tokenizer") if (folder / inner / name).is_file()
    ]
    return f"did you mean {found[0]}?" if found else None


@contextmanager
def from_hub_or_disk(what: str, source: ModelSource) -> Iterator[None]:
    """Turn what transformers raises for a bad or unreachable source into one ConfigError."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    files = (OSError, SafetensorError, struct.error)
    damage = (IndexError, OverflowError, TypeError) if source.is_gguf else ()
    kinds = (*files, *damage, ValueError, KeyError, ImportError, StrictDataclassError)
    try:
        yield
    except kinds as problem:
        if source.is_gguf:
            raise _unreadable_gguf(source, problem) from problem
        hint = "give a directory with config.json, a .gguf file, or a hub name and a network"
        if source.is_local:
            hint = "a file may be missing or damaged: copy or download it again"
        raise ConfigError(f"{what}: can't be loaded: {_first_words(problem)}", hint) from problem


def _unreadable_gguf(source: ModelSource, problem: Exception) -> ConfigError:
    """An error that names the .gguf file, both for its model and for its tokenizer."""
    reason = _first_words(problem)
    if not isinstance(problem, (ImportError, NotImplementedError)) and "support" not in reason:
        reason = "it is truncated or not a .gguf file"
    path = Path(source.location, source.arguments["gguf_file"])
    return ConfigError(
        f"{path}: can't be loaded: {reason}",
        hint=f"`sftctl inspect-ckpt {path}` shows its contents; copy or download it again",
    )


def _first_words(problem: Exception) -> str:
    """The first line of a library's message, or all of it if that line ends with a colon."""
    lines = str(problem).strip().splitlines() or [repr(problem)]
    return lines[0] if not lines[0].endswith(":") else " ".join(" ".join(lines).split())
