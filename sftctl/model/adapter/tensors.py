"""Read the shapes of an adapter's tensors, and check their values before they are used."""

from pathlib import Path

import torch

from sftctl.config.existing_adapter import WEIGHTS_NAME
from sftctl.errors import ConfigError

_AGAIN = "copy or download the adapter again"


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in the adapter's file, by name.

    ConfigError if the file can't be read, or if a tensor has a value that is not finite.
    """
    from safetensors import SafetensorError, safe_open

    file, shapes = folder / WEIGHTS_NAME, dict[str, tuple[int, ...]]()
    try:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                tensor = opened.get_tensor(name)
                _require_numbers(file, name, tensor)
                shapes[name] = (*tensor.shape,)
    except SafetensorError as problem:
        raise ConfigError(f"{file}: damaged: {problem}", hint=_AGAIN) from problem
    except OSError as problem:
        raise ConfigError(f"{file}: can't be read: {problem}", hint=_AGAIN) from problem
    return shapes


def _require_numbers(file: Path, name: str, tensor: torch.Tensor) -> None:
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ConfigError(
            f"{file}: {name} is of type {kind}, which an adapter can't have", hint=_AGAIN
        )
    if not bool(torch.isfinite(tensor.float()).all()):
        raise ConfigError(
            f"{file}: {name} has values that are not finite numbers",
            hint="its training failed or the file is damaged: take an earlier checkpoint of it",
        )
