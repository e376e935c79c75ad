"""Whether a model can be computed at all, with the values in its config.json."""

from typing import TYPE_CHECKING

from sftctl.errors import ConfigError, lacks_memory
from sftctl.words import printable

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NOT_FINITE = (
    "the model computes NaN or infinite numbers from the start: its weights, or values in its "
    "config.json, are damaged"
)
"""The warning about a model whose hidden states are not finite for a row alone."""


def backbone(model: "PreTrainedModel") -> "torch.nn.Module":
    """The model without its head. In Llama 4, `base_model` is the complete model."""
    base: torch.nn.Module = model.base_model
    return base if base is not model else getattr(model, "model", base)


def require_computable(model: "PreTrainedModel", row: "torch.Tensor") -> None:
    """ConfigError if the hidden states of a row of ids (1, T) can't be computed.

    The model gets no positions, because some families take none.
    """
    try:
        backbone(model)(input_ids=row, use_cache=False)
    except Exception as problem:  # the model's own code may raise anything
        if lacks_memory(problem):
            raise
        first = (str(problem).splitlines() or [""])[0]
        raise ConfigError(
            f"the model can't be computed: {type(problem).__name__}: {printable(first)}",
            hint="values in its config.json may contradict each other, such as numbers of heads: "
            "compare them with the original config.json",
        ) from problem
