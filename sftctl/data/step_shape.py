"""StepShape: how a run cuts its steps into micro-batches and gives them to ranks."""

from dataclasses import dataclass

from sftctl.config.schema import TrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """How steps are cut and given to ranks. With the lengths, this decides a run's batches."""

    seed: int
    global_batch_size: int
    micro_batch_tokens: int
    cut_for_ranks: int  # the world size at the start of the run; kept on resume
    rank: int
    world_size: int
    lockstep: bool = False  # every rank runs equally many micro-batches
    rows_alone: bool = False  # one row in a micro-batch, for models in which rows would mix

    @property
    def tokens_of_a_pass(self) -> int:
        """The limit for several rows in one micro-batch."""
        return 1 if self.rows_alone else self.micro_batch_tokens


def step_shape(
    train: TrainConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    cut_for_ranks: int | None = None,
    rows_alone: bool = False,
) -> StepShape:
    """The shape of the steps of a run with these settings, on one rank.

    Training, the memory estimate and bench-loader all call this, so they see the same
    micro-batches.
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
        rows_alone=rows_alone,
    )
