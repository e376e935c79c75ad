"""Problems and notes about the numbers of a checkpoint's tensors, from their statistics."""

from collections.abc import Sequence
from dataclasses import replace

from sftctl.inspection.inspection import Inspection
from sftctl.inspection.tensors.statistics import TensorStatistics
from sftctl.model.folder.weight_values import HINT_OF_VALUES, Values

_NOT_INTEGERS = ("F", "BF", "Q", "IQ")
# Parts of the names of an adapter's tensors, which may begin at zero.
_MAYBE_ZERO = ("lora_", "magnitude_vector", "prompt_embeddings")


def with_values_judged(
    inspection: Inspection, statistics: Sequence[TensorStatistics]
) -> Inspection:
    """Add to the inspection a problem for NaN and infinite numbers, and a note about zeros.

    The wording is that of `train`.
    """
    values = Values(
        [_plain(one) for one in statistics if _is_broken(one)],
        [_plain(one) for one in statistics if _is_zero(one)],
    )
    if (problem := values.problem()) is None:
        doubt = values.doubt()
        return replace(inspection, notes=[*inspection.notes, *([doubt] if doubt else [])])
    judged = _with_problem(inspection, problem)
    if inspection.checkpoints is None:
        return judged
    of_these = (one.tensors is inspection.tensors for one in inspection.checkpoints)
    pairs = zip(of_these, inspection.checkpoints, strict=True)
    return replace(
        judged,
        checkpoints=[_with_problem(one, problem) if same else one for same, one in pairs],
    )


def _with_problem(inspection: Inspection, problem: str) -> Inspection:
    return replace(
        inspection,
        problems=[*inspection.problems, problem],
        remedies={**inspection.remedies, problem: HINT_OF_VALUES},
        complete=False,
        advice=None,
    )


def _plain(one: TensorStatistics) -> str:
    return one.name.removeprefix("model.")


def _is_broken(one: TensorStatistics) -> bool:
    """Whether a tensor has NaN or infinite numbers. An attention mask may have infinite numbers."""
    is_mask = "mask" in one.name or (one.name.endswith("bias") and len(one.shape) > 1)
    return bool(one.num_nan) or bool(one.num_inf and not is_mask)


def _is_zero(one: TensorStatistics) -> bool:
    """Whether a matrix of the model has only zeros. An adapter's matrices may begin as zeros."""
    is_weight = one.name.startswith("model.") and one.dtype.startswith(_NOT_INTEGERS)
    is_zero = len(one.shape) > 1 and one.norm == 0 and not one.num_nan and not one.num_inf
    return is_weight and is_zero and not any(part in one.name for part in _MAYBE_ZERO)
