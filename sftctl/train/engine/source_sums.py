"""For each source of a mixture: its examples, tokens and loss in one step, over all ranks."""

import torch

from sftctl.data.loading.microbatch import MicroBatch
from sftctl.data.mixture import Mixture
from sftctl.metrics import SourceMetrics
from sftctl.model.loss import IGNORE_INDEX, TargetFacts
from sftctl.model.moe_loss import row_numbers
from sftctl.train.engine.exact_sum import whole_units
from sftctl.world import World, exact_dtype

_COLUMNS = ("examples", "tokens", "targets", "hits", "weights", "losses")


class SourceSums:
    """The sums of each source over the micro-batches of one rank.

    `total_weight` is the argument of `whole_units` for this step.
    """

    def __init__(self, mixture: Mixture, device: torch.device, total_weight: float) -> None:
        self._mixture, self._total_weight = mixture, total_weight
        size = len(mixture.sources), len(_COLUMNS)
        self._sums = torch.zeros(size, dtype=exact_dtype(device), device=device)  # (S, 6)

    def add(self, batch: MicroBatch, facts: TargetFacts) -> None:
        """Add a micro-batch. `facts` is what the loss module computed for its targets."""
        num_rows, dtype = len(batch.examples), self._sums.dtype
        row_of = row_numbers(batch.row_lengths, batch.input_ids.shape[1])  # (T,)
        rows = row_of.index_select(0, batch.target_positions)  # (N,)
        is_target = (batch.target_ids != IGNORE_INDEX).to(dtype)
        weights = is_target if batch.target_weights is None else batch.target_weights.to(dtype)
        columns = [is_target, is_target * facts.are_hits, weights, weights * facts.losses]
        per_row = self._sums.new_zeros(len(batch.row_lengths), len(columns))
        per_row.index_add_(0, rows, torch.stack(columns, dim=1))
        per_row = whole_units(per_row[:num_rows], self._total_weight)
        ones, lengths = per_row.new_ones(num_rows), batch.row_lengths[:num_rows].to(dtype)
        values = torch.cat([torch.stack([ones, lengths], dim=1), per_row], dim=1)  # (R, 6)
        # Copied without waiting, because the host must not wait for the device in a pass.
        numbers = [self._mixture.source_of(example) for example in batch.examples]
        self._sums.index_add_(0, torch.tensor(numbers).to(values.device, non_blocking=True), values)

    def total(self, world: World) -> torch.Tensor:
        """The sums over all ranks as one row of numbers, on the device. Every rank calls this."""
        return world.sum(self._sums.clone()).flatten()

    def metrics(self, total: list[float]) -> dict[str, SourceMetrics]:
        """The metrics of each source, from the numbers of `total`."""
        width = len(_COLUMNS)
        rows = [total[first : first + width] for first in range(0, len(total), width)]
        return {
            name: SourceMetrics(
                num_examples=int(examples),
                num_tokens=int(tokens),
                num_target_tokens=int(targets),
                loss=losses / weights if weights else None,
                token_accuracy=hits / targets if targets else None,
            )
            for name, (examples, tokens, targets, hits, weights, losses) in zip(
                self._mixture.names, rows, strict=True
            )
        }
