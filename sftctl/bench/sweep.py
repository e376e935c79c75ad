"""bench-loader: compare settings of the data loader on this machine."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from sftctl.bench.advice import recommend
from sftctl.bench.ranks import Ranks
from sftctl.bench.result import LoaderResult, over_rounds
from sftctl.bench.step_time import StepTime, measured_step_time, step_time_of_run
from sftctl.bench.text_examples import text_examples
from sftctl.config.schema import DataConfig, RunConfig
from sftctl.data.loading.loader import LoaderSettings
from sftctl.data.loading.microbatch import Examples
from sftctl.data.loading.needs import shortages
from sftctl.data.mixture import Mixture
from sftctl.data.step_shape import StepShape, step_shape
from sftctl.machine import Machine
from sftctl.tracking import status
from sftctl.train.preflight.inputs import open_inputs
from sftctl.train.preflight.resolve import resolve_config
from sftctl.train.stop import StopRequest
from sftctl.words import counted
from sftctl.world import World, choose_device

Switch = Literal["auto", "on", "off", "both"]
Progress = Callable[[Sequence[LoaderResult], int, int], None]
"""Called with the results so far, the number of finished rounds, and the number of all rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """The settings to compare, and how to measure them."""

    workers: Sequence[int] = (0, 1, 2, 4)
    pin_memory: Switch = "auto"
    prefetch: Sequence[int] = (DataConfig().prefetch_factor,)
    persistent: Switch = "auto"
    seconds: float = 3.0  # time for each setting, over all rounds
    rounds: int = 5
    num_ranks: int = 1
    source: Literal["store", "text"] = "store"
    run: Path | None = None  # take the step time from the metrics of this run
    measure_steps: bool = False  # True: measure the step time with the model


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderReport:
    """The measurements, the machine, and the recommended setting."""

    store: Path
    source: str  # store | text
    num_examples: int
    batch_size: int  # examples in a step on one rank
    num_ranks: int
    device: str
    machine: Machine
    step_time_s: float | None  # without the wait for data
    step_time_source: str | None
    notes: tuple[str, ...]
    results: tuple[LoaderResult, ...]
    recommended: LoaderResult | None  # None: every setting failed
    why: str

    def to_json(self) -> dict[str, Any]:
        """All fields. `why` is a key of `recommended`."""
        tree = asdict(self)
        why = tree.pop("why")
        tree["recommended"] = tree["recommended"] and {**tree["recommended"], "why": why}
        return tree


def _silent(results: Sequence[LoaderResult], done: int, total: int) -> None:
    """A progress function that does nothing."""


def bench_loader(
    config: RunConfig, settings: BenchSettings, on_progress: Progress = _silent
) -> LoaderReport:
    """Measure all loader settings for a run with this configuration, and recommend one."""
    status.doing("opening the data")
    config = resolve_config(config)
    device, machine = choose_device(config.train.device), Machine.here()
    inputs = open_inputs(config, World(0, 0, 1, device), StopRequest())
    store: Examples = inputs.train
    mixture = inputs.mixture
    if settings.source == "text":
        mixture = None
        store = text_examples(config, inputs.train, inputs.tokenizer)
    status.doing("measuring the step time")
    step_time = _step_time(config, settings)
    status.doing("measuring the loader")
    step_time_s = step_time.seconds if step_time else None
    shapes = rank_shapes(config, settings.num_ranks)
    sweep = {
        each: skipped_because(store, shapes[0], each, machine)
        for each in _settings_to_compare(settings, device.type)
    }
    with closing(Ranks(store, shapes, config.train.device, mixture=mixture)) as ranks:
        results = compare(ranks, sweep, settings, step_time_s, on_progress)
    recommended, why = recommend(results, step_time_s)
    return LoaderReport(
        store=inputs.train.path,
        source=settings.source,
        num_examples=len(store.lengths),
        batch_size=-(-config.train.global_batch_size // settings.num_ranks),
        num_ranks=settings.num_ranks,
        device=str(device),
        machine=machine,
        step_time_s=step_time_s,
        step_time_source=step_time.source if step_time else None,
        notes=(
            *notes_on(settings, machine, device.type, len(inputs.train), store),
            *_note_on_mixture(inputs.mixture, settings),
        ),
        results=results,
        recommended=recommended,
        why=why,
    )


def _note_on_mixture(mixture: Mixture | None, settings: BenchSettings) -> Iterator[str]:
    if mixture is not None and any(weight != 1 for weight in mixture.weights.values()):
        weights = ", ".join(f"{name}={weight:g}" for name, weight in mixture.weights.items())
        what = "without the weights" if settings.source == "text" else "with the weights"
        yield f"mixture: {what} {weights}"


def _step_time(config: RunConfig, settings: BenchSettings) -> StepTime | None:
    if settings.run is not None:
        return step_time_of_run(settings.run)
    return measured_step_time(config, settings.num_ranks) if settings.measure_steps else None


def rank_shapes(config: RunConfig, num_ranks: int) -> list[StepShape]:
    """The StepShape of each rank."""
    return [step_shape(config.train, rank=rank, world_size=num_ranks) for rank in range(num_ranks)]


def _settings_to_compare(settings: BenchSettings, device_type: str) -> list[LoaderSettings]:
    pins = _choices(settings.pin_memory, auto=True) if device_type == "cuda" else [False]
    persistent = _choices(settings.persistent, auto=DataConfig().persistent_workers)
    return combinations(settings.workers, pins, settings.prefetch, persistent)


def combinations(
    workers: Sequence[int],
    pin_memory: Sequence[bool],
    prefetch: Sequence[int],
    persistent: Sequence[bool],
) -> list[LoaderSettings]:
    """All combinations, without duplicates. A single number of workers is compared with 0.

    With 0 workers, `prefetch` and `persistent` have no effect. So these combinations are equal.
    """
    counts = [0, *workers] if len(workers) == 1 else workers
    settings = [
        LoaderSettings(
            num_workers=num, pin_memory=pin, prefetch_factor=ahead, persistent_workers=persists
        )
        if num > 0
        else LoaderSettings(pin_memory=pin, persistent_workers=False)
        for num, pin, ahead, persists in product(counts, pin_memory, prefetch, persistent)
    ]
    return list(dict.fromkeys(settings))


def skipped_because(
    store: Examples, shape: StepShape, settings: LoaderSettings, machine: Machine
) -> str | None:
    """The reason to skip a setting: the resource that the machine lacks. None: do not skip it."""
    return next((f"skipped: {short}" for short in shortages(store, shape, settings, machine)), None)


def compare(
    ranks: Ranks,
    sweep: dict[LoaderSettings, str | None],
    settings: BenchSettings,
    step_time_s: float | None = None,
    on_progress: Progress = _silent,
) -> tuple[LoaderResult, ...]:
    """Measure all settings in several short rounds. Returns the medians.

    Each round measures all settings, in alternating order. So if the machine is busy for some time,
    this affects all settings. `sweep`: setting -> the reason to skip it, or None. A setting that
    fails once is not measured again.
    """
    rounds: dict[LoaderSettings, list[LoaderResult]] = {
        each: [] if reason is None else [LoaderResult.of(each, reason)]
        for each, reason in sweep.items()
    }
    seconds, total = settings.seconds / settings.rounds, settings.rounds * len(rounds)
    for number in range(settings.rounds):
        order = list(rounds) if number % 2 == 0 else list(reversed(rounds))
        for place, each in enumerate(order, start=1):
            if not any(result.error for result in rounds[each]):
                rounds[each].append(ranks.measure(each, seconds, step_time_s))
            on_progress(_summary(rounds), number * len(rounds) + place, total)
    return _summary(rounds)


def _summary(rounds: dict[LoaderSettings, list[LoaderResult]]) -> tuple[LoaderResult, ...]:
    return tuple(over_rounds(settings, results) for settings, results in rounds.items())


def _choices(switch: Switch, *, auto: bool) -> list[bool]:
    return {"auto": [auto], "on": [True], "off": [False], "both": [False, True]}[switch]


def notes_on(
    settings: BenchSettings, machine: Machine, device_type: str, num_rows: int, store: Examples
) -> Iterator[str]:
    """Notes about the measurements. `num_rows` is the number of examples in the complete data."""
    if settings.pin_memory in ("on", "both") and device_type != "cuda":
        yield "pin_memory: not applicable, there is no CUDA device"
    processes = settings.num_ranks * max(settings.workers)
    if processes > machine.cores:
        yield f"{processes} loader processes share {machine.cores:g} cores"
    if settings.source == "text" and len(store.lengths) < num_rows:
        yield f"text: the first {counted(len(store.lengths), 'example')} of {num_rows:,}"
