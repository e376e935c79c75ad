"""sftctl prepare-data."""

from pathlib import Path
from typing import Annotated

import typer

from sftctl.cli.options import ConfigFlags, Flag, Json, config_flags


@config_flags(
    Flag("model.tokenizer", "Directory, hub name or .gguf file. Default: the bundled one."),
    "data.format",
    "data.chat_template",
    "data.max_seq_len",
    "data.overflow",
    "data.train_on",
    "data.val_fraction",
)
def prepare_data(
    *,
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Files, folders or patterns; - reads standard input. Default: the bundled sample.",
            metavar="[INPUT]...",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Directory of the store; an existing store is reused or replaced.")
    ],
    flags: ConfigFlags,
    val_input: Annotated[
        list[Path] | None, typer.Option("--val-input", help="File of validation conversations.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes (default: one per CPU core).")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="hf: Hugging Face tokenizers; auto: a fast one if it gives the same tokens."
        ),
    ] = "auto",
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a row that can't be kept unchanged.")
    ] = False,
    show: Annotated[
        int,
        typer.Option(min=0, help="Print the first N conversations with the trained tokens marked."),
    ] = 0,
    json: Json = False,
) -> None:
    """Turn conversations into a token store with exact loss masks."""
    from sftctl.cli.show.output import emit
    from sftctl.cli.show.output import show as show_text
    from sftctl.cli.show.store import preparation_progress, prepared_store, show_examples
    from sftctl.config.load import load_config
    from sftctl.data.example_text import shown_examples
    from sftctl.data.prepare.fingerprint import PrepareOptions
    from sftctl.data.prepare.prepare import prepare_files
    from sftctl.data.store import TokenStore
    from sftctl.errors import ConfigError

    config = load_config(None, flags)
    if engine not in ("auto", "hf"):
        raise ConfigError(f"--engine {engine}: no such engine", "known engines: auto, hf")
    options = PrepareOptions(
        engine="hf" if engine == "hf" else "auto", strict=strict, num_workers=workers
    )
    with preparation_progress() as progress:
        prepared = prepare_files(inputs or [], val_input or [], output, config, progress, options)
    emit(prepared.manifest, prepared_store(prepared, output), as_json=json)
    if show and not json:
        examples = shown_examples(TokenStore.open(output), show)
        show_text(show_examples(examples))
