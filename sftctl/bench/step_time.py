"""Measures the time of a training step, which is compared with the wait for data."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from sftctl.bench.measure import endless_batches
from sftctl.config.schema import RunConfig
from sftctl.data.loading.loader import LoaderSettings, StepLoader
from sftctl.data.plan import steps_per_epoch
from sftctl.data.step_shape import step_shape
from sftctl.errors import NoCheckpoint
from sftctl.jsonio import read_lines
from sftctl.model.adapter.base import initial_model
from sftctl.model.load import check_fit
from sftctl.train.engine.build import build_state
from sftctl.train.engine.dtype import choose_dtype
from sftctl.train.engine.step import StepRules, train_step
from sftctl.train.launch import run_on_ranks
from sftctl.train.preflight.inputs import open_inputs
from sftctl.train.preflight.resolve import resolve_config
from sftctl.train.stop import StopRequest
from sftctl.words import counted
from sftctl.world import start_world

_NUM_STEPS = 6
_LONG_ENOUGH_S = 30.0


@dataclass(frozen=True, slots=True)
class StepTime:
    """The time of a step, without the wait for data."""

    seconds: float
    source: str  # a text that says how the time was measured


def step_time_of_run(run_dir: Path) -> StepTime:
    """The median over metrics.jsonl of a run. The first step is a warm-up and is left out.

    Raises NoCheckpoint if there is no second step.
    """
    path = run_dir / "metrics.jsonl"
    lines = read_lines(path) if path.is_file() else iter(())
    work = [line["step_time_s"] - line["data_wait_s"] for line in lines if line["step"] > 1]
    if not work:
        raise NoCheckpoint(
            f"{run_dir}: metrics.jsonl has no second step, so the step time is unknown",
            hint="train a few steps, or measure the step time with --model",
        )
    return StepTime(median(work), f"median of {counted(len(work), 'step')} of {run_dir}")


def measured_step_time(config: RunConfig, num_ranks: int) -> StepTime:
    """The median of a few training steps with this model and data. Writes nothing to disk."""
    if num_ranks > 1:
        seconds = run_on_ranks(num_ranks, few_steps, config)
    else:
        with StopRequest() as stop:
            seconds = few_steps(config, stop=stop)
    return StepTime(
        median(seconds), f"median of {counted(len(seconds), 'step')} of {config.model.name}"
    )


def few_steps(config: RunConfig, *, stop: StopRequest) -> list[float]:
    """Train a few steps. Returns the seconds of each step, without the first step (a warm-up)."""
    train = config.train
    with start_world(train.device, train.collective_timeout_s) as world:
        config = resolve_config(config)
        inputs = open_inputs(config, world, stop)
        model = initial_model(config, inputs.tokenizer)
        check_fit(model, inputs.tokenizer, int(inputs.train.lengths.max()))
        config = choose_dtype(config, model, world)
        state = build_state(model, config, world, int(inputs.train.lengths.max()))
        shape = step_shape(
            train,
            rank=world.rank,
            world_size=world.world_size,
            rows_alone=state.why_rows_alone is not None,
        )
        per_epoch = steps_per_epoch(inputs.num_planned, shape.global_batch_size)
        rules = StepRules(config.optim, train.seed, _NUM_STEPS + 1, per_epoch)
        loader = StepLoader(inputs.train, shape, LoaderSettings(), inputs.mixture)
        seconds: list[float] = []
        for batch in endless_batches(loader):
            seconds.append(train_step(state, batch, rules, world, 0.0).step_time_s)
            is_long = len(seconds) > 1 and sum(seconds) > _LONG_ENOUGH_S
            if stop.requested(world) or len(seconds) > _NUM_STEPS or world.max(int(is_long)):
                break
        world.on_main(stop.check)
    return seconds[1:]
