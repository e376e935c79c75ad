"""From conversations to tokens and exact loss masks.

Which characters are trained, `turns` says; here characters become tokens. By a fast engine, which
tells no offsets, the pieces between the edges are encoded too: only where their ids, joined, are
those of the whole text are the edges exact. Else the reference's offsets decide, and what can't be
mapped exactly is refused.
"""

from bisect import bisect_right

import numpy as np
import numpy.typing as npt

from sftctl.config.schema import TrainOn
from sftctl.data.conversations.conversation import Conversation
from sftctl.data.example import TokenizedExample
from sftctl.data.ledger import BadRow
from sftctl.data.masks.turns import Rendering, renderings
from sftctl.errors import EngineDiffers
from sftctl.model.tokenizer.encoders import Span
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

MASK_RULES_VERSION = 3
"""Changes when the same text would be masked in another way."""

Ids = npt.NDArray[np.int32]  # (T,)
Mask = npt.NDArray[np.bool_]  # (T,)


def tokenize(
    conversation: Conversation, tokenizer: ChatTokenizer, train_on: TrainOn
) -> list[TokenizedExample]:
    """Tokens and masks of a row, in one example or more; BadRow where it has none."""
    return encoded(renderings(conversation, tokenizer, train_on), conversation, tokenizer)


def encoded(
    texts: list[Rendering], conversation: Conversation, tokenizer: ChatTokenizer
) -> list[TokenizedExample]:
    """Tokens and masks of the texts that `conversation` became."""
    examples = []
    for rendering in texts:
        ids, mask = _encoded(rendering, conversation, tokenizer)
        mask[:1] = False  # nothing comes before the first token, so nothing predicts it
        if not mask.any():
            what = f"{conversation.source}: no token to train on"
            raise BadRow("no_target", what, "remove the row", len(ids))
        _refuse_two_bos(conversation, tokenizer, ids)
        examples.append(TokenizedExample(ids, mask))
    return examples


def _encoded(
    rendering: Rendering, conversation: Conversation, tokenizer: ChatTokenizer
) -> tuple[Ids, Mask]:
    if tokenizer.is_fast:
        ids = tokenizer.encode(rendering.text)
        mask = _mask_by_pieces(rendering, tokenizer, ids)
        if mask is not None:
            return ids, mask
    reference, offsets = tokenizer.encode_with_offsets(rendering.text)
    if tokenizer.is_fast and not np.array_equal(ids, reference):
        raise EngineDiffers(f"{conversation.source}: {tokenizer.engine} gives other token ids")
    mask = np.zeros(len(reference), dtype=np.bool_)
    for span in rendering.targets:
        start, end = (_token_at(offsets, edge) for edge in span)
        if start is None or end is None:
            raise BadRow(
                "mask_not_exact",
                f"{conversation.source}: a token lies half inside an assistant turn",
                "use a chat template with special tokens around the turns",
                len(reference),
            )
        mask[start:end] = True
    return reference, mask


def _mask_by_pieces(rendering: Rendering, tokenizer: ChatTokenizer, ids: Ids) -> Mask | None:
    """The mask of the whole text's `ids`; None where the pieces are not those of the whole."""
    text, position = rendering.text, 0
    pieces: list[Ids] = []
    in_target: list[bool] = []
    for start, end in rendering.targets:
        pieces += [tokenizer.encode(text[position:start]), tokenizer.encode(text[start:end])]
        in_target += [False, True]
        position = end
    pieces.append(tokenizer.encode(text[position:]))
    in_target.append(False)
    if not np.array_equal(np.concatenate(pieces), ids):
        return None
    return np.repeat(in_target, [len(piece) for piece in pieces])


def _token_at(offsets: list[Span], position: int) -> int | None:
    """How many tokens end at or before the character; None if one straddles it or leaves a gap.

    Tokens that are bytes of one character have the same offsets, so all of them are on one side.
    """
    index = bisect_right(offsets, position, key=_end)
    end_before = offsets[index - 1][1] if index else 0
    start_after = offsets[index][0] if index < len(offsets) else end_before
    return index if end_before == start_after == position else None


def _end(span: Span) -> int:
    return span[1]


def _refuse_two_bos(conversation: Conversation, tokenizer: ChatTokenizer, ids: Ids) -> None:
    """No inference begins with the beginning twice: a template and a message both wrote it."""
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_id:
        raise BadRow(
            "duplicate_bos",
            f"{conversation.source}: the text begins with two beginning-of-sequence tokens",
            "remove the one in the row's text",
            len(ids),
        )
