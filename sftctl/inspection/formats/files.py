"""Read the files of another tool. Problems are collected instead of raised."""

import errno
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from sftctl import jsonio
from sftctl.checkpoint.tensor_index import StoredTensor, stored_tensors
from sftctl.disk import who_may_not_read
from sftctl.errors import CorruptCheckpoint
from sftctl.inspection.inspection import (
    NO_TENSORS,
    NOT_FINISHED,
    OTHER_NAME,
    WEB_PAGE,
    Inspection,
    Tensors,
)
from sftctl.inspection.pickles.allowed import REFERS_TO_CODE
from sftctl.inspection.pickles.torch_file import TorchFile, read_torch_file, wrong_bytes
from sftctl.model.gguf.kind import LFS_POINTER, LFS_PROBLEM

TORCH_SUFFIXES = (".bin", ".pt", ".pth")
_LOADED_SUFFIXES = (*TORCH_SUFFIXES, ".pkl", ".pickle", ".ckpt")  # these may be pickles
OTHER_TOOL = "sftctl resumes its own runs only"
NO_CHECKSUMS = "some files have no checksums: their headers and sizes were checked"
_MOST_ARCHIVES = 10_000  # checksums of so many archives are checked; of more in a large checkpoint
_DATA = (*TORCH_SUFFIXES, ".safetensors", ".gguf", ".ckpt", ".nemo", ".distcp")
_MAY_BE_POINTERS = (*_DATA, ".json")
_UNFINISHED = (".incomplete", ".aria2", ".crdownload", ".part", ".partial", ".download")
_NEVER_EMPTY = (*_LOADED_SUFFIXES, ".safetensors", ".gguf", ".nemo")
_NO_RIGHTS = os.strerror(errno.EACCES)
_LONGEST_POINTER_BYTES = 1024
_LONGEST_JSON_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a checkpoint. Each method adds what is wrong with a file to `problems`."""

    path: Path  # a folder, or one file
    sizes: dict[str, int]  # name in the folder -> bytes
    saved_at: float | None
    problems: list[str] = field(default_factory=list)
    remedies: dict[str, str] = field(default_factory=dict)  # problem -> what to do about it
    opened: set[str] = field(default_factory=set)  # torch files that were read
    # files that are not read: Git LFS pointers, web pages, files that this user may not read
    pointers: frozenset[str] = frozenset()

    @classmethod
    def of(cls, path: Path, patterns: Sequence[str] = ("*",)) -> "Files":
        """The files of a folder that match one of the patterns; or the single file `path`."""
        inside = (file for pattern in patterns for file in path.glob(pattern))
        found = [path] if path.is_file() else sorted(filter(_is_read, inside))
        root = folder_of(path)
        sizes = {str(file.relative_to(root)): file.stat().st_size for file in found}
        rights = {name: who_may_not_read(root / name) for name in sizes}
        closed = {f"{name}: {_NO_RIGHTS}": hint for name, hint in rights.items() if hint}
        small = [n for n, size in sizes.items() if size < _LONGEST_POINTER_BYTES and not rights[n]]
        pointers = {
            name for name in small if name.endswith(_MAY_BE_POINTERS) and _is_pointer(root / name)
        }
        problems = [*closed, *(f"{name}: {LFS_PROBLEM}" for name in sorted(pointers))]
        for name in sizes:
            if rights[name] is None and (problem := _problem_of_begin(root / name, name)):
                pointers.add(name)
                problems.append(f"{name}: {problem}")
        problems += _problems_of_names(path)
        saved_at = max((file.stat().st_mtime for file in found), default=None)
        unread = frozenset({*pointers, *(name for name, hint in rights.items() if hint)})
        return cls(path, sizes, saved_at, problems, closed, pointers=unread)

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file; {} if the file is missing or damaged."""
        file = folder_of(self.path) / name
        if name in self.pointers:
            return {}
        if not file.is_file():
            if file.exists():  # opening a named pipe would wait for a writer
                self.problems.append(f"{name}: not a regular file")
            return {}
        if file.stat().st_size > _LONGEST_JSON_BYTES:
            self.problems.append(f"{name}: longer than {_LONGEST_JSON_BYTES} bytes")
            return {}
        try:
            return jsonio.read_object(file, CorruptCheckpoint, allow_nan=True)
        except CorruptCheckpoint as error:
            self.add(error)
            return {}

    def read_torch(self, name: str) -> TorchFile:
        """Read a torch.save file. The result is empty if the file is missing or damaged."""
        file = folder_of(self.path) / name
        self.opened.add(name)
        if not file.is_file() or name in self.pointers:
            return TorchFile(None, [])
        try:
            found = read_torch_file(file)
        except CorruptCheckpoint as error:
            self.add(error)
            return TorchFile(None, [])
        self.problems.extend(f"{name}: {problem}" for problem in found.problems)
        return found

    def _read_for_code(self, name: str) -> None:
        """Add the code that a pickle refers to as a problem.

        A file that is not a pickle, but has the name of one, is not a problem.
        """
        others = Files(self.path, self.sizes, None)
        others.read_torch(name)
        begin = first_bytes(folder_of(self.path) / name)
        is_pickle = begin.startswith((b"PK\x03\x04", b"\x80"))
        self.problems.extend(
            problem for problem in others.problems if is_pickle or REFERS_TO_CODE in problem
        )

    def read_safetensors(self, name: str) -> dict[str, StoredTensor]:
        """The tensors of a safetensors file; {} if it is damaged."""
        if name in self.pointers:
            return {}
        try:
            tensors = stored_tensors(folder_of(self.path), [name])
        except CorruptCheckpoint as error:
            self.add(error)
            return {}
        if not tensors:
            self.problems.append(f"{name}: {NO_TENSORS}")
        return tensors

    def add(self, error: CorruptCheckpoint) -> None:
        """Record a problem. The name of its file becomes relative to the folder."""
        self.problems.append(error.message.removeprefix(f"{folder_of(self.path)}/"))

    def inspection(self, format: str, tensors: Tensors, advice: str | None = None) -> Inspection:
        """The inspection of these files. With problems, it is not complete and has no advice.

        Pickles that were not opened so far are read, to find code in them.
        """
        for name, size in self.sizes.items():
            is_unread = name not in self.opened and name not in self.pointers
            if is_unread and name.endswith(_LOADED_SUFFIXES):
                self._read_for_code(name)
            is_named = any(problem.startswith(f"{name}:") for problem in self.problems)
            if size == 0 and not is_named and name.endswith(_NEVER_EMPTY):
                self.problems.append(f"{name}: empty")
        return Inspection(
            path=self.path,
            format=format,
            files={name: {"num_bytes": size, "sha256": None} for name, size in self.sizes.items()},
            num_bytes=sum(self.sizes.values()),
            saved_at=self.saved_at,
            tensors=tensors,
            complete=not self.problems and all(tensor.is_whole for tensor in tensors.values()),
            problems=list(self.problems),
            remedies=dict(self.remedies),
            advice=None if self.problems else advice,
        )


def _is_read(file: Path) -> bool:
    """Whether this is a file of the checkpoint.

    `._NAME` is not: macOS writes such files on some disks.
    """
    return file.is_file() and not file.name.startswith("._")


def _problems_of_names(folder: Path) -> list[str]:
    """A problem for each unfinished download, and for each link to a file that does not exist."""
    problems = []
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.name.endswith(_DATA) and file.is_symlink() and not file.exists():
            problems.append(f"{file.name}: a link to a file that is not there; {NOT_FINISHED}")
        stem = file.name.removesuffix(file.suffix)
        if file.suffix in _UNFINISHED and stem.endswith(_DATA):
            problems.append(f"{stem}: {NOT_FINISHED}: {file.name} is there")
    return problems


def _problem_of_begin(file: Path, name: str) -> str | None:
    """What a weight file really is, by its first bytes; None if its name and content agree."""
    if not name.endswith(_DATA):
        return None
    begin = first_bytes(file)
    if begin == bytes(len(begin)) and file.stat().st_size > len(begin):
        return f"{NOT_FINISHED}: it begins with zero bytes"
    if begin.lower().startswith((b"<!doctype", b"<html")):
        return WEB_PAGE
    if name.endswith(".safetensors") and begin.startswith(b"PK\x03\x04") and is_zipfile(file):
        return f"{OTHER_NAME} a file of torch.save, such as pytorch_model.bin"
    if name.endswith(".bin") and begin[8:9] == b"{" and begin[5:8] == bytes(3):
        return f"{OTHER_NAME} a safetensors file, such as model.safetensors"
    return None


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(LFS_POINTER)) == LFS_POINTER


def folder_of(path: Path) -> Path:
    """The folder of a checkpoint's files; for a single file, its parent folder."""
    return path.parent if path.is_file() else path


def steps_in(path: Path, name: re.Pattern[str], is_step: Callable[[Path], bool]) -> list[Path]:
    """The folders of steps in a folder, the newest last. The first group of `name` is the step."""
    entries = path.iterdir() if path.is_dir() else ()
    matches = ((one, name.fullmatch(one.name)) for one in entries)
    found = {int(m[1]): one for one, m in matches if m and one.is_dir() and is_step(one)}
    return [found[step] for step in sorted(found)]


def first_bytes(path: Path) -> bytes:
    """The first nine bytes of a file, by which formats are recognised; b"" if it is not a file."""
    if not path.is_file():  # opening a named pipe would wait for a writer
        return b""
    with path.open("rb") as file:
        return file.read(9)


def verify_archives(inspection: Inspection) -> Inspection:
    """The inspection after checking the checksums in torch.save archives.

    Other files have no checksums.
    """
    root = folder_of(inspection.path)
    problems, notes = list(inspection.problems), list(inspection.notes)
    stretches = sorted(_stretches(inspection, root), key=str)
    has_all = bool(stretches)
    most = _MOST_ARCHIVES + sum(entry["num_bytes"] for entry in inspection.files.values()) // 1000
    for file, begin, num_bytes in stretches[:most]:
        wrong = wrong_bytes(file, begin, num_bytes)
        has_all = has_all and wrong is not None
        if num_bytes is not None:  # one of several archives in a file; it was not read yet
            wrong = [*(wrong or []), *_problems_of_archive(file, begin, num_bytes)]
        problems += [f"{file.relative_to(root)}: {problem}" for problem in wrong or []]
    if len(stretches) > most:
        has_all = False
        notes.append(f"{len(stretches)} archives: the first {most} were checked")
    return replace(
        inspection,
        problems=problems,
        complete=inspection.complete and not problems,
        verified=False if problems else (True if has_all else None),
        notes=[*notes, *([] if has_all else [NO_CHECKSUMS])],
        advice=None if problems else inspection.advice,
    )


def _problems_of_archive(file: Path, begin: int, num_bytes: int) -> list[str]:
    try:
        return read_torch_file(file, begin, num_bytes).problems
    except CorruptCheckpoint as error:
        return [error.message.removeprefix(f"{file}: ")]


def _stretches(inspection: Inspection, root: Path) -> set[tuple[Path, int, int | None]]:
    """The archives to check, as (file, begin, length): torch files, and archives inside `.distcp`
    files.
    """
    parts = [part for tensor in inspection.tensors.values() for part in tensor.parts]
    packed = {(p.file, p.begin, p.archive_bytes) for p in parts if p.archive_bytes is not None}
    whole = {part.file for part in parts if part.archive_bytes is None}
    whole |= {root / name for name in inspection.files if name.endswith(_LOADED_SUFFIXES)}
    whole |= {inspection.path} if inspection.path.is_file() else set()
    return packed | {(file, 0, None) for file in whole}
