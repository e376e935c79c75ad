"""How many numbers of a checkpoint are read. The limit is the size of the file, not the sizes in
its header.

In a torch file any number of tensors may be views of the same bytes. Without a limit, reading a
small file could take forever.
"""

from collections.abc import Mapping

from sftctl.checkpoint.tensor_index import StoredTensor

_TENSORS = 5000  # of a small checkpoint
_BYTES_PER_TENSOR = 4000  # in a larger checkpoint one more is read for each 4000 bytes
_BYTES = 1 << 24
_TIMES = 4  # how often the bytes of a larger checkpoint may be read


def left_out(tensors: Mapping[str, StoredTensor], num_bytes: int) -> dict[str, str]:
    """The tensors that are not read, each with the reason; the first ones by name are read.

    `num_bytes` is the size of the checkpoint. A tensor under several names is read once.
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
    """Equal for tensors with the same bytes in the same order."""
    return tensor.dtype, tensor.parts
