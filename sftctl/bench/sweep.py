"""The loader that training uses, compared under every setting, on this machine."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Literal

from sftctl.bench.advice import recommend
from sftctl.bench.limits import obstacle
from sftctl.bench.measure import row_of
from sftctl.bench.ranks import Ranks, loading_ranks
from sftctl.bench.step_time import StepTime, measured_step_time, step_time_of_run
from sftctl.bench.text_examples import text_of
from sftctl.config.schema import DataConfig, RunConfig
from sftctl.data.loader import LoaderSettings, step_shape
from sftctl.data.microbatch import Examples
from sftctl.machine import Machine
from sftctl.metrics import LoaderResult
from sftctl.train.preflight.inputs import open_inputs, resolve_config
from sftctl.train.stop import StopRequest
from sftctl.words import counted
from sftctl.world import World, choose_device

Switch = Literal["auto", "on", "off", "both"]
Progress = Callable[[Sequence[LoaderResult], int, int], None]
"""What is known so far, rounds done, rounds in all."""

_MEASURED = (
    *("batches_per_s", "samples_per_s", "tokens_per_s", "first_batch_s"),
    *("wait_p50_s", "wait_p99_s", "rss_bytes", "pss_bytes", "shm_bytes", "open_files"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """What is compared, and for how long."""

    workers: Sequence[int] = (0, 1, 2, 4)
    pin_memory: Switch = "auto"
    prefetch: Sequence[int] = (DataConfig().prefetch_factor,)
    persistent: Switch = "auto"
    seconds: float = 3.0  # of each setting, over all rounds
    rounds: int = 5
    num_ranks: int = 1
    source: Literal["store", "text"] = "store"
    run: Path | None = None  # take the step time from its metrics
    measure_steps: bool = False  # take the step time from a few real steps of the model


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderReport:
    """What was measured, where, and which setting to take."""

    store: Path
    source: str  # store | text
    num_examples: int
    batch_size: int  # examples of a batch: a step on one rank
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
        """The fields, with `why` inside `recommended`."""
        tree = asdict(self)
        why = tree.pop("why")
        tree["recommended"] = tree["recommended"] and {**tree["recommended"], "why": why}
        return tree


def _silent(results: Sequence[LoaderResult], done: int, total: int) -> None:
    """Progress that nobody watches."""


def bench_loader(
    config: RunConfig, settings: BenchSettings, on_progress: Progress = _silent
) -> LoaderReport:
    """Measure the loader of a run with this configuration, on as many ranks as it will have."""
    config = resolve_config(config)
    device = choose_device(config.train.device)
    inputs = open_inputs(config, World(0, 0, 1, device), StopRequest())
    store: Any = inputs.train
    if settings.source == "text":
        store = text_of(config, inputs.train, inputs.tokenizer)
    step_time = _step_time(config, settings)
    has_cuda = device.type == "cuda"
    sweep = sweep_settings(
        settings.workers,
        _choices(settings.pin_memory, auto=True) if has_cuda else [False],
        settings.prefetch,
        _choices(settings.persistent, auto=DataConfig().persistent_workers),
    )
    machine = Machine.here()
    num_ranks = settings.num_ranks
    shapes = [
        step_shape(config.train, device.type, rank=rank, world_size=num_ranks)
        for rank in range(num_ranks)
    ]
    seconds = step_time.seconds if step_time else None
    with loading_ranks(store, shapes, config.train.device) as ranks:
        obstacles = {each: obstacle(each, store, shapes[0], machine) for each in sweep}
        results = compare(ranks, obstacles, settings, seconds, on_progress)
    recommended, why = recommend(results, seconds)
    return LoaderReport(
        store=inputs.train.path,
        source=settings.source,
        num_examples=len(store),
        batch_size=-(-config.train.global_batch_size // settings.num_ranks),
        num_ranks=settings.num_ranks,
        device=str(device),
        machine=machine,
        step_time_s=seconds,
        step_time_source=step_time.source if step_time else None,
        notes=tuple(_notes(settings, machine, has_cuda, len(inputs.train), store)),
        results=results,
        recommended=recommended,
        why=why,
    )


def _step_time(config: RunConfig, settings: BenchSettings) -> StepTime | None:
    if settings.run is not None:
        return step_time_of_run(settings.run)
    return measured_step_time(config, settings.num_ranks) if settings.measure_steps else None


def sweep_settings(
    workers: Sequence[int],
    pin_memory: Sequence[bool],
    prefetch: Sequence[int],
    persistent: Sequence[bool],
) -> list[LoaderSettings]:
    """Every combination once; a single number of workers is compared with none.

    Without workers nothing is prefetched and nothing persists, so these make one setting.
    """
    counts = [0, *workers] if len(workers) == 1 else workers
    combinations = [
        LoaderSettings(
            num_workers=w, pin_memory=pin, prefetch_factor=ahead, persistent_workers=persists
        )
        if w > 0
        else LoaderSettings(pin_memory=pin, persistent_workers=False)
        for w, pin, ahead, persists in product(counts, pin_memory, prefetch, persistent)
    ]
    return list(dict.fromkeys(combinations))


def compare(
    ranks: Ranks,
    obstacles: dict[LoaderSettings, str | None],
    settings: BenchSettings,
    step_time_s: float | None = None,
    on_progress: Progress = _silent,
) -> tuple[LoaderResult, ...]:
    """Medians over short rounds, to and fro through the sweep: a busy moment meets all alike.

    A setting with an obstacle is not tried; one that breaks once is not tried again.
    """
    rounds: dict[LoaderSettings, list[LoaderResult]] = {
        each: [] if reason is None else [replace(row_of(each), error=reason)]
        for each, reason in obstacles.items()
    }
    seconds, total = settings.seconds / settings.rounds, settings.rounds * len(rounds)
    for number in range(settings.rounds):
        order = list(rounds) if number % 2 == 0 else list(reversed(rounds))
        for place, setting in enumerate(order):
            if not any(result.error for result in rounds[setting]):
                rounds[setting].append(ranks.measure(setting, seconds, step_time_s))
            known = [summary(setting, results) for setting, results in rounds.items()]
            on_progress(known, number * len(rounds) + place + 1, total)
    return tuple(summary(setting, results) for setting, results in rounds.items())


def summary(setting: LoaderSettings, rounds: Sequence[LoaderResult]) -> LoaderResult:
    """The medians; a setting that failed once has no numbers, nor has one not measured yet."""
    if not rounds:
        return row_of(setting)
    if rounds[-1].error:
        return rounds[-1]
    names = [*_MEASURED, *(["step_wait_s"] if rounds[0].step_wait_s is not None else [])]
    medians = {name: median(getattr(result, name) for result in rounds) for name in names}
    speeds = [result.tokens_per_s or 0.0 for result in rounds]
    spread_ratio = (max(speeds) - min(speeds)) / median(speeds)
    return replace(rounds[0], **medians, spread_ratio=spread_ratio)


def _choices(switch: Switch, *, auto: bool) -> list[bool]:
    return {"auto": [auto], "on": [True], "off": [False], "both": [False, True]}[switch]


def _notes(
    settings: BenchSettings, machine: Machine, has_cuda: bool, num_rows: int, store: Examples
) -> Iterator[str]:
    if settings.pin_memory in ("on", "both") and not has_cuda:
        yield "pin_memory: not applicable, there is no CUDA device"
    processes = settings.num_ranks * max(settings.workers)
    if processes > machine.cores:
        yield f"{processes} loader processes share {machine.cores:g} cores"
    if settings.source == "text" and len(store.lengths) < num_rows:
        yield f"text: the first {counted(len(store.lengths), 'example')} of {num_rows:,}"
