"""Scenarios: what is in a run directory before a session, and what the session does."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.jsonio import dump_line
from sftctl.metrics import StepMetrics
from tests.toys.checkpoints import make_manifest, make_tensors
from tests.toys.metrics import step_metrics


@dataclass(frozen=True)
class Scenario:
    """A run with checkpoints at `old_steps`, and a session that resumes it and saves more."""

    old_steps: tuple[int, ...]
    resume_step: int  # 0: the session starts without a checkpoint
    new_steps: tuple[int, ...]  # the session saves here
    keep: int = 1
    cut_steps: tuple[int, ...] = ()  # old checkpoints with a shard that lost its end: incomplete
    flipped_steps: tuple[int, ...] = ()  # old ones with a wrong bit: complete, but not good
    has_leftovers: bool = False  # True: a save and a deletion were killed before
    tensors: str = "few"  # few | many | long | adapter: its own, and the record of a frozen base


BASE = {
    "name": "base",
    "revision": None,
    "files": {"model.safetensors": {"num_bytes": 9, "modified_ns": 1, "sha256": "0" * 64}},
}


class Version(NamedTuple):
    """A checkpoint by its content. The `old` and the `new` one of a step are two versions."""

    step: int
    kind: str  # old | new | cut | flipped

    @property
    def is_good(self) -> bool:
        return self.kind in ("old", "new")


def resumed_version(scenario: Scenario) -> Version | None:
    """The checkpoint that the session resumes from; None if it starts without one."""
    return Version(scenario.resume_step, "old") if scenario.resume_step else None


def tensors_of(scenario: Scenario, version: Version) -> dict[str, torch.Tensor]:
    """The state that this version of a checkpoint holds."""
    seed = version.step + (version.kind == "new")
    if scenario.tensors == "many":
        return make_tensors(seed)
    random = torch.Generator().manual_seed(seed)
    if scenario.tensors == "long":  # several sectors; the second write begins inside a sector
        shapes = {"model.weight": (37, 29), "model.bias": (301,)}
        return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    if scenario.tensors == "adapter":
        names = ("model.q.lora_A.default.weight", "optimizer.q.lora_A.default.weight.exp_avg")
        return {name: torch.randn(4, 3, generator=random) for name in names}
    return {"model.weight": torch.randn(3, generator=random)}


def manifest_of(scenario: Scenario, step: int) -> CheckpointManifest:
    """The manifest of a checkpoint at this step."""
    manifest = make_manifest(step)
    return replace(manifest, base=BASE) if scenario.tensors == "adapter" else manifest


def lines_of(version: Version) -> list[bytes]:
    """The lines that metrics.jsonl gets between the checkpoint before and this one."""
    return [dump_line(metrics) for metrics in metrics_of(version)]


def metrics_of(version: Version) -> list[StepMetrics]:
    """The same as values: three steps."""
    loss = float(version.kind == "new")
    return [step_metrics(version.step - before, loss) for before in (2, 1, 0)]


SCENARIOS = (
    *(
        scenario
        for keep in (1, 2, 3)
        for scenario in (
            Scenario((10,), 10, (20, 30), keep),
            Scenario((), 0, (10, 20), keep),
            Scenario((10, 20, 30), 30, (40,), keep),
            Scenario((10, 20, 30), 10, (20,), keep),  # goes back, and saves a step again
            Scenario((10, 20, 30), 30, (40,), keep, cut_steps=(20,)),
            Scenario((10, 20, 30), 20, (30,), keep, flipped_steps=(30,)),  # the newest is damaged
            Scenario((10, 20), 20, (30,), keep, has_leftovers=True, tensors="many"),
            Scenario(
                (10, 20, 30, 40),
                40,
                (50,),
                keep,
                cut_steps=(10,),
                flipped_steps=(30,),
                tensors="long",
            ),
            Scenario((10, 20, 30, 40), 20, (30, 50), keep, has_leftovers=True, tensors="many"),
        )
    ),
    Scenario((10, 20), 20, (30, 40), tensors="adapter"),
)
