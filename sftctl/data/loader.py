"""StepLoader: one item per optimizer step, cut and dealt for this rank."""

import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from sftctl.config.schema import TrainConfig
from sftctl.data.manifest import PREPARE_ANEW
from sftctl.data.microbatch import (
    Examples,
    MicroBatch,
    StepBatch,
    collate,
    collate_all,
    keeping_step,
)
from sftctl.data.plan import Piece, SkipBatchSampler, cut_step, deal, deal_in_rounds, plan_epoch
from sftctl.environment import signal_when_the_parent_dies
from sftctl.errors import DataError, LoaderDied

_EVALUATION_BLOCK = 64  # a signal waits no longer than this many examples


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """How steps are made, cut and dealt; with the lengths it decides every batch of a run."""

    seed: int
    global_batch_size: int
    micro_batch_tokens: int
    cut_for_ranks: int  # the world size at the start of the run; kept on resume
    rank: int
    world_size: int
    lockstep: bool = False  # every rank runs equally many micro-batches
    pad_to_multiple_of: int = 1  # tokens; a micro-batch's width is rounded up to it


def step_shape(
    train: TrainConfig,
    device_type: str,
    *,
    rank: int = 0,
    world_size: int = 1,
    cut_for_ranks: int | None = None,
) -> StepShape:
    """How a run with these settings shapes its steps on one rank.

    Training, the memory estimate and bench-loader all ask here, so they see the same micro-batches.
    `cut_for_ranks` is the world size at the start of the run; None: it starts with `world_size`.
    """
    return StepShape(
        seed=train.seed,
        global_batch_size=train.global_batch_size,
        micro_batch_tokens=train.pass_tokens,
        cut_for_ranks=world_size if cut_for_ranks is None else cut_for_ranks,
        rank=rank,
        world_size=world_size,
        # FSDP gathers weights in every micro-batch, so each rank must run equally many.
        lockstep=train.strategy == "fsdp" and world_size > 1,
        pad_to_multiple_of=8 if device_type == "cuda" else 1,  # CUDA kernels are faster with it
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderSettings:
    """The knobs that change speed and nothing else: those of torch's DataLoader."""

    num_workers: int = 0
    pin_memory: bool = False
    prefetch_factor: int = 2
    persistent_workers: bool = True


def _share(
    store: Examples, examples: Sequence[int], pieces: Sequence[Piece], shape: StepShape
) -> list[MicroBatch]:
    """A rank's micro-batches of one cut; in lockstep as many as any other rank has."""
    dealt = deal_in_rounds if shape.lockstep else deal
    hands = dealt([piece.cost for piece in pieces], shape.world_size)
    groups = [(tuple(examples[p] for p in pieces[i].places), i) for i in hands[shape.rank]]
    share = collate_all(store, groups, shape.pad_to_multiple_of)
    missing = len(hands[0]) - len(share) if shape.lockstep else 0
    return share + [keeping_step(len(pieces)) for _ in range(missing)]


def longest_micro_batch(store: Examples, shape: StepShape) -> MicroBatch:
    """As many of the longest examples as a micro-batch may hold: no other needs more memory."""
    order = np.argsort(-np.asarray(store.lengths), kind="stable")
    rows = max(1, shape.micro_batch_tokens // int(store.lengths[order[0]]))
    longest = order[: min(rows, shape.global_batch_size)].tolist()
    return collate(store, tuple(longest), 0, shape.pad_to_multiple_of)


class StepDataset(Dataset[StepBatch]):
    """Makes a rank's StepBatch from a step's examples: what a loader process runs."""

    def __init__(self, store: Examples, shape: StepShape) -> None:
        self.store = store
        self.shape = shape

    def __getitem__(self, item: tuple[int, int, list[int]]) -> StepBatch:
        epoch, step, examples = item
        pieces = cut_step(
            self.store.lengths[examples], self.shape.micro_batch_tokens, self.shape.cut_for_ranks
        )
        share = _share(self.store, examples, pieces, self.shape)
        return StepBatch(
            epoch=epoch,
            step_in_epoch=step,
            num_examples=len(examples),
            num_target_tokens=int(self.store.target_lengths[examples].sum()),
            micro_batches=tuple(share) or (keeping_step(len(pieces)),),
        )


# A rank that was spawned would spawn its loader processes too: each would load torch by itself.
_FORK = "fork" if sys.platform == "linux" else None


class EpochSampler(Sampler[tuple[int, int, list[int]]]):
    """(epoch, step, examples) of the steps still to train of the epoch that was set."""

    def __init__(self, lengths: npt.NDArray[np.integer], shape: StepShape) -> None:
        self._lengths = lengths
        self._shape = shape
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the order of `epoch`, from `start_step` on."""
        self._epoch = epoch
        plan = plan_epoch(self._lengths, self._shape.seed, epoch, self._shape.global_batch_size)
        self._steps = SkipBatchSampler(plan, start_step)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[tuple[int, int, list[int]]]:
        epoch, steps = self._epoch, self._steps  # an open iteration keeps its own epoch
        for step, examples in enumerate(steps, start=steps.start_step):
            yield epoch, step, examples


class StepLoader:
    """The steps of an epoch for this rank, here or by torch's DataLoader."""

    def __init__(self, store: Examples, shape: StepShape, settings: LoaderSettings) -> None:
        self._sampler = EpochSampler(store.lengths, shape)
        self._dataset = StepDataset(store, shape)
        workers = settings.num_workers
        self._loader = DataLoader(
            self._dataset,
            batch_size=None,  # an item is a whole step already
            sampler=self._sampler,
            collate_fn=_as_it_is,
            num_workers=workers,
            pin_memory=settings.pin_memory,
            prefetch_factor=settings.prefetch_factor if workers else None,
            persistent_workers=settings.persistent_workers and workers > 0,
            worker_init_fn=_depend_on_the_trainer,
            multiprocessing_context=_FORK if workers else None,
            generator=torch.Generator(),  # else every iteration draws from the global stream
        )

    def steps(self, epoch: int, start_step: int = 0) -> Iterator[StepBatch]:
        """The StepBatches of `epoch` from `start_step` on, each made while the one before trains.

        Loader processes do that by themselves; without any, a thread is one step ahead.
        """
        self._sampler.set_epoch(epoch, start_step)
        try:
            yield from self._loader if self._loader.num_workers else self._one_ahead()
        except DataError as problem:  # from a loader process it comes within a traceback
            message = problem.message.rstrip().rpartition("DataError: ")[2]
            raise DataError(message, PREPARE_ANEW) from problem

    def _one_ahead(self) -> Iterator[StepBatch]:
        batches: Iterator[StepBatch] = iter(self._loader)
        if not self._loader.pin_memory:  # DataLoader would add a fifth to the time of a step
            batches = map(self._dataset.__getitem__, self._sampler)
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(next, batches, None)
            # Asked for before the thread has begun, a step is made here: no thread is waited for.
            while (
                batch := next(batches, None) if coming.cancel() else coming.result()
            ) is not None:
                coming = ahead.submit(next, batches, None)
                yield batch


@contextmanager
def deaths_told() -> Iterator[None]:
    """A killed loader process as LoaderDied; torch raises it wherever this process just is."""
    try:
        yield
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error) and "is killed by signal" not in str(error):
            raise
        raise LoaderDied(
            f"a loader process died: {error}",
            hint="out of memory? try --num-workers 0; `sftctl resume` goes on",
        ) from error


def _as_it_is(item: Any) -> Any:
    return item


def _depend_on_the_trainer(worker_id: int) -> None:
    """Ctrl-C reaches the whole process group; a loader process ends when the trainer says so.

    Or dies: a fork holds the trainer's connections open, and the other ranks would wait for it.
    """
    signal_when_the_parent_dies(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


def evaluation_blocks(store: Examples, shape: StepShape) -> Iterator[list[MicroBatch]]:
    """All examples once, over all ranks, in micro-batches of near-equal length.

    Every rank gets as many blocks as the others, of at most `_EVALUATION_BLOCK` examples each. In
    lockstep it gets as many micro-batches too, some of them without an example.
    """
    order = np.argsort(-np.asarray(store.lengths), kind="stable")
    for start in range(0, len(order), _EVALUATION_BLOCK):
        block = order[start : start + _EVALUATION_BLOCK].tolist()
        pieces = cut_step(store.lengths[block], shape.micro_batch_tokens, shape.cut_for_ranks)
        yield _share(store, block, pieces, shape)
