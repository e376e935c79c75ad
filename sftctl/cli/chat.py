"""sftctl chat."""

from pathlib import Path
from typing import Annotated

import typer


def chat(
    path: Annotated[
        Path, typer.Argument(help="A run, a checkpoint or a model directory.", metavar="PATH")
    ],
    prompt: Annotated[
        str | None, typer.Option(help="Answer this and stop; without it, a conversation.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0: always the likeliest token.")
    ] = 0.0,
) -> None:
    """Talk to a model that was trained."""
    from sftctl.serve.chat import ChatSession, converse

    session = ChatSession.open(path, max_new_tokens, temperature)
    if prompt is not None:
        print(session.answer(prompt))
    else:
        converse(session)
