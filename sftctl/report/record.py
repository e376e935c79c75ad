"""Read a run directory. Damaged or missing files give remarks, not errors."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sftctl.checkpoint.damage import problems_of
from sftctl.checkpoint.directory import list_checkpoints
from sftctl.checkpoint.layout import read_manifest
from sftctl.config.load import config_to_dict
from sftctl.errors import SftctlError
from sftctl.jsonio import JSONDecodeError, loads
from sftctl.metrics import StepMetrics
from sftctl.runs.choosing import final_step
from sftctl.runs.directory import RunDir
from sftctl.runs.overview import status_of
from sftctl.words import counted

_NO_NUMBERS = ("examples_digest", "sources")
_NUMBERS = tuple(item.name for item in fields(StepMetrics) if item.name not in _NO_NUMBERS)
VALIDATION_LOSS = "validation loss"
_OF_SOURCES = ("loss", "token_accuracy")  # values of a source; the key is "loss of NAME"


@dataclass(frozen=True, slots=True)
class CheckpointLine:
    """What the page shows about a checkpoint."""

    name: str
    step: int | None
    epoch: int | None
    num_bytes: int
    validation_loss: float | None
    problems: list[str]


@dataclass(frozen=True, slots=True, eq=False)
class RunRecord:
    """The parts of a run that can be read."""

    path: Path
    facts: dict[str, Any]
    config: dict[str, dict[str, Any]]
    metrics: dict[str, npt.NDArray[np.floating[Any]]]  # name -> (number of steps,); NaN: no value
    events: list[dict[str, Any]]
    checkpoints: list[CheckpointLine]
    remarks: list[str]
    final_step: int | None = None  # the step whose weights are in final/
    versions: dict[str, Any] = field(default_factory=dict)  # versions in the newest checkpoint

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        return self.metrics["step"].astype(np.int64)

    @property
    def last_step(self) -> int:
        return int(self.steps[-1]) if len(self.steps) else 0

    @property
    def total_steps(self) -> int | None:
        """The planned number of steps, from the last start or resume."""
        planned = [event["total_steps"] for event in self.events if "total_steps" in event]
        return int(planned[-1]) if planned else None

    @property
    def status(self) -> str:
        """`finished`, `stopped`, `failed` or `unfinished` (still running, or killed)."""
        return status_of(self.events)

    def of_sources(self, key: str) -> dict[str, npt.NDArray[np.floating[Any]]]:
        """Name of a source -> its loss or token_accuracy: (number of steps,)."""
        start = f"{key} of "
        return {
            name.removeprefix(start): values
            for name, values in self.metrics.items()
            if name.startswith(start)
        }

    def evaluations(self) -> list[dict[str, Any]]:
        """The events of evaluations, by step. A resume removes evaluations after its step."""
        found: dict[int, dict[str, Any]] = {}
        for event in self.events:
            if event["event"] == "resumed":
                found = {step: one for step, one in found.items() if step <= event["step"]}
            elif event["event"] == "evaluation":
                found[event["step"]] = event
        return [event for _, event in sorted(found.items())]

    def validation(self) -> list[tuple[int, float]]:
        """(step, loss) of each evaluation."""
        return [(one["step"], float(one["validation_loss"])) for one in self.evaluations()]

    def set_losses(self) -> dict[str, list[tuple[int, float]]]:
        """Name of a validation set -> (step, loss) of each evaluation. Empty for a single set."""
        return self.of_sets("loss")

    def of_sets(self, key: str) -> dict[str, list[tuple[int, float]]]:
        """Name of a validation set -> (step, value of `key`). Empty if there is only one set."""
        values = _by_set(self.evaluations(), key)
        return values if len(values) > 1 else {}

    def judged(self) -> dict[str, dict[str, list[tuple[int, float]]]]:
        """Name of a metric -> name of a validation set -> (step, value) of each evaluation."""
        names = [name for one in self.evaluations() for name in _object(one.get("metrics"))]
        return {name: _by_set(self.evaluations(), name) for name in dict.fromkeys(names)}

    @property
    def chosen_by(self) -> tuple[str, float | None, int | None]:
        """The goal that chooses the best step, the best value so far, and its step."""
        evaluations = self.evaluations()
        last = evaluations[-1] if evaluations else {}
        best, step = last.get("best"), last.get("best_step")
        goal = str(last.get("goal", VALIDATION_LOSS))
        if isinstance(best, (int, float)) and isinstance(step, int):
            return goal, float(best), step
        if goal != VALIDATION_LOSS:
            return goal, None, None
        # Step 0 counts only if there is no other evaluation.
        validation = self.validation()
        later = [(loss, at) for at, loss in validation if at > 0 or len(validation) == 1]
        return goal, *min(later, default=(None, None))

    def summary(self) -> dict[str, Any]:
        """The most important values, for --json."""
        loss, validation = self.metrics["loss"], self.validation()
        return {
            "run_dir": self.path,
            "status": self.status,
            "step": self.last_step,
            "total_steps": self.total_steps,
            "loss": float(loss[-1]) if len(loss) else None,
            "validation_losses": validation,
            "set_losses": self.set_losses(),
            "metrics": self.judged(),
            "final_step": self.final_step,
            "num_tokens": int(np.nansum(self.metrics["num_tokens"])),
            "num_checkpoints": len(self.checkpoints),
            "remarks": self.remarks,
        }


def _by_set(events: Sequence[dict[str, Any]], key: str) -> dict[str, list[tuple[int, float]]]:
    """Name of a validation set -> (step, value of `key`) of each evaluation."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events:
        for name, values in _object(event.get("sets")).items():
            value = _object(values).get(key)
            if isinstance(value, (int, float)):
                found.setdefault(name, []).append((event["step"], float(value)))
    return found


def _object(value: object) -> dict[str, Any]:
    """`value` if it is an object, else {}. A damaged log may have other values."""
    return value if isinstance(value, dict) else {}


def read_run(path: Path) -> RunRecord:
    """Read the run in `path`. Raises NoCheckpoint if there is no run."""
    run = RunDir.open(path)
    remarks: list[str] = []
    config: dict[str, dict[str, Any]] = {}
    try:
        config = config_to_dict(run.config())
    except SftctlError as problem:
        remarks.append(problem.message)
    metrics = _read_metrics(path / "metrics.jsonl", remarks)
    events = [
        event
        for event in _objects(path / "events.jsonl", remarks)
        if isinstance(event.get("event"), str) and isinstance(event.get("step"), int)
    ]
    events = [event for event in events if not _lacks_its_loss(event)]
    checkpoints = [_checkpoint(folder) for folder in list_checkpoints(run.checkpoints)]
    facts, final = run.facts(), final_step(run)
    newest = _versions(run)
    return RunRecord(path, facts, config, metrics, events, checkpoints, remarks, final, newest)


def _versions(run: RunDir) -> dict[str, Any]:
    """The versions of packages, and the processor, from the newest checkpoint that is readable."""
    for folder in reversed(list_checkpoints(run.checkpoints)):
        with suppress(SftctlError):
            return dict(read_manifest(folder).versions)
    return {}


def _lacks_its_loss(event: dict[str, Any]) -> bool:
    """Whether `event` is an evaluation without a loss."""
    loss = event.get("validation_loss")
    return event["event"] == "evaluation" and not isinstance(loss, (int, float))


def _read_metrics(path: Path, remarks: list[str]) -> dict[str, npt.NDArray[np.floating[Any]]]:
    rows, last, num_bad = list[list[float]](), 0, 0
    by_source: dict[str, dict[int, float]] = {}  # "loss of NAME" -> row -> loss
    for line in _objects(path, remarks):
        step = line.get("step")
        if not isinstance(step, int) or step <= last:
            num_bad += 1
            continue
        last = step
        for name, value in _of_sources_in(line):
            by_source.setdefault(name, {})[len(rows)] = value
        rows.append([_number(line.get(name)) for name in _NUMBERS])
    if num_bad:
        lines = counted(num_bad, "line")
        remarks.append(f"{path.name}: {lines} left out: the step does not increase")
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(_NUMBERS))
    missing = last - len(rows)
    if missing > 0:
        remarks.append(f"{path.name}: {missing} of {counted(last, 'step')} missing")
    metrics: dict[str, npt.NDArray[np.floating[Any]]]
    metrics = {name: table[:, column] for column, name in enumerate(_NUMBERS)}
    for name, values in by_source.items():
        metrics[name] = np.full(len(rows), np.nan)
        metrics[name][[*values]] = [*values.values()]
    return metrics


def _of_sources_in(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """(key, value) for each source in a line. Lines of older versions have no token_accuracy."""
    for name, source in _object(line.get("sources")).items():
        for key in _OF_SOURCES:
            if key == "loss" or key in _object(source):
                yield f"{key} of {name}", _number(_object(source).get(key))


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _objects(path: Path, remarks: list[str]) -> Iterator[dict[str, Any]]:
    """The objects in a JSON-lines file. Other lines are counted in a remark."""
    if path.exists() and not path.is_file():  # reading a pipe would block
        remarks.append(f"{path.name}: not a file")
        return
    try:
        content = path.read_bytes()
    except OSError as problem:
        remarks.append(f"{path.name}: {problem.strerror}")
        return
    num_complete = content.count(b"\n")  # a last line without \\n is still being written
    bad = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line:
            continue
        try:
            value = loads(line)
        except JSONDecodeError:
            value = None
        if isinstance(value, dict):
            yield value
        elif number <= num_complete:
            bad.append(number)
    if bad:
        remarks.append(
            f"{path.name}:{bad[0]}: not a JSON object; {counted(len(bad), 'such line')} left out"
        )


def _checkpoint(folder: Path) -> CheckpointLine:
    num_bytes = sum(file.lstat().st_size for file in folder.iterdir() if file.is_file())
    problems = problems_of(folder, verify=False)
    try:
        manifest = read_manifest(folder)
    except SftctlError:
        return CheckpointLine(folder.name, None, None, num_bytes, None, problems)
    validation = manifest.validation or {}
    loss = validation["last"] if validation.get("step") == manifest.step else None
    return CheckpointLine(folder.name, manifest.step, manifest.epoch, num_bytes, loss, problems)
