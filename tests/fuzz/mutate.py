"""Random damage to bytes: what disks, networks and attackers do to files."""

import random
import struct
from collections.abc import Callable

_TEXTS = (
    b"9" * 5000,
    b"[" * 2000,
    b'{"a":' * 2000,
    b"\x1b[2J",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"-1",
    b"1e999",
)
_NUMBERS = (0, 1, 2**7, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)

Damage = Callable[[bytearray, random.Random], None]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A copy with one to four changes."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        if changed:
            chance.choice(_DAMAGES)(changed, chance)
    return bytes(changed)


def _place(data: bytearray, chance: random.Random) -> int:
    """A position; headers, where most of the structure is, are hit as often as all the rest."""
    return chance.randrange(min(len(data), chance.choice((64, 512, len(data)))))


def _flip(data: bytearray, chance: random.Random) -> None:
    data[_place(data, chance)] ^= 1 << chance.randrange(8)


def _set(data: bytearray, chance: random.Random) -> None:
    data[_place(data, chance)] = chance.choice(b'\0\x01\x7f\x80\xff0-9."{}[],:(Rc.\n')


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[_place(data, chance) :]


def _remove(data: bytearray, chance: random.Random) -> None:
    begin = _place(data, chance)
    del data[begin : begin + chance.choice((1, 2, 8, 100))]


def _repeat(data: bytearray, chance: random.Random) -> None:
    begin = _place(data, chance)
    piece = data[begin : begin + chance.choice((1, 8, 64, 500))]
    data[begin:begin] = piece * chance.choice((1, 2, 50, 1000))


def _move(data: bytearray, chance: random.Random) -> None:
    begin, end = _place(data, chance), _place(data, chance)
    data[end:end] = data[begin : begin + chance.choice((4, 30, 200))]


def _number(data: bytearray, chance: random.Random) -> None:
    size = chance.choice((2, 4, 8))
    number = chance.choice(_NUMBERS) % (1 << 8 * size)
    order = chance.choice(("<", ">"))
    begin = _place(data, chance)
    data[begin : begin + size] = struct.pack(f"{order}{ {2: 'H', 4: 'I', 8: 'Q'}[size] }", number)


def _text(data: bytearray, chance: random.Random) -> None:
    begin = _place(data, chance)
    data[begin : begin + chance.choice((0, 1, 4))] = chance.choice(_TEXTS)


def _digits(data: bytearray, chance: random.Random) -> None:
    """Another number in place of one that is written in digits."""
    places = [at for at, byte in enumerate(data[:100_000]) if 48 <= byte <= 57]
    if places:
        at = chance.choice(places)
        data[at : at + 1] = str(chance.choice((-1, 1.5, 10**30, *_NUMBERS))).encode()


_DAMAGES: tuple[Damage, ...] = (
    _flip, _set, _cut, _remove, _repeat, _move, _number, _text, _digits,
)  # fmt: skip
