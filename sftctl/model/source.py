"""Where a pretrained model or tokenizer comes from: a directory, a .gguf or .pth file, the hub."""

import json
import logging
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from sftctl.disk import read_refusals, require_utf8
from sftctl.environment import load_large_libraries
from sftctl.errors import ConfigError
from sftctl.jsonio import loads
from sftctl.model.adapter.needs import refuse_adapter
from sftctl.model.folder.config_edits import wrong_size
from sftctl.model.folder.quantized import WEIGHT_FILES, require_not_quantized, require_numbers
from sftctl.model.folder.read_files import require_single_tensors, unread_files
from sftctl.model.folder.remote_code import code_in
from sftctl.model.folder.wrong_names import refuse_address, renamed_config
from sftctl.model.gguf.kind import LFS_POINTER, LFS_PROBLEM, require_readable
from sftctl.model.presets import PRESETS
from sftctl.words import in_shell, printable

_SETTINGS = (
    *("config.json", "generation_config.json", "adapter_config.json", "tokenizer.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
)
_RIGHTS = "change its permissions, or copy the model"
_MOST_LOOKED_AT = 100  # folders inside
_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "tekken.json")
NO_CODE = {"trust_remote_code": False}
"""Arguments for every call that loads a configuration, model or tokenizer. Without them,
transformers asks on stdin whether it may run the Python files of a model. With `yes

sftctl …` it would run them.
"""

_CHECK = "check the path: it is relative to the current folder"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What to pass to `from_pretrained`."""

    location: str
    arguments: dict[str, Any]

    @property
    def is_local(self) -> bool:
        """Whether the model is on this disk."""
        return Path(self.location).exists()

    @property
    def is_gguf(self) -> bool:
        """Whether the model is one .gguf file."""
        return "gguf_file" in self.arguments

    @property
    def gguf_path(self) -> Path:
        """The .gguf file."""
        return Path(self.location, self.arguments["gguf_file"])

    @property
    def is_minimind(self) -> bool:
        """Whether the model is a file of MiniMind's weights. Such a file has no tokenizer."""
        return self.location.endswith(".pth")

    @classmethod
    def of(cls, name: str) -> "ModelSource":
        """The source that `name` means.

        Raises ConfigError if `name` is neither an existing path nor a possible name on the hub.
        """
        path = Path(name)
        require_utf8(path, ConfigError)
        if path.suffix == ".gguf":
            if not path.is_file():
                raise ConfigError(f"{name}: no such file", hint=_CHECK)
            require_readable(path)
            return cls(str(path.parent), {"gguf_file": path.name} | NO_CODE)
        if path.suffix == ".pth":
            if not path.is_file():
                raise ConfigError(f"{name}: no such file", hint=_CHECK)
            with read_refusals(path, ConfigError, _RIGHTS):
                path.open("rb").close()
            return cls(name, {})
        if path.is_dir():  # a directory is never searched on the hub
            return cls(name, {"local_files_only": True} | NO_CODE)
        _refuse_other_file(path)
        refuse_address(name)
        if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise ConfigError(f"{name}: no such directory", hint=_CHECK)
        if name in PRESETS:  # the name is for a tokenizer: a preset as a model does not get here
            raise ConfigError(
                f"{name}: a preset has no tokenizer of its own",
                hint="leave the tokenizer out: a preset takes the bundled one",
            )
        if "/" not in name:
            similar = get_close_matches(name, PRESETS, n=1)
            raise ConfigError(
                f"{name}: neither a preset ({', '.join(PRESETS)}) nor a directory, "
                ".gguf or .pth file or owner/name on the hub",
                hint=f"did you mean {similar[0]}?" if similar else _CHECK,
            )
        return cls(name, NO_CODE if hub_resolves() else {"local_files_only": True} | NO_CODE)


def _refuse_other_file(path: Path) -> None:
    """ConfigError for a file that is neither .gguf nor .pth."""
    if path.is_file():
        hint = f"did you mean its folder, {path.parent}?"
        if _is_gguf(path):
            own = path.with_suffix(".gguf")
            hint = f"it is a GGUF file: `mv {in_shell(path)} {in_shell(own)}` gives it its ending"
        elif not (path.parent / "config.json").is_file():
            hint = f"`sftctl inspect-ckpt {in_shell(path)}` says what it is"
        raise ConfigError(f"{path}: a file, but not a .gguf or .pth file", hint)


def _is_gguf(file: Path) -> bool:
    with read_refusals(file, ConfigError, _RIGHTS), file.open("rb") as stream:
        return stream.read(4) == b"GGUF"


@cache
def hub_resolves() -> bool:
    """Whether the hub's host name can be resolved.

    If not, only cached files are used. Otherwise the hub's library would try to connect for a
    minute.
    """
    from huggingface_hub.constants import ENDPOINT

    if getproxies():  # a proxy can resolve names that this machine can't
        return True
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


@cache
def on_stderr(message: str) -> None:
    """Print a warning about a model or tokenizer. Each text is printed once in a process."""
    with suppress(OSError):  # a full disk
        print(f"warning: {printable(message)}", file=sys.stderr)


def quiet() -> None:
    """Silence the progress bars and warnings of the libraries. sftctl reports problems itself."""
    from transformers.utils import logging as transformers_logging

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def require_model_folder(name: str, warn: Callable[[str], None] = on_stderr) -> None:
    """ConfigError for a directory without a model, or with weights that can't be trained."""
    folder = Path(name)
    if folder.is_dir():
        _require_settings(folder)
        has_weights = any(any(folder.glob(one)) for one in WEIGHT_FILES)
        settings = _json_or_none(folder / "adapter_config.json")
        refuse_adapter(folder, settings, has_weights=has_weights)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ConfigError(
            f"{name}: no config.json in this directory, so there is no model in it",
            hint=_inside(folder, "config.json")
            or renamed_config(folder)
            or "a Hugging Face model has config.json and its weights in one directory",
        )
    if folder.is_dir():
        values = _json_or_none(folder / "config.json")
        if isinstance(values, dict):  # transformers raises an error for any other content
            require_not_quantized(name, values)
            if wrong := wrong_size(values):
                raise ConfigError(f"model {name}: config.json: {wrong[0]}", hint=wrong[1])
        require_numbers(folder)
        require_single_tensors(name, folder)
        if line := unread_files(folder):
            warn(f"model {name}: {line}")


def _require_settings(folder: Path) -> None:
    """ConfigError if this process may not read the folder or one of its JSON files.

    Also for a JSON file that is a Git LFS pointer.
    """
    with read_refusals(folder, ConfigError, _RIGHTS):
        next(folder.iterdir(), None)
    for name in _SETTINGS:
        file, start = folder / name, b""
        with read_refusals(file, ConfigError, _RIGHTS):
            if file.is_file():
                with file.open("rb") as stream:
                    start = stream.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            hint = "`git lfs pull` in its folder downloads the files"
            raise ConfigError(f"{file}: {LFS_PROBLEM}", hint)


def _json_or_none(file: Path) -> object:
    with suppress(OSError, ValueError):
        content = file.read_bytes()
        try:
            return loads(content)
        except ValueError:
            return json.loads(content)  # transformers too takes NaN and Infinity
    return None


def require_tokenizer_folder(name: str) -> None:
    """ConfigError for a directory without a tokenizer."""
    folder = Path(name)
    if folder.is_dir():
        _require_settings(folder)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):
        raise ConfigError(
            f"{name}: no tokenizer.json in this directory, so there is no tokenizer in it",
            hint=_inside(folder, "tokenizer.json")
            or "`AutoTokenizer.from_pretrained(…).save_pretrained(DIR)` writes one",
        )


def tokenizer_class(source: ModelSource) -> Any:
    """The class that loads a tokenizer.

    AutoTokenizer finds the class of any tokenizer, but imports torch. It is not used for a folder
    without a model whose tokenizer has transformers' plain class.
    """
    folder = Path(source.location)
    read = _json_or_none(folder / "tokenizer_config.json")
    name = read.get("tokenizer_class") if isinstance(read, dict) and "auto_map" not in read else ""
    is_alone = (folder / "tokenizer.json").is_file() and not (folder / "config.json").exists()
    if is_alone and not source.is_gguf and name in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    load_large_libraries()
    from transformers import AutoTokenizer

    return AutoTokenizer


def _inside(folder: Path, name: str) -> str | None:
    """A hint with the subfolder that has the file: of a run, a store, a cache of the hub, or of
    another folder around models (the newest one). None if there is none."""
    places = [folder / "final", folder / "tokenizer"]
    for pattern in ("snapshots/*", "*"):
        inner = islice(folder.glob(pattern), _MOST_LOOKED_AT)
        found = [one for one in inner if (one / name).is_file()]
        places += sorted(found, key=lambda one: (one / name).stat().st_mtime, reverse=True)
    named = next((place for place in places if (place / name).is_file()), None)
    return None if named is None else f"did you mean {named}?"


def tell_of_code(source: ModelSource, warn: Callable[[str], None] = on_stderr) -> None:
    """Warn if a directory names Python files. They are not run."""
    code = None if source.is_gguf else code_in(Path(source.location))
    if code is not None:
        used = "; transformers' own classes are used" if _has_known_type(source) else ""
        warn(f"{source.location}: not run: {code}{used}")


def _has_known_type(source: ModelSource) -> bool:
    """Whether transformers has classes for the folder's model type. A tokenizer alone has none."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    values = _json_or_none(Path(source.location) / "config.json")
    return not isinstance(values, dict) or values.get("model_type") in CONFIG_MAPPING_NAMES
