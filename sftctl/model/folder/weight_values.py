"""Find weights whose numbers show that a file is damaged: NaN, infinite numbers, or only zeros.

`train` applies these rules to the weights that it has loaded. `inspect-ckpt --tensors` applies them
to the weights in the files. Only `values_of` loads torch.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftctl.errors import ConfigError
from sftctl.model.folder.tied_head import role_of
from sftctl.model.folder.weight_names import Warn, examples
from sftctl.words import counted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HINT_OF_VALUES = "copy or download the weights again, or take an earlier checkpoint of them"


@dataclass(frozen=True, slots=True)
class Values:
    """Names of the weights that have NaN or infinite numbers, or only zeros."""

    not_finite: Collection[str] = ()
    zeros: Collection[str] = ()  # only matrices: a bias, or the norm of some families, may be zero

    def problem(self) -> str | None:
        """The weights with which no model can be trained, in one sentence; None if there are none.

        An embedding of zeros is such a weight. Zeros in another matrix may be intended, for example
        in blocks that were added.
        """
        if self.not_finite:
            verb = "has" if len(self.not_finite) == 1 else "have"
            count = counted(len(self.not_finite), "tensor")
            return f"{count} {verb} NaN or infinite numbers ({examples(self.not_finite)})"
        embedding = [name for name in self.zeros if role_of(name) == "embedding"]
        return f"its embedding has only zeros ({embedding[0]})" if embedding else None

    def doubt(self) -> str | None:
        """A line about matrices of zeros; None if there are none."""
        if not self.zeros:
            return None
        what = "1 matrix has" if len(self.zeros) == 1 else f"{len(self.zeros)} matrices have"
        cause = "as in a file that was not copied to its end"
        return f"{what} only zeros, {cause}: {examples(self.zeros)}"

    def require(self, where: str, warn: Warn) -> None:
        """ConfigError for weights that can't be trained; a warning about zeros."""
        if problem := self.problem():
            raise ConfigError(f"{where}: {problem}", hint=HINT_OF_VALUES)
        if doubt := self.doubt():
            warn(f"{where}: {doubt}")


def values_of(model: "PreTrainedModel") -> Values:
    """Find the weights of a loaded model with such numbers, or with only zeros. Reads each once."""
    import torch

    not_finite, zeros = [], []
    for name, weight in model.named_parameters():
        total = torch.linalg.vector_norm(weight.detach(), 1, dtype=torch.float32)
        if not bool(total.isfinite()) and not bool(weight.isfinite().all()):
            not_finite.append(name)
        elif weight.ndim > 1 and bool(total == 0):
            zeros.append(name)
    return Values(not_finite, zeros)
