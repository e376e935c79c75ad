"""The loader that training uses, compared under every setting, on this machine."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from sftctl.bench.advice import recommend
from sftctl.bench.machine import Machine
from sftctl.bench.measure import attempt
from sftctl.config.schema import DataConfig, RunConfig
from sftctl.data.loader import LoaderSettings, StepShape
from sftctl.data.microbatch import Examples
from sftctl.metrics import LoaderResult
from sftctl.train.inputs import open_inputs, resolve_config
from sftctl.train.stop import StopRequest
from sftctl.world import World, choose_device

Switch = Literal["auto", "on", "off", "both"]

_MEASURED = (
    "batches_per_s",
    "samples_per_s",
    "tokens_per_s",
    "first_batch_s",
    "wait_p50_s",
    "wait_p99_s",
    "rss_bytes",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderReport:
    """What was measured, where, and which setting to take."""

    store: Path
    num_examples: int
    batch_size: int  # examples of a batch: a step on one rank
    device: str
    machine: Machine
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


def bench_loader(config: RunConfig, settings: BenchSettings) -> LoaderReport:
    """Measure the loader of a run with this configuration, on one rank."""
    config = resolve_config(config)
    device = choose_device(config.train.device)
    store = open_inputs(config, World(0, 0, 1, device), StopRequest()).train
    shape = StepShape(
        seed=config.train.seed,
        global_batch_size=config.train.global_batch_size,
        micro_batch_tokens=config.train.micro_batch_tokens,
        cut_for_ranks=1,
        rank=0,
        world_size=1,
    )
    has_cuda = device.type == "cuda"
    sweep = sweep_settings(
        settings.workers,
        _choices(settings.pin_memory, auto=True) if has_cuda else [False],
        settings.prefetch,
        _choices(settings.persistent, auto=DataConfig().persistent_workers),
    )
    machine = Machine.here()
    results = compare(store, shape, sweep, settings, device)
    recommended, why = recommend(results)
    return LoaderReport(
        store=store.path,
        num_examples=len(store),
        batch_size=shape.global_batch_size,
        device=str(device),
        machine=machine,
        notes=tuple(_notes(settings, machine, has_cuda)),
        results=results,
        recommended=recommended,
        why=why,
    )


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
    store: Examples,
    shape: StepShape,
    sweep: Sequence[LoaderSettings],
    settings: BenchSettings,
    device: torch.device,
) -> tuple[LoaderResult, ...]:
    """Medians over short rounds, to and fro through the sweep: a busy moment meets all alike."""
    rounds: dict[LoaderSettings, list[LoaderResult]] = {setting: [] for setting in sweep}
    seconds = settings.seconds / settings.rounds
    for number in range(settings.rounds):
        for setting in sweep if number % 2 == 0 else reversed(sweep):
            if not any(result.error for result in rounds[setting]):
                rounds[setting].append(attempt(store, shape, setting, seconds, device))
    return tuple(_summary(results) for results in rounds.values())


def _summary(rounds: Sequence[LoaderResult]) -> LoaderResult:
    """The medians; a setting that failed once has no numbers."""
    if rounds[-1].error:
        return rounds[-1]
    medians = {name: median(getattr(result, name) for result in rounds) for name in _MEASURED}
    speeds = [result.tokens_per_s or 0.0 for result in rounds]
    spread_ratio = (max(speeds) - min(speeds)) / median(speeds)
    return replace(rounds[0], **medians, spread_ratio=spread_ratio)


def _choices(switch: Switch, *, auto: bool) -> list[bool]:
    return {"auto": [auto], "on": [True], "off": [False], "both": [False, True]}[switch]


def _notes(settings: BenchSettings, machine: Machine, has_cuda: bool) -> Iterator[str]:
    if settings.pin_memory in ("on", "both") and not has_cuda:
        yield "pin_memory: not applicable, there is no CUDA device"
    if max(settings.workers) > machine.cores:
        yield f"{max(settings.workers)} workers share {machine.cores:g} cores"
