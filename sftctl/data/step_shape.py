"""StepShape: how a run cuts its steps into micro-batches and gives them to ranks."""

from dataclasses import dataclass

from sftctl.config.schema import TrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """How steps are cut and given to ranks. This and the lengths of examples decide all batches."""

    seed: int
    global_batch_size: int
    micro_batch_tokens: int
    cut_for_ranks: int  # the world size at the start of the run; kept on resume
    rank: int
    world_size: int
    lockstep: bool = False  # True: every rank runs the same number of micro-batches
    rows_alone: bool = False  # True: one row per micro-batch, because rows would affect each other

    @property
    def tokens_of_a_pass(self) -> int:
        """The most tokens of a micro-batch with several rows. 1: a micro-batch has one row."""
        return 1 if self.rows_alone else self.micro_batch_tokens


def step_shape(
    train: TrainConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    cut_for_ranks: int | None = None,
    rows_alone: bool = False,
) -> StepShape:
    """The StepShape for these settings on one rank.

    Training, the memory estimate and bench-loader all call this, so their micro-batches are equal.
    `cut_for_ranks` is the world size at the start of the run; None: `world_size`.
    """
    return StepShape(
        seed=train.seed,
        global_batch_size=train.global_batch_size,
        micro_batch_tokens=train.pass_tokens,
        cut_for_ranks=world_size if cut_for_ranks is None else cut_for_ranks,
        rank=rank,
        world_size=world_size,
        # FSDP gathers weights in every micro-batch, so all ranks need the same number of them.
        lockstep=train.strategy == "fsdp" and world_size > 1,
        rows_alone=rows_alone,
    )
