"""The header check agrees with the safetensors library: what the library refuses is refused."""

import json
import random
import resource
from pathlib import Path
from typing import Any

import pytest
import safetensors

from sftctl.checkpoint.safetensors_header import read_header
from sftctl.checkpoint.tensor_index import stored_tensors
from sftctl.errors import CorruptCheckpoint


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> Any:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def content(header: object, num_data_bytes: int) -> bytes:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(data).to_bytes(8, "little") + data + bytes(num_data_bytes)


def library_accepts(data: bytes) -> bool:
    try:
        safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        return False
    return True


ONE = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
ACCEPTED: dict[str, tuple[object, int]] = {
    "one": ({"a": entry()}, 4),
    "nothing": ({}, 0),
    "spaces around": (b"  " + json.dumps({"a": entry()}).encode() + b"  \n", 4),
    "an empty tensor": ({"a": entry(), "z": entry(shape=[0, 3], offsets=[4, 4])}, 4),
    "a scalar": ({"a": entry(shape=[])}, 4),
    "metadata": ({"__metadata__": {"format": "pt"}, "a": entry()}, 4),
    "metadata with the name of a field": ({"__metadata__": {"x": "shape"}, "a": entry()}, 4),
    "a tensor with the name of a field": ({"dtype": entry()}, 4),
    "an unknown field": ({"a": entry(comment="x")}, 4),
    "complex numbers": ({"a": entry("C64", offsets=[0, 8])}, 8),
    "two numbers of four bits": ({"a": entry("F4", [2], [0, 1])}, 1),
    "a gap in the order of names": ({"b": entry(), "a": entry(offsets=[4, 8])}, 8),
}
REFUSED: dict[str, tuple[object, int, str]] = {
    "bytes at the end": ({"a": entry()}, 5, "the last 1 bytes belong to no tensor"),
    "bytes and no tensor": ({}, 8, "the last 8 bytes belong to no tensor"),
    "a hole": ({"a": entry(), "b": entry(offsets=[8, 12])}, 12, "4 bytes before b belong to no"),
    "an overlap": ({"a": entry(), "b": entry()}, 4, "b overlaps another tensor at byte 0"),
    "a partial overlap": (
        {"a": entry(shape=[2], offsets=[0, 8]), "b": entry(offsets=[4, 8])},
        8,
        "b overlaps another tensor at byte 4",
    ),
    "too few bytes": ({"a": entry(shape=[2])}, 4, "a: 4 bytes do not fit its shape"),
    "too many bytes": ({"a": entry(offsets=[0, 8])}, 8, "a: 8 bytes do not fit its shape"),
    "a part of a byte": ({"a": entry("F4", [1], [0, 1])}, 1, "do not fit its shape"),
    "an unknown type": ({"a": entry("I4")}, 4, "a: type 'I4' is unknown"),
    "a lower-case type": ({"a": entry("f32")}, 4, "a: type 'f32' is unknown"),
    "a type that is a list": ({"a": entry(["F32"])}, 4, "is unknown"),  # type: ignore[arg-type]
    "a negative size": ({"a": entry(shape=[-1])}, 4, "not a list of sizes"),
    "a fraction": ({"a": entry(shape=[1.0])}, 4, "not a list of sizes"),
    "a boolean size": ({"a": entry(shape=[True])}, 4, "not a list of sizes"),
    "a size beyond 64 bits": ({"a": entry(shape=[2**64])}, 4, "not a list of sizes"),
    "a shape that overflows": ({"a": entry(shape=[2**62, 8])}, 4, "does not fit in 64 bits"),
    "an overflow before a zero": (
        {"a": entry(shape=[2**62, 8, 0], offsets=[0, 0])},
        0,
        "does not fit in 64 bits",
    ),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, 4, "not a list of sizes"),
    "three offsets": ({"a": entry(offsets=[0, 4, 4])}, 4, "not two integers"),
    "offsets in fractions": ({"a": entry(offsets=[0.0, 4.0])}, 4, "not two integers"),
    "offsets the wrong way round": ({"a": entry(offsets=[4, 0])}, 4, "data from byte 4 to 0"),
    "metadata with a number": ({"__metadata__": {"a": 1}, "b": entry()}, 4, "table of texts"),
    "metadata that is a list": ({"__metadata__": ["a"], "b": entry()}, 4, "table of texts"),
    "metadata that is an empty list": ({"__metadata__": [], "b": entry()}, 4, "table of texts"),
    "metadata that is false": ({"__metadata__": False, "b": entry()}, 4, "table of texts"),
    "a sign before 0": (b'{"a":' + ONE.replace(b"[0,", b"[-0,") + b"}", 4, "it has the number -0"),
    "a tensor that is a number": ({"a": 4}, 4, "a: int, not an object"),
    "a field twice": (b'{"a":{"dtype":"F32",' + ONE[1:] + b"}", 4, "it has 'dtype' 2 times"),
    "metadata twice": (
        b'{"__metadata__":{},"__metadata__":{"shape":"x"},"a":' + ONE + b"}",
        4,
        "it has '__metadata__' 2 times",
    ),
    "an array": ([], 0, "not an object"),
    "half a surrogate": (b'{"\\ud800":' + ONE + b"}", 4, "surrogate"),
    "a zero byte at the end": (b'{"a":' + ONE + b"}\0", 4, "line 1"),
    "a length beyond the file": (b"", 100, "its length field is 0"),
}
STRICTER: dict[str, tuple[object, int, str]] = {
    "a name twice": (b'{"a":' + ONE + b',"a":' + ONE + b"}", 4, "it has 'a' 2 times"),
    "65 axes": ({"a": entry(shape=[1] * 65)}, 4, "a: 65 axes, at most 64 are possible"),
    "200,000 axes": ({"a": entry(shape=[7] * 200_000)}, 4, "a: 200000 axes"),
}
"""The library accepts these, but no tensor library can load them without doubt."""


@pytest.mark.parametrize(("header", "size"), ACCEPTED.values(), ids=ACCEPTED)
def test_what_the_library_accepts_is_read(tmp_path: Path, header: object, size: int) -> None:
    (tmp_path / "x").write_bytes(content(header, size))
    assert library_accepts((tmp_path / "x").read_bytes())
    read_header(tmp_path / "x")


@pytest.mark.parametrize(("header", "size", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_the_library_refuses_is_refused(
    tmp_path: Path, header: object, size: int, reason: str
) -> None:
    (tmp_path / "x").write_bytes(content(header, size))
    assert not library_accepts((tmp_path / "x").read_bytes())
    with pytest.raises(ValueError, match=reason):
        read_header(tmp_path / "x")


@pytest.mark.parametrize(("header", "size", "reason"), STRICTER.values(), ids=STRICTER)
def test_what_no_loader_can_use_is_refused(
    tmp_path: Path, header: object, size: int, reason: str
) -> None:
    (tmp_path / "x").write_bytes(content(header, size))
    with pytest.raises(ValueError, match=reason):
        read_header(tmp_path / "x")


def test_no_mutant_is_accepted_that_the_library_refuses(tmp_path: Path) -> None:
    good = content({"a": entry(), "bb": entry("U8", [3, 2], [4, 10])}, 10)
    chance, file = random.Random(0), tmp_path / "x"
    letters = b'0123456789-.,:"{}[]eFU'
    accepted = 0
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(8, len(data) - 10)] = chance.choice(letters)
        file.write_bytes(data)
        try:
            read_header(file)
        except ValueError:
            continue
        accepted += 1
        assert library_accepts(bytes(data)), bytes(data)
    assert accepted > 20


def test_a_length_field_costs_no_memory(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes((99_000_000).to_bytes(8, "little") + b"{}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="its length field is 99000000, the file has 10 bytes"):
        read_header(tmp_path / "x")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000


def parts(folder: Path, *tensors: dict[str, Any], at: list[list[int]]) -> list[str]:
    """One file for each part of the tensor `a`."""
    names = []
    for number, (tensor, offsets) in enumerate(zip(tensors, at, strict=True)):
        sharding = json.dumps({"a": {"saved_offsets": offsets}})
        header = {"__metadata__": {"DCP_SHARDING_INFO": sharding}, "a": tensor}
        names.append(f"{number}.safetensors")
        (folder / names[-1]).write_bytes(content(header, tensor["data_offsets"][1]))
    return names


@pytest.mark.parametrize(
    ("tensors", "at", "reason"),
    [
        ([entry(), entry("I32")], [[0], [1]], "its parts have different types"),
        ([entry(), entry(shape=[1, 1])], [[0], [1, 0]], "its parts have different types"),
        ([entry(shape=[2], offsets=[0, 8]), entry()], [[0], [1]], "two files have the same part"),
        ([entry()], [[-1]], "its saved_offsets are not a list of sizes"),
        ([entry()], [[0, 0]], "not a safetensors header"),
        ([entry()], [[0.0]], "its saved_offsets are not a list of sizes"),
    ],
)
def test_parts_that_do_not_make_one_tensor_are_refused(
    tmp_path: Path, tensors: list[Any], at: list[list[int]], reason: str
) -> None:
    names = parts(tmp_path, *tensors, at=at)
    with pytest.raises(CorruptCheckpoint, match=reason):
        stored_tensors(tmp_path, names)
