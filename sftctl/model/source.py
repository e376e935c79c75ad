"""Where a pretrained model or tokenizer comes from: a directory, a .gguf or .pth file, the hub."""

import logging
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from sftctl.errors import ConfigError
from sftctl.model.presets import PRESETS


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What `from_pretrained` is given."""

    location: str
    arguments: dict[str, Any]

    @property
    def is_minimind(self) -> bool:
        """Whether it is a file of MiniMind's weights: no tokenizer is in there."""
        return self.location.endswith(".pth")

    @classmethod
    def of(cls, name: str) -> "ModelSource":
        """Decide by what is on disk; a name that looks like a path must be there."""
        path = Path(name)
        if path.suffix == ".gguf":
            if not path.is_file():
                raise ConfigError(f"{name}: no such file")
            return cls(str(path.parent), {"gguf_file": path.name})
        if path.suffix == ".pth":
            if not path.is_file():
                raise ConfigError(f"{name}: no such file")
            return cls(name, {})
        if path.is_dir():
            return cls(name, {"local_files_only": True})  # never ask the hub about a directory
        if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise ConfigError(f"{name}: no such directory")
        if "/" not in name:
            raise ConfigError(
                f"{name}: neither a preset ({', '.join(PRESETS)}) nor a directory, "
                ".gguf or .pth file or owner/name on the hub"
            )
        return cls(name, {} if _hub_has_an_address() else {"local_files_only": True})


@cache
def _hub_has_an_address() -> bool:
    """False: no network, where the hub's library would try for a minute; its cache is left."""
    from huggingface_hub.constants import ENDPOINT

    if getproxies():  # who asks for us may know more names
        return True
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def quiet() -> None:
    """No bars and no advice of the libraries: what matters reaches the user as our own errors."""
    from transformers.utils import logging as transformers_logging

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def require_model_folder(name: str) -> None:
    """Refuse a directory that holds no model."""
    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        raise ConfigError(f"{name}: no config.json in this directory, so it holds no model")


def require_tokenizer_folder(name: str) -> None:
    """Refuse a directory that holds no tokenizer."""
    folder = Path(name)
    if folder.is_dir() and not [*folder.glob("tokenizer*"), *folder.glob("vocab*")]:
        raise ConfigError(f"{name}: no tokenizer.json in this directory, so it holds no tokenizer")


@contextmanager
def from_hub_or_disk(what: str) -> Iterator[None]:
    """Turn what transformers raises for a bad or unreachable name into one ConfigError."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    files = (OSError, SafetensorError, struct.error)
    try:
        yield
    except (*files, ValueError, KeyError, ImportError, StrictDataclassError) as problem:
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else repr(problem)
        raise ConfigError(
            f"{what}: can't be loaded: {reason}",
            hint="give a directory with config.json, a .gguf file, or a hub name and a network",
        ) from problem
