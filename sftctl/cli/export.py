"""sftctl export."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    path: Annotated[Path, typer.Argument(help="A run or a checkpoint.", metavar="RUN_DIR|CKPT")],
    output: Annotated[Path, typer.Option(help="The directory to write; must not exist.")],
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16: of the weights written.")
    ] = "float32",
) -> None:
    """Write a plain Hugging Face directory: weights, configuration, tokenizer, template, card."""
    from sftctl.cli.show.output import show
    from sftctl.trained.checks import check_export

    check_export(path, output, dtype)
    from sftctl.trained.export import export_model

    export_model(path, output, dtype)
    show(f"exported to {output}")
