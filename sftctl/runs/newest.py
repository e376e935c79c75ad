"""Find the runs near a path, and the newest of them."""

from contextlib import suppress
from pathlib import Path

from sftctl.errors import NoCheckpoint
from sftctl.words import in_shell

RUNS = Path("runs")
"""Where `train` creates a run if there is no --output-dir."""

_RUN_FILE = "run.json"


def newest_run() -> Path:
    """The run in the working directory, else the newest run in runs/. NoCheckpoint if none."""
    if Path(_RUN_FILE).is_file():
        return Path()
    found = by_age(RUNS)
    if not found:
        raise NoCheckpoint(
            f"no run is named, and {RUNS.absolute()} has no run",
            hint="name one, or start one with `sftctl train`",
        )
    return found[0]


def by_age(folder: Path) -> list[Path]:
    """The runs in `folder`. The run that changed last is first."""
    found = sorted(file.parent for file in folder.glob(f"*/{_RUN_FILE}") if file.is_file())
    return sorted(found, key=lambda run: -(last_change(run) or 0.0))


def last_change(run: Path) -> float | None:
    """The time of the last recorded step or event, else of the run's creation; None: no run."""
    for names in (("metrics.jsonl", "events.jsonl"), (_RUN_FILE,)):
        times = []
        for name in names:
            with suppress(OSError):
                times.append((run / name).stat().st_mtime)
        if times:
            return max(times)
    return None


def run_around(path: Path) -> Path | None:
    """The run that contains this file or folder, at most three levels up; or None."""
    above = path.parents if path.exists() else []
    return next((one for one in [*above][:3] if (one / _RUN_FILE).is_file()), None)


def is_model_of_run(path: Path) -> bool:
    """Whether this is `model/` of a run: its configuration and tokenizer, without weights."""
    return path.absolute().name == "model" and (path.absolute().parent / _RUN_FILE).is_file()


def runs_nearby(path: Path) -> str:
    """A hint for a user who named something that is not a run. In it, … stands for the command."""
    if (run := run_around(path)) is not None:
        return f"it is a part of a run: `sftctl … {in_shell(run)}`"
    folder = path.parent if path.parent.is_dir() else RUNS
    found = [run for run in by_age(folder) if run != path]
    if not found:
        return "start one with `sftctl train`"
    where = "there" if folder == path.parent else f"in {folder}"
    more = f"; `sftctl runs {in_shell(folder)}` lists all {len(found)}" if len(found) > 1 else ""
    return f"the newest run {where}: `sftctl … {in_shell(found[0])}`{more}"
