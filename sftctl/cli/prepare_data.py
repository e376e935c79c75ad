"""sftctl prepare-data."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sftctl.cli import streams
from sftctl.cli.options import ConfigFlags, Flag, Json, TemplateOption, config_flags
from sftctl.errors import ConfigError
from sftctl.tracking import status
from sftctl.tracking.working import working
from sftctl.words import printable

Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Directory of the store. An existing store is reused or replaced. "
        "Default: INPUT.store, in the working directory.",
    ),
]


Inputs = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Files, folders or patterns; - is standard input. NAME=PATH gives the input a name, "
        "for a mixture. Default: the bundled sample.",
        metavar="[INPUT]...",
    ),
]


@config_flags(
    Flag("model.tokenizer", "Directory, hub name or .gguf file. Default: the bundled tokenizer."),
    Flag(
        "model.new_tokens",
        "Special tokens to add to the tokenizer: <a>,<b>. Train with the same tokens.",
    ),
    "data.format",
    "data.chat_template",
    "data.max_seq_len",
    "data.overflow",
    "data.train_on",
    "data.reasoning_weight",
    "data.leading_assistant",
    "data.val_fraction",
    "data.columns",
    "data.special_text",
    "data.date",
)
def prepare_data(
    *,
    inputs: Inputs = None,
    output: Output = None,
    flags: ConfigFlags,
    template_option: TemplateOption = None,
    val_input: Annotated[
        list[Path] | None, typer.Option("--val-input", help="File of validation conversations.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes (default: one per CPU core).")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="hf: Hugging Face tokenizers. auto: a faster engine, if its tokens are the same."
        ),
    ] = "auto",
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first row that is dropped or cut.")
    ] = False,
    show: Annotated[
        int,
        typer.Option(min=0, help="Print the first N conversations, and mark the trained tokens."),
    ] = 0,
    json: Json = False,
) -> None:
    """Tokenize conversations once, and write a token store with exact loss masks."""
    from sftctl.cli.show.output import emit
    from sftctl.cli.show.output import show as show_text
    from sftctl.cli.show.store import preparation_progress, prepared_store, show_examples
    from sftctl.config.load import load_config
    from sftctl.config.sources import named_inputs
    from sftctl.config.template_options import template_options

    config = load_config(None, {**flags, **template_options(template_option)})
    engine_name = _known(engine)
    names, paths = named_inputs(inputs or [])
    with working("loading libraries", needs_torch=False):
        from sftctl.data.example_text import shown_examples
        from sftctl.data.prepare.fingerprint import PrepareOptions
        from sftctl.data.prepare.prepare import default_store, prepare_files
        from sftctl.data.store import TokenStore

        options = PrepareOptions(
            engine=engine_name, strict=strict, num_workers=workers, names=names
        )
        if output is None:
            output = default_store(paths)
            streams.tell(f"output: {printable(str(output))}")
        status.doing("loading the tokenizer")
        with preparation_progress() as progress:
            prepared = prepare_files(paths, val_input or [], output, config, progress, options)
    emit(prepared.manifest, lambda: prepared_store(prepared, output), as_json=json)
    if show and not json:
        show_text(show_examples(shown_examples(TokenStore.open(output), show)))


def _known(engine: str) -> Literal["auto", "hf"]:
    """The engine with this name. Raises ConfigError if there is none."""
    if engine == "auto":
        return "auto"
    if engine == "hf":
        return "hf"
    raise ConfigError(f"--engine {engine}: no such engine", "known engines: auto, hf")
