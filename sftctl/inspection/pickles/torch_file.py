"""Read a torch.save file without loading it: its value, its tensors and where their bytes are.

It is a zip archive with `NAME/data.pkl` (a pickle, read by opcodes.py) and an uncompressed entry
for every storage. Older versions of torch wrote five pickles in a row, then the storages.
"""

import hashlib
import io
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, cast

from sftctl.checkpoint.tensor_index import StoredTensor
from sftctl.disk import read_refusals
from sftctl.errors import CorruptCheckpoint
from sftctl.inspection.pickles.allowed import code_problems
from sftctl.inspection.pickles.opcodes import read_pickle
from sftctl.inspection.pickles.torch_tensors import storage_bytes, storages_in, tensors_in
from sftctl.inspection.pickles.window import Window

_LONGEST_PICKLE_BYTES = 1 << 25
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TorchFile:
    """The content of a torch.save file."""

    value: Any
    problems: list[str]  # what is wrong with it, and code that was not run
    tensors: dict[str, StoredTensor] = field(default_factory=dict)  # by place: "model.x"


def read_torch_file(file: Path, begin: int = 0, num_bytes: int | None = None) -> TorchFile:
    """Read a file, or `num_bytes` of it from `begin`; raises CorruptCheckpoint."""
    try:
        with (
            read_refusals(file, CorruptCheckpoint, missing="missing"),
            file.open("rb") as stream,
        ):
            window = Window(stream, begin, num_bytes)
            head = window.read(4)
            window.seek(0)
            if head == b"PK\x03\x04":
                return _read_zip(file, window)
            return _read_legacy(file, window)
    except (ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as problem:
        raise CorruptCheckpoint(
            f"{file}: not a complete file of torch.save: {problem}"
        ) from problem


def _read_zip(file: Path, window: Window) -> TorchFile:
    with zipfile.ZipFile(window) as archive:
        entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        compressed = [
            name for name, info in entries.items() if info.compress_type or info.flag_bits & 1
        ]
        if compressed:
            raise ValueError(f"{compressed[0]} is compressed; torch.save never does")
        if "data.pkl" not in entries:
            raise ValueError("a zip archive without data.pkl")
        if entries["data.pkl"].file_size > _LONGEST_PICKLE_BYTES:
            raise ValueError(f"data.pkl of {entries['data.pkl'].file_size} bytes is too long")
        reading = read_pickle(io.BytesIO(archive.read(entries["data.pkl"])))
        order = archive.read(entries["byteorder"]) if "byteorder" in entries else b"little"
    storages = {
        name.removeprefix("data/"): (_data_begin(window, info), info.file_size)
        for name, info in entries.items()
        if name.startswith("data/")
    }
    found = _found(file, reading.value, reading.names, storages)
    if order.strip() == b"little":
        return found
    return replace(found, problems=[*found.problems, "its numbers are big-endian"])


def _data_begin(window: Window, info: zipfile.ZipInfo) -> int:
    """The file position of an entry's bytes: after the entry's header, whose length varies."""
    window.seek(info.header_offset)
    head = window.read(30)
    if head[:4] != b"PK\x03\x04":
        raise ValueError(f"{info.filename}: no entry at the position in the archive's directory")
    sizes = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    begin = info.header_offset + 30 + sizes
    if begin + info.file_size > window.num_bytes:
        raise ValueError(f"{info.filename}: truncated")
    return window.begin + begin


def _read_legacy(file: Path, window: Window) -> TorchFile:
    magic = read_pickle(window).value
    if magic != 0x1950A86A20F9469CFC6C:
        window.seek(0)
        reading = read_pickle(window)
        return TorchFile(reading.value, code_problems(reading.names))
    readings = [read_pickle(window) for _ in range(4)]
    names = frozenset().union(*(reading.names for reading in readings))
    _, _, main, keys = readings
    sizes = {str(storage.key[2]): storage_bytes(storage) for storage in storages_in(main.value)}
    storages, position = {}, window.tell()
    for key in keys.value if isinstance(keys.value, list) else []:
        storages[str(key)] = (window.begin + position + 8, sizes.get(str(key), 0))
        position += 8 + sizes.get(str(key), 0)
    if position > window.num_bytes:
        raise ValueError(f"{position} bytes of storages, but the file has {window.num_bytes}")
    return _found(file, main.value, names, storages)


def _found(
    file: Path, value: Any, names: frozenset[str], storages: dict[str, tuple[int, int]]
) -> TorchFile:
    tensors, lost = tensors_in(value, file, storages)
    problems = [f"tensor {place}: its bytes are not in the file" for place in lost]
    return TorchFile(value, code_problems(names) + problems, tensors)


def wrong_bytes(file: Path, begin: int = 0, num_bytes: int | None = None) -> list[str] | None:
    """The entries of an archive whose bytes don't match their checksum; None: not an archive."""
    wrong = []
    try:
        with file.open("rb") as stream:
            archive = zipfile.ZipFile(cast(IO[bytes], Window(stream, begin, num_bytes)))
            for info in archive.infolist():
                if not info.compress_type and not _matches(archive, info):
                    wrong.append(f"{info.filename}: its content was changed (different checksum)")
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    return wrong


def _matches(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(info) as entry:
            while entry.read(_CHUNK_BYTES):
                pass
        return True
    except (zipfile.BadZipFile, EOFError, RuntimeError):  # changed, truncated, marked as encrypted
        return False


def archive_digest(file: Path) -> str | None:
    """A hash of the checksums in an archive's directory; None: not an archive.

    Files with equal values have equal hashes. The date and the file name do not matter.
    """
    try:
        with file.open("rb") as stream, zipfile.ZipFile(cast(IO[bytes], Window(stream))) as archive:
            entries = [
                (info.filename.partition("/")[2], info.CRC, info.file_size)
                for info in archive.infolist()
            ]
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    data = [entry for entry in entries if entry[0] == "data.pkl" or entry[0].startswith("data/")]
    return hashlib.sha256(repr(sorted(data)).encode()).hexdigest()
