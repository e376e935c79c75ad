"""Read a torch.save file without loading it: its value, and where its tensors are in the file.

The file is a zip archive with `NAME/data.pkl` (a pickle, read by opcodes.py) and one uncompressed
entry for each storage. Older versions of torch wrote five pickles, followed by the storages.
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
from sftctl.inspection.pickles.archive import (
    LONGEST_PICKLE_BYTES,
    Entry,
    open_archive,
    read_entry,
)
from sftctl.inspection.pickles.opcodes import MOST_OPCODES, BadPickle, Reading, read_pickle
from sftctl.inspection.pickles.torch_tensors import storage_bytes, storages_in, tensors_in
from sftctl.inspection.pickles.window import Window

_CHUNK_BYTES = 1 << 20
_MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True, slots=True)
class TorchFile:
    """The content of a torch.save file."""

    value: Any
    problems: list[str]  # damage, and code that the file refers to (and that was not run)
    tensors: dict[str, StoredTensor] = field(default_factory=dict)  # by place, such as "model.x"


def read_torch_file(file: Path, begin: int = 0, num_bytes: int | None = None) -> TorchFile:
    """Read a file, or `num_bytes` of it from `begin` on. Raises CorruptCheckpoint."""
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
        code = code_problems(problem.code) if isinstance(problem, BadPickle) else []
        reason = "; ".join([f"not a complete file of torch.save: {problem}", *code])
        raise CorruptCheckpoint(f"{file}: {reason}") from problem


def _read_zip(file: Path, window: Window) -> TorchFile:
    archive = open_archive(window)
    reading, problems = _pickles_in(window, archive.entries)
    if "data.pkl" not in archive.entries:
        raise BadPickle("a zip archive without data.pkl", reading.code)
    order = archive.entries.get("byteorder")
    storages = {
        name.removeprefix("data/"): (window.begin + entry.begin, entry.num_bytes)
        for name, entry in archive.entries.items()
        if name.startswith("data/")
    }
    found = _found(file, reading, storages, _opcodes_for(window) // 20)
    problems = [*found.problems, *problems, *archive.problems]
    if order is not None and read_entry(window, order).strip() != b"little":
        problems.append("its numbers are big-endian")
    return replace(found, problems=problems)


def _pickles_in(window: Window, entries: dict[str, Entry]) -> tuple[Reading, list[str]]:
    """The value of data.pkl, with the code in all pickles of the archive. Also other problems."""
    code, problems = frozenset[str](), list[str]()
    value = None
    for name in sorted(name for name in entries if name.lower().endswith(".pkl")):
        data = io.BytesIO(read_entry(window, entries[name]))
        reading = read_pickle(data, _opcodes_for(window))
        code |= reading.code
        if rest := len(data.getvalue()) - data.tell():
            problems.append(f"{name}: {rest} bytes after its pickle")
        if name == "data.pkl":
            value = reading.value
    return Reading(value, code), problems


def _opcodes_for(window: Window) -> int:
    """The limit for the number of opcodes. A larger file may have more tensors, and so more
    opcodes.
    """
    return MOST_OPCODES + window.num_bytes // 1000


def _read_legacy(file: Path, window: Window) -> TorchFile:
    data = io.BytesIO(window.read(min(window.num_bytes, LONGEST_PICKLE_BYTES)))
    limit = _opcodes_for(window)
    first = read_pickle(data, limit)
    if first.value != _MAGIC:
        return _read_plain(data, first, window.num_bytes, limit)
    readings = [first]
    for _ in range(4):
        try:
            readings.append(read_pickle(data, limit))
        except BadPickle as problem:
            before = frozenset[str]().union(*(reading.code for reading in readings))
            raise BadPickle(str(problem), before | problem.code) from problem
    code = frozenset[str]().union(*(reading.code for reading in readings))
    main, keys = readings[3:]
    sizes = {_text(one.key[2]): storage_bytes(one) for one in storages_in(main.value)}
    storages, position = {}, data.tell()
    for key in map(_text, keys.value if isinstance(keys.value, list) else []):
        storages[key] = (window.begin + position + 8, sizes.get(key, 0))
        position += 8 + sizes.get(key, 0)
    if position > window.num_bytes:
        raise BadPickle(f"{position} bytes of storages, but the file has {window.num_bytes}", code)
    found = _found(file, Reading(main.value, code), storages, limit // 20)
    rest = window.num_bytes - position
    return replace(found, problems=[*found.problems, *_after(rest, "storages")])


def _read_plain(data: io.BytesIO, first: Reading, num_bytes: int, limit: int) -> TorchFile:
    """A file of plain pickles: the value of the first pickle, and the code in all of them."""
    code, num_pickles, end = first.code, 1, data.tell()
    while end < num_bytes and num_pickles < limit // 100:
        try:
            reading = read_pickle(data, limit)
        except BadPickle as problem:
            code |= problem.code
            break
        code, num_pickles, end = code | reading.code, num_pickles + 1, data.tell()
    return TorchFile(first.value, code_problems(code) + _after(num_bytes - end, "pickle"))


def _after(num_bytes: int, what: str) -> list[str]:
    return [f"{num_bytes} bytes after its {what}"] if num_bytes else []


def _text(key: Any) -> str:
    return key if isinstance(key, str) else str(key) if isinstance(key, int) else "?"


def _found(
    file: Path, reading: Reading, storages: dict[str, tuple[int, int]], most_tensors: int
) -> TorchFile:
    tensors, problems = tensors_in(reading.value, file, storages, most_tensors)
    return TorchFile(reading.value, code_problems(reading.code) + problems, tensors)


def wrong_bytes(file: Path, begin: int = 0, num_bytes: int | None = None) -> list[str] | None:
    """The entries of an archive that do not match their checksum; None: not an archive."""
    wrong = []
    try:
        with file.open("rb") as stream:
            window = Window(stream, begin, num_bytes)
            open_archive(window)  # raises an error if entries share bytes
            archive = zipfile.ZipFile(cast(IO[bytes], window))
            for info in archive.infolist():
                if not info.compress_type and not _matches(archive, info):
                    wrong.append(f"{info.filename}: its content was changed (different checksum)")
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return None
    return wrong


def _matches(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(info) as entry:
            while entry.read(_CHUNK_BYTES):
                pass
        return True
    except (zipfile.BadZipFile, EOFError, RuntimeError):  # changed, truncated, or encrypted
        return False


def archive_digest(file: Path) -> str | None:
    """A hash of the checksums in an archive's directory; None: not an archive.

    Files with equal values have equal hashes. The date and the name of the file do not matter.
    """
    try:
        with file.open("rb") as stream:
            entries = open_archive(Window(stream)).entries
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return None
    data = [
        (name, entry.checksum, entry.num_bytes)
        for name, entry in entries.items()
        if name == "data.pkl" or name.startswith("data/")
    ]
    return hashlib.sha256(repr(sorted(data)).encode()).hexdigest()
