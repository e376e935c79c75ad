"""A model without its weights, to count its parameters and the memory of a forward pass.

A fake tensor of torch has a shape, a dtype and a device, but no memory. So the model's own code can
run and shows what it would allocate. This works for any architecture.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from sftctl.config.adapter import AdapterConfig
from sftctl.model.adapter.lora import add_adapter
from sftctl.model.folder.load_errors import from_hub_or_disk
from sftctl.model.folder.weight_names import Warn
from sftctl.model.load import configuration, from_configuration, require_names
from sftctl.model.loss import LossModule
from sftctl.model.presets import is_preset
from sftctl.model.source import ModelSource, on_stderr
from sftctl.model.tokenizer.library_warnings import library_warnings
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class FakeModel:
    """A model of fake tensors, and the torch mode that its code must run in."""

    model: "PreTrainedModel"
    mode: FakeTensorMode
    device: torch.device
    stored_dtype: torch.dtype  # the dtype of the weights in their files

    @property
    def num_parameters(self) -> int:
        """Tied parameters are counted once."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def num_trained(self) -> int:
        """The number of parameters that are trained."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def activation_bytes(
        self, num_tokens: int, num_targets: int, dtype: torch.dtype = torch.float32
    ) -> int | None:
        """The bytes that a forward pass over `num_tokens` in `dtype` keeps for the backward pass.

        As in training, bfloat16 means bfloat16 copies of the weights, and float16 means autocast.
        Returns None if the model's code reads values of tensors: fake tensors have none.
        """
        module = LossModule(self.model).train()
        is_copied = dtype == torch.bfloat16
        with self.mode:
            weights = {
                name: weight.detach().to(dtype).requires_grad_(weight.requires_grad)
                if is_copied
                else weight
                for name, weight in module.named_parameters()
            }
        if is_copied:
            module.head_weight = self.model.get_output_embeddings().weight
        saved = _SavedStorages([*module.parameters(), *weights.values()])
        hooks = saved_tensors_hooks(saved.add, _unchanged)
        autocast = torch.autocast(self.device.type, dtype, enabled=dtype == torch.float16)
        with self.mode, self.device, autocast, hooks, _no_log():
            ids = torch.zeros(1, num_tokens, dtype=torch.long)  # (1, T)
            targets = torch.zeros(num_targets, dtype=torch.long)  # (N,)
            lengths = torch.full((1,), num_tokens, dtype=torch.int32)  # (R,)
            try:
                functional_call(module, weights, (ids, ids, targets, targets, lengths))
            except (RuntimeError, NotImplementedError, ValueError, TypeError, AssertionError):
                return None  # which of these it is depends on torch and on the model
        return saved.num_bytes


def fake_model(
    name: str,
    tokenizer: ChatTokenizer,
    device: torch.device,
    new_tokens: Sequence[str] | None = None,
    adapter: AdapterConfig | None = None,
    warn: Warn = on_stderr,
) -> FakeModel:
    """The model that `load_model(name, tokenizer, …)` would load, with fake tensors.

    Names and shapes of the weights are compared with those in the files; no weight is read. With
    `adapter`, the model has this adapter. Raises the same ConfigErrors as `load_model`.
    """
    warn = cache(warn)  # the same file is read several times
    config = configuration(name, tokenizer, new_tokens, warn)
    is_dense = name.endswith(".gguf") or not isinstance(config.dtype, torch.dtype)
    stored_dtype = (
        torch.float32 if is_dense else config.dtype
    )  # read before the next call, which sets `config.dtype`
    if not is_preset(name):
        require_names(name, config, warn)
    shapes_fit = (
        nullcontext()
        if is_preset(name)
        else from_hub_or_disk(f"model {name}", ModelSource.of(name))
    )
    with library_warnings(f"model {name}", warn):
        with shapes_fit, FakeTensorMode(allow_non_fake_inputs=True) as mode, device:
            model = from_configuration(config)
        if adapter is not None:
            add_adapter(model, adapter, 0, mode)
    return FakeModel(model, mode, device, stored_dtype)


@contextmanager
def _no_log() -> Iterator[None]:
    """In this context, torch does not log the traceback of a failing fake tensor, which is
    expected.
    """
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


class _SavedStorages:
    """Counts the bytes of the storages that autograd saves. Storages of weights do not count."""

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        self._weights = {_storage(weight) for weight in weights}
        self._sizes: dict[int, int] = {}
        # A freed storage's address could be used again, and look like the same storage.
        self._alive: list[torch.Tensor] = []

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        self._sizes[_storage(tensor)] = tensor.untyped_storage().nbytes()
        self._alive.append(tensor)
        return tensor

    @property
    def num_bytes(self) -> int:
        return sum(size for key, size in self._sizes.items() if key not in self._weights)


def _unchanged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
