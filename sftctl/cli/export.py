"""sftctl export."""

from pathlib import Path
from typing import Annotated

import typer

from sftctl.cli import streams
from sftctl.cli.options import AnyModel, ChatTemplate, ModelTokenizer, run_or_newest
from sftctl.tracking.working import working
from sftctl.words import format_bytes, in_shell, printable


def export(
    path: AnyModel = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Directory to write; must not exist. Default: PATH/export for a run, PATH-export "
            "for a model.",
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            help="hf: a directory for transformers. gguf: a file for llama.cpp and Ollama. "
            "adapter: the trained LoRA adapter, for peft.",
        ),
    ] = "hf",
    chat_template: ChatTemplate = None,
    tokenizer: ModelTokenizer = None,
    dtype: Annotated[
        str,
        typer.Option(help="Dtype of the weights: float32, bfloat16, float16; q8_0 (gguf only)."),
    ] = "float32",
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="Merge an adapter into its base model, and check the resulting logits."
        ),
    ] = False,
) -> None:
    """Write a model for other tools: weights, configuration, tokenizer, template, model card."""
    from sftctl.cli.show.output import show
    from sftctl.trained.checks import check_export, default_output

    path = run_or_newest(path)
    is_typed = output is not None
    output = output or default_output(path, kind)
    check_export(path, output, dtype, kind, merge)
    if not is_typed:
        streams.tell(f"output: {printable(str(output))}")
    with working():
        if kind == "adapter" or merge:
            _export_adapter(path, output, dtype, chat_template, merge)
        else:
            _export_model(path, output, dtype, kind, chat_template, tokenizer)
    size = format_bytes(sum(file.stat().st_size for file in output.iterdir()))
    show(f"exported to {output}: {size}, {dtype}")
    opened = output / "model.gguf" if kind == "gguf" else output
    show(f"chat:     sftctl chat {in_shell(opened)}")


def _export_adapter(
    path: Path, output: Path, dtype: str, chat_template: str | None, merge: bool
) -> None:
    from sftctl.cli.show.output import show
    from sftctl.trained.export import export_adapter, export_merged

    if merge:
        proof = export_merged(path, output, dtype, streams.tell, chat_template)
        show(proof.line())
        if (line := proof.source_line()) is not None:
            show(line)
    else:
        export_adapter(path, output, tell=streams.tell)


def _export_model(
    path: Path,
    output: Path,
    dtype: str,
    kind: str,
    chat_template: str | None,
    tokenizer: str | None,
) -> None:
    from sftctl.cli.show.output import show
    from sftctl.trained.export import export_gguf, export_model

    if kind == "gguf":
        proof = export_gguf(path, output, dtype, streams.tell, chat_template, tokenizer)
        show(proof.line())
        return
    export_model(
        path, output, dtype, tell=streams.tell, chat_template=chat_template, tokenizer=tokenizer
    )
