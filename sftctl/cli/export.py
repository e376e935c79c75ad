"""sftctl export."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    path: Annotated[
        Path, typer.Argument(help="A run, a checkpoint or a model directory.", metavar="PATH")
    ],
    output: Annotated[Path, typer.Option(help="Directory to write; must not exist.")],
    dtype: Annotated[
        str, typer.Option(help="Type of the weights: float32, bfloat16 or float16.")
    ] = "float32",
) -> None:
    """Write a Hugging Face directory: weights, configuration, tokenizer, template, model card."""
    from sftctl.cli.show.output import show
    from sftctl.trained.checks import check_export

    check_export(path, output, dtype)
    from sftctl.trained.export import export_model

    export_model(path, output, dtype)
    show(f"exported to {output}")
