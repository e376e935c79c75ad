"""Weights: the float32 weights that the optimizer updates, and the model's parameters.

In float32 and float16 both are the same tensors. In bfloat16 the parameters are bfloat16 copies of
float32 master weights (Micikevicius et al. 2018). The gradient of each pass is added to a float32
sum, the optimizer updates the masters, and new copies are made once in each step.
"""

from typing import TYPE_CHECKING, Any

import torch

from sftctl.model.adapter.lora import has_adapter, saved_tensors
from sftctl.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Weights:
    """The float32 weights of a model by name (a `Stateful`). Tied weights appear once."""

    def __init__(self, model: "PreTrainedModel", compute_dtype: torch.dtype | None = None) -> None:
        """With `compute_dtype`, convert the model's parameters to it and keep float32 masters."""
        self.model = model
        self.named: dict[str, torch.nn.Parameter] = dict(model.named_parameters())
        self._computing: list[torch.Tensor] = []
        self._masters: list[torch.Tensor] = []
        self._master_by_id: dict[int, torch.Tensor] = {}
        self._flat: torch.Tensor | None = None
        if compute_dtype is not None:
            self._keep_masters(compute_dtype)

    def _keep_masters(self, dtype: torch.dtype) -> None:
        in_float32 = set(getattr(self.model, "_keep_in_fp32_modules", None) or ())
        for name, parameter in self.named.items():
            if not in_float32.isdisjoint(name.split(".")):
                continue
            # A frozen base is never updated, so it needs no master.
            if has_adapter(self.model) and not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
                continue
            values = parameter.detach().to(torch.float32, copy=True)
            master = torch.nn.Parameter(values, parameter.requires_grad)
            parameter.data = parameter.data.to(dtype)
            self.named[name] = master
            self._computing.append(parameter)
            self._masters.append(master)
            self._master_by_id[id(parameter)] = master

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        return [weight for weight in self.named.values() if weight.requires_grad]

    def master_of(self, parameter: torch.Tensor) -> torch.Tensor:
        """The float32 master of a parameter, or the parameter itself if it has no master."""
        return self._master_by_id.get(id(parameter), parameter)

    def use_one_buffer(self) -> None:
        """Make every gradient a view into one buffer, so that one call sums it over ranks."""
        sizes = [weight.numel() for weight in self.trained]
        self._flat = torch.zeros(sum(sizes), device=self.trained[0].device)
        for weight, part in zip(self.trained, torch.split(self._flat, sizes), strict=True):
            weight.grad = part.view_as(weight)

    def collect_gradients(self) -> None:
        """After a backward pass: add the bfloat16 gradients to the float32 sums."""
        sums, gradients = list[torch.Tensor](), list[torch.Tensor]()
        for master, computing in zip(self._masters, self._computing, strict=True):
            if computing.grad is not None and master.grad is not None:
                sums.append(master.grad)
                gradients.append(computing.grad)
            computing.grad = None
        if sums:
            torch._foreach_add_(sums, gradients)

    def sum_gradients(self, world: World) -> None:
        """Sum the gradients over all ranks."""
        if self._flat is not None:
            world.sum(self._flat)

    def clear_gradients(self) -> None:
        """Set all gradients to zero, or to None if there is no common buffer."""
        for computing in self._computing:
            computing.grad = None
        if self._flat is not None:
            self._flat.zero_()
            return
        for weight in self.trained:
            weight.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """After an update: copy the masters into the parameters that the model computes with."""
        if self._masters:
            torch._foreach_copy_(self._computing, self._masters)

    def state_dict(self) -> dict[str, Any]:
        """The tensors that a checkpoint saves, not copied. For a bfloat16 parameter, this is its
        master.
        """
        return {
            name: self.master_of(tensor).detach()
            for name, tensor in saved_tensors(self.model).items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy the values into the weights, in place."""
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                tensor.copy_(state_dict[name])
        self.publish()
