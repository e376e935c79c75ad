"""The plan of a run, without training: `sftctl train --dry-run`."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from sftctl.config.load import config_to_dict
from sftctl.config.schedule import get_lr
from sftctl.config.schema import RunConfig
from sftctl.data.loading.source_counts import SourceCounts
from sftctl.data.plan import steps_per_epoch
from sftctl.data.storage.joined import Store
from sftctl.train.preflight.duration import run_time_s
from sftctl.train.preflight.findings import Finding
from sftctl.train.preflight.memory import MemoryEstimate
from sftctl.train.preflight.proposal import propose
from sftctl.train.stop import StopRequest
from sftctl.world import start_world

_CURVE_POINTS = 64


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The plan that `sftctl train --dry-run` prints."""

    run_dir: str
    config: dict[str, Any]  # resolved
    origins: dict[str, str]  # dotted key -> where its value comes from: default, file, --set, flag
    num_parameters: int
    num_trained: int  # how many of the parameters are trained
    num_examples: int
    num_validation_examples: int
    num_tokens: int
    num_target_tokens: int
    steps_per_epoch: int
    total_steps: int
    learning_rates: list[tuple[int, float]]  # (step, rate) at up to 64 steps, first and last too
    checkpoint_bytes: int  # of the tensors; the manifest adds a few kB
    time_s: float | None  # of the complete run, roughly; None: not known for this model
    memory: MemoryEstimate
    findings: list[Finding]
    sources: list[SourceCounts]  # empty: the sources have no names

    def to_json(self) -> dict[str, Any]:
        """All fields. Error objects of findings are left out."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values["memory"] = self.memory.to_json()
        return {**values, "findings": [finding.to_json() for finding in self.findings]}


def plan_run(
    config: RunConfig,
    origins: dict[str, str] | None = None,
    num_ranks: int = 1,
    verify: Callable[[Store], None] | None = None,
    stop: StopRequest | None = None,
) -> RunPlan:
    """Check data and model as a run would, and return the plan. No run directory is written.

    `verify` hashes the store. A given `stop` must already listen for signals. Without `stop`, this
    call listens for signals.

    Raises an error after which nothing more can be checked (no data, no model). Every other problem
    is a finding.
    """
    given = config
    with (
        nullcontext(stop) if stop is not None else StopRequest() as listening,
        start_world(config.train.device, check=listening.check) as world,
    ):
        proposal = propose(config, world, listening, num_ranks)
        if verify is not None:
            verify(proposal.inputs.train)
        time_s = run_time_s(proposal, world, listening, num_ranks)
    config, inputs = proposal.config, proposal.inputs
    per_epoch = steps_per_epoch(inputs.num_planned, config.train.global_batch_size)
    total = config.train.total_steps(per_epoch)
    points = np.unique(np.linspace(1, total, _CURVE_POINTS).round().astype(int)).tolist()
    manifest = inputs.train.manifest
    return RunPlan(
        run_dir=str(proposal.path),
        config=config_to_dict(config),
        origins=_resolved_origins(origins or {}, config_to_dict(given), config_to_dict(config)),
        num_parameters=proposal.num_parameters,
        num_trained=proposal.num_trained,
        num_examples=len(inputs.train),
        num_validation_examples=manifest.num_validation_examples,
        num_tokens=manifest.num_tokens,
        num_target_tokens=manifest.num_target_tokens,
        steps_per_epoch=per_epoch,
        total_steps=total,
        learning_rates=[(step, get_lr(step, total, config.optim)) for step in points],
        checkpoint_bytes=proposal.checkpoint_bytes,
        time_s=time_s,
        memory=proposal.memory,
        findings=proposal.findings,
        sources=inputs.source_counts(config.train, total),
    )


def _resolved_origins(
    origins: dict[str, str], given: dict[str, dict[str, Any]], resolved: dict[str, dict[str, Any]]
) -> dict[str, str]:
    """The origin of each value.

    A resolved value also has its original form, as in `default: auto`.
    """
    shown = {}
    for key, origin in origins.items():
        section, name = key.split(".")
        before, after = given[section].get(name), resolved[section].get(name)
        words = "unset" if before is None else before
        is_short = before != after and not isinstance(before, (list, tuple, dict))
        shown[key] = f"{origin}: {words}" if is_short else origin
    return shown
