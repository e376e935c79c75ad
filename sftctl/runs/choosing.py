"""Choose the best evaluation of a run, the end by patience, and the weights of `final/`.

These are pure functions of `validation` in a checkpoint's manifest. So a resumed run makes the same
choices as a run that never stopped. Loads neither torch nor numpy.
"""

import math
from collections.abc import Mapping
from typing import Any

from sftctl.checkpoint.directory import GoodCheckpoint, newest_good, ranked_checkpoints
from sftctl.checkpoint.layout import step_of
from sftctl.checkpoint.sealed import read_seal
from sftctl.config.evaluation import LOSS, METRICS, Goal
from sftctl.config.schema import RunConfig, TrainConfig
from sftctl.errors import CheckpointError, ConfigError
from sftctl.runs.directory import RunDir
from sftctl.runs.origin import of_another_run
from sftctl.words import counted

_CHOICE = ("best", "best_step", "mark", "waited")

Validation = Mapping[str, Any]
"""`validation` in a manifest: the `first`, `best` and `last` loss, the `step` of the last
evaluation, and the `best_step`. For patience, `mark` is the value that an evaluation must improve,
and `waited` counts the evaluations that did not. If `evaluation.best` is not the loss, `goal` names
it, `value` is its last value, and `best` is its best value.
"""


def with_evaluation(
    seen: Validation | None,
    step: int,
    loss: float,
    min_delta: float,
    goal: Goal = LOSS,
    value: float | None = None,
) -> dict[str, Any]:
    """`seen`, updated by the evaluation of one more step.

    Step 0 is never the best, and does not count in `waited`. `value` is the value of the `goal`;
    None if the goal is the loss. Of equal best values, the first step is kept. `waited` becomes 0
    only if the value is more than `min_delta` better than `mark`. If the goal has changed, the
    choice starts again. If a metric by generation has no number (NaN), the best step and `waited`
    stay as they are.
    """
    value = loss if value is None else value
    new = {**(seen or {"first": loss}), "last": loss, "step": step}
    for key in ("goal", "value"):  # these may belong to an earlier goal
        new.pop(key, None)
    if not goal.is_loss:
        new |= {"goal": str(goal), "value": value}
    is_other = seen is None or goal_in(seen) != str(goal)
    is_first = seen is None or is_other or seen["step"] == 0 or "best" not in seen
    if math.isnan(value) and goal.metric not in METRICS:
        forgotten = _CHOICE if is_first else ()
        return {key: one for key, one in new.items() if key not in forgotten}
    if is_first or seen is None:
        new |= {"best": value}
        return new | ({"best_step": step, "mark": value, "waited": 0} if step > 0 else {})
    if _is_better(value, seen["best"], 0.0, goal):
        new |= {"best": value, "best_step": step}
    mark = seen.get("mark", seen["best"])
    if _is_better(value, mark, min_delta, goal):
        return new | {"mark": value, "waited": 0}
    return new | {"mark": mark, "waited": seen.get("waited", 0) + 1}


def goal_in(validation: Validation) -> str:
    """The goal that chose the best step so far."""
    return str(validation.get("goal", LOSS))


def _is_better(value: float, other: float, min_delta: float, goal: Goal) -> bool:
    """Whether `value` is more than `min_delta` better. Values that are not finite are the worst."""
    if not math.isfinite(value) or not math.isfinite(other):
        return math.isfinite(value)
    gain = other - value if goal.direction == "min" else value - other
    return gain > min_delta


def is_new_best(validation: Validation | None, step: int) -> bool:
    """Whether the evaluation of `step` is the best so far."""
    return validation is not None and step == validation["step"] == validation.get("best_step", -1)


def is_out_of_patience(train: TrainConfig, validation: Validation | None) -> bool:
    """Whether `train.patience` has ended the run."""
    waited = (validation or {}).get("waited", 0)
    return 0 < train.patience <= int(waited)


def end_of_patience(validation: Validation) -> str:
    """Why the run has ended, in one line. Call it only if `is_out_of_patience`."""
    best, step = validation["best"], validation.get("best_step")  # in JSON, NaN is null
    loss = "nan" if best is None else f"{best:.4f}"
    evaluations = counted(validation["waited"], "evaluation")
    at = "" if step is None else f" at step {step}"
    shown = Goal.parsed(goal_in(validation)).shown
    return f"train.patience: no better {shown} in {evaluations}; the best is {loss}{at}"


def final_of(train: TrainConfig) -> str:
    """The choice, best or last. Runs that are older than `train.final` use the last step."""
    return "last" if train.final == "auto" else train.final


def require_validation(config: RunConfig, *, has_validation: bool) -> None:
    """ConfigError if a setting needs evaluations, but the run has no validation set."""
    train, evaluation = config.train, config.evaluation
    asked = {
        "train.patience": train.patience,
        "train.final": train.final if train.final == "best" else None,
        "checkpoint.keep_best": config.checkpoint.keep_best,
        "evaluation.metrics": ", ".join(evaluation.metrics or ()),
        "evaluation.best": None if evaluation.goal.is_loss else evaluation.best,
    }
    for key, value in asked.items():
        if value and not has_validation:
            raise ConfigError(
                f"{key}: {value}, but the data has no validation set: nothing is evaluated",
                hint="data.val_fraction = 0.02 holds out rows of a file; a store gets them from "
                "`prepare-data --val-fraction` or `--val-input`",
            )


def final_checkpoint(
    run: RunDir, choice: str, last_step: int, goal: str = str(LOSS)
) -> tuple[GoodCheckpoint, str | None]:
    """The checkpoint whose weights become `final/`, completely verified; and a warning or None.

    For the choice `best`, this is the best checkpoint that still exists and is good. If there is
    none, or for the choice `last`, it is the checkpoint of `last_step`. Raises CheckpointError.
    """
    if choice == "last":
        return newest_good(run.checkpoints, last_step), None
    passed_over: list[str] = []
    for path in ranked_checkpoints(run.checkpoints, goal):
        try:
            found = newest_good(run.checkpoints, step_of(path.name))
        except CheckpointError as error:
            passed_over.append(error.message.removeprefix(f"{run.checkpoints}: "))
            continue
        if (foreign := of_another_run(run, found.path, found.manifest)) is not None:
            passed_over.append(foreign.message.removeprefix(f"{run.checkpoints}/"))
            continue
        return found, _warning(found, passed_over)
    found = newest_good(run.checkpoints, last_step)
    return found, _warning(found, [*passed_over, _why_none(found.manifest.validation, goal)])


def _why_none(last: Validation | None, goal: str) -> str:
    """Why there is no best checkpoint. `last` is `validation` in the last step's manifest."""
    wanted = Goal.parsed(goal)
    if last is None or goal_in(last) != goal or "best_step" in last or wanted.metric in METRICS:
        return "no checkpoint has an evaluation of its step"
    return f"evaluation.best: {wanted.shown} gave no number in any evaluation after step 0"


def final_step(run: RunDir) -> int | None:
    """The step whose weights `final/` has; None if its manifest is missing or damaged."""
    try:
        return read_seal(run.final).step
    except CheckpointError:
        return None


def _warning(found: GoodCheckpoint, passed_over: list[str]) -> str | None:
    return (
        f"final/ is of step {found.manifest.step}: {'; '.join(passed_over)}"
        if passed_over
        else None
    )
