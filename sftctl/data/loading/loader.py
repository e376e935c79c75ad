"""StepLoader: iterates over the optimizer steps of an epoch, with this rank's micro-batches."""

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from sftctl.config.schema import DataConfig
from sftctl.data.loading.microbatch import (
    Examples,
    MicroBatch,
    StepBatch,
    collate,
    filler_micro_batch,
)
from sftctl.data.manifest import PUT_BACK
from sftctl.data.mixture import Mixture
from sftctl.data.plan import (
    EpochPlan,
    Piece,
    SkipBatchSampler,
    cut_step,
    deal,
    deal_in_rounds,
    plan_epoch,
    plan_mixture,
)
from sftctl.data.step_shape import StepShape
from sftctl.errors import DataError, LoaderDied
from sftctl.processes import become_a_worker, can_fork

EVALUATION_BLOCK = 64  # an evaluation cuts this many examples into micro-batches at a time
_HANDOVER_S = 1e-3  # if steps are shorter, building batches in a thread is slower than without


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderSettings:
    """The settings of torch's DataLoader. They change only the speed."""

    num_workers: int = 0
    pin_memory: bool = False
    prefetch_factor: int = 2
    persistent_workers: bool = True


def loader_settings(data: DataConfig, device_type: str) -> LoaderSettings:
    """The settings of the DataLoader for this configuration and device."""
    return LoaderSettings(
        num_workers=data.num_workers,
        pin_memory=data.pin_memory != "off" and device_type == "cuda",
        prefetch_factor=data.prefetch_factor,
        persistent_workers=data.persistent_workers,
    )


def _share(
    store: Examples, examples: Sequence[int], pieces: Sequence[Piece], shape: StepShape
) -> list[MicroBatch]:
    """One rank's micro-batches of a step. In lockstep, fillers give all ranks the same number."""
    hands = _hands(pieces, shape)
    share = [
        collate(store, tuple(examples[p] for p in pieces[i].places), i) for i in hands[shape.rank]
    ]
    missing = len(hands[0]) - len(share) if shape.lockstep else 0
    return share + [filler_micro_batch(len(pieces)) for _ in range(missing)]


def _hands(pieces: Sequence[Piece], shape: StepShape) -> list[list[int]]:
    """For each rank: the indices of its pieces."""
    dealt = deal_in_rounds if shape.lockstep else deal
    return dealt([piece.cost for piece in pieces], shape.world_size)


def longest_micro_batch(store: Examples, shape: StepShape) -> MicroBatch:
    """The micro-batch that needs the most memory: a full micro-batch of the longest examples."""
    order = np.argsort(-np.asarray(store.lengths), kind="stable")[: shape.global_batch_size]
    tokens = np.cumsum(store.lengths[order])
    rows = max(1, int(np.searchsorted(tokens, shape.tokens_of_a_pass, side="right")))
    return collate(store, tuple(order[:rows].tolist()), 0)


def sum_of_weights(store: Examples, examples: Sequence[int]) -> float:
    """The sum of the weights of all target tokens in these examples. The default weight is 1."""
    sums = store.target_lengths if store.target_weights is None else store.target_weights
    return float(sums[np.asarray(examples)].sum())


class StepDataset(Dataset[StepBatch]):
    """Makes a rank's StepBatch from the examples of a step. Loader processes run this."""

    def __init__(self, store: Examples, shape: StepShape) -> None:
        self.store = store
        self.shape = shape

    def __getitem__(self, item: tuple[int, int, list[int]]) -> StepBatch:
        epoch, step, examples = item
        lengths = self.store.lengths[examples]
        pieces = cut_step(lengths, self.shape.tokens_of_a_pass, self.shape.cut_for_ranks)
        share = _share(self.store, examples, pieces, self.shape)
        return StepBatch(
            epoch=epoch,
            step_in_epoch=step,
            num_examples=len(examples),
            num_target_tokens=int(self.store.target_lengths[examples].sum()),
            sum_of_weights=sum_of_weights(self.store, examples),
            micro_batches=tuple(share) or (filler_micro_batch(len(pieces)),),
        )


# A process that was spawned also spawns its children by default, and each child loads torch again.
_START = "fork" if can_fork() else "spawn"


class EpochSampler(Sampler[tuple[int, int, list[int]]]):
    """Yields (epoch, step, examples) for the remaining steps of the current epoch."""

    def __init__(
        self, lengths: npt.NDArray[np.integer], shape: StepShape, mixture: Mixture | None = None
    ) -> None:
        self._lengths = lengths
        self._shape = shape
        self._mixture = mixture
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """The next iteration yields the steps of `epoch` from `start_step` on."""
        self._epoch, self._start_step = epoch, start_step

    def __iter__(self) -> Iterator[tuple[int, int, list[int]]]:
        epoch, start_step = self._epoch, self._start_step  # a running iteration keeps its values
        steps = SkipBatchSampler(self._plan(epoch), start_step)
        for step, examples in enumerate(steps, start=start_step):
            yield epoch, step, examples

    def _plan(self, epoch: int) -> EpochPlan:
        seed, batch_size = self._shape.seed, self._shape.global_batch_size
        if self._mixture is None:
            return plan_epoch(self._lengths, seed, epoch, batch_size)
        return plan_mixture(self._mixture, seed, epoch, batch_size)


class StepLoader:
    """Iterates over the steps of an epoch for one rank, with or without loader processes."""

    def __init__(
        self,
        store: Examples,
        shape: StepShape,
        settings: LoaderSettings,
        mixture: Mixture | None = None,
    ) -> None:
        self._sampler = EpochSampler(store.lengths, shape, mixture)
        self._dataset = StepDataset(store, shape)
        workers = settings.num_workers
        self._loader = DataLoader(
            self._dataset,
            batch_size=None,  # an item of the dataset is a complete StepBatch
            sampler=self._sampler,
            collate_fn=_as_it_is,
            num_workers=workers,
            pin_memory=settings.pin_memory,
            prefetch_factor=settings.prefetch_factor if workers else None,
            persistent_workers=settings.persistent_workers and workers > 0,
            worker_init_fn=_depend_on_the_trainer,
            multiprocessing_context=_START if workers else None,
            generator=torch.Generator(),  # the default would use the global random generator
        )
        self._of_processes: Any = None  # torch's iterator over the batches of loader processes

    def steps(self, epoch: int, start_step: int = 0) -> Iterator[StepBatch]:
        """The StepBatches of `epoch` from `start_step` on.

        Each StepBatch is built while the previous step trains: by loader processes, or by a thread
        if there are no loader processes.
        """
        self._sampler.set_epoch(epoch, start_step)
        try:
            if self._loader.num_workers:
                self._of_processes = iter(self._loader)
                yield from self._of_processes
            else:
                yield from self._one_ahead()
        except (
            DataError
        ) as problem:  # torch puts the traceback of the loader process before the message
            message = problem.message.rstrip().rpartition("DataError: ")[2]
            raise DataError(message, PUT_BACK) from problem

    def close(self) -> None:
        """End the loader processes, if there are any. Call this also after an error.

        Without this call, Python ends the processes with SIGTERM at exit. Then torch's SIGCHLD
        handler raises an error.
        """
        if self._of_processes is not None:
            self._of_processes._shutdown_workers()  # torch has no public method for this

    def _one_ahead(self) -> Iterator[StepBatch]:
        """Build each StepBatch in a thread while the previous step trains. Very short steps use no
        thread."""
        batches: Iterator[StepBatch]
        if self._loader.pin_memory:
            batches = iter(self._loader)
        else:  # faster: with DataLoader, a step would take 20% longer
            batches = map(self._dataset.__getitem__, self._sampler)
        step_s = math.inf  # time from one batch to the request for the next batch
        coming: Future[StepBatch | None] | None = None
        with ThreadPoolExecutor(1) as thread:
            while True:
                if coming is None or coming.cancel():  # the thread has not begun: build it here
                    batch = next(batches, None)
                else:
                    batch = coming.result()
                if batch is None:
                    return
                coming = thread.submit(next, batches, None) if step_s > _HANDOVER_S else None
                began = time.perf_counter()
                yield batch
                step_s = time.perf_counter() - began


@contextmanager
def loader_death_as_error() -> Iterator[None]:
    """Turn torch's RuntimeError for a killed loader process into LoaderDied.

    torch raises this error in a SIGCHLD handler, so it can occur at any line.
    """
    try:
        yield
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error) and "is killed by signal" not in str(error):
            raise
        raise LoaderDied(
            f"a loader process died: {error}",
            hint="out of memory? try --num-workers 0; `sftctl resume` continues the run",
        ) from error


def _as_it_is(item: Any) -> Any:
    return item


def _depend_on_the_trainer(worker_id: int) -> None:
    """Make this loader process end when its trainer ends or is killed.

    A forked process keeps the trainer's connections open. So while this process lives, other ranks
    do not notice that the trainer is gone.
    """
    become_a_worker()
    torch.set_num_threads(1)


def evaluation_rounds(store: Examples, shape: StepShape) -> Iterator[tuple[int, list[MicroBatch]]]:
    """Yield (number of examples done, micro-batches of this rank) for each round of an evaluation.

    A round has at most one micro-batch per rank. All ranks have the same number of rounds, so they
    can exchange votes before each round. In lockstep, each rank has a micro-batch in every round.
    The number of examples done is approximate. It counts all ranks, before this round.
    """
    order = np.argsort(-np.asarray(store.lengths), kind="stable")
    for start in range(0, len(order), EVALUATION_BLOCK):
        block = order[start : start + EVALUATION_BLOCK].tolist()
        pieces = cut_step(store.lengths[block], shape.tokens_of_a_pass, shape.cut_for_ranks)
        share = _share(store, block, pieces, shape)
        num_rounds = max(map(len, _hands(pieces, shape)))
        for number in range(num_rounds):
            yield start + len(block) * number // num_rounds, share[number : number + 1]
