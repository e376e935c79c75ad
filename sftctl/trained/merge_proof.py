"""Check a merge: compare the logits of the merged model, read from disk, with those of base and
adapter."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch

from sftctl.errors import CheckpointError
from sftctl.trained.logits import LogitDifference, compare_logits, logits_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MAX_LOGITS = 1 << 27  # logits that are kept for the comparison: 512 MB of float32
_LARGEST_DIFFERENCE = 1e-3  # the largest allowed difference of a logit, in float32
# The required share of positions with the same likeliest token, in other dtypes.
_SMALLEST_SHARE = 0.99


@dataclass(frozen=True, slots=True)
class MergeProof(LogitDifference):
    """How much the merged model differs from the base with its adapter."""

    dtype: str
    source: LogitDifference | None = None  # to the adapter on the base before its quantization

    def against_source(
        self, before: Iterable[torch.Tensor], on_source: Iterable[torch.Tensor]
    ) -> "MergeProof":
        """The proof, with the difference to the adapter on the unquantized base in addition."""
        return replace(self, source=compare_logits(zip(before, on_source, strict=False)))

    def source_line(self) -> str | None:
        """A line about `source` for the screen; None if the base was not quantized."""
        if self.source is None:
            return None
        return (
            "merged into the dequantized nf4 weights, on which the adapter was trained; merged "
            "into the source weights, logits would differ by up to "
            f"{self.source.largest_difference:.2g}, and {self.source.equal_greedy:.2%} of the most "
            "probable next tokens would be equal"
        )

    def line(self) -> str:
        """A line for the screen."""
        return (
            f"merged and read again, in {self.dtype}: on {self.tokens} tokens of {self.rows} rows "
            f"logits differ by at most {self.largest_difference:.2g}, and {self.equal_greedy:.2%} "
            "of the most probable next tokens are equal"
        )

    def require(self) -> None:
        """CheckpointError if the difference is too large for the dtype."""
        if self.dtype == "float32":
            is_proved = self.largest_difference <= _LARGEST_DIFFERENCE
            bound = f"at most {_LARGEST_DIFFERENCE:g} is allowed in float32"
        else:
            is_proved = self.equal_greedy >= _SMALLEST_SHARE
            bound = f"at least {_SMALLEST_SHARE:.0%} must be equal in {self.dtype}"
        if not is_proved:  # also for NaN
            raise CheckpointError(
                f"{self.line()}; {bound}; nothing was written",
                hint="--dtype float32 rounds least; --format adapter writes the adapter as it is",
            )


def kept_logits(model: "PreTrainedModel", rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The logits (T, V) of each row. After 2^27 logits, the other rows are left out."""
    found, left = list[torch.Tensor](), _MAX_LOGITS
    for logits in logits_of(model, rows):
        left -= logits.numel()
        if found and left < 0:
            break
        found.append(logits)
    return found


def compare(
    dtype: str, before: Iterable[torch.Tensor], after: Iterable[torch.Tensor]
) -> MergeProof:
    """Compare the logits of base and adapter with those of the merged model.

    Only the rows in `before` are compared.
    """
    difference = compare_logits(zip(before, after, strict=False))
    return MergeProof(**asdict(difference), dtype=dtype)
