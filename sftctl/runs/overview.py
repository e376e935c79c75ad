"""A summary of each run in a folder. Loads neither torch nor numpy.

A few kilobytes of each run are read. Only if a run has no validation, all of metrics.jsonl is read.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sftctl.checkpoint.directory import list_checkpoints
from sftctl.checkpoint.layout import step_of
from sftctl.config.schema import RunConfig
from sftctl.errors import ConfigError, SftctlError
from sftctl.jsonio import JSONDecodeError, loads, read_lines
from sftctl.machine import lock_holder
from sftctl.runs.choosing import final_step
from sftctl.runs.directory import RunDir
from sftctl.runs.mixtures import sources_with_paths
from sftctl.runs.newest import RUNS, by_age
from sftctl.words import in_shell

_ENDS = ("stopped", "finished", "failed")
_SESSION = ("started", "resumed", *_ENDS)
_TAIL_BYTES = 1 << 15  # read from the end of metrics.jsonl: about 60 steps


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """The facts about one run. None: not recorded."""

    run_dir: Path
    name: str
    status: str  # running | finished | stopped | failed | killed | damaged
    step: int = 0  # the last step in metrics.jsonl
    total_steps: int | None = None
    first_loss: float | None = None
    loss: float | None = None
    first_validation_loss: float | None = None
    validation_loss: float | None = None
    best_validation_loss: float | None = None
    best_step: int | None = None  # chosen by the goal
    best_of: str | None = None  # the goal, such as "validation loss"
    best: float | None = None  # the value of the goal at `best_step`
    set_losses: dict[str, float] = field(default_factory=dict)  # if there are several sets
    lowest_loss: float | None = None  # the lowest training loss, if there was no validation
    lowest_loss_step: int | None = None
    final_step: int | None = None  # the step whose weights are in final/
    last_checkpoint: int | None = None  # the step of the last checkpoint
    tokens_per_s: float | None = None  # over the last steps
    model: str | None = None
    data: str | None = None
    created: float | None = None  # seconds since 1970
    changed: float | None = None  # when the last step or event was recorded
    next: str | None = None  # a command to type
    problem: str | None = None  # why the run can't be read


def runs_in(folder: Path) -> list[RunLine]:
    """The runs in `folder`, the one that changed last first. If `folder` is a run: only this run.

    ConfigError if the folder does not exist.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: no such folder", hint="`sftctl runs DIR` lists the runs in a folder"
        )
    is_run = RunDir(folder).run_file.is_file()
    found = [folder] if is_run else by_age(folder)
    return [_line(path) for path in found]


def newest_unfinished(newest: Path) -> Path:
    """The newest run in runs/ that can continue. `newest` itself if there is none, or if `newest`
    is not in runs/.
    """
    if newest.parent != RUNS:
        return newest
    left = (path for path in by_age(RUNS) if _line(path).status not in ("finished", "damaged"))
    return next(left, newest)


def status_of(events: Sequence[Mapping[str, Any]]) -> str:
    """finished, stopped, failed or unfinished (it is running, or was killed), from the events."""
    names = [event["event"] for event in events if event["event"] in _SESSION]
    return names[-1] if names and names[-1] in _ENDS else "unfinished"


def _line(path: Path) -> RunLine:
    run = RunDir(path)
    try:
        facts, config = run.facts(), run.config()
        return _readable(run, facts, config)
    except (SftctlError, OSError) as error:
        problem = error.message if isinstance(error, SftctlError) else str(error)
        return RunLine(run_dir=path, name=path.name, status="damaged", problem=problem)


def _readable(run: RunDir, facts: dict[str, Any], config: RunConfig) -> RunLine:
    events = [e for e in _objects(run.path / "events.jsonl") if isinstance(e.get("event"), str)]
    first, recent = _ends_of(run.path / "metrics.jsonl")
    last = recent[-1] if recent else {}
    evaluations = _evaluations(events)
    losses = [(one["step"], float(one["validation_loss"])) for one in evaluations]
    later = [(loss, step) for step, loss in losses if step > 0]  # step 0 is never the best
    planned = [event["total_steps"] for event in events if "total_steps" in event]
    steps = [step for one in list_checkpoints(run.checkpoints) if (step := step_of(one.name))]
    status = status_of(events)
    if status == "unfinished":
        status = "running" if lock_holder(run.path / ".lock") is not None else "killed"
    elif status != "finished" and lock_holder(run.path / ".lock") is not None:
        status = "running"  # a resume has begun, and has not written its first event yet
    lowest = min(later, default=(None, None))
    last_evaluation = evaluations[-1] if evaluations else {}
    of_what = last_evaluation.get("goal", "validation loss") if later else None
    best = (last_evaluation.get("best"), last_evaluation.get("best_step"))
    # An older version wrote this run. It recorded no best.
    if best[1] is None and of_what == "validation loss":
        best = lowest
    lowest_loss, lowest_loss_step = (None, None) if losses else _lowest_loss(run.path)
    return RunLine(
        run_dir=run.path,
        name=run.path.absolute().name,
        status=status,
        step=last.get("step", 0),
        total_steps=planned[-1] if planned else None,
        first_loss=first.get("loss"),
        loss=last.get("loss"),
        first_validation_loss=losses[0][1] if losses else None,
        validation_loss=losses[-1][1] if losses else None,
        best_validation_loss=lowest[0],
        best_step=best[1],
        best_of=of_what,
        best=best[0],
        set_losses=_set_losses(last_evaluation),
        lowest_loss=lowest_loss,
        lowest_loss_step=lowest_loss_step,
        final_step=final_step(run),
        last_checkpoint=steps[-1] if steps else None,
        tokens_per_s=_rate(recent),
        model=Path(config.model.name).name,
        data=_data_of(config),
        created=facts.get("created"),
        changed=_changed(run.path),
        next=_next(run, status),
    )


def _data_of(config: RunConfig) -> str:
    named = [source.path for source in sources_with_paths(config.data)] or [config.data.path]
    return ", ".join("the bundled sample" if path is None else Path(path).name for path in named)


def _next(run: RunDir, status: str) -> str | None:
    """The command to continue with; None while the run is running."""
    if status == "running":
        return None
    is_done = status == "finished" and run.final.is_dir()
    return f"sftctl {'chat' if is_done else 'resume'} {in_shell(run.path)}"


def _rate(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Tokens per second over these steps, with the time of waiting for data."""
    seconds = sum(line.get("step_time_s") or 0.0 for line in lines)
    tokens = sum(line.get("num_tokens") or 0 for line in lines)
    return tokens / seconds if seconds > 0 else None


def _evaluations(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The event of each evaluation, by step. Events after the step of a resume are dropped."""
    found: dict[int, Mapping[str, Any]] = {}
    for event in events:
        step, loss = event.get("step"), event.get("validation_loss")
        if event["event"] == "resumed" and isinstance(step, int):
            found = {known: one for known, one in found.items() if known <= step}
        elif event["event"] == "evaluation" and isinstance(step, int) and loss is not None:
            found[step] = event
    return [event for _, event in sorted(found.items())]


def _set_losses(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The loss of each validation set by name; {} if there is only one set."""
    sets = evaluation.get("sets")
    if not isinstance(sets, dict) or len(sets) < 2:
        return {}
    losses = {name: one.get("loss") for name, one in sets.items() if isinstance(one, dict)}
    return {name: loss for name, loss in losses.items() if isinstance(loss, (int, float))}


def _lowest_loss(run: Path) -> tuple[float | None, int | None]:
    """The lowest training loss and its step."""
    path = run / "metrics.jsonl"
    lines = read_lines(path) if path.is_file() else ()
    pairs = ((line.get("loss"), line.get("step")) for line in lines)
    known = ((loss, step) for loss, step in pairs if loss is not None and step is not None)
    return min(known, default=(None, None))


def _changed(path: Path) -> float | None:
    times = []
    for name in ("metrics.jsonl", "events.jsonl"):
        with suppress(OSError):
            times.append((path / name).stat().st_mtime)
    return max(times, default=None)


def _ends_of(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The first line, and the last lines."""
    if not path.is_file():  # opening a named pipe would wait for a writer
        return {}, []
    with path.open("rb") as file:
        first = file.readline()
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read().split(b"\n")[:-1]
    recent = [*_parsed(tail if size <= _TAIL_BYTES else tail[1:])]
    return next(_parsed([first]), {}), recent


def _objects(path: Path) -> list[dict[str, Any]]:
    return [*_parsed(path.read_bytes().split(b"\n"))] if path.is_file() else []


def _parsed(lines: Sequence[bytes]) -> Any:
    """The lines that are JSON objects. Damaged lines are skipped."""
    for line in lines:
        with suppress(JSONDecodeError):
            value = loads(line)
            if isinstance(value, dict):
                yield value


def age_s(line: RunLine) -> float | None:
    """Seconds since the run's last change."""
    return None if line.changed is None else max(0.0, time.time() - line.changed)
