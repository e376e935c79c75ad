"""Power cuts of a real file system: ext4 in an image file, on a loop device.

What the backing file holds at one moment is what reached the device; a copy of it, mounted, is the
disk after a power cut at that moment. The process that writes stops itself meanwhile, and nobody
syncs anything. The journal is not committed by the clock, so only the writer's own syncs count.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMAGE_BYTES = 256 << 20
OPTIONS = "loop,commit=600,nodiscard"


def make_image(image: Path) -> None:
    """An empty ext4 file system; raises CalledProcessError or FileNotFoundError."""
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    whole_now = "lazy_itable_init=0,lazy_journal_init=0"  # nothing is left to a kernel thread
    _run("mkfs.ext4", "-q", "-F", "-E", whole_now, image)


@contextmanager
def mounted(image: Path) -> Iterator[Path]:
    """The image's file system, its journal replayed; no mount or loop device is left at the end."""
    folder = image.with_suffix(".mounted")
    folder.mkdir()
    _run("mount", "-o", OPTIONS, image, folder)
    try:
        yield folder
    finally:
        _run("umount", folder)
        folder.rmdir()


def _run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)


@contextmanager
def started(*command: object, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes on the image; it is gone before the image is unmounted."""
    words = [sys.executable, *map(str, command)]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def cuts_of(process: subprocess.Popen[bytes], image: Path) -> Iterator[Path]:
    """A copy of the image at each moment when the process has stopped itself; then it goes on."""
    copy = image.with_name("copy.ext4")
    while _has_stopped(process):
        _run("cp", "--sparse=always", image, copy)
        yield copy
        process.send_signal(signal.SIGCONT)
    assert process.wait() == 0


def _has_stopped(process: subprocess.Popen[bytes]) -> bool:
    """Wait until the process stops or ends; True if it stopped."""
    how = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert how is not None
    if how.si_code != os.CLD_STOPPED:
        return False
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    return True
