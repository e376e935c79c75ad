"""A model as its configuration describes it, without its weights: its size, what a pass keeps.

torch's fake tensors have shape, dtype and device but no memory, so the model's own code says what
it would allocate, whatever the architecture.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from sftctl.model.load import configuration, from_configuration
from sftctl.model.loss import LossModule
from sftctl.model.tokenizer.tokenizer import ChatTokenizer


@dataclass(frozen=True, slots=True)
class Outline:
    """A model of fake tensors, and the mode in which they live."""

    model: Any
    mode: FakeTensorMode
    device: torch.device

    @property
    def num_parameters(self) -> int:
        """Tied ones once."""
        return sum(p.numel() for p in self.model.parameters())

    def kept_bytes(
        self, num_rows: int, num_tokens: int, num_targets: int, dtype: torch.dtype | None = None
    ) -> int | None:
        """What one forward pass over `num_rows` x `num_tokens` keeps for the backward pass.

        `dtype` is that of autocast. None where the model's code looks at values, which fake tensors
        don't have.
        """
        kept = _Kept(self.model)
        autocast = torch.autocast(self.device.type, dtype, enabled=dtype is not None)
        hooks = saved_tensors_hooks(kept.take, _as_it_is)
        with self.mode, self.device, autocast, hooks, _unlogged():
            ids = torch.zeros(num_rows, num_tokens, dtype=torch.long)  # (B, T)
            places = torch.zeros(num_targets, dtype=torch.long)  # (N,)
            lengths = torch.full((num_rows,), num_tokens)  # (B,)
            try:
                LossModule(self.model).train()(ids, places, places, lengths)
            except (RuntimeError, NotImplementedError, ValueError, TypeError):
                return None  # each torch and model has its own way to say it
        return kept.num_bytes


def outline_of(name: str, tokenizer: ChatTokenizer, device: torch.device) -> Outline:
    """The outline of what `load_model(name, tokenizer, …)` would load; ConfigError as there."""
    config = configuration(name, tokenizer)
    with FakeTensorMode() as mode, device:
        return Outline(from_configuration(config), mode, device)


@contextmanager
def _unlogged() -> Iterator[None]:
    """torch logs a traceback where fake tensors fail, which is an answer here, and no error."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    was, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was


class _Kept:
    """The storages that autograd keeps, each once, without the model's own."""

    def __init__(self, model: Any) -> None:
        self._own = {_storage(parameter) for parameter in model.parameters()}
        self._sizes: dict[int, int] = {}
        self._alive: list[torch.Tensor] = []  # a storage that is gone could lend its name

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        self._sizes[_storage(tensor)] = tensor.untyped_storage().nbytes()
        self._alive.append(tensor)
        return tensor

    @property
    def num_bytes(self) -> int:
        return sum(size for name, size in self._sizes.items() if name not in self._own)


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
