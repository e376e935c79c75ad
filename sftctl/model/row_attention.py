"""Attention for rows that are laid end to end in one long row. No row attends to another row.

A pass holds several rows of different lengths in one row of T tokens, without padding between
them. `position_ids` start at 0 in each row. The attention function of this module computes each row
by itself, causally. It is registered with transformers under the name ROWS.

Shapes: T tokens of the pass, R rows, H heads, D head dimension.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from sftctl.model.folder.computable import NOT_FINITE, backbone, require_computable
from sftctl.model.load import max_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = "sftctl_rows"
"""The name of the attention function in transformers' registry."""

_LENGTH_STEP = 64
"""Inside attention, rows are padded to a multiple of this, so that few shapes occur. On a CPU each
new shape of a bfloat16 attention costs memory that is never freed."""

_FLASH_DTYPES = (torch.bfloat16, torch.float16)
_FLASH_HEAD_SIZE = 256  # the largest D that torch's flash kernels support
_FLASH_CAPABILITY = (8, 0)  # the oldest generation of GPUs that has these kernels, Ampere

_WITHOUT_EFFECT = {"position_ids", "cache_position", "output_router_logits", "is_causal"}
_TOLERANCE = 2e-5  # of the largest value: 100 times the rounding measured in 20 model families


def attention_by_rows(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, H, T, D)
    key: torch.Tensor,  # (1, H or fewer, T, D)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    row_lengths: torch.Tensor,  # (R,) int32, whose sum is T; zeros at the end are not rows
    longest_row: int | None = None,  # an upper bound of the row lengths; None: unknown
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row -> (1, T, H, D).

    Supports `scaling`, `dropout` and `sliding_window`. Raises ValueError for every other option,
    because a model would otherwise silently compute the wrong attention.
    """
    honoured = {name: options.pop(name, None) for name in ("scaling", "dropout", "sliding_window")}
    refused = [
        name
        for name, option in options.items()
        if name not in _WITHOUT_EFFECT and option is not None and option is not False
    ]
    if options.pop("is_causal", True) is False or attention_mask is not None:
        refused.append("a mask that is not causal")
    if refused:
        raise ValueError(f"attention by rows does not support {', '.join(refused)}")
    if _takes_all_rows(query, honoured["dropout"]):
        from torch.nn.attention.varlen import varlen_attn

        del honoured["dropout"]
        longest = longest_row or query.shape[2]
        return all_rows(query, key, value, row_lengths, longest, varlen_attn, **honoured), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    return _each_row(query, key, value, row_lengths, **honoured), None


def _takes_all_rows(query: torch.Tensor, dropout: float | None) -> bool:
    """Whether one call of torch's flash kernel can compute the attention of all rows."""
    return (
        query.is_cuda
        and query.dtype in _FLASH_DTYPES
        and query.shape[3] <= _FLASH_HEAD_SIZE
        and not dropout
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(query.device) >= _FLASH_CAPABILITY
    )


def all_rows(
    query: torch.Tensor,  # (1, H, T, D)
    key: torch.Tensor,  # (1, H or fewer, T, D)
    value: torch.Tensor,
    row_lengths: torch.Tensor,
    longest_row: int,
    attend: Callable[..., Any],
    **options: Any,
) -> torch.Tensor:
    """Compute all rows with one call of `attend`, which has the signature of torch's `varlen_attn`.

    Returns (1, T, H, D). Supports `scaling` and `sliding_window`. The host never waits for the
    device.
    """
    window = options["sliding_window"]
    ends = F.pad(row_lengths.cumsum(0, dtype=torch.int32), (1, 0))  # (R + 1,): 0, then each end
    flat = (each[0].transpose(0, 1) for each in (query, key, value))  # (T, H, D)
    output: torch.Tensor = attend(
        *flat,
        *(ends, ends, longest_row, longest_row),
        scale=options["scaling"],
        window_size=(window - 1 if window else -1, 0),  # (tokens before, tokens after)
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return output[None]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _each_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row_lengths: torch.Tensor,
    **options: Any,
) -> torch.Tensor:
    lengths = [length for length in row_lengths.tolist() if length]
    # torch.split and not slices: each slice's gradient would be as large as the complete tensor.
    parts = zip(*(torch.split(each, lengths, dim=2) for each in (query, key, value)), strict=True)
    outputs = [_one_row(*part, **options) for part in parts]
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _one_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float | None,
    dropout: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    length = query.shape[2]
    if missing := -length % _LENGTH_STEP:  # pad at the end: causal attention ignores the padding
        query, key, value = (F.pad(each, (0, 0, 0, missing)) for each in (query, key, value))
    band = None
    if sliding_window and length > sliding_window:
        at = torch.arange(query.shape[2], device=query.device)
        distance = at[:, None] - at[None, :]
        band = (distance >= 0) & (distance < sliding_window)
    output = F.scaled_dot_product_attention(
        query, key, value, band, dropout_p=dropout or 0.0, is_causal=band is None, scale=scaling
    )
    return output[:, :, :length]


@contextmanager
def own_attention(model: "PreTrainedModel", name: str) -> Iterator[None]:
    """In this context, the model uses its own attention again, as generation with a cache
    needs it.
    """
    current = str(model.config._attn_implementation)
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(current)


def use_row_attention(model: "PreTrainedModel") -> str:
    """Make `model` compute attention by rows. Returns the name of its own attention function.

    No mask function is registered under the name ROWS, so transformers makes no mask. A mask would
    be slow: transformers would read `position_ids` in every pass, and the host would wait for a
    GPU.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ROWS, attention_by_rows)
    own = str(model.config._attn_implementation)
    model.set_attn_implementation(ROWS)
    return own


@torch.no_grad()
def why_rows_mix(model: "PreTrainedModel", longest_row: int) -> str | None:
    """The reason why rows that are laid end to end would change each other. None: they do not.

    Three random rows are computed together, end to end. Each is also computed alone, with the
    model's own attention. Then their hidden states are compared. If `longest_row` exceeds the
    model's sliding window, two of the three rows exceed it too. The model does not change.
    """
    if reason := _why_positions_mix(model, longest_row):
        return reason
    window = getattr(model.config.get_text_config(), "sliding_window", None) or 0
    lengths = [7, 12, 5] if longest_row <= window else [window + 5, window + 9, 5]
    rows = [_probe(model, length, seed) for seed, length in enumerate(lengths)]
    training = model.training
    model.eval()
    widened = _widen_modules(model)
    try:
        alone = [_hidden(model, ids, torch.arange(ids.shape[1])[None]) for ids in rows]
        own = use_row_attention(model)
        try:
            together = _hidden(
                model,
                torch.cat(rows, dim=1),
                torch.cat([torch.arange(length) for length in lengths])[None],
                row_lengths=torch.tensor(lengths, dtype=torch.int32),
            )
        finally:
            model.set_attn_implementation(own)
    except Exception as problem:  # the model's own code may raise anything
        require_computable(model, rows[0])
        return f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"
    finally:
        widened.close()
        model.train(training)
    expected = torch.cat(alone, dim=1)
    if not bool(expected.isfinite().all()):
        return NOT_FINITE
    difference = float((together - expected).abs().max() / expected.abs().max())
    if difference <= _TOLERANCE:  # a NaN is not smaller
        return None
    return f"the largest relative difference is {difference:.2g}"


def _widen_modules(model: "PreTrainedModel") -> ExitStack:
    """Make each module compute with float32 copies of its weights.

    The reason: if one row leaks into another, the difference can be smaller than the rounding of
    bfloat16. A copy exists only while its module runs. Close the result to undo this.
    """
    stack = ExitStack()
    for module in model.modules():
        narrow = {
            parameter: parameter.data
            for parameter in module.parameters(recurse=False)
            if parameter.is_floating_point() and parameter.dtype != torch.float32
        }
        if narrow:
            before = module.register_forward_pre_hook(partial(_widen, narrow))
            after = module.register_forward_hook(partial(_restore, narrow), always_call=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
    return stack


def _widen(narrow: Mapping[torch.nn.Parameter, torch.Tensor], *_: object) -> None:
    for parameter, values in narrow.items():
        parameter.data = values.float()


def _restore(narrow: Mapping[torch.nn.Parameter, torch.Tensor], *_: object) -> None:
    for parameter, values in narrow.items():
        parameter.data = values


def _why_positions_mix(model: "PreTrainedModel", longest_row: int) -> str | None:
    """The reason if a row's RoPE depends on other rows of the pass, else None.

    Some RoPE scalings depend on the largest position in the pass.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [each for each in rope.values() if isinstance(each, dict)]
    for each in by_layer_type or [rope]:
        if (kind := each.get("rope_type")) in ("longrope", "dynamic"):
            original = each.get("original_max_position_embeddings") or max_positions(model)
            if original is None or longest_row > original:
                return f"{kind} RoPE scaling, with rows longer than {original} tokens"
    return None


def _probe(model: "PreTrainedModel", length: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (1, length), generator=random)
    return ids.to(model.device)


def _hidden(
    model: "PreTrainedModel", ids: torch.Tensor, positions: torch.Tensor, **options: torch.Tensor
) -> torch.Tensor:
    """The hidden states (1, T, D) before the head, in float64."""
    output = backbone(model)(
        input_ids=ids, position_ids=positions.to(ids.device), use_cache=False, **options
    )
    hidden: torch.Tensor = output.last_hidden_state
    return hidden.cpu().double()
