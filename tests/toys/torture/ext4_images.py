"""Power cuts on a real file system: ext4 in an image file, on a loop device.

The image file at one moment holds what has reached the device. A copy of it, mounted, is the disk
after a power cut at that moment. Meanwhile the process that writes has paused itself, and nothing
else syncs. The journal is not committed by a timer, so only the writer's own syncs count.
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
    at_once = "lazy_itable_init=0,lazy_journal_init=0"  # a kernel thread has nothing left to do
    _run("mkfs.ext4", "-q", "-F", "-E", at_once, image)


@contextmanager
def mounted(image: Path) -> Iterator[Path]:
    """The image's file system, with its journal replayed. It is unmounted at the end."""
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
    """A Python process that writes to the image. It is killed at the end, before the unmount."""
    words = [sys.executable, *map(str, command)]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def cuts_of(process: subprocess.Popen[bytes], image: Path) -> Iterator[Path]:
    """A copy of the image each time the process has paused itself; then the process continues."""
    copy = image.with_name("copy.ext4")
    while _has_paused(process):
        _run("cp", "--sparse=always", image, copy)
        yield copy
        process.send_signal(signal.SIGCONT)
    assert process.wait() == 0


def _has_paused(process: subprocess.Popen[bytes]) -> bool:
    """Wait until the process pauses or ends; True if it paused."""
    how = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert how is not None
    if how.si_code != os.CLD_STOPPED:
        return False
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    return True
