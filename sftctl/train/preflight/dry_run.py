"""What a run would be, without training: `sftctl train --dry-run`."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sftctl.config.load import config_to_dict
from sftctl.config.schedule import get_lr
from sftctl.config.schema import RunConfig
from sftctl.data.plan import steps_per_epoch
from sftctl.train.preflight.findings import Finding
from sftctl.train.preflight.memory import MemoryEstimate
from sftctl.train.preflight.proposal import propose
from sftctl.train.stop import StopRequest
from sftctl.world import start_world

_CURVE_POINTS = 64


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run that is only planned."""

    run_dir: str
    config: dict[str, Any]  # resolved
    origins: dict[str, str]  # dotted key -> where its value comes from: default, file, --set, flag
    num_parameters: int
    num_examples: int
    num_validation_examples: int
    num_tokens: int
    num_target_tokens: int
    steps_per_epoch: int
    total_steps: int
    learning_rates: list[tuple[int, float]]  # (step, rate) along the run, first and last included
    checkpoint_bytes: int  # its tensors; the manifest adds a few kB
    memory: MemoryEstimate
    findings: list[Finding]

    def to_json(self) -> dict[str, Any]:
        """The fields; findings without their error objects."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {**values, "findings": [finding.to_json() for finding in self.findings]}


def plan_run(
    config: RunConfig, origins: dict[str, str] | None = None, num_ranks: int = 1
) -> RunPlan:
    """Check data and model as a run would; nothing is written.

    Raises errors that leave the rest unknown (no data, no model); other problems are findings.
    """
    given = config
    with start_world(config.train.device) as world, StopRequest() as stop:
        proposal = propose(config, world, stop, num_ranks)
    config, inputs = proposal.config, proposal.inputs
    per_epoch = steps_per_epoch(len(inputs.train), config.train.global_batch_size)
    total = config.train.total_steps(per_epoch)
    points = np.unique(np.linspace(1, total, _CURVE_POINTS).round().astype(int)).tolist()
    manifest = inputs.train.manifest
    return RunPlan(
        run_dir=str(proposal.path),
        config=config_to_dict(config),
        origins=_resolved_origins(origins or {}, config_to_dict(given), config_to_dict(config)),
        num_parameters=proposal.num_parameters,
        num_examples=len(inputs.train),
        num_validation_examples=manifest.num_validation_examples,
        num_tokens=manifest.num_tokens,
        num_target_tokens=manifest.num_target_tokens,
        steps_per_epoch=per_epoch,
        total_steps=total,
        learning_rates=[(step, get_lr(step, total, config.optim)) for step in points],
        checkpoint_bytes=proposal.checkpoint_bytes,
        memory=proposal.memory,
        findings=proposal.findings,
    )


def _resolved_origins(
    origins: dict[str, str], given: dict[str, dict[str, Any]], resolved: dict[str, dict[str, Any]]
) -> dict[str, str]:
    """`default: auto` if the value that was given was resolved to another one."""
    shown = {}
    for key, origin in origins.items():
        section, name = key.split(".")
        before, after = given[section].get(name), resolved[section].get(name)
        words = "unset" if before is None else before
        shown[key] = origin if before == after else f"{origin}: {words}"
    return shown
