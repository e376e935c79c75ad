"""Hash the store of a session once: before the training, or in the background.

One rank of each machine does this.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sftctl.data.storage.background_check import BackgroundCheck
from sftctl.data.storage.hashes import first_wrong
from sftctl.data.storage.joined import Store
from sftctl.errors import DataError
from sftctl.train.session import Session
from sftctl.words import in_shell
from sftctl.world import World

_LOOK_EVERY_S = 0.02


class StoreCheck:
    """The result so far of the check in the background. Every rank has such an object."""

    def __init__(self, session: Session, checks: dict[Path, BackgroundCheck]) -> None:
        self._session, self._checks = session, checks
        self._first_step = session.state.progress.step

    @property
    def is_wrong(self) -> bool:
        """Whether this rank has found an error in the store so far. Does not wait for the check."""
        return self._problem() is not None

    @property
    def is_running(self) -> bool:
        """Whether this rank's check is still running."""
        return any(check.is_running for check in self._checks.values())

    def _problem(self) -> str | None:
        found = ((path, check.problem()) for path, check in self._checks.items())
        return next((f"{path}/{what}" for path, what in found if what is not None), None)

    def require_right(self) -> None:
        """Raise DataError on every rank if any rank has found an error. All ranks call this
        together.
        """
        found = self._session.world.gather(self._problem())
        for problem in filter(None, found):
            raise DataError(problem, self._hint())

    def wait(self) -> None:
        """Wait until all stores are checked or a signal comes; raise DataError if one is wrong."""
        session = self._session
        if session.stop.heard is None:
            for check in self._checks.values():
                check.hurry()
        while session.stop.requested(session.world) is None:
            if not session.world.max(int(self.is_running)):
                break
            time.sleep(_LOOK_EVERY_S)
        self.require_right()

    def _hint(self) -> str:
        first, run = self._first_step, self._session.run.path
        resume = f"`sftctl resume {in_shell(run)} --step {first}`"
        again = resume if first else "start the run again"
        return (
            f"steps after step {first}, where this session began, may have had wrong data: put the "
            f"store back, then {again}"
        )


@contextmanager
def open_store_check(session: Session, *, is_verified: bool) -> Iterator[StoreCheck]:
    """Start the check in the background, on the first rank of each machine.

    With `is_verified` nothing is checked, because `verify_now` has already hashed the store.
    """
    checks: dict[Path, BackgroundCheck] = {}
    with ExitStack() as stack:
        if session.world.local_rank == 0 and not is_verified:
            for store in session.inputs.train.parts:
                if store.path not in checks:
                    checks[store.path] = BackgroundCheck(store.path, store.manifest)
                    stack.callback(checks[store.path].close)
        yield StoreCheck(session, checks)


def verify_now(store: Store, world: World) -> None:
    """Hash the store now, on the first rank of each machine.

    An error is a DataError on all ranks.
    """
    for part in store.parts:
        is_first = world.local_rank == 0
        found = world.gather(first_wrong(part.path, part.manifest) if is_first else None)
        for problem in filter(None, found):
            hint = "put the store back, or prepare the data again"
            raise DataError(f"{part.path}/{problem}", hint)
