"""What a run would be, told without training: `sftctl train --dry-run`."""

from dataclasses import dataclass
from typing import Any

from sftctl.checkpoint.room import require_room
from sftctl.config.load import config_to_dict
from sftctl.config.schema import RunConfig
from sftctl.data.plan import steps_per_epoch
from sftctl.model.load import check_fit, load_model
from sftctl.train.inputs import open_inputs, resolve_config
from sftctl.train.rundir import RunDir, default_run_path, refuse_existing
from sftctl.train.schedule import get_lr
from sftctl.train.state import checkpoint_bytes
from sftctl.train.stop import StopRequest
from sftctl.world import start_world


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The size of a run."""

    config: dict[str, Any]  # resolved
    num_parameters: int
    num_examples: int
    num_validation_examples: int
    num_tokens: int
    num_target_tokens: int
    steps_per_epoch: int
    total_steps: int
    first_learning_rate: float
    last_learning_rate: float
    checkpoint_bytes: int  # its tensors; the manifest adds a few kB


def plan_run(config: RunConfig) -> RunPlan:
    """Open data and model as a run would, and raise what it would raise; nothing is written."""
    config = resolve_config(config)
    if config.output_dir is not None:
        refuse_existing(config.output_dir)
    with start_world(config.train.device) as world, StopRequest() as stop:
        inputs = open_inputs(config, world, stop)
    model = load_model(config.model.name, inputs.tokenizer, config.train.seed)
    check_fit(model, inputs.tokenizer, int(inputs.train.lengths.max()))
    per_epoch = steps_per_epoch(len(inputs.train), config.train.global_batch_size)
    total = config.train.total_steps(per_epoch)
    num_bytes = checkpoint_bytes(model)
    root = RunDir(config.output_dir or default_run_path(config)).checkpoints
    require_room(root, num_bytes, config.checkpoint.keep)
    num_parameters = sum(p.numel() for p in model.parameters())
    manifest = inputs.train.manifest
    return RunPlan(
        config=config_to_dict(config),
        num_parameters=num_parameters,
        num_examples=len(inputs.train),
        num_validation_examples=manifest.num_validation_examples,
        num_tokens=manifest.num_tokens,
        num_target_tokens=manifest.num_target_tokens,
        steps_per_epoch=per_epoch,
        total_steps=total,
        first_learning_rate=get_lr(1, total, config.optim),
        last_learning_rate=get_lr(total, total, config.optim),
        checkpoint_bytes=num_bytes,
    )
