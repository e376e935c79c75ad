"""Ports for worlds that tests start."""

import random
import socket
from contextlib import suppress

_PORTS = range(15000, 32000)  # below those that the system gives to connections by itself


def free_port() -> int:
    """A port that stays free until it is used, perhaps minutes later.

    Suites that run side by side draw alike if their `random` has the same seed, so it has none.
    """
    for port in random.SystemRandom().sample(_PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")
