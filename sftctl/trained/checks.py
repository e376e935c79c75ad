"""Checks for chat and export that run before torch is loaded."""

import os
from itertools import chain, count
from pathlib import Path
from typing import Literal

from sftctl.checkpoint.layout import MANIFEST_NAME
from sftctl.config.check import LONG_DTYPES
from sftctl.disk import refusals, require_utf8
from sftctl.errors import ConfigError, NoCheckpoint
from sftctl.folders import require_makeable
from sftctl.model.adapter.needs import is_adapter_folder
from sftctl.model.presets import is_preset
from sftctl.runs.directory import RunDir
from sftctl.runs.newest import is_model_of_run, run_around, runs_nearby
from sftctl.words import counted, in_shell

FORMATS = {
    "hf": ("float32", "bfloat16", "float16"),
    "gguf": ("float32", "bfloat16", "float16", "q8_0"),
    "adapter": ("float32",),
}
"""Format of `export` -> the dtypes that its weights can have. `hf` is a Hugging Face directory,
`gguf` a .gguf file, `adapter` an adapter in peft's format."""

_CONFIGS = ("config.json", "adapter_config.json")
_DATA = frozenset((".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt"))

Kind = Literal["run", "checkpoint", "model", "adapter"]


def kind_of(path: Path) -> Kind:
    """What `path` is. NoCheckpoint if it has no trained model, or if it can't be read."""
    with refusals(
        path, NoCheckpoint, hint="it needs a path that you may read", what="can't be read"
    ):
        return _kind_of(path)


def _kind_of(path: Path) -> Kind:
    require_utf8(path, NoCheckpoint)
    if RunDir(path).run_file.is_file():
        return "run"
    if (path / MANIFEST_NAME).is_file() and RunDir(path.parent.parent).run_file.is_file():
        return "checkpoint"
    if is_adapter_folder(path):
        return "adapter"
    if is_model_of_run(path):
        raise NoCheckpoint(f"{path}: a part of a run, without weights", hint=runs_nearby(path))
    if (path / "config.json").is_file() or _may_be_pretrained(path):
        return "model"
    if is_preset(str(path)):
        raise NoCheckpoint(
            f"{path}: a preset, which has no weights before it is trained",
            hint=f"`sftctl train --model {in_shell(path)}` trains it",
        )
    if path.is_file() and _DATA.intersection(path.suffixes) and run_around(path) is None:
        raise NoCheckpoint(
            f"{path}: a file of data, not a trained model",
            hint=f"`sftctl train --data {in_shell(path)}` trains on it",
        )
    what = "not a run, a run's checkpoint, a model directory or an adapter"
    if not path.exists():
        what = "no such directory"
    raise NoCheckpoint(f"{path}: {what}", hint=_models_inside(path) or runs_nearby(path))


def _models_inside(folder: Path) -> str | None:
    """A hint that names a model or adapter in the folder; None if there is none."""
    files = (one for name in _CONFIGS for one in folder.glob(f"*/{name}") if one.is_file())
    found = sorted({one.parent for one in files})
    others = f" ({counted(len(found), 'model')} in this folder)" if len(found) > 1 else ""
    return f"did you mean {found[0]}?{others}" if found else None


def _may_be_pretrained(path: Path) -> bool:
    """Whether `path` is a file of weights, or can be the name of a hub model (owner/name)."""
    if path.is_file():
        return path.suffix in (".gguf", ".pth")
    is_name = len(path.parts) == 2 and not path.is_absolute() and path.parts[0] not in ("..", "~")
    return is_name and not path.exists() and not Path(path.parts[0]).exists()


def default_output(source: Path, kind: str) -> Path:
    """Where `export` writes without --output: into the run, or next to the model directory.

    A number is added to the name if the path exists already.
    """
    name = "export" if kind == "hf" else f"export-{kind}"
    found = kind_of(source)
    if found == "run":
        first = source / name
    elif found == "checkpoint":
        first = source.parent.parent / f"{name}-{source.name}"
    else:
        whole = source.absolute()
        first = whole.with_name(f"{whole.name}-{name}")
        if not source.exists():
            first = Path(f"{source.name}-{name}")
        elif not source.is_absolute():
            first = Path(os.path.relpath(first))
    names = chain([first], (first.with_name(f"{first.name}-{n}") for n in count(2)))
    return next(path for path in names if not os.path.lexists(path))


def check_export(
    source: Path, output: Path, dtype: str, kind: str = "hf", merge: bool = False
) -> str:
    """Check an export before the work. Returns the long name of `dtype`, such as bfloat16.

    ConfigError for an unknown format or dtype, for an output that exists or can't be created, for
    an adapter without `merge`, and for `merge` without an adapter. NoCheckpoint for a source
    without a model.
    """
    if kind not in FORMATS:
        raise ConfigError(
            f"--format: expected {' or '.join(FORMATS)}, got {kind!r}",
            hint="hf is a directory for transformers, gguf a file for llama.cpp and Ollama, "
            "adapter is the trained part of a LoRA run, for peft",
        )
    name = LONG_DTYPES.get(dtype, dtype)
    if name not in FORMATS[kind]:
        raise ConfigError(
            f"--dtype: expected {' or '.join(FORMATS[kind])}, got {dtype!r}",
            hint="float32 is the type of the trained weights; float16 and bfloat16 halve the size"
            + (", q8_0 quarters it" if kind == "gguf" else ""),
        )
    require_utf8(output, ConfigError)
    if os.path.lexists(output):
        raise ConfigError(f"{output}: exists already", hint="choose another --output")
    with refusals(output, ConfigError, hint="choose another --output"):
        require_makeable(output)
    _check_adapter(source, kind, merge)
    return name


def _check_adapter(source: Path, kind: str, merge: bool) -> None:
    is_adapter = holds_adapter(source)
    if merge and not is_adapter:
        raise ConfigError(f"--merge: {source} is not an adapter", hint="leave --merge out")
    if merge and kind != "hf":
        raise ConfigError(
            f"--merge: writes a directory for transformers, not --format {kind}",
            hint="merge first; `sftctl export` makes a .gguf file of the merged directory",
        )
    if is_adapter and kind != "adapter" and not merge:
        raise ConfigError(
            f"{source}: is an adapter, not a complete model",
            hint="merge it first: `sftctl export --merge` adds it to its base and checks the result"
            if kind == "gguf"
            else "--merge adds it to its base and checks the result; --format adapter writes it as "
            "it is",
        )
    if kind == "adapter" and not is_adapter:
        raise ConfigError(
            f"--format adapter: {source} is not an adapter", hint="--format hf writes its model"
        )


def holds_adapter(source: Path) -> bool:
    """Whether a run, a checkpoint or a directory has an adapter instead of a complete model."""
    kind = kind_of(source)
    if kind in ("model", "adapter"):
        return kind == "adapter"
    run = RunDir.open(source if kind == "run" else source.parent.parent)
    return run.config().adapter.lora
