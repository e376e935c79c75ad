"""ExactSum: the gradient of a step, the same bits however its micro-batches are dealt to ranks.

Sums of floats depend on their order. So each micro-batch's gradient is rounded to whole units of a
power of two, and these integers are summed over micro-batches and ranks: such sums do not.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import torch

from sftctl.world import World

T = TypeVar("T")

FINEST = 50
"""A unit is 2**-FINEST, or coarser in a step whose gradients would overflow 64 bits."""

_NOT_FINITE = 1 << 20  # beyond the exponent of any number


class ExactSum:
    """Sums the gradients of a module's parameters in fixed point: 8 bytes a parameter."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        sizes = [p.numel() for p in self._parameters]
        device = self._parameters[0].device
        self._units = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        parts = zip(torch.split(self._units, sizes), self._parameters, strict=True)
        self._sums = [part.view_as(p) for part, p in parts]
        self._largest = torch.zeros((), device=device)
        self._unit = math.ldexp(1.0, -FINEST)

    def of_step(
        self, run: Callable[[], T], num_micro_batches: int, scale: float, world: World
    ) -> T:
        """Call `run`, which calls `take` after each backward pass; then the step's sum is in place.

        `num_micro_batches` is an upper bound, over all ranks; `scale`, a power of two, is what the
        loss was multiplied with. Where the unit proves too fine the step is run once more.
        """
        bits = FINEST
        while True:
            self._begin(math.ldexp(scale, -bits))
            result = run()
            exponent = world.max(self._exponent(scale))
            fitting = 62 - exponent - num_micro_batches.bit_length()
            if fitting >= bits or exponent == _NOT_FINITE:
                self._give(world, finite=exponent != _NOT_FINITE)
                return result
            bits = fitting

    def take(self) -> None:
        """Add the gradients of one micro-batch, and leave none."""
        for parameter, total in zip(self._parameters, self._sums, strict=True):
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                ends = torch.stack(torch.aminmax(gradient)).abs().amax()
                self._largest = torch.maximum(self._largest, ends)  # keeps what is no number
                total += gradient.mul_(1 / self._unit).round_().to(torch.int64)

    def _begin(self, unit: float) -> None:
        self._unit = unit
        self._units.zero_()
        self._largest.zero_()

    def _exponent(self, scale: float) -> int:
        """Every unscaled gradient of this rank is below 2**exponent."""
        largest = float(self._largest) / scale
        return math.frexp(largest)[1] if math.isfinite(largest) else _NOT_FINITE

    def _give(self, world: World, finite: bool) -> None:
        """The sum over ranks becomes the gradient; one that was not finite is no number."""
        world.sum(self._units)
        unit = self._unit if finite else math.nan
        for parameter, total in zip(self._parameters, self._sums, strict=True):
            parameter.grad = total.to(parameter.dtype).mul_(unit)


def whole_units(loss_sum: torch.Tensor) -> torch.Tensor:
    """The loss in float64, to 2**-24: sums of such are exact below 2**29, so in any order alike."""
    return (loss_sum.double() * (1 << 24)).round() / (1 << 24)
