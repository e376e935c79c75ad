"""Read the numbers of a stored tensor from its file, a stretch at a time."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sftctl.checkpoint.tensor_index import NUMBER_TYPES, Part, StoredTensor
from sftctl.errors import CorruptCheckpoint
from sftctl.inspection.formats.distributed import unpacked
from sftctl.inspection.formats.gguf import TYPES

Numbers = npt.NDArray[np.float64]
Raw = npt.NDArray[np.generic]

STRETCH = 1 << 20  # elements that are read at once; a multiple of each quantized type's block
_BLOCKS = {name: (elements, size, kind) for kind, (name, elements, size) in TYPES.items()}


def stretches(tensor: StoredTensor, length: int = STRETCH) -> Iterator[Numbers]:
    """All numbers of a located tensor, at most `length` at once. Raises the errors of `read`."""
    for start in range(0, tensor.num_elements, length):
        yield read(tensor, start, min(start + length, tensor.num_elements))


def located(tensor: StoredTensor) -> StoredTensor:
    """The tensor with the place of each part in its file. CorruptCheckpoint if a part is missing.

    For a part in an archive, this is the place inside the archive.
    """
    if not tensor.is_whole:
        raise CorruptCheckpoint(f"a part of {list(tensor.shape)} is missing")
    parts = tuple(p if p.archive_bytes is None else unpacked(p) for p in tensor.parts)
    return replace(tensor, parts=parts)


def read(tensor: StoredTensor, start: int, stop: int) -> Numbers:
    """Elements `start` to `stop` of a located tensor in row-major order: (stop - start,).

    Raises CorruptCheckpoint if they are missing, or if their type can't be read.
    """
    if len(tensor.parts) == 1:
        return _read_part(tensor.dtype, tensor.parts[0], start, stop)
    row = math.prod(tensor.shape[1:])
    first, last = start // row, -(-stop // row)
    rows = np.zeros((last - first, *tensor.shape[1:]))
    for part in tensor.parts:
        top = max(first, part.offsets[0])
        bottom = min(last, part.offsets[0] + part.shape[0])
        if top < bottom:
            width, begin = math.prod(part.shape[1:]), part.offsets[0]
            values = _read_part(tensor.dtype, part, (top - begin) * width, (bottom - begin) * width)
            ends = zip(part.offsets[1:], part.shape[1:], strict=True)
            across = tuple(slice(offset, offset + size) for offset, size in ends)
            place = (slice(top - first, bottom - first), *across)
            rows[place] = values.reshape(bottom - top, *part.shape[1:])
    return rows.reshape(-1)[start - first * row : stop - first * row]


def _read_part(dtype: str, part: Part, start: int, stop: int) -> Numbers:
    if dtype in _BLOCKS and _BLOCKS[dtype][0] > 1:
        return _read_blocks(dtype, part, start, stop)
    if dtype not in NUMBER_TYPES:
        raise CorruptCheckpoint(f"{part.file}: numbers of type {dtype} can't be read")
    kind = np.dtype(NUMBER_TYPES[dtype].numpy)
    if part.strides is not None:
        return _decoded(dtype, _read_strided(part, kind, start, stop))
    return _decoded(dtype, _bare(part, kind, start * kind.itemsize, stop - start))


def _bare(
    part: Part, kind: np.dtype[np.generic], begin: int, count: int
) -> npt.NDArray[np.generic]:
    values = np.fromfile(part.file, kind, count, offset=part.begin + begin)
    if len(values) != count:
        raise CorruptCheckpoint(f"{part.file}: the file ends too early")
    return values


def _read_strided(part: Part, kind: np.dtype[np.generic], start: int, stop: int) -> Raw:
    assert part.strides is not None
    span = 1 + sum((n - 1) * step for n, step in zip(part.shape, part.strides, strict=True))
    if math.prod(part.shape) > span:
        raise CorruptCheckpoint(
            f"{part.file}: can't read an expanded tensor: its elements share memory"
        )
    memory = np.memmap(part.file, kind, "r", part.begin, (span,))
    steps = tuple(step * kind.itemsize for step in part.strides)
    view = np.lib.stride_tricks.as_strided(memory, part.shape, steps, writeable=False)
    return view.flat[start:stop]


def _read_blocks(dtype: str, part: Part, start: int, stop: int) -> Numbers:
    """Dequantized numbers. `start` must be the first element of a block."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    elements, num_bytes, kind = _BLOCKS[dtype]
    count = -(-(stop - start) // elements)
    data = _bare(part, np.dtype(np.uint8), start // elements * num_bytes, count * num_bytes)
    try:
        values = dequantize(data.reshape(count, num_bytes), GGMLQuantizationType(kind))
    except NotImplementedError as problem:
        raise CorruptCheckpoint(f"{part.file}: numbers of type {dtype} can't be read") from problem
    return np.asarray(values.reshape(-1)[: stop - start], np.float64)


def _decoded(dtype: str, values: Raw) -> Numbers:
    if dtype == "BF16":  # the upper half of a float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    elif dtype == "F8_E5M2":  # the upper half of a float16
        values = (values.astype(np.uint16) << 8).view(np.float16)
    elif dtype == "F8_E4M3":
        values = _E4M3[values.astype(np.uint8)]
    with np.errstate(invalid="ignore"):
        return values.astype(np.float64)


def _e4m3() -> Numbers:
    """All 256 values of float8 E4M3: sign, 4 bits of exponent, 3 of mantissa, no infinity."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = (8 + mantissa) / 8 * 2.0 ** (exponent - 7)
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    size[(codes & 127) == 127] = np.nan
    return np.where(codes & 128, -size, size)


_E4M3 = _e4m3()
