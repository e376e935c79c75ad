"""The zip archive of a torch.save file: its entries, and whether all readers find the same entries.

torch and Python read zips with different libraries. They can find different entries in three cases:
two entries have the same name, there are bytes before or after the archive, or an entry's header
has another name than the directory. Python could then show a harmless entry while torch loads a
harmful one. Such an archive is reported as a problem.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, cast

from sftctl.inspection.pickles.opcodes import BadPickle
from sftctl.inspection.pickles.window import Window

LONGEST_PICKLE_BYTES = 1 << 25
_HEADER_BYTES = 30  # the fixed part of an entry's header, before its name
_END_BYTES = 22  # the record at the end of an archive, if it has no comment


class Entry(NamedTuple):
    """An uncompressed entry of the archive."""

    begin: int  # its first byte in the window
    num_bytes: int
    checksum: int  # CRC-32


@dataclass(frozen=True, slots=True)
class Archive:
    """The entries by name, without the name of the archive's top folder."""

    entries: dict[str, Entry]
    problems: list[str]


def is_archive_of_others(file: Path) -> bool:
    """Whether a file is a zip archive without any pickle, which torch.save never writes."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError):
        return False
    return not any(name.lower().endswith(".pkl") for name in names)


def open_archive(window: Window) -> Archive:
    """Read the directory of the archive, and the header of each entry.

    Raises ValueError or BadZipFile for an entry that can't be read, or that torch.save would not
    write. Raises BadPickle for an archive of TorchScript.
    """
    with zipfile.ZipFile(cast(IO[bytes], window)) as archive:
        infos = archive.infolist()
        directory = archive.start_dir
    if any(info.filename.partition("/")[2].startswith("code/") for info in infos):
        raise BadPickle("it is an archive of TorchScript", frozenset({"a TorchScript program"}))
    compressed = [info for info in infos if info.compress_type or info.flag_bits & 1]
    if compressed:
        name = compressed[0].filename.partition("/")[2] or compressed[0].filename
        raise ValueError(f"{name} is compressed; torch.save never compresses")
    problems = ["text or bytes after its directory"] if _has_tail(window) else []
    entries, taken = dict[str, Entry](), set[str]()
    place = 0
    for info in sorted(infos, key=lambda one: one.header_offset):
        name = info.filename.partition("/")[2] or f"/{info.filename}"
        entry = Entry(_data_begin(window, info), info.file_size, info.CRC)
        if info.header_offset < place:
            raise ValueError(f"{info.filename}: shares bytes with another entry")
        if name.lower() in taken:  # torch ignores the case of names
            problems.append(f"{info.filename}: a second entry of this name")
        if not place and info.header_offset:
            problems.append(f"{info.header_offset} bytes before its first entry")
        place = entry.begin + entry.num_bytes
        taken.add(name.lower())
        entries[name] = entry
    if place > directory:
        raise ValueError("its directory shares bytes with an entry")
    return Archive(entries, problems)


def _has_tail(window: Window) -> bool:
    """Whether the file continues after the end record of the archive. torch writes no comment
    there.
    """
    window.seek(window.num_bytes - _END_BYTES)
    return window.read(4) != b"PK\x05\x06"


def _data_begin(window: Window, info: zipfile.ZipInfo) -> int:
    """The position of an entry's data, which follows a header of variable length."""
    window.seek(info.header_offset)
    head = window.read(_HEADER_BYTES)
    if head[:4] != b"PK\x03\x04":
        raise ValueError(f"{info.filename}: no entry at the position in the archive's directory")
    name_bytes = int.from_bytes(head[26:28], "little")
    begin = info.header_offset + _HEADER_BYTES + name_bytes + int.from_bytes(head[28:30], "little")
    if begin + info.file_size > window.num_bytes:
        raise ValueError(f"{info.filename}: truncated")
    own_name = window.read(name_bytes).decode("utf-8" if info.flag_bits & 0x800 else "cp437")
    if own_name != info.orig_filename or "\0" in own_name:
        raise ValueError(f"{info.filename}: its own header has another name")
    return begin


def read_entry(window: Window, entry: Entry) -> bytes:
    """The bytes of an entry. ValueError if it is too long for a pickle, or has been changed."""
    if entry.num_bytes > LONGEST_PICKLE_BYTES:
        raise ValueError(f"an entry of {entry.num_bytes} bytes is too long")
    window.seek(entry.begin)
    data = window.read(entry.num_bytes)
    if zlib.crc32(data) != entry.checksum:
        raise ValueError("its pickle was changed (different checksum)")
    return data
