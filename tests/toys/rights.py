"""A process that may not read every file, also if root runs the tests."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_VERSION = 0x20080522  # of Linux's interface: two words of 32 capabilities
_OVERRIDES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Word(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable"))


@contextmanager
def as_an_ordinary_user() -> Iterator[None]:
    """Modes of files count for this thread, as for any user. OSError if the system refuses it."""
    if os.geteuid() != 0:
        yield
        return
    system, header, words = ctypes.CDLL(None, use_errno=True), _Header(_VERSION, 0), (_Word * 2)()

    def call(name: str) -> None:
        if getattr(system, name)(ctypes.byref(header), words) != 0:
            raise OSError(ctypes.get_errno(), name)

    call("capget")
    before = words[0].effective
    words[0].effective &= ~_OVERRIDES
    call("capset")
    try:
        yield
    finally:
        words[0].effective = before
        call("capset")
