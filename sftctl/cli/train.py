"""sftctl train."""

from pathlib import Path
from typing import Annotated

import typer

from sftctl.cli.options import (
    ConfigFlags,
    Flag,
    Json,
    MaxRestarts,
    RanksHere,
    VerifyData,
    config_flags,
    with_sources,
)


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
    "data.chat_template",
    "train.device",
    "train.dtype",
    "train.strategy",
    "train.compile",
    "adapter.lora",
    "adapter.start",
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
    several_data=True,
)
def train(
    *,
    run_toml: Annotated[
        Path | None, typer.Argument(help="Configuration file.", metavar="[RUN.toml]")
    ] = None,
    flags: ConfigFlags,
    mix: Annotated[
        str | None,
        typer.Option(
            "--mix",
            metavar="NAME=WEIGHT,…",
            help="Weights of named sources. The weight is how often an epoch trains an example.",
        ),
    ] = None,
    nproc_per_node: RanksHere = 1,
    max_restarts: MaxRestarts = 0,
    auto_resume: Annotated[
        bool,
        typer.Option("--auto-resume", help="Continue the run in --output-dir, if there is one."),
    ] = False,
    verify_data: VerifyData = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Set any other key: section.key=value.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print a commented configuration and exit.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check data and model, show the plan of the run, and exit."),
    ] = False,
    json: Json = False,
) -> None:
    """Train a model on conversations. Without arguments: a small model on the bundled sample."""
    from sftctl.cli import train_commands as running
    from sftctl.config.existing_adapter import layer_of
    from sftctl.config.load import Layer, file_layer, load_layers, parse_assignments
    from sftctl.config.sources import mixed, parse_mix

    file = [] if run_toml is None else [file_layer(run_toml)]
    assignments = parse_assignments(set_ or ())
    layers = [*file, Layer("--set", assignments), Layer("flag", with_sources(flags))]
    layers = [*layer_of(layers), *layers]
    config, origins = load_layers(layers)
    if mix is not None:
        sources = mixed(config.data.sources, parse_mix(mix), config.data.path)
        config, origins = load_layers([*layers, Layer("flag", {"data.sources": sources})])
    how = {"auto_resume": auto_resume, "verify_data": verify_data, "as_json": json}
    if print_config:
        running.print_config(config, as_json=json)
    elif dry_run:
        running.describe(config, origins, nproc_per_node, **how)
    else:
        running.start(config, nproc_per_node, max_restarts, **how)
