"""Proposal: what is known about a run before it starts.

Its inputs are open and its model is built without weights. No run directory is written yet.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sftctl.config.existing_adapter import require_agreement
from sftctl.config.schema import RunConfig
from sftctl.data.step_shape import step_shape
from sftctl.environment import local_world_size
from sftctl.errors import ConfigError
from sftctl.model.adapter.base import adapter_of, base_dtype
from sftctl.model.adapter.needs import require_base
from sftctl.model.adapter.start import require_fit, require_same_tokens
from sftctl.model.fake import FakeModel, fake_model
from sftctl.model.source import on_stderr
from sftctl.model.trainable import learning_rate_factors, require_new_rows_trained, select_trained
from sftctl.runs.base import require_base_of_start
from sftctl.runs.choosing import require_validation
from sftctl.runs.directory import shared_run_path
from sftctl.tracking import status
from sftctl.train.answers.questions import require_metrics
from sftctl.train.engine.build import checkpoint_bytes
from sftctl.train.engine.dtype import choose_dtype
from sftctl.train.engine.flops import model_flops
from sftctl.train.preflight.findings import Finding, preflight
from sftctl.train.preflight.inputs import Inputs, open_inputs
from sftctl.train.preflight.memory import (
    MemoryEstimate,
    available_memory,
    estimate_memory,
    resolve_micro_batch,
)
from sftctl.train.preflight.resolve import resolve_config
from sftctl.train.stop import StopRequest
from sftctl.world import World

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class Proposal:
    """The resolved configuration of a new run, its inputs, its sizes and its findings."""

    config: RunConfig  # resolved
    path: Path
    inputs: Inputs
    num_parameters: int
    num_trained: int
    model_config: "PretrainedConfig"
    flops_per_token: tuple[int, int]  # (body per token, head per target token)
    checkpoint_bytes: int  # of the tensors; the manifest adds a few kB
    memory: MemoryEstimate
    findings: list[Finding]

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(str(finding) for finding in self.findings if finding.level == "warning")


def propose(
    config: RunConfig, world: World, stop: StopRequest, num_ranks: int | None = None
) -> Proposal:
    """Open the inputs, build the model without weights, and check both. Every rank calls this.

    Raises only errors that prevent further checks. A dry run gives the run's `num_ranks`.
    """
    status.doing("opening the data")
    require_base(config)
    missing = world.on_main(lambda: require_metrics(config))
    config = resolve_config(config)
    require_agreement(config.adapter)
    path = shared_run_path(config, world)
    inputs = open_inputs(config, world, stop)
    store = inputs.train.manifest
    date = store.date or config.data.date
    data = replace(config.data, max_seq_len=store.max_seq_len, date=date)
    has_validation = bool(inputs.sets)
    require_validation(config, has_validation=has_validation)
    train = config.train
    if train.final == "auto":
        train = replace(train, final="best" if has_validation else "last")
    config = replace(config, output_dir=path, data=data, train=train)
    status.doing("checking model and memory")
    ranks, ranks_here = num_ranks or world.world_size, num_ranks or local_world_size()
    named, adapter = config.model, adapter_of(config)
    fake, about_model = _fake_model(config, inputs, world)
    select_trained(fake.model, config.train.train_only, config.train.freeze)
    if named.new_tokens:
        require_new_rows_trained(fake.model)
    learning_rate_factors(fake.model, config.optim.groups)  # or ConfigError
    config = choose_dtype(config, fake.model, world)
    if adapter is not None:
        base_dtype(config)  # or ConfigError
        if adapter.start is not None:
            require_same_tokens(inputs.tokenizer, named.new_tokens or (), Path(adapter.start))
            require_fit(fake.model, Path(adapter.start), named.name)
            world.on_main(lambda: require_base_of_start(adapter, named.name))
    config = resolve_micro_batch(config, fake.model, world, ranks)

    def look() -> tuple[MemoryEstimate, list[Finding]]:
        shape = step_shape(config.train, world_size=ranks)
        available = available_memory(world.device, ranks_here)
        memory = estimate_memory(config, inputs.train, fake, shape, available)
        return memory, preflight(config, path, inputs, fake, memory, shape, ranks_here)

    memory, findings = world.on_main(look)
    about = [Finding("warning", "evaluation.metrics", f"{one}: not measured") for one in missing]
    return Proposal(
        config=config,
        path=path,
        inputs=inputs,
        num_parameters=fake.num_parameters,
        num_trained=fake.num_trained,
        model_config=fake.model.config,
        flops_per_token=model_flops(fake.model),
        checkpoint_bytes=checkpoint_bytes(fake.model),
        memory=memory,
        findings=[*findings, *about_model, *about],
    )


def _fake_model(config: RunConfig, inputs: Inputs, world: World) -> tuple[FakeModel, list[Finding]]:
    """The model without weights, and the warnings about it. Before an error they are printed."""
    named, lines = config.model, list[str]()
    adapter = adapter_of(config)
    try:
        fake = fake_model(
            named.name, inputs.tokenizer, world.device, named.new_tokens, adapter, lines.append
        )
    except ConfigError:
        for line in lines:
            on_stderr(line)
        raise
    subject = f"model {named.name}"
    return fake, [Finding("warning", subject, one.removeprefix(f"{subject}: ")) for one in lines]
