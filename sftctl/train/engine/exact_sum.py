"""ExactSum: the gradient of a step, with the same bits however the step is divided among ranks.

A sum of floats depends on the order of the numbers; a sum of integers does not. So each
micro-batch's gradient is rounded to a multiple of a power of two, called the unit. The multiples
are summed as integers.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import torch

from sftctl.model.loss import IGNORE_INDEX, TargetFacts
from sftctl.world import World, exact_dtype

T = TypeVar("T")

_NOT_FINITE = 1 << 20  # larger than the exponent of any float


class ExactSum:
    """Sums the gradients of parameters as 64-bit integers, so it needs 8 bytes per parameter.

    The unit is 2**-`finest`. A step has a larger unit if its sum would need more than 64 bits.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], finest: int = 50) -> None:
        self._parameters = parameters
        sizes = [p.numel() for p in self._parameters]
        device = self._parameters[0].device
        self._units = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        parts = zip(torch.split(self._units, sizes), self._parameters, strict=True)
        self._sums = [part.view_as(p) for part, p in parts]
        self._largest = torch.zeros((), device=device)
        self._finest = finest
        self._unit = math.ldexp(1.0, -finest)

    def accumulate(
        self, run: Callable[[], T], num_micro_batches: int, scale: float, world: World
    ) -> T:
        """Call `run`, which must call `add_gradients` after each backward pass. Returns its result.

        Afterwards every `.grad` has the sum over all micro-batches and ranks. If the sum needs a
        larger unit, `run` is called a second time. `num_micro_batches` is the largest number that a
        rank may have. `scale`, a power of two, is the factor by which the loss was multiplied.
        """
        bits = self._finest
        while True:
            self._begin(math.ldexp(scale, -bits))
            result = run()
            exponent = world.max(self._exponent(scale))
            fitting = 62 - exponent - num_micro_batches.bit_length()
            if fitting >= bits or exponent == _NOT_FINITE:
                self._write_gradients(world, is_finite=exponent != _NOT_FINITE)
                return result
            bits = fitting

    def add_gradients(self) -> None:
        """Add the `.grad` of one micro-batch to the sum, and clear it."""
        for parameter, total in zip(self._parameters, self._sums, strict=True):
            gradient = parameter.grad
            if gradient is not None:
                ends = torch.stack(torch.aminmax(gradient)).abs().amax()
                self._largest = torch.maximum(self._largest, ends)  # keeps NaN
                total += gradient.mul_(1 / self._unit).round_().to(torch.int64)
                gradient.zero_()

    def _begin(self, unit: float) -> None:
        self._unit = unit
        self._units.zero_()
        self._largest.zero_()

    def _exponent(self, scale: float) -> int:
        """The smallest e for which every gradient of this rank, divided by `scale`, is
        below 2**e.
        """
        largest = float(self._largest) / scale
        return math.frexp(largest)[1] if math.isfinite(largest) else _NOT_FINITE

    def _write_gradients(self, world: World, is_finite: bool) -> None:
        """Put the sum over ranks into every `.grad`; NaN if a gradient was not finite."""
        world.sum(self._units)
        unit = self._unit if is_finite else math.nan
        for parameter, total in zip(self._parameters, self._sums, strict=True):
            value = total.to(parameter.dtype).mul_(unit)
            parameter.grad = value if parameter.grad is None else parameter.grad.copy_(value)


def whole_units(value: torch.Tensor, total_weight: float) -> torch.Tensor:
    """Round a loss, or another sum, to a multiple of a unit. Returns float64.

    Sums of such values are exact as long as the mean is below 128, so their order does not matter.
    All values of a sum must be rounded with the same `total_weight`: the number of target tokens,
    or the sum of their weights if that is larger. The unit is 2**-24 up to a total weight of four
    million, and larger above.
    """
    bits = 24 - max(0, math.frexp(total_weight)[1] - 22)
    units_of_one = math.ldexp(1.0, bits)
    return (value.to(exact_dtype(value.device)) * units_of_one).round() / units_of_one


def hits_and_entropies(
    facts: TargetFacts, target_ids: torch.Tensor, total_weight: float
) -> torch.Tensor:
    """Two sums over the targets of a micro-batch, rounded by `whole_units`: shape (2,).

    The first is the number of targets that have the highest probability. The second is the sum of
    the entropies.
    """
    is_target = target_ids != IGNORE_INDEX
    sums = [(facts.are_hits & is_target).sum(), (facts.entropies * is_target).sum()]
    return torch.stack([whole_units(one, total_weight) for one in sums])
