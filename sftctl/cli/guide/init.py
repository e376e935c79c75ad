"""sftctl init."""

from pathlib import Path
from typing import Annotated

import typer

from sftctl.cli.options import ChatTemplate, Json
from sftctl.tracking.working import working

Tokenizer = Annotated[
    str | None, typer.Option("--tokenizer", help="Directory, hub name or .gguf file.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="File to write; must not exist.")]


def init(
    data: Annotated[Path, typer.Argument(help="File, folder or pattern of conversations.")],
    model: Annotated[
        str, typer.Option("--model", help="Preset, directory, hub name or .gguf file.")
    ] = "small",
    tokenizer: Tokenizer = None,
    chat_template: ChatTemplate = None,
    output: Output = Path("run.toml"),
    json: Json = False,
) -> None:
    """Look at your conversations and write a commented run.toml that suits them.

    This command is for conversations only. To train on plain text, use
    `sftctl train --data FILE --set data.format=text` instead.
    """
    from sftctl.cli.show.look import found_in
    from sftctl.cli.show.output import emit
    from sftctl.cli.show.store import preparation_progress
    from sftctl.config.load import load_config
    from sftctl.disk import refusals, replace_file
    from sftctl.errors import ConfigError
    from sftctl.folders import require_makeable
    from sftctl.train.preflight.paths import check_before_loading

    hint = "name another file with --output"
    with refusals(output, ConfigError, hint):
        require_makeable(output)
    given = {
        "data.path": str(data),
        "model.name": model,
        "model.tokenizer": tokenizer,
        "data.chat_template": chat_template,
    }
    config = load_config(None, {key: value for key, value in given.items() if value is not None})
    check_before_loading(config)
    with working():
        from sftctl.train.preflight.look import commented_toml, look_at

        with preparation_progress() as progress:
            look = look_at(config, progress)
    with refusals(output, ConfigError, hint):
        replace_file(output, commented_toml(look, given).encode())
    emit(look.to_json(output), lambda: found_in(look, output), as_json=json)
