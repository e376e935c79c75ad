"""Turn the errors of transformers about a model or tokenizer into one ConfigError."""

import errno
import os
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sftctl.disk import who_may_not_read
from sftctl.errors import MORE_MEMORY, ConfigError, SftctlError, lacks_memory
from sftctl.jsonio import loads
from sftctl.model.folder.config_edits import fault_of_config
from sftctl.model.folder.read_files import index_of
from sftctl.model.folder.remote_code import code_in
from sftctl.model.folder.tokenizer_files import fault_of_vocabulary
from sftctl.model.gguf.file import fault_of_tokenizer
from sftctl.model.source import ModelSource
from sftctl.words import in_shell, printable

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_CODE = re.compile(r"GLOBAL ([\w.]+)")


@contextmanager
def from_hub_or_disk(what: str, source: ModelSource) -> Iterator[None]:
    """Turn any error of transformers in this context into one ConfigError with a hint."""
    try:
        yield
    except SftctlError:
        raise
    # Which types are raised depends on the architecture and the file format.
    except Exception as problem:
        if lacks_memory(problem):
            reason = f"{what}: not enough memory: {_first_words(problem)}"
            hint = f"{MORE_MEMORY}; or its config.json asks for too much"
            raise ConfigError(reason, hint) from problem
        if source.is_gguf:
            raise _unreadable_gguf(what, source, problem) from problem
        raise _error(what, source, problem) from problem


def _error(what: str, source: ModelSource, problem: Exception) -> ConfigError:
    """The error for a directory or the hub."""
    if "trust_remote_code" in str(problem):
        return _needs_code(what, source)
    if "does not recognize this architecture" in str(problem):
        return _unknown_type(what, problem)
    if "alidation error for" in str(problem):
        hint = "a value in it is wrong: correct it, or copy the model again"
        return ConfigError(f"{what}: config.json: {_last_words(problem)}", hint)
    if source.is_local and (closed := _closed_file(Path(source.location), problem)):
        return ConfigError(f"{closed[0]}: {os.strerror(errno.EACCES)}", closed[1])
    if source.is_local and (fault := _fault_of_folder(what, Path(source.location), problem)):
        return ConfigError(f"{what}: {fault[0]}", fault[1])
    hint = "give a directory with config.json, a .gguf file, or a hub name and a network"
    if source.is_local:
        hint = "a file may be missing or damaged: copy or download it again"
    return ConfigError(f"{what}: can't be loaded: {_first_words(problem)}", hint)


def _closed_file(path: Path, problem: BaseException | None) -> tuple[Path, str] | None:
    """(file, hint): the file that this user may not read and on which a library stopped. None for
    another error.
    """
    while problem is not None and os.strerror(errno.EACCES) not in str(problem):
        problem = problem.__cause__ or problem.__context__
    if problem is None:
        return None
    files = [path, *sorted(path.glob("*"))] if path.is_dir() else [path]
    hints = ((file, who_may_not_read(file)) for file in files)
    return next(((file, hint) for file, hint in hints if hint), None)


def _fault_of_folder(what: str, folder: Path, problem: Exception) -> tuple[str, str] | None:
    """What is wrong with a file in the folder, and what to change. None if this is not known."""
    text = str(problem)
    if "TorchScript" in text:
        reason = "its weights are a TorchScript program, which is never run"
        return reason, "take .safetensors weights"
    if what.startswith("tokenizer ") and (fault := fault_of_vocabulary(folder, problem)):
        return f"{fault[0]}: {_first_words(problem)}", fault[1]
    if "Weights only load failed" in text or "weights_only" in text:
        named = _CODE.search(text)
        code = f" ({printable(named[1])})" if named else ""
        reason = f"its pickled weights refer to code{code}, which is never run"
        look = f"`sftctl inspect-ckpt {in_shell(folder)}` names the code"
        return reason, f"take .safetensors weights; {look}"
    return (
        _fault_of_json(folder / "config.json")
        or _fault_of_index(folder)
        or fault_of_config(_values_of(folder))
        or _fault_of_value(folder, problem, text)
    )


def _fault_of_index(folder: Path) -> tuple[str, str] | None:
    """What is wrong with the index, and what to do, if it does not name a file for each tensor."""
    index = index_of(folder)
    if index is None:
        return None
    if fault := _fault_of_json(index):
        return fault
    found = loads(index.read_bytes())
    named = found.get("weight_map")
    if isinstance(named, dict) and named and all(isinstance(one, str) for one in named.values()):
        return None if "metadata" in found else _no_metadata(index)
    reason = f"{index.name}: its weight_map does not name a file for each tensor"
    return reason, "copy or download this file again"


def _no_metadata(index: Path) -> tuple[str, str]:
    hint = 'add "metadata": {} to it, or copy or download this file again'
    return f"{index.name}: it has no metadata, which transformers needs", hint


def _values_of(folder: Path) -> dict[str, Any]:
    try:
        return dict(loads((folder / "config.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def _fault_of_json(file: Path) -> tuple[str, str] | None:
    """Why a file is not a JSON object, and what to do. None if it is one, or does not exist."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    if content.startswith(BOM_UTF8):
        return f"{file.name} begins with a byte order mark", "save it as UTF-8 without one"
    try:
        found = loads(content)
    except ValueError as problem:
        return f"{file.name} is not JSON: {problem}", "correct it, or copy the model again"
    if isinstance(found, dict):
        return None
    return f"{file.name} is not a JSON object", "copy the model again"


def _fault_of_value(folder: Path, problem: Exception, text: str) -> tuple[str, str] | None:
    """The value in config.json that transformers can't use, and the change; None if unknown."""
    if "FlashAttention" in text or "flash_attn" in text or "attn_implementation" in text:
        keys = '"attn_implementation" and "_attn_implementation"'
        reason = "config.json asks for a kind of attention that is not installed here"
        return f"{reason}: {_first_words(problem)}", f"remove {keys} from config.json"
    if "model_type" in text and "Unrecognized model" in text:
        hint = 'add it, such as "model_type": "llama", if you know which model it is'
        return "config.json has no model_type", hint
    if isinstance(problem, KeyError) and problem.args:
        key = _key_with(_values_of(folder), problem.args[0])
        if key is not None:
            reason = f"{printable(repr(problem.args[0]))}, which transformers does not know"
            hint = f"correct {key} in config.json: the model's page says what it was trained with"
            return f"config.json: {key} is {reason}", hint
    return None


def _key_with(values: object, wanted: object) -> str | None:
    """The dotted key of the value `wanted` in nested objects, such as
    `rope_parameters.rope_type`.
    """
    for name, value in values.items() if isinstance(values, dict) else ():
        if value == wanted:
            return str(name)
        if (inner := _key_with(value, wanted)) is not None:
            return f"{name}.{inner}"
    return None


def _unknown_type(what: str, problem: Exception) -> ConfigError:
    from transformers import __version__

    named = re.search(r"model type `([^`]*)`", str(problem))
    kind = named[1] if named else "of its config.json"
    return ConfigError(
        f"{what}: transformers {__version__} does not know the model type {kind}",
        hint="a newer transformers may know it; else choose another model",
    )


def _needs_code(what: str, source: ModelSource) -> ConfigError:
    """The error for a model that needs its own Python files, which sftctl never runs."""
    files = code_in(Path(source.location)) or "named by auto_map in its config.json"
    return ConfigError(
        f"{what}: needs Python code of its own ({files}), and sftctl runs no code of a model",
        hint="choose a model that transformers knows by itself",
    )


def _unreadable_gguf(what: str, source: ModelSource, problem: Exception) -> ConfigError:
    """The error for a .gguf file that can't be read, as a model or as a tokenizer."""
    reason = _first_words(problem)
    is_cut = "reshape" in reason  # transformers reads the tensors for a tokenizer too
    of_tokenizer = what.startswith("tokenizer ") and not is_cut
    if of_tokenizer and (fault := fault_of_tokenizer(source.gguf_path)):
        hint = "give its tokenizer: --tokenizer with a directory, another .gguf or a hub name"
        return ConfigError(f"{source.gguf_path}: {fault}", hint)
    if not isinstance(problem, (ImportError, NotImplementedError)) and "support" not in reason:
        reason = "it is truncated or not a .gguf file"
    path = source.gguf_path
    return ConfigError(
        f"{path}: can't be loaded: {reason}",
        hint=f"`sftctl inspect-ckpt {in_shell(path)}` shows its contents; copy or download it "
        "again",
    )


def _last_words(problem: Exception) -> str:
    """The last line of a library's message, without the error type at its start."""
    last = _plain(problem).splitlines()[-1].strip()
    return re.sub(r"^\w+Error: ", "", last)


def _first_words(problem: Exception) -> str:
    """The first line of a library's message, or all lines if the first ends with a colon."""
    lines = _plain(problem).splitlines() or [repr(problem)]
    return lines[0] if not lines[0].endswith(":") else " ".join(" ".join(lines).split())


def _plain(problem: Exception) -> str:
    """The message without colour codes, and with other control characters escaped."""
    return printable(_COLOURS.sub("", str(problem)).strip(), keep="\n\t")
