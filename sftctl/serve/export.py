"""A plain Hugging Face directory from a run or a checkpoint."""

from pathlib import Path

import torch

from sftctl.disk import new_folder
from sftctl.errors import CheckpointError, ConfigError
from sftctl.model.load import save_pretrained
from sftctl.serve.trained import open_trained

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export_model(source: Path, output: Path, dtype: str) -> None:
    """Write `output`, whole or not at all; it must not exist."""
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype: expected {' or '.join(DTYPES)}, got {dtype!r}")
    if output.exists():
        raise ConfigError(f"{output}: exists already", hint="choose another --output")
    model, tokenizer = open_trained(source)
    try:
        with new_folder(output) as folder:
            save_pretrained(model.to(DTYPES[dtype]), tokenizer, folder)
    except OSError as problem:
        raise CheckpointError(f"{output}: can't be written: {problem.strerror}") from problem
