"""What chat and export refuse in the first second, before torch is loaded."""

from pathlib import Path
from typing import Literal

from sftctl.checkpoint.layout import MANIFEST_NAME
from sftctl.errors import ConfigError, NoCheckpoint
from sftctl.runs.directory import RunDir, runs_nearby

DTYPES = ("float32", "bfloat16", "float16")

Kind = Literal["run", "checkpoint", "model"]


def kind_of(path: Path) -> Kind:
    """What `path` is; NoCheckpoint where it holds no trained model."""
    if RunDir(path).run_file.is_file():
        return "run"
    if (path / MANIFEST_NAME).is_file() and RunDir(path.parent.parent).run_file.is_file():
        return "checkpoint"
    if (path / "config.json").is_file():
        return "model"
    what = "neither a run, nor a checkpoint of one, nor a model directory"
    if not path.exists():
        what = "no such directory"
    raise NoCheckpoint(f"{path}: {what}", hint=runs_nearby(path))


def check_export(source: Path, output: Path, dtype: str) -> None:
    """Refuse a source without a model, an output that is there, and an unknown type."""
    if dtype not in DTYPES:
        raise ConfigError(
            f"--dtype: expected {' or '.join(DTYPES)}, got {dtype!r}",
            hint="bfloat16 halves the size, float32 is what was trained",
        )
    if output.exists():
        raise ConfigError(f"{output}: exists already", hint="choose another --output")
    kind_of(source)
