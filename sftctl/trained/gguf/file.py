"""Write a model and its tokenizer as one .gguf file, tensor by tensor."""

import errno
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from sftctl.trained.gguf.architectures import tensors_of, write_sizes
from sftctl.trained.gguf.families import family_of
from sftctl.trained.gguf.vocabulary import name_for, write_vocabulary

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType
    from transformers import PreTrainedModel

TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
"""`--dtype` -> the dtype of matrices in the file. q8_0 has blocks of 32 numbers in 8 bits, and a
float16 scale for each block."""


def write_gguf(
    model: "PreTrainedModel", tokenizer: ChatTokenizer, file: Path, dtype: str, name: str
) -> None:
    """Write the file. ConfigError if llama.cpp does not support the model or its tokenizer."""
    import gguf

    config: Any = model.config
    family = family_of(config)
    writer = gguf.GGUFWriter(file, family.name)
    writer.add_name(name_for(tokenizer, name))
    amount = "ALL" if dtype == "float32" else "MOSTLY"
    writer.add_file_type(gguf.LlamaFileType[f"{amount}_{TYPES[dtype]}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_sizes(writer, config, family)
    write_vocabulary(writer, tokenizer, config.vocab_size)
    tensors = [
        (tensor, type_of(tensor.name, tensor.weight, dtype)) for tensor in tensors_of(model, family)
    ]
    for tensor, kind in tensors:
        shape = tuple(tensor.weight.shape)
        writer.add_tensor_info(
            tensor.stored_as, shape, np.dtype(np.float32), _num_bytes(shape, kind), kind
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, kind in tensors:
            writer.write_tensor_data(_quantized(tensor.weight, kind))
    except OSError as problem:
        if problem.errno is None:  # numpy saw that fewer bytes were written, but not why
            raise OSError(errno.ENOSPC, "the disk took only a part of it: is it full?") from problem
        raise
    finally:
        writer.close()


def type_of(name: str, weight: torch.Tensor, dtype: str) -> "GGMLQuantizationType":
    """The dtype in which a weight is stored.

    Norms, biases and routers are float32, matrices `dtype`. A matrix is float16 if its rows can't
    be cut into the blocks of q8_0.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType[TYPES[dtype]]
    if weight.dim() < 2 or name.endswith((".gate.weight", "shared_expert_gate.weight")):
        return GGMLQuantizationType.F32
    block, _ = GGML_QUANT_SIZES[kind]
    return kind if weight.shape[-1] % block == 0 else GGMLQuantizationType.F16


def rounded(weight: torch.Tensor, kind: "GGMLQuantizationType") -> torch.Tensor:
    """The weight as it is read from the file, in float32."""
    from gguf import dequantize

    return torch.from_numpy(np.array(dequantize(_quantized(weight, kind), kind))).view(weight.shape)


def _quantized(weight: torch.Tensor, kind: "GGMLQuantizationType") -> Any:
    from gguf import quantize

    return quantize(np.ascontiguousarray(weight.numpy()), kind)


def _num_bytes(shape: tuple[int, ...], kind: "GGMLQuantizationType") -> int:
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[kind]
    return int(prod(shape) // block * size)
