"""Checks of chat and export that run before torch is loaded."""

from pathlib import Path
from typing import Literal

from sftctl.checkpoint.layout import MANIFEST_NAME
from sftctl.errors import ConfigError, NoCheckpoint
from sftctl.runs.directory import RunDir, runs_nearby

DTYPES = ("float32", "bfloat16", "float16")

Kind = Literal["run", "checkpoint", "model"]


def kind_of(path: Path) -> Kind:
    """What `path` is; NoCheckpoint if it holds no trained model."""
    if RunDir(path).run_file.is_file():
        return "run"
    if (path / MANIFEST_NAME).is_file() and RunDir(path.parent.parent).run_file.is_file():
        return "checkpoint"
    if (path / "config.json").is_file():
        return "model"
    what = "not a run, a run's checkpoint or a model directory"
    if not path.exists():
        what = "no such directory"
    raise NoCheckpoint(f"{path}: {what}", hint=runs_nearby(path))


def check_export(source: Path, output: Path, dtype: str) -> None:
    """Refuse an unknown type, an output that exists, and a source without a model."""
    if dtype not in DTYPES:
        raise ConfigError(
            f"--dtype: expected {' or '.join(DTYPES)}, got {dtype!r}",
            hint="bfloat16 halves the size; float32 is the type of the trained weights",
        )
    if output.exists():
        raise ConfigError(f"{output}: exists already", hint="choose another --output")
    kind_of(source)
