"""The problems of a checkpoint: files that are missing, truncated, changed or unknown.

Does not load torch.
"""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from sftctl.checkpoint.layout import (
    MANIFEST_HASH_NAME,
    MANIFEST_NAME,
    CheckpointManifest,
    read_manifest,
)
from sftctl.disk import TEMPORARY_PREFIX, FileEntry, hash_file
from sftctl.errors import CheckpointError

# File managers, editors and network file systems create these files. The last pattern is for a file
# of sftctl: `amend_manifest` leaves it behind if it is killed.
_SIDE_FILE = re.compile(
    r"\.DS_Store|\._.*|\.directory|\.Trash.*|Thumbs\.db|ehthumbs\.db|desktop\.ini|@eaDir|#recycle"
    r"|lost\+found|\.nfs[0-9a-f]+|\.fuse_hidden.*|\.smbdelete.*|\.~lock.*|.*~|\.#.*|#.*#|\..*\.sw[a-z]"
    rf"|{re.escape(TEMPORARY_PREFIX)}manifest\.json.*",
    re.DOTALL | re.IGNORECASE,
)


def problems_of(path: Path, verify: bool) -> list[str]:
    """The problems of a checkpoint, one for each file. `verify`: read and hash every byte."""
    try:
        return problems_in_files(path, read_manifest(path).files, verify)
    except CheckpointError as error:
        return [without_path(path, error)]


def without_path(path: Path, error: CheckpointError) -> str:
    """The message of an error about a checkpoint, without the checkpoint's path at its start."""
    return error.message.removeprefix(f"{path}/").removeprefix(f"{path}: ")


def problems_in_files(path: Path, files: Mapping[str, FileEntry], verify: bool) -> list[str]:
    """The problems of the files that a manifest lists."""
    problems = []
    for name, entry in sorted(files.items()):
        try:
            status = (path / name).lstat()
            if not stat.S_ISREG(status.st_mode):
                problems.append(f"{name}: not a regular file")
            elif status.st_size != entry.num_bytes:
                problems.append(
                    f"{name}: {status.st_size} bytes, the manifest says {entry.num_bytes}"
                )
            elif verify and hash_file(path / name) != entry:
                problems.append(f"{name}: its content was changed (different SHA-256)")
        except FileNotFoundError:
            problems.append(f"{name}: missing")
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
    return problems


def unknown_files(path: Path, manifest: CheckpointManifest) -> list[str]:
    """Names in a checkpoint's folder that its manifest does not list. Such files are never read.

    Files that file managers, editors and network disks create are not returned.
    """
    known = {*manifest.files, MANIFEST_NAME, MANIFEST_HASH_NAME}
    try:
        present = {*os.listdir(path)} - known
    except OSError:  # `problems_of` reports this error
        return []
    return sorted(name for name in present if not _SIDE_FILE.fullmatch(name))


def is_complete(path: Path) -> bool:
    """Whether every file has the right size. No file is hashed."""
    return not problems_of(path, verify=False)
