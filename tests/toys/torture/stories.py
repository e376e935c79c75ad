"""Runs with a past, and what their next sessions do: the cast of the disk proofs."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from sftctl.jsonio import dump_line
from sftctl.metrics import StepMetrics
from tests.toys.checkpoints import make_tensors
from tests.toys.metrics import step_metrics


@dataclass(frozen=True)
class Story:
    """A run with a past, and its next session: resumed at `start`, it saves at the `new` steps."""

    older: tuple[int, ...]
    start: int  # 0: from no checkpoint
    new: tuple[int, ...]
    keep: int = 1
    cut: tuple[int, ...] = ()  # older ones whose shard lost its end: not whole
    flipped: tuple[int, ...] = ()  # older ones with a wrong bit: whole, not good
    leftovers: bool = False  # of a save and of a deletion that were killed
    tensors: str = "few"  # few | many | long


class Copy(NamedTuple):
    """A checkpoint by its content: the `old` and the `new` one of a step are two."""

    step: int
    kind: str  # old | new | cut | flipped

    @property
    def is_good(self) -> bool:
        return self.kind in ("old", "new")


def start_of(story: Story) -> Copy | None:
    return Copy(story.start, "old") if story.start else None


def tensors_of(story: Story, copy: Copy) -> dict[str, torch.Tensor]:
    seed = copy.step + (copy.kind == "new")
    if story.tensors == "many":
        return make_tensors(seed)
    random = torch.Generator().manual_seed(seed)
    if story.tensors == "long":  # several sectors, and a second write that begins inside of one
        shapes = {"model.weight": (37, 29), "model.bias": (301,)}
        return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    return {"model.weight": torch.randn(3, generator=random)}


def lines_of(copy: Copy) -> list[bytes]:
    """What metrics.jsonl gets between the checkpoint before and this one."""
    return [dump_line(metrics) for metrics in metrics_of(copy)]


def metrics_of(copy: Copy) -> list[StepMetrics]:
    loss = float(copy.kind == "new")
    return [step_metrics(copy.step - behind, loss) for behind in (2, 1, 0)]


STORIES = tuple(
    story
    for keep in (1, 2, 3)
    for story in (
        Story((10,), 10, (20, 30), keep),
        Story((), 0, (10, 20), keep),
        Story((10, 20, 30), 30, (40,), keep),
        Story((10, 20, 30), 10, (20,), keep),  # back, and the same name comes again
        Story((10, 20, 30), 30, (40,), keep, cut=(20,)),
        Story((10, 20, 30), 20, (30,), keep, flipped=(30,)),  # the newest is damaged
        Story((10, 20), 20, (30,), keep, leftovers=True, tensors="many"),
        Story((10, 20, 30, 40), 40, (50,), keep, cut=(10,), flipped=(30,), tensors="long"),
        Story((10, 20, 30, 40), 20, (30, 50), keep, leftovers=True, tensors="many"),
    )
)
