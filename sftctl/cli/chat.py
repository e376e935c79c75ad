"""sftctl chat."""

from typing import Annotated

import typer

from sftctl.cli import streams
from sftctl.cli.options import AnyModel, ChatTemplate, ModelTokenizer, run_or_newest
from sftctl.tracking.working import working


def chat(
    path: AnyModel = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Ask one question (or read it from stdin), print the answer and exit."),
    ] = None,
    chat_template: ChatTemplate = None,
    tokenizer: ModelTokenizer = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum length of an answer, in tokens.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Sampling temperature; 0: always the most likely token.")
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(
            max=1.0, help="Sample from the most likely tokens that together have this probability."
        ),
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option(min=0, help="Sample from the K most likely tokens; 0: all.")
    ] = 0,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="Random seed for sampling."),
    ] = None,
) -> None:
    """Chat with a trained model. With --prompt or piped input, only the answer is printed."""
    from sftctl.model.sampling import Sampling, check_sampling
    from sftctl.trained.chat_terminal import answer_once, converse, question_given
    from sftctl.trained.checks import kind_of

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k)
    check_sampling(sampling)
    path = run_or_newest(path)
    kind_of(path)
    question = question_given(prompt)
    with working():
        from sftctl.trained.chat import ChatSession

        session = ChatSession.open(
            path, sampling, system, seed, streams.tell, chat_template, tokenizer
        )
    if question is not None:
        answer_once(session, question)
    else:
        converse(session)
