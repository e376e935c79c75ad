"""A model without its weights: how many parameters it has, and what a forward pass keeps.

torch's fake tensors have a shape, a dtype and a device but no memory. So the model's own code runs
and shows what it would allocate, for any architecture.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from sftctl.model.load import configuration, from_configuration
from sftctl.model.loss import LossModule
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class FakeModel:
    """A model of fake tensors, and the torch mode that its code must run in."""

    model: "PreTrainedModel"
    mode: FakeTensorMode
    device: torch.device

    @property
    def num_parameters(self) -> int:
        """Tied parameters are counted once."""
        return sum(p.numel() for p in self.model.parameters())

    def activation_bytes(
        self, num_tokens: int, num_targets: int, dtype: torch.dtype = torch.float32
    ) -> int | None:
        """What one forward pass over `num_tokens` in `dtype` keeps for the backward pass.

        Returns None if the model's code reads values, which fake tensors do not have.
        """
        saved = _SavedStorages(self.model)
        hooks = saved_tensors_hooks(saved.add, _unchanged)
        autocast = torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
        with self.mode, self.device, autocast, hooks, _no_log():
            ids = torch.zeros(1, num_tokens, dtype=torch.long)  # (1, T)
            targets = torch.zeros(num_targets, dtype=torch.long)  # (N,)
            lengths = torch.full((1,), num_tokens, dtype=torch.int32)  # (R,)
            try:
                LossModule(self.model).train()(ids, ids, targets, targets, lengths)
            except (RuntimeError, NotImplementedError, ValueError, TypeError):
                return None  # which of them depends on torch and on the model
        return saved.num_bytes


def fake_model(name: str, tokenizer: ChatTokenizer, device: torch.device) -> FakeModel:
    """The model that `load_model(name, tokenizer, …)` would load; ConfigError as there."""
    config = configuration(name, tokenizer)
    with FakeTensorMode() as mode, device:
        return FakeModel(from_configuration(config), mode, device)


@contextmanager
def _no_log() -> Iterator[None]:
    """Without the traceback that torch logs when fake tensors fail: here that is no error."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


class _SavedStorages:
    """The storages that autograd saves, each counted once, without those of the parameters."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._parameters = {_storage(parameter) for parameter in model.parameters()}
        self._sizes: dict[int, int] = {}
        self._alive: list[torch.Tensor] = []  # a freed storage's address could be used again

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        self._sizes[_storage(tensor)] = tensor.untyped_storage().nbytes()
        self._alive.append(tensor)
        return tensor

    @property
    def num_bytes(self) -> int:
        return sum(size for key, size in self._sizes.items() if key not in self._parameters)


def _unchanged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
