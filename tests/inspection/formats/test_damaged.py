"""Damaged and hostile files of other tools: each is reported as a problem, never a traceback."""

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sftctl.inspection.inspect import inspect_path
from sftctl.inspection.pickles.torch_file import archive_digest
from sftctl.inspection.tensors.statistics import tensor_statistics
from tests.toys.foreign import (
    Rebuilt,
    Storage,
    gguf_key,
    gguf_tensor,
    gguf_text,
    metadata,
    pickled,
    write_archive,
    write_gguf,
)

Make = Callable[[Path], object]

TEXT, ARRAY, DOUBLE = 8, 9, 12


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return gguf_key("k", ARRAY, struct.pack("<IQ", kind, count) + items)


GGUF_FILES: list[tuple[Make, str]] = [
    (lambda file: file.write_bytes(b"GGML" + bytes(40)), "it does not start with GGUF"),
    (lambda file: write_gguf(file, num_keys=1 << 21), "2097152 entries"),
    (lambda file: write_gguf(file, num_keys=5), "it ends within its header"),
    (lambda file: write_gguf(file, [struct.pack("<Q", 1 << 25)]), "a text of 33554432 bytes"),
    (lambda file: write_gguf(file, [gguf_key("k", 13, b"")]), "value type 13 is unknown"),
    (lambda file: write_gguf(file, [array(ARRAY, 1)]), "arrays of arrays are not supported"),
    (lambda file: write_gguf(file, [array(99, 1)]), "value type 99 is unknown"),
    (
        lambda file: write_gguf(file, [array(DOUBLE, 1 << 62, bytes(64))]),
        "an array of 4611686018427387904 items",
    ),
    (
        lambda file: write_gguf(file, [array(TEXT, 9, 8 * gguf_text("a") + b"\xff" + bytes(7))]),
        "it ends within its keys",
    ),
    (
        lambda file: write_gguf(file, [gguf_key("general.alignment", 4, bytes(4))]),
        "alignment 0",
    ),
    (
        lambda file: write_gguf(file, [gguf_key("general.alignment", TEXT, gguf_text("a"))]),
        "alignment a",
    ),
    (lambda file: write_gguf(file, tensors=[gguf_tensor("t", [1] * 9)]), "t has 9 axes"),
    (lambda file: write_gguf(file, tensors=[gguf_tensor("t", [4], 99)]), "tensor type 99"),
    (lambda file: write_gguf(file, tensors=[gguf_tensor("t", [8])]), "t ends at byte 96"),
]


@pytest.mark.parametrize(("make", "problem"), GGUF_FILES)
def test_a_bad_gguf_header_is_a_problem(tmp_path: Path, make: Make, problem: str) -> None:
    make(tmp_path / "x.gguf")
    [found] = inspect_path(tmp_path / "x.gguf").problems
    assert found.startswith(f"x.gguf: not a complete .gguf file: {problem}")


def test_an_unknown_version_of_gguf_is_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", version=9)
    found = inspect_path(tmp_path / "x.gguf").problems[0]
    assert found.startswith("x.gguf: GGUF version 9, which is not known")


def test_a_long_array_is_shortened_and_a_short_one_shown(tmp_path: Path) -> None:
    texts = array(TEXT, 10, b"".join(gguf_text(str(n)) for n in range(10)))
    numbers = gguf_key("n", ARRAY, struct.pack("<IQ10d", DOUBLE, 10, *range(10)))
    last = gguf_key("last", DOUBLE, struct.pack("<d", 0.5))
    inspection = inspect_path(write_gguf(tmp_path / "x.gguf", [texts, numbers, last]))
    assert inspection.facts["config"]["gguf"] == {
        "k": [str(n) for n in range(8)],
        "n": [float(n) for n in range(8)],
        "last": 0.5,
    }


TENSORS: dict[str, object] = {
    "the shape is a list": Rebuilt(shape=[4]),
    "the shape is a number": Rebuilt(shape=4),
    "the strides are a list": Rebuilt(strides=[1]),
    "more strides than axes": Rebuilt(strides=(1, 1)),
    "a negative offset": Rebuilt(offset=-1),
    "a negative size": Rebuilt(shape=(-4,)),
    "a size that is not an integer": Rebuilt(shape=(4.0,)),
    "beyond the storage": Rebuilt(shape=(5,)),
    "no storage": Rebuilt(storage="data/0"),
    "a storage without a type": Rebuilt(Storage(("storage", "Float", "0", "cpu", 4))),
    "a storage without a length": Rebuilt(Storage(("storage", torch.FloatStorage, "0", "cpu"))),
    "a storage of negative length": Rebuilt(
        Storage(("storage", torch.FloatStorage, "0", "cpu", -4))
    ),
    "a type that has no name here": Rebuilt(
        Storage(("storage", torch.ComplexFloatStorage, "0", "cpu", 4))
    ),
    "a storage that is not in the file": Rebuilt(
        Storage(("storage", torch.FloatStorage, "1", "cpu", 4))
    ),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS.keys())
def test_a_tensor_that_can_not_be_in_the_file_is_a_problem(tmp_path: Path, tensor: object) -> None:
    value = {"good": Rebuilt(), "bad": tensor}
    write_archive(tmp_path / "x.pth", pickled(value), data_0=bytes(16))
    inspection = inspect_path(tmp_path / "x.pth")
    assert inspection.tensors.keys() == {"model.good"}
    assert inspection.problems == ["x.pth: tensor bad: its bytes are not in the file"]


def with_changed_header(file: Path) -> None:
    """The header of the storage's entry, which follows the pickle, is overwritten."""
    data = write_archive(file, pickled({"a": Rebuilt()}), data_0=bytes(16)).read_bytes()
    second = data.index(b"PK\x03\x04", 4)
    file.write_bytes(data[:second] + b"XX" + data[second + 2 :])


def with_longer_entry(file: Path) -> None:
    """The archive's directory claims more bytes for the storage than the file has."""
    data = write_archive(file, pickled({"a": Rebuilt()}), data_0=bytes(16)).read_bytes()
    last = data.rindex(b"PK\x01\x02")
    file.write_bytes(data[: last + 20] + struct.pack("<2I", 9999, 9999) + data[last + 28 :])


def with_encrypted_entry(file: Path) -> None:
    """The archive's directory marks the storage as encrypted."""
    data = write_archive(file, pickled({"a": Rebuilt()}), data_0=bytes(16)).read_bytes()
    last = data.rindex(b"PK\x01\x02")
    file.write_bytes(data[: last + 8] + b"\1" + data[last + 9 :])


def with_longer_pickle(file: Path) -> None:
    """The archive's directory claims more bytes for the pickle than the file has."""
    data = write_archive(file, pickled({})).read_bytes()
    last = data.rindex(b"PK\x01\x02")
    file.write_bytes(data[: last + 20] + struct.pack("<2I", 9999, 9999) + data[last + 28 :])


def cut_old_format(file: Path) -> None:
    torch.save({"a": torch.ones(100)}, file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes()[:-4])


TORCH_FILES: list[tuple[Make, str]] = [
    (with_changed_header, "x/data/0: no entry at the position in the archive's directory"),
    (with_longer_entry, "x/data/0: truncated"),
    (with_encrypted_entry, "data/0 is compressed"),
    (with_longer_pickle, ""),
    (cut_old_format, "bytes of storages, but the file has"),
    (lambda file: write_archive(file, b"\x80\x05\x97."), "opcode NEXT_BUFFER does not occur"),
    (
        lambda file: write_archive(file, b"\x80\x02c" + b"m" * 600 + b"\nn\n."),
        "a name of 602 characters",
    ),
]


@pytest.mark.parametrize(("make", "problem"), TORCH_FILES)
def test_a_bad_torch_file_is_a_problem(tmp_path: Path, make: Make, problem: str) -> None:
    make(tmp_path / "x.pth")
    [found] = inspect_path(tmp_path / "x.pth").problems
    assert found.startswith("x.pth: not a complete file of torch.save: ") and problem in found
    verified = inspect_path(tmp_path / "x.pth", verify=True)
    assert verified.problems[0] == found and verified.verified is False


def test_an_archive_without_a_pickle_is_a_problem(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth")
    data = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(data.replace(b"data.pkl", b"data.txt"))
    problem = "x.pth: not a complete file of torch.save: a zip archive without data.pkl"
    assert inspect_path(tmp_path / "x.pth").problems == [problem]


def test_big_endian_numbers_are_refused(tmp_path: Path) -> None:
    write_archive(tmp_path / "x.pth", pickled({"a": Rebuilt()}), data_0=bytes(16), byteorder=b"big")
    assert inspect_path(tmp_path / "x.pth").problems == ["x.pth: its numbers are big-endian"]


def test_only_archives_have_a_digest(tmp_path: Path) -> None:
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"cpu": 1}))
    assert archive_digest(tmp_path / "old.pth") is None


def test_a_list_repeated_in_itself_does_not_fill_the_memory(tmp_path: Path) -> None:
    """Six levels of a thousand entries, each the same list: 10^18 values when written out."""
    value: object = "x"
    for _ in range(6):
        value = [value] * 1000
    torch.save({"model": {"a": torch.ones(2)}, "bomb": value}, tmp_path / "x.pth")
    inspection = inspect_path(tmp_path / "x.pth")
    assert inspection.facts["config"]["stored"]["bomb"][0][0][0][0][0][0] == "x"


@pytest.mark.parametrize(
    "changes",
    [
        {"chunks": 5},
        {"chunks": [5]},
        {"sizes": "a"},
        {"sizes": ["a"]},
        {"sizes": [-4]},
        {"size": 4, "sizes": [4]},
        {"offset": "a"},
        {"offset": 1.5},
        {"length": -8},
        {"length": 1 << 40},
        {"name": 5},
    ],
    ids=str,
)
def test_hostile_metadata_of_a_distributed_checkpoint_raises_nothing(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    (tmp_path / "__0_0.distcp").write_bytes(bytes(64))
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata(**changes)))
    inspection = inspect_path(tmp_path, verify=True)
    assert inspection.format == "torch.distributed checkpoint"
    statistics = tensor_statistics(inspection)
    assert all(one.error is not None or one.norm is None for one in statistics)


def test_a_damaged_value_of_a_distributed_checkpoint_is_left_out(
    distributed: Path, tmp_path: Path
) -> None:
    kept = (distributed / ".metadata").read_bytes()
    (tmp_path / ".metadata").write_bytes(kept)
    size = (distributed / "__0_0.distcp").stat().st_size
    (tmp_path / "__0_0.distcp").write_bytes(bytes(size))
    inspection = inspect_path(tmp_path)
    assert inspection.facts["step"] is None and inspection.num_parameters == 6768
    errors = {str(one.error) for one in tensor_statistics(inspection)}
    assert all("not a complete file of torch.save" in error for error in errors)


def test_an_archive_without_a_tensor_has_no_statistics(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "__0_0.distcp", pickle.dumps(5, 2))
    length = archive.stat().st_size
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata(length=length)))
    [one] = tensor_statistics(inspect_path(tmp_path))
    assert one.error == f"{archive}: no tensor at byte 0"


def test_a_checkpoint_with_a_missing_chunk_is_incomplete(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "__0_0.distcp", pickled(Rebuilt()), data_0=bytes(16))
    content = metadata(length=archive.stat().st_size, size=[8])
    (tmp_path / ".metadata").write_bytes(pickle.dumps(content))
    inspection = inspect_path(tmp_path)
    assert (inspection.complete, inspection.problems) == (False, [])
    assert tensor_statistics(inspection)[0].error == "a part of [8] is missing"


def model_directory(folder: Path) -> Path:
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    return folder


def sparse_file(file: Path) -> None:
    file.touch()
    os.truncate(file, (1 << 26) + 1)


def index_of_another_tensor(index: Path) -> None:
    part = index.with_name("model-00001-of-00001.safetensors")
    index.with_name("model.safetensors").rename(part)
    index.write_text(f'{{"weight_map": {{"b": "{part.name}"}}}}')


JSON_FILES: list[tuple[str, Make, str]] = [
    ("config.json", lambda file: file.write_text("{"), "config.json:1: not JSON"),
    ("config.json", lambda file: file.write_text("[]"), "config.json: "),
    (
        "model.safetensors.index.json",
        index_of_another_tensor,
        "model.safetensors.index.json: b is in no file (1 such tensors)",
    ),
    (
        "config.json",
        sparse_file,
        "config.json: longer than 67108864 bytes",
    ),
]


@pytest.mark.parametrize(("name", "make", "problem"), JSON_FILES)
def test_a_bad_json_file_in_a_model_directory_is_a_problem(
    tmp_path: Path, name: str, make: Make, problem: str
) -> None:
    make(model_directory(tmp_path) / name)
    inspection = inspect_path(tmp_path)
    [found] = inspection.problems
    assert found.startswith(problem)
    assert not inspection.complete and inspection.advice is None


def test_numbers_of_an_unknown_type_have_no_statistics(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2)}, file)
    file.write_bytes(file.read_bytes().replace(b'"F32","shape":[2]', b'"C64","shape":[1]'))
    [one] = tensor_statistics(inspect_path(file))
    assert one.error == f"{file}: numbers of type C64 can't be read"


def test_a_quantized_type_that_gguf_can_not_read_has_no_statistics(tmp_path: Path) -> None:
    q8_1 = 9
    file = write_gguf(tmp_path / "x.gguf", tensors=[gguf_tensor("t", [32], q8_1)], data=bytes(40))
    [one] = tensor_statistics(inspect_path(file))
    assert one.error == f"{file}: numbers of type Q8_1 can't be read"


def test_a_file_cut_after_its_inspection_has_no_statistics(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2)}, file)
    inspection = inspect_path(file)
    file.write_bytes(file.read_bytes()[:-4])
    assert tensor_statistics(inspection)[0].error == f"{file}: the file ends too early"
