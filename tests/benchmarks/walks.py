"""How often a reader changes files: `python tests/benchmarks/walks.py FROM TO ARGUMENTS…`.

It runs `sftctl ARGUMENTS…` of the tree in the current folder, and follows its calls from the
function FROM until TO is called, also in forked processes. `-` is the beginning or the end; TO `=`:
until FROM returns, with all that its threads do. A function is read where it is called first. A
call into another file is an entry; an entry into a file that was left is a return. Going back to
the caller is free. docs/measured/walks.md has the results.
"""

import os
import sys
import threading
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

PACKAGE = Path.cwd() / "sftctl"
FLOOR = (
    *("errors.py", "words.py", "metrics.py", "jsonio.py", "disk.py", "folders.py"),
    *("environment.py", "rank_variables.py"),
)
"""These files are not counted, because their names say what they do."""


class Walk:
    """The files that a reader enters, in order."""

    def __init__(self, first: str, last: str) -> None:
        self.first, self.last = first, last
        self.is_on = first == "-"
        self.read = set[CodeType]()
        self.last_entered = ""
        self.entries = os.memfd_create("entries")  # forked processes write to the same end

    def hook(self, frame: FrameType, event: str, _: object) -> None:
        """What sys.setprofile calls."""
        code = frame.f_code
        if event == "return" and self.last == "=" and code.co_qualname == self.first:
            self.is_on = False
        if event != "call" or (file := file_of(code)) is None or code.co_name.startswith("<"):
            return
        if code.co_qualname == self.first and not self.read:
            self.is_on = True
        elif code.co_qualname == self.last:
            self.is_on = False
        is_aside = self.last == "=" and threading.current_thread() is not threading.main_thread()
        if not (self.is_on or is_aside) or code in self.read:
            return
        self.read.add(code)
        came_from = caller(frame)
        if came_from != "<module>" and file != came_from and file not in FLOOR:
            self.enter(file)

    def enter(self, file: str) -> None:
        if self.last_entered != file:
            self.last_entered = file
            os.write(self.entries, f"{file}\n".encode())

    def entered(self) -> list[str]:
        """All entries, in order."""
        files = os.pread(self.entries, 1 << 24, 0).decode().split()
        return [file for file, before in zip(files, ["", *files], strict=False) if file != before]


def file_of(code: CodeType) -> str | None:
    """The file of the package that a function is in."""
    path = code.co_filename
    return path[len(str(PACKAGE)) + 1 :] if path.startswith(f"{PACKAGE}/") else None


def caller(frame: FrameType) -> str | None:
    """The file that called; `<module>` for what runs while a file is imported."""
    up = frame.f_back
    while up is not None and file_of(up.f_code) is None:
        up = up.f_back
    if up is not None and up.f_code.co_name == "<module>" and up.f_code.co_filename != __file__:
        return "<module>"
    return up and file_of(up.f_code)


def main() -> None:
    """Run the command, then print what was entered."""
    first, last, *arguments = sys.argv[1:]
    sys.path.insert(0, str(PACKAGE.parent))
    from sftctl.__main__ import app

    walk = Walk(first, last)
    threading.setprofile(walk.hook)
    sys.setprofile(walk.hook)
    sys.argv = ["sftctl", *arguments]
    try:
        app()
    finally:
        sys.setprofile(None)
        entered = walk.entered()
        counts = Counter(entered)
        often = [f"{file} {times}" for file, times in counts.most_common() if times > 3]
        returns = len(entered) - len(counts)
        print("\n".join(entered), file=sys.stderr)
        print(f"{len(counts)} files, {returns} returns; more than 3 entries: {often}")


if __name__ == "__main__":
    main()
