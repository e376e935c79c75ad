"""sftctl train."""

from pathlib import Path
from typing import Annotated

import typer

from sftctl.cli.options import ConfigFlags, Flag, Json, MaxRestarts, RanksHere, config_flags


@config_flags(
    "data.path",
    "model.name",
    "model.tokenizer",
    "train.epochs",
    "train.max_steps",
    "train.batch_size",
    "train.accumulation_steps",
    "train.micro_batch_tokens",
    "optim.learning_rate",
    "optim.grad_clip",
    "data.max_seq_len",
    "train.device",
    "train.dtype",
    "train.strategy",
    "train.compile",
    "data.num_workers",
    "data.pin_memory",
    "tracking.log_interval",
    "checkpoint.save_interval",
    "train.eval_interval",
    "checkpoint.keep",
    "train.seed",
    "tracking.wandb",
    "tracking.wandb_project",
    Flag("output_dir", "Run directory. Default: runs/MODEL-TIME."),
)
def train(
    *,
    run_toml: Annotated[
        Path | None, typer.Argument(help="Configuration file.", metavar="[RUN.toml]")
    ] = None,
    flags: ConfigFlags,
    nproc_per_node: RanksHere = 1,
    max_restarts: MaxRestarts = 0,
    auto_resume: Annotated[
        bool,
        typer.Option("--auto-resume", help="Continue the run in --output-dir, if there is one."),
    ] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Set any other key: section.key=value.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print a commented configuration and exit.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check data and model, show what would run, and exit.")
    ] = False,
    json: Json = False,
) -> None:
    """Train a model on conversations. Without arguments: a small model on the bundled sample."""
    from sftctl.cli import train_commands as running
    from sftctl.config.load import Layer, file_layer, load_layers, parse_assignments

    file = [] if run_toml is None else [file_layer(run_toml)]
    assignments = parse_assignments(set_ or ())
    config, origins = load_layers([*file, Layer("--set", assignments), Layer("flag", flags)])
    if print_config:
        running.print_config(config, as_json=json)
    elif dry_run:
        running.describe(config, origins, nproc_per_node, auto_resume=auto_resume, as_json=json)
    else:
        running.start(config, nproc_per_node, max_restarts, auto_resume=auto_resume, as_json=json)
