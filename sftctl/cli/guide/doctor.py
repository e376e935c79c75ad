"""sftctl doctor."""

from sftctl.cli import streams
from sftctl.cli.options import Json
from sftctl.errors import CheckpointError
from sftctl.tracking.working import working


def doctor(json: Json = False) -> None:
    """Describe this machine, and test that resume is exact on this machine (about 20 seconds)."""
    from sftctl.cli.show.output import emit

    streams.tell("measuring the machine, then training ten steps: train, kill, resume, compare")
    with working():
        from sftctl.bench.doctor import examine
        from sftctl.cli.show.machine import diagnosis

        found = examine()
    emit(found.to_json(), lambda: diagnosis(found), as_json=json)
    if not found.self_test.passed:
        raise CheckpointError(
            f"self-test: {found.self_test.what}",
            hint="report a bug, with the output of `sftctl doctor --json`",
        )
