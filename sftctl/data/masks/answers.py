"""The answer that a model has to write for an assistant turn, and the prompt before it.

Usually the rendered text, up to and including the turn, begins with the prompt. The rest is the
answer. With some templates the text does not begin with the prompt. There are two known reasons:
- The prompt opens a thinking block that the turn lacks.
- The template writes earlier messages differently when the turn follows.
In both cases the text to train on is the prompt as inference renders it, followed by the rendered
text of the turn.
"""

from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow
from sftctl.data.masks.ends import with_end
from sftctl.data.masks.render import Prefixes
from sftctl.data.masks.rendered_tools import require_tool_calls
from sftctl.data.masks.thinking import (
    OpenedBlock,
    continued,
    has_another_block,
    is_thinking_block,
    open_thought,
    opened_block,
    option_for,
    thought_of,
    unopened,
)
from sftctl.model.tokenizer.encoders import Span

_MARK = "\ue000sftctl\ue001"  # a content that does not occur in real data


@dataclass(frozen=True, slots=True)
class Answer:
    """One assistant turn: the prompt, and the text to train on up to the end of the turn."""

    prompt: str
    text: str

    @property
    def complete(self) -> str:
        """Prompt and answer."""
        return self.prompt + self.text

    @property
    def span(self) -> Span:
        """Where the answer is in a text that begins with `complete`."""
        return len(self.prompt), len(self.prompt) + len(self.text)


@dataclass(frozen=True, slots=True)
class _Place:
    """The place where a turn begins."""

    header: str  # the prompt without the thinking block at its end
    block: OpenedBlock | None  # this thinking block
    written: str  # the rendered text of the turn


def answer_of(prefixes: Prefixes, turn: int) -> Answer:
    """The answer of an assistant message. Raises BadRow if it can't be determined exactly."""
    place = _first(prefixes) if turn == 0 else _place(prefixes, turn)
    if place is None:
        raise _unclear(
            prefixes.row, turn, "prompt for this turn differs from the text that it writes before "
            "the turn"
        )  # fmt: skip
    prompt, written = _begin(prefixes, turn, place)
    if has_another_block(written, prefixes.row.messages[turn]):
        raise _unclear(
            prefixes.row, turn, "text of this turn has a thinking block that the row does not have"
        )
    if place.block is None:
        _require_tag_unchanged(prefixes.row, turn, written)
    answer = with_end(prefixes, turn, written)
    require_tool_calls(prefixes.row, [turn], answer)
    return Answer(prompt, answer)


def _begin(prefixes: Prefixes, turn: int, place: _Place) -> tuple[str, str]:
    """Prompt and answer of a turn.

    The prompt may end with a thinking block. If the turn repeats this block, the block belongs to
    the answer.
    """
    block, written = place.block, place.written
    if block is None:
        return place.header, written
    prompt = place.header + block.text
    if block.is_open:
        if written.startswith(block.text):
            return place.header, written
        answer = continued(block, written, prefixes.row.messages[turn])
        if answer is None:
            what = f"prompt opens a thinking block ({block.opener}) that this turn lacks"
            raise _unclear(prefixes.row, turn, what, _closing_option(prefixes))
        return prompt, answer
    message = prefixes.row.messages[turn]
    thought = thought_of(message) or open_thought(message["content"])
    if thought is not None and thought.may_be_in(block) and thought.text in written:
        what = "prompt closes an empty thinking block, and this turn has reasoning"
        raise _unclear(prefixes.row, turn, what, _opening_option(prefixes))
    if written.startswith(block.text):
        return place.header, written
    answer = block.after_empty(written)
    if answer is None:
        what = (
            "prompt closes an empty thinking block, and the turn has another block or other white "
            "space after the block"
        )
        raise _unclear(prefixes.row, turn, what)
    return prompt, answer


def _require_tag_unchanged(row: Conversation, turn: int, written: str) -> None:
    """Raise BadRow if the template takes the text before a closing tag as reasoning, and changes
    it. The prompt opens no block, so a message without the opening tag may only mention the tag."""
    content: str = row.messages[turn]["content"]
    tag = unopened(content)
    if tag is None or content.strip() in written:
        return
    if content.partition(tag)[0].strip() in written:  # otherwise the reasoning is left out
        raise BadRow(
            "mask_not_exact",
            f"{row.source}: message {turn + 1}: the chat template takes the text before {tag} as "
            "reasoning, but the message has no opening tag",
            "add the opening tag, or move the reasoning to reasoning_content",
        )


def _opening_option(prefixes: Prefixes) -> str | None:
    """The template option with which a prompt does not close its thinking block."""
    return option_for(prefixes.tokenizer, lambda block: block is None or block.is_open)


def _closing_option(prefixes: Prefixes) -> str | None:
    """The template option with which a prompt does not leave a thinking block open."""
    return option_for(prefixes.tokenizer, lambda block: block is None or not block.is_open)


def _place(prefixes: Prefixes, turn: int) -> _Place | None:
    """The place where the turn begins. None if it is unclear."""
    prompt, through = prefixes.prompt(turn), prefixes.through(turn)
    block = opened_block(prompt)
    before = prefixes.row.messages[turn - 1]["content"]
    if block is not None and opened_block(before) and prompt == prefixes.through(turn - 1):
        block = None  # the block is the end of the previous message, not a part of the prompt
    header = prompt if block is None else prompt.removesuffix(block.text)
    if through.startswith(header):
        return _Place(header, block, through[len(header) :])
    if prefixes.row.messages[turn - 1]["role"] == "assistant":
        return None  # inference never prompts for two assistant turns in a row
    try:
        return _place_in_other_context(prefixes, turn)
    except BadRow:  # the template refuses the changed conversation
        return None


def _place_in_other_context(prefixes: Prefixes, turn: int) -> _Place | None:
    """The place where the turn begins, for templates that write the earlier messages differently.

    The conversation is rendered with marks as the contents of the previous message and of the turn.
    This shows the text after the previous message: in the prompt, and before a plain turn (without
    reasoning or calls).
    """
    row, prompt = prefixes.row, prefixes.prompt(turn)
    *earlier, previous = row.messages[:turn]
    marked = (*earlier, previous | {"content": _MARK})
    plain: dict[str, Any] = {"role": "assistant", "content": _MARK}
    prompted = prefixes.render(marked, prompt=True).rpartition(_MARK)
    between = prefixes.render((*marked, plain)).split(_MARK)
    alone = prefixes.render(marked).rpartition(_MARK)[2]
    if not prompted[1] or len(between) < 3 or not prompt.endswith(prompted[2]):
        return None
    aligned = _aligned(prompted[2], between[-2], alone)
    if aligned is None:
        return None
    block, gap = aligned
    context, found, _ = prefixes.render((*row.messages[:turn], plain)).rpartition(_MARK)
    through, context = prefixes.through(turn), context.removesuffix(gap)
    if not found or not through.startswith(context):
        return None
    header = prompt if block is None else prompt.removesuffix(block.text)
    return _Place(header, block, through[len(context) :])


def _aligned(prompted: str, before: str, alone: str) -> tuple[OpenedBlock | None, str] | None:
    """The block that the prompt opens, and the end of `before` that belongs to the turn.

    None if this is unclear. All arguments are texts after the same message: `prompted` in the
    prompt, `before` up to the content of a turn, and `alone` if nothing follows the message.
    """
    header = commonprefix([prompted, before])
    rest, gap = prompted[len(header) :], before[len(header) :]
    if not rest:
        return None, gap
    block = opened_block(rest)
    if block is not None and block.text == rest and is_thinking_block(gap):
        return block, gap
    if before == alone:  # the template writes the header only in the prompt, not before this turn
        return None, ""
    own = prompted.removeprefix(alone) if prompted.startswith(alone) else ""
    found, header, gap = before.rpartition(own) if own else ("", "", "")
    return (None, gap) if header else None


def _first(prefixes: Prefixes) -> _Place:
    """The start of the first turn, in a conversation that begins with the assistant.

    Templates can't render zero messages. So the header of the turn is taken from the prompt of a
    conversation with one user message. Raises BadRow if this header is not found in the text.
    """
    through = prefixes.through(0)
    stand_in = ({"role": "user", "content": "?"},)
    user, prompted = prefixes.render(stand_in), prefixes.render(stand_in, prompt=True)
    block = opened_block(prompted)
    header = prompted.removesuffix(block.text) if block else prompted
    if header.startswith(user):
        header = header.removeprefix(user)
        preamble, found, _ = through.partition(header) if header else ("", "", "")
    else:
        header = _header(prefixes, header) or _MARK  # the text does not contain the mark
        preamble, found, _ = through.partition(header)
    if found != header or not user.startswith(preamble):
        raise BadRow(
            "mask_not_exact",
            f"{prefixes.row.source}: message 1: can't tell where this first assistant turn begins",
            "begin the conversation with a user message, or use another chat template",
        )
    return _Place(preamble + header, block, through[len(preamble + header) :])


def _header(prefixes: Prefixes, prompted: str) -> str | None:
    """The header of a turn, for a template whose prompt does not begin with the text so far.

    The prompt and the text before the content of a turn have a common end. The header is this end,
    from the first special token on. None if there is no special token.
    """
    plain = ({"role": "assistant", "content": _MARK},)
    before, found, _ = prefixes.render(plain).partition(_MARK)
    common = commonprefix([prompted[::-1], before[::-1]])[::-1] if found else ""
    starts = [common.find(text) for text in prefixes.tokenizer.special_texts if text in common]
    return common[min(starts) :] if starts else None


def _unclear(row: Conversation, turn: int, what: str, option: str | None = None) -> BadRow:
    hint = "use another chat template, or give it an option (--template-option)"
    thought = thought_of(row.messages[turn])
    if thought is not None and thought.opener is not None and option is None:
        hint = "move the reasoning to reasoning_content, or use another chat template"
    if open_thought(row.messages[turn]["content"]) is not None:
        hint = "the thinking block of this message does not end: remove the row"
    elif option is not None:
        hint = f"use --template-option {option} (for all rows), or another chat template"
    return BadRow(
        "mask_not_exact",
        f"{row.source}: message {turn + 1}: the chat template's {what}",
        hint,
    )
