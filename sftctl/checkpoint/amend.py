"""Replace the manifest of an existing checkpoint. Does not load torch."""

from pathlib import Path

from sftctl.checkpoint.layout import (
    MANIFEST_HASH_NAME,
    MANIFEST_NAME,
    CheckpointManifest,
    manifest_bytes,
    manifest_hash_line,
)
from sftctl.disk import DISK, Disk, refusals, replace_file
from sftctl.errors import CheckpointError


def amend_manifest(path: Path, manifest: CheckpointManifest, disk: Disk = DISK) -> None:
    """Replace the manifest of the checkpoint in `path`. Its other files do not change.

    Until the new manifest is in place, the hash file has the hashes of both manifests. So after a
    crash the checkpoint is good, with the old or the new manifest. Raises CheckpointError.
    """
    new, hashes = manifest_bytes(manifest), path / MANIFEST_HASH_NAME
    with refusals(path, CheckpointError, what="its manifest can't be written"):
        both = manifest_hash_line((path / MANIFEST_NAME).read_bytes()) + manifest_hash_line(new)
        replace_file(hashes, both, disk)
        replace_file(path / MANIFEST_NAME, new, disk)
        replace_file(hashes, manifest_hash_line(new), disk)
