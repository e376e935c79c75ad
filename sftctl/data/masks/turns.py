"""Choose the texts to train on, and find the assistant's turns in them.

A turn is the text that the model has to write at inference. A turn begins after its prompt and ends
with its end-of-turn token (`answers`). It is a target only in a text that begins with exactly this
prompt and this turn.

Some templates write a turn differently when other messages follow. For example, Qwen 3 drops old
thinking. The text of the full conversation then differs from the text at inference. So such a turn
gets its own text: the conversation up to and including the turn.
"""

from contextlib import suppress
from dataclasses import dataclass

from sftctl.config.schema import TrainOn
from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow
from sftctl.data.masks.answers import Answer, answer_of
from sftctl.data.masks.render import Prefixes, render
from sftctl.data.masks.rendered import require_rendered, require_thoughts
from sftctl.data.masks.rendered_tools import require_tools
from sftctl.data.masks.thinking import unopened
from sftctl.data.masks.weights import Weighted, weights_of_turn
from sftctl.model.tokenizer.encoders import Span
from sftctl.model.tokenizer.tokenizer import ChatTokenizer


@dataclass(frozen=True, slots=True)
class TrainingText:
    """A rendered text, and the parts of the text that are trained."""

    text: str
    targets: list[Span]  # in characters; ascending, without overlap
    may_be_apart: bool = False  # True: prompt and answer may be encoded separately
    weights: tuple[Weighted, ...] = ()  # all other characters of targets have weight 1


def training_texts(
    conversation: Conversation, tokenizer: ChatTokenizer, train_on: TrainOn
) -> list[TrainingText]:
    """The texts to train on. Each target turn is trained once. Most templates need only one text.

    Raises BadRow if there is no target turn, if a turn can't be located exactly, or if the template
    leaves out a part of the row.
    """
    if conversation.shape == "text":
        return [_document(conversation, tokenizer)]
    full_text = render(conversation, tokenizer)
    require_tools(conversation, tokenizer, full_text)
    prefixes = Prefixes(conversation, tokenizer, full_text)
    if train_on == "all":
        return [_all_but_context(prefixes)]
    pending = conversation.target_turns
    if not pending:
        raise BadRow(
            "no_target", f"{conversation.source}: no assistant turn to train on", "remove the row"
        )
    if train_on == "last":
        pending = pending[-1:]
    answers = {turn: answer_of(prefixes, turn) for turn in pending}
    require_rendered(prefixes, pending)
    require_thoughts(conversation, {turn: answer.text for turn, answer in answers.items()})
    return _texts(prefixes, answers)


def _texts(prefixes: Prefixes, answers: dict[int, Answer]) -> list[TrainingText]:
    """As few texts as possible. Each text begins with the prompts and answers of its targets."""
    pending, found, text = list(answers), [], prefixes.full_text
    while pending:
        last = answers[pending[-1]].complete
        if not text.startswith(last):
            through = prefixes.through(pending[-1])
            text = through if through.startswith(last) else last
        within = [turn for turn in pending if text.startswith(answers[turn].complete)]
        spans = [answers[turn].span for turn in within]
        found.append(TrainingText(text, spans, True, _weights(prefixes.row, within, answers)))
        pending = [turn for turn in pending if turn not in within]
    return found[::-1]


def _weights(
    row: Conversation, turns: list[int], answers: dict[int, Answer]
) -> tuple[Weighted, ...]:
    parts = (weights_of_turn(row, t, answers[t].text, answers[t].span[0]) for t in turns)
    return tuple(weighted for part in parts for weighted in part)


def _document(row: Conversation, tokenizer: ChatTokenizer) -> TrainingText:
    """A row of plain text. All of the text and its end token are trained."""
    text = tokenizer.text_start + row.messages[0]["content"] + tokenizer.text_end
    return TrainingText(text, [(0, len(text))])


def _all_but_context(prefixes: Prefixes) -> TrainingText:
    """The full text. All of it is trained, except messages that are context and their headers."""
    row, text = prefixes.row, _with_end(prefixes)
    position, spans, weights = 0, list[Span](), list[Weighted]()
    for message in sorted({*row.untrained, *row.weights}):
        start, end = _exact_span(prefixes, message)
        if message in row.untrained:
            spans.append((position, start))
            position = end
        else:
            weights += weights_of_turn(row, message, text[start:end], start)
    for turn in row.target_turns:
        if unopened(row.messages[turn]["content"]) is not None:
            answer_of(prefixes, turn)  # raises BadRow if the template changes the text at the tag
    require_rendered(prefixes, [])
    require_thoughts(row, dict.fromkeys(row.target_turns, text))
    return TrainingText(text, [*spans, (position, len(text))], weights=tuple(weights))


def _with_end(prefixes: Prefixes) -> str:
    """The full text. If the last answer has no end token, the end token is added."""
    text, last = prefixes.full_text, len(prefixes.row.messages) - 1
    if last in prefixes.row.target_turns and not text.rstrip().endswith(
        prefixes.tokenizer.special_texts
    ):
        with suppress(BadRow):
            complete = answer_of(prefixes, last).complete
            return complete if complete.startswith(text) else text
    return text


def _exact_span(prefixes: Prefixes, message: int) -> Span:
    """The span of a message and its header in the full text. Raises BadRow if it is unclear.

    The span of the first message includes the text that the template writes before all messages.
    """
    before = prefixes.through(message - 1) if message else ""
    through = prefixes.through(message)
    if prefixes.full_text.startswith(through) and through.startswith(before):
        return len(before), len(through)
    raise BadRow(
        "mask_not_exact",
        f"{prefixes.row.source}: message {message + 1}: the chat template writes this message "
        "differently when others follow it",
        "train on the assistant's turns only",
    )
