"""A new run before it is made: its inputs are open, no weight is loaded, nothing is written."""

from dataclasses import dataclass, replace
from pathlib import Path

from sftctl.config.schema import RunConfig
from sftctl.data.step_shape import step_shape
from sftctl.environment import local_world_size
from sftctl.model.fake import fake_model
from sftctl.runs.directory import shared_run_path
from sftctl.train.engine.build import checkpoint_bytes, choose_dtype
from sftctl.train.preflight.findings import Finding, preflight
from sftctl.train.preflight.inputs import Inputs, open_inputs, resolve_config
from sftctl.train.preflight.memory import (
    MemoryEstimate,
    available_memory,
    estimate_memory,
    resolve_micro_batch,
)
from sftctl.train.stop import StopRequest
from sftctl.world import World


@dataclass(frozen=True, slots=True)
class Proposal:
    """Everything that is known about a run before its model is loaded."""

    config: RunConfig  # resolved
    path: Path
    inputs: Inputs
    num_parameters: int
    checkpoint_bytes: int  # its tensors; the manifest adds a few kB
    memory: MemoryEstimate
    findings: list[Finding]

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(str(finding) for finding in self.findings if finding.level == "warning")


def propose(
    config: RunConfig, world: World, stop: StopRequest, num_ranks: int | None = None
) -> Proposal:
    """Called on every rank; rank 0 checks. A dry run sets `num_ranks` in place of this world's.

    An error that leaves the rest unknown is raised; every other problem is a finding.
    """
    config = resolve_config(config)
    config = choose_dtype(config, world.device)
    path = shared_run_path(config, world)
    inputs = open_inputs(config, world, stop)
    longest = inputs.train.manifest.max_seq_len
    config = replace(config, output_dir=path, data=replace(config.data, max_seq_len=longest))
    ranks, ranks_here = num_ranks or world.world_size, num_ranks or local_world_size()
    fake = fake_model(config.model.name, inputs.tokenizer, world.device)
    config = resolve_micro_batch(config, fake.model, world, ranks)

    def look() -> tuple[MemoryEstimate, list[Finding]]:
        shape = step_shape(config.train, world_size=ranks)
        available = available_memory(world.device, ranks_here)
        memory = estimate_memory(config, inputs.train, fake, shape, available)
        return memory, preflight(config, path, inputs, fake, memory, shape, ranks_here)

    memory, findings = world.on_main(look)
    return Proposal(
        config=config,
        path=path,
        inputs=inputs,
        num_parameters=fake.num_parameters,
        checkpoint_bytes=checkpoint_bytes(fake.model),
        memory=memory,
        findings=findings,
    )
