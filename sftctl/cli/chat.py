"""sftctl chat."""

from pathlib import Path
from typing import Annotated

import typer


def chat(
    path: Annotated[
        Path, typer.Argument(help="A run, a checkpoint or a model directory.", metavar="PATH")
    ],
    prompt: Annotated[
        str | None,
        typer.Option(help="Answer this and stop; so does a question on stdin."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="What the system message says.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0: always the likeliest token.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(max=1.0, help="Sample among the likeliest that reach this share.")
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option(min=0, help="Sample among so many of the likeliest; 0: all.")
    ] = 0,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="Of sampling; unset: another answer each time."),
    ] = None,
) -> None:
    """Talk to a model that was trained; with --prompt or a pipe, only the answer is printed."""
    from sftctl.model.sampling import Sampling, check_sampling
    from sftctl.trained.checks import kind_of
    from sftctl.trained.terminal import answer_once, converse, question_given

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k)
    check_sampling(sampling)
    kind_of(path)
    question = question_given(prompt)
    from sftctl.trained.chat import ChatSession

    session = ChatSession.open(path, sampling, system, seed)
    if question is not None:
        answer_once(session, question)
    else:
        converse(session)
