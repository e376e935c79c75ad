"""Limit how many numbers of a checkpoint are read, by the size of its files.

Any number of tensors in a torch file may share the same bytes. Without a limit, reading a small
file could take forever.
"""

from collections.abc import Mapping

from sftctl.checkpoint.tensor_index import StoredTensor

_TENSORS = 5000  # so many tensors are read of every checkpoint
_BYTES_PER_TENSOR = 4000  # one more tensor is read for each 4000 bytes of the checkpoint
_BYTES = 1 << 24  # bytes that are read of any checkpoint
_TIMES = 4  # and so many times the size of the checkpoint


def left_out(tensors: Mapping[str, StoredTensor], num_bytes: int) -> dict[str, str]:
    """The tensors that are not read, each with the reason. The first tensors by name are read.

    `num_bytes` is the size of the checkpoint. A tensor with several names counts once.
    """
    reasons: dict[str, str] = {}
    most = _TENSORS + num_bytes // _BYTES_PER_TENSOR
    bytes_left = _BYTES + _TIMES * num_bytes
    seen = set[object]()
    for name, tensor in sorted(tensors.items()):
        key = same_numbers(tensor)
        if key in seen:
            continue
        if len(seen) >= most:
            reasons[name] = f"not read: more than {most} tensors in a checkpoint of this size"
        elif tensor.num_bytes > bytes_left:
            reasons[name] = "not read: too many tensors use the same bytes"
        else:
            seen.add(key)
            bytes_left -= tensor.num_bytes
    return reasons


def same_numbers(tensor: StoredTensor) -> object:
    """A key that is equal for tensors with the same bytes in the same order."""
    return tensor.dtype, tensor.parts
