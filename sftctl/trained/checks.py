"""What chat and export refuse in the first second, before torch is loaded."""

import math
from pathlib import Path
from typing import Literal

from sftctl.checkpoint.layout import MANIFEST_NAME
from sftctl.errors import ConfigError, NoCheckpoint
from sftctl.model.sampling import Sampling
from sftctl.runs.directory import RunDir, runs_nearby

DTYPES = ("float32", "bfloat16", "float16")

_COLDEST = 1e-4

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


def check_sampling(sampling: Sampling) -> None:
    """Refuse numbers that mean nothing, and flags without an effect."""
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        raise ConfigError(
            f"--temperature: expected a number from 0 on, got {sampling.temperature}",
            hint="0 takes the likeliest token each time; 0.8 is usual for sampling",
        )
    if 0 < sampling.temperature < _COLDEST:
        raise ConfigError(
            f"--temperature: {sampling.temperature} is too near 0 to divide by",
            hint="0 takes the likeliest token each time",
        )
    if not 0 < sampling.top_p <= 1:
        raise ConfigError(
            f"--top-p: {sampling.top_p} is not above 0 and at most 1",
            hint="leave it out for all tokens; 0.95 leaves the unlikely ones out",
        )
    if sampling.temperature == 0 and (sampling.top_p != 1 or sampling.top_k != 0):
        raise ConfigError(
            "--top-p and --top-k choose among sampled tokens, and nothing is sampled",
            hint="add a --temperature above 0, such as 0.8",
        )
