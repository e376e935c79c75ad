"""The run that a command uses if none was named."""

from pathlib import Path

from sftctl.errors import NoCheckpoint
from sftctl.runs.directory import RunDir

RUNS = Path("runs")
"""Where `train` puts a run that has no --output-dir."""


def newest_run() -> Path:
    """The run in this folder, or the one in runs/ that trained last; NoCheckpoint if none."""
    if RunDir(Path()).run_file.is_file():
        return Path()
    found = [file.parent for file in RUNS.glob("*/run.json")]
    if not found:
        raise NoCheckpoint(
            f"no run is named, and {RUNS.absolute()} has none",
            hint="name one, or start one with `sftctl train`",
        )
    return max(found, key=_last_change)


def _last_change(run: Path) -> float:
    files = (run / "run.json", run / "metrics.jsonl")
    return max(file.stat().st_mtime for file in files if file.exists())
