"""sftctl train."""

from pathlib import Path
from typing import Annotated

import typer

from sftctl.cli.options import Json, MaxRestarts, RanksHere, given, option


def train(
    run_toml: Annotated[
        Path | None, typer.Argument(help="Configuration file.", metavar="[RUN.toml]")
    ] = None,
    data: Annotated[str | None, option("data.path", "--data")] = None,
    model: Annotated[str | None, option("model.name", "--model")] = None,
    tokenizer: Annotated[str | None, option("model.tokenizer", "--tokenizer")] = None,
    epochs: Annotated[str | None, option("train.epochs", "--epochs")] = None,
    max_steps: Annotated[str | None, option("train.max_steps", "--max-steps")] = None,
    batch_size: Annotated[str | None, option("train.batch_size", "--batch-size")] = None,
    accumulation_steps: Annotated[
        str | None, option("train.accumulation_steps", "--accumulation-steps")
    ] = None,
    micro_batch_tokens: Annotated[
        str | None, option("train.micro_batch_tokens", "--micro-batch-tokens")
    ] = None,
    learning_rate: Annotated[str | None, option("optim.learning_rate", "--learning-rate")] = None,
    grad_clip: Annotated[str | None, option("optim.grad_clip", "--grad-clip")] = None,
    max_seq_len: Annotated[str | None, option("data.max_seq_len", "--max-seq-len")] = None,
    device: Annotated[str | None, option("train.device", "--device")] = None,
    dtype: Annotated[str | None, option("train.dtype", "--dtype")] = None,
    strategy: Annotated[str | None, option("train.strategy", "--strategy")] = None,
    compile: Annotated[bool | None, option("train.compile", "--compile/--no-compile")] = None,
    num_workers: Annotated[str | None, option("data.num_workers", "--num-workers")] = None,
    pin_memory: Annotated[str | None, option("data.pin_memory", "--pin-memory")] = None,
    log_interval: Annotated[str | None, option("tracking.log_interval", "--log-interval")] = None,
    save_interval: Annotated[
        str | None, option("checkpoint.save_interval", "--save-interval")
    ] = None,
    eval_interval: Annotated[str | None, option("train.eval_interval", "--eval-interval")] = None,
    keep: Annotated[str | None, option("checkpoint.keep", "--keep")] = None,
    seed: Annotated[str | None, option("train.seed", "--seed")] = None,
    wandb: Annotated[bool | None, option("tracking.wandb", "--wandb/--no-wandb")] = None,
    wandb_project: Annotated[
        str | None, option("tracking.wandb_project", "--wandb-project")
    ] = None,
    output_dir: Annotated[
        str | None, typer.Option(help="The run directory itself. Default: runs/MODEL-TIME.")
    ] = None,
    nproc_per_node: RanksHere = 1,
    max_restarts: MaxRestarts = 0,
    auto_resume: Annotated[
        bool, typer.Option("--auto-resume", help="Go on with --output-dir if it is such a run.")
    ] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, for any other key.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print a commented configuration and stop.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check data and model, say what would run, and stop.")
    ] = False,
    json: Json = False,
) -> None:
    """Train a model on conversations. Alone: a small model on the bundled sample."""
    from sftctl.cli import train_commands as running
    from sftctl.config.load import Layer, file_layer, load_layers, parse_assignments

    flags = given(
        data__path=data, data__max_seq_len=max_seq_len, data__num_workers=num_workers,
        data__pin_memory=pin_memory, model__name=model, model__tokenizer=tokenizer,
        optim__learning_rate=learning_rate, optim__grad_clip=grad_clip,
        train__epochs=epochs, train__max_steps=max_steps, train__batch_size=batch_size,
        train__accumulation_steps=accumulation_steps, train__device=device, train__dtype=dtype,
        train__micro_batch_tokens=micro_batch_tokens, train__eval_interval=eval_interval,
        train__strategy=strategy, train__compile=compile, train__seed=seed,
        checkpoint__save_interval=save_interval, checkpoint__keep=keep,
        tracking__log_interval=log_interval, tracking__wandb=wandb,
        tracking__wandb_project=wandb_project, output_dir=output_dir,
    )  # fmt: skip
    file = [] if run_toml is None else [file_layer(run_toml)]
    assignments = parse_assignments(set_ or ())
    config, origins = load_layers([*file, Layer("--set", assignments), Layer("flag", flags)])
    if print_config:
        running.print_config(config, as_json=json)
    elif dry_run:
        running.describe(config, origins, nproc_per_node, as_json=json)
    else:
        running.start(config, nproc_per_node, max_restarts, auto_resume=auto_resume, as_json=json)
