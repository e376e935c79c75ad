"""Repair metrics.jsonl if an editor, a file system or a bad disk has damaged its lines.

No checkpoint depends on this file, so it may be changed. The readable lines are kept. The damaged
file is kept too, under another name.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import BinaryIO

from sftctl.errors import CheckpointError
from sftctl.jsonio import JSONDecodeError, loads
from sftctl.words import ranges_of

DAMAGED_NAME = "metrics.damaged.jsonl"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Repair:
    """The lines up to the step of a checkpoint, and what is damaged."""

    kept: bytes
    missing: tuple[int, ...]  # steps without a readable line
    damage: str  # in words, such as "line ends of Windows, 2 damaged lines"

    def message(self, last_step: int, aside: str) -> str:
        """One line for the user. `aside` is the new name of the damaged file."""
        num_kept = last_step - len(self.missing)
        steps = "step" if len(self.missing) == 1 else "steps"
        lost = f" (lost: {steps} {ranges_of(self.missing)})" if num_kept and self.missing else ""
        return (
            f"metrics.jsonl: {self.damage}: {num_kept} of {last_step} steps are kept{lost}; "
            f"the old file is now {aside}"
        )


def is_intact(file: BinaryIO, num_bytes: int, last_step: int) -> bool:
    """Whether the first `num_bytes` are undamaged lines, and the last of them has step `last_step`.

    Only one line is in memory at a time, because the lines of a long run can have hundreds of
    megabytes.
    """
    step = None
    for line in file:
        if not line.endswith(b"\n") or b"\r" in line:
            return False
        if (text := line.strip()) and (step := _step_of(text)) is None:
            return False
        num_bytes -= len(line)
        if num_bytes <= 0:
            return num_bytes == 0 and step == last_step
    return False


def damaged_files(run_dir: Path) -> Iterator[Path]:
    """Possible names for a damaged file. Use the first that is free, so that no file is
    overwritten.
    """
    yield run_dir / DAMAGED_NAME
    yield from (run_dir / f"metrics.damaged-{number}.jsonl" for number in count(2))


def repair_of(run_dir: Path, data: bytes, last_step: int) -> Repair | None:
    """How to repair a file with the content `data`; None if nothing in it is damaged.

    CheckpointError if it is damaged and has no line of the run: it is probably another file, and
    the user must bring back the right one.

    After a repair, the lengths that older checkpoints recorded are wrong. So the step of the
    checkpoint, and not its recorded length, decides which lines are kept.
    """
    damage = _damage(data)
    if not damage and not (run_dir / DAMAGED_NAME).exists():
        return None
    lines, last, missing = [], 0, list[int]()
    for line in _whole_lines(data):
        step = _step_of(line)
        if step is not None and last < step <= last_step:
            lines.append(line)
            missing += range(last + 1, step)
            last = step
    if not lines:
        raise CheckpointError(
            f"{run_dir / 'metrics.jsonl'}: it has no line of this run, but the checkpoint was"
            f" made at step {last_step}",
            hint="the file was changed or lost; restore it, or start a new run",
        )
    missing += range(last + 1, last_step + 1)
    kept = b"".join(line + b"\n" for line in lines)
    what = ", ".join(damage) or "its lines are not those that the checkpoint recorded"
    return Repair(kept, tuple(missing), what)


def _damage(data: bytes) -> list[str]:
    """The damage in words. An incomplete last line does not count: a crash may have left it."""
    complete = data[: data.rfind(b"\n") + 1]
    damage = ["a byte order mark"] if complete.startswith(_BOM) else []
    if b"\r" in complete:
        damage.append("line ends of Windows")
    if b"\0" in complete:
        damage.append("zeros in place of lines")
    num_bad = sum(_step_of(line) is None for line in _whole_lines(complete))
    return damage + ([f"{num_bad} damaged line{'s' if num_bad > 1 else ''}"] if num_bad else [])


def _whole_lines(data: bytes) -> Iterator[bytes]:
    """Each line, without white space at both ends. Empty lines are skipped. The last line may be
    incomplete.
    """
    for line in BytesIO(data.removeprefix(_BOM).replace(b"\0", b"")):
        if text := line.strip():
            yield text


def _step_of(line: bytes) -> int | None:
    try:
        value = loads(line)
    except JSONDecodeError:
        return None
    step = value.get("step") if isinstance(value, dict) else None
    return step if isinstance(step, int) and not isinstance(step, bool) else None
