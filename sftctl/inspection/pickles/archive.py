"""The zip archive of a torch.save file: its entries, and whether two readers would agree on them.

torch reads zips with another library than Python does. The two libraries can find different entries
if two entries have one name, if there are bytes before or after the archive, or if an entry's own
header has another name. Then Python could show a harmless entry while torch loads a harmful entry.
Such an archive is a problem.
"""

import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, NamedTuple, cast

from sftctl.inspection.pickles.opcodes import BadPickle
from sftctl.inspection.pickles.window import Window

LONGEST_PICKLE_BYTES = 1 << 25
_HEADER_BYTES = 30  # of an entry, before its name
_END_BYTES = 22  # of the record at the end of an archive, without a comment


class Entry(NamedTuple):
    """One uncompressed entry."""

    begin: int  # its first byte in the window
    num_bytes: int
    checksum: int  # CRC-32


@dataclass(frozen=True, slots=True)
class Archive:
    """The entries by name. The names don't begin with the archive's own folder."""

    entries: dict[str, Entry]
    problems: list[str]


def open_archive(window: Window) -> Archive:
    """Read the archive's directory and every entry's header.

    Raises ValueError or BadZipFile if an entry can't be read, or is stored in a way that torch.save
    never uses. Raises BadPickle for an archive of TorchScript.
    """
    with zipfile.ZipFile(cast(IO[bytes], window)) as archive:
        infos = archive.infolist()
        directory = archive.start_dir
    if any(info.filename.partition("/")[2].startswith("code/") for info in infos):
        raise BadPickle("it is an archive of TorchScript", frozenset({"a TorchScript program"}))
    compressed = [info for info in infos if info.compress_type or info.flag_bits & 1]
    if compressed:
        name = compressed[0].filename.partition("/")[2] or compressed[0].filename
        raise ValueError(f"{name} is compressed; torch.save never does")
    problems = ["text or bytes after its directory"] if _has_tail(window) else []
    entries, taken = dict[str, Entry](), set[str]()
    place = 0
    for info in sorted(infos, key=lambda one: one.header_offset):
        name = info.filename.partition("/")[2] or f"/{info.filename}"
        entry = Entry(_data_begin(window, info), info.file_size, info.CRC)
        if info.header_offset < place:
            raise ValueError(f"{info.filename}: its bytes are those of another entry too")
        if name.lower() in taken:  # torch treats upper and lower case alike
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
    """Whether the file goes on after the archive's directory; torch writes no comment there."""
    window.seek(window.num_bytes - _END_BYTES)
    return window.read(4) != b"PK\x05\x06"


def _data_begin(window: Window, info: zipfile.ZipInfo) -> int:
    """The position of an entry's bytes: after the entry's header, whose length varies."""
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
    """The bytes of an entry; raises ValueError if there are too many for a pickle."""
    if entry.num_bytes > LONGEST_PICKLE_BYTES:
        raise ValueError(f"an entry of {entry.num_bytes} bytes is too long")
    window.seek(entry.begin)
    data = window.read(entry.num_bytes)
    if zlib.crc32(data) != entry.checksum:
        raise ValueError("its pickle was changed (different checksum)")
    return data
