"""Flip one bit of a checkpoint's files at a time."""

import os
import random
from dataclasses import dataclass
from pathlib import Path

from sftctl.checkpoint.damage import problems_of


@dataclass(frozen=True)
class Flip:
    """One bit of one file."""

    file: str
    bit: int  # from the start of the file


def draw_flips(path: Path, num_flips: int) -> list[Flip]:
    """Random bits of all files. A small file gets as many as a large one, or all that it has."""
    sizes = {file.name: 8 * file.stat().st_size for file in sorted(path.iterdir())}
    rng = random.Random(0)
    flips: list[Flip] = []
    for left, (name, num_bits) in enumerate(sorted(sizes.items(), key=lambda it: it[1])):
        share = (num_flips - len(flips)) // (len(sizes) - left)
        flips += [Flip(name, bit) for bit in rng.sample(range(num_bits), min(share, num_bits))]
    return flips


def is_found(path: Path, flip: Flip) -> bool:
    """Whether a flipped bit is reported as one problem that names the file. It is flipped back."""
    _turn(path, flip)
    problems = problems_of(path, verify=True)
    _turn(path, flip)
    return len(problems) == 1 and flip.file in problems[0]


def _turn(path: Path, flip: Flip) -> None:
    descriptor = os.open(path / flip.file, os.O_RDWR)
    [byte] = os.pread(descriptor, 1, flip.bit // 8)
    os.pwrite(descriptor, bytes([byte ^ 1 << flip.bit % 8]), flip.bit // 8)
    os.close(descriptor)
