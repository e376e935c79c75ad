"""nf4: the linear layers of a frozen base in 4 bits, as in QLoRA (Dettmers et al. 2023).

64 weights form a block, whose scale is its largest absolute weight. A weight is the scale times one
of 16 fixed values (NormalFloat), so 4 bits are enough to store which one. The scales, minus their
mean, are stored in 8 bits, in blocks of 256 (double quantization). Together this is 4.13 bits per
weight. The layers compute with the dequantized weight, in the dtype of their inputs.
"""

import logging
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import torch

from sftctl.model.adapter.needs import broken_package, require_bitsandbytes
from sftctl.model.onednn import product

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK_SIZE, SCALES_BLOCK_SIZE = 64, 256
BYTES_PER_WEIGHT = 0.5 + (1 + 4 / SCALES_BLOCK_SIZE) / BLOCK_SIZE


class NF4Linear(torch.nn.Linear):
    """A linear layer with a frozen weight in nf4. The bias is not quantized.

    Each access to `weight` computes the dequantized weight (O, I) in `dtype`.
    """

    bias: torch.nn.Parameter | None  # type: ignore[assignment]
    packed: torch.Tensor

    def __init__(self, layer: torch.nn.Linear, dtype: torch.dtype) -> None:
        torch.nn.Module.__init__(self)  # Linear.__init__ would allocate a weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.dtype, self.bias = dtype, layer.bias
        packed, self._scales = _quantize(layer.weight.detach())
        # It is uint8, so `.to(dtype)` does not change it.
        self.register_buffer("packed", packed, persistent=False)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        return self.dequantized(self.dtype)

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight (O, I). Each value is computed in float32, and rounded once to `dtype`."""
        if self._scales.absmax.device != self.packed.device:
            self._scales.to(self.packed.device)
        values = _dequantize(self.packed, self._scales, dtype)
        size = self.in_features * self.out_features
        return values[:size].view(self.out_features, self.in_features)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        device = input.device.type
        if torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))
        result: torch.Tensor = _Product.apply(input, self)  # type: ignore[no-untyped-call]
        return result if self.bias is None else result + self.bias.to(result.dtype)


class _Product(torch.autograd.Function):
    """A product with a layer's weight: (..., I) -> (..., O).

    The backward pass dequantizes the weight again.
    """

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, layer: NF4Linear) -> torch.Tensor:
        ctx.layer, ctx.dtype = layer, values.dtype
        return product(values, layer.dequantized(values.dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        (grad_output,) = grad_outputs
        return product(grad_output, ctx.layer.dequantized(ctx.dtype).t()), None


def _bitsandbytes() -> Any:
    require_bitsandbytes()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # hide its remarks about kernels
    try:
        from bitsandbytes import functional
    except (ImportError, OSError, RuntimeError) as problem:
        raise broken_package("bitsandbytes", problem) from problem
    return functional


def _quantize(weight: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Quantize a weight on the CPU. Returns the packed 4-bit numbers, (N / 2, 1) uint8, and the
    scales.

    All N values are passed as one row, filled up with zeros to a complete block. Otherwise blocks
    could end inside a matrix row, and the CPU kernel of bitsandbytes 0.50 would use wrong scales.
    The mean of the scales is summed in float64 and rounded once. So the result does not depend on
    the number of threads.
    """
    library = _bitsandbytes()
    weight = weight.to("cpu", torch.float32).flatten()
    weight = torch.nn.functional.pad(weight, (0, -len(weight) % BLOCK_SIZE))
    packed, plain = library.quantize_4bit(weight, blocksize=BLOCK_SIZE, quant_type="nf4")
    offset = plain.absmax.double().mean().float()
    absmax, of_scales = library.quantize_blockwise(
        plain.absmax - offset, blocksize=SCALES_BLOCK_SIZE
    )
    scales = library.QuantState(
        absmax=absmax,
        shape=plain.shape,
        code=plain.code,
        blocksize=BLOCK_SIZE,
        quant_type="nf4",
        dtype=torch.float32,
        offset=offset,
        state2=of_scales,
    )
    return packed, scales


def _dequantize(packed: torch.Tensor, scales: Any, dtype: torch.dtype) -> torch.Tensor:
    """All N values in `dtype`: (N,)."""
    scales.dtype = dtype
    values: torch.Tensor = _bitsandbytes().dequantize_4bit(packed, scales)
    return values.view(-1)


def quantize(
    model: "PreTrainedModel",
    layers: Collection[str],
    dtype: torch.dtype,
    *,
    dequantized: bool = False,
) -> None:
    """Convert these linear layers to nf4, one after another, and all other parameters to `dtype`.

    With `dequantized`, each layer stays a plain linear layer, with the dequantized weight in
    `dtype`.
    """
    for name in layers:
        place, _, last = name.rpartition(".")
        layer = model.get_submodule(name)
        assert isinstance(layer, torch.nn.Linear)
        narrow = NF4Linear(layer, dtype)
        if dequantized:
            layer.weight.data = narrow.weight
        else:
            setattr(model.get_submodule(place), last, narrow)
    in_float32 = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        if in_float32.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(dtype)


def quantized_layers(model: torch.nn.Module) -> Iterator[NF4Linear]:
    """The layers of a model that are in nf4."""
    return (module for module in model.modules() if isinstance(module, NF4Linear))


def num_quantized(model: torch.nn.Module) -> int:
    """The number of weights that a model holds in nf4. `parameters()` does not include them."""
    return sum(layer.in_features * layer.out_features for layer in quantized_layers(model))
