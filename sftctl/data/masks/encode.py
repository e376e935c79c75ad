"""Encode texts to token ids, and turn their target characters into exact loss masks.

A fast engine returns ids without character offsets. So the pieces between the edges of the targets
are encoded as well. If their ids, joined, equal the ids of the complete text, the edges between
the pieces are exact. Otherwise the reference's offsets decide. A row whose mask cannot be
determined exactly is refused; masks are never guessed.
"""

from bisect import bisect_right

import numpy as np
import numpy.typing as npt

from sftctl.config.schema import TrainOn
from sftctl.data.conversations.conversation import Conversation
from sftctl.data.example import TokenizedExample
from sftctl.data.ledger import BadRow
from sftctl.data.masks.turns import TrainingText, training_texts
from sftctl.errors import EngineDiffers
from sftctl.model.tokenizer.encoders import Ids, Span
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

MASK_RULES_VERSION = 3
"""Increase it when the same conversation would get other texts, tokens or masks."""

Mask = npt.NDArray[np.bool_]  # (T,)


def tokenize(
    conversation: Conversation, tokenizer: ChatTokenizer, train_on: TrainOn
) -> list[TokenizedExample]:
    """The examples of a conversation, of any length; BadRow if there are none or one is unclear."""
    texts = training_texts(conversation, tokenizer, train_on)
    return encode_texts(texts, conversation, tokenizer)


def encode_texts(
    texts: list[TrainingText], conversation: Conversation, tokenizer: ChatTokenizer
) -> list[TokenizedExample]:
    """One example for each text that `conversation` was rendered to; BadRow if one is unclear."""
    examples = []
    for text in texts:
        ids, mask = _encode(text, conversation, tokenizer)
        mask[:1] = False  # nothing comes before the first token, so nothing predicts it
        if not mask.any():
            message = f"{conversation.source}: no token to train on"
            raise BadRow("no_target", message, "remove the row")
        _refuse_two_bos(conversation, tokenizer, ids)
        examples.append(TokenizedExample(ids, mask))
    return examples


def _encode(
    text: TrainingText, conversation: Conversation, tokenizer: ChatTokenizer
) -> tuple[Ids, Mask]:
    if tokenizer.is_fast:
        ids = tokenizer.encode(text.text)
        mask = _mask_from_pieces(text, tokenizer, ids)
        if mask is not None:
            return ids, mask
    reference, offsets = tokenizer.encode_with_offsets(text.text)
    if tokenizer.is_fast and not np.array_equal(ids, reference):
        raise EngineDiffers(f"{conversation.source}: {tokenizer.engine} returns other token ids")
    return reference, _mask_from_offsets(text, conversation, offsets)


def _mask_from_pieces(text: TrainingText, tokenizer: ChatTokenizer, ids: Ids) -> Mask | None:
    """The mask of `ids`; None if the ids of the pieces, joined, are not `ids`."""
    position = 0
    pieces: list[Ids] = []
    is_target: list[bool] = []
    for start, end in text.targets:
        pieces += [tokenizer.encode(text.text[position:start])]
        pieces += [tokenizer.encode(text.text[start:end])]
        is_target += [False, True]
        position = end
    pieces.append(tokenizer.encode(text.text[position:]))
    is_target.append(False)
    if not np.array_equal(np.concatenate(pieces), ids):
        return None
    return np.repeat(is_target, [len(piece) for piece in pieces])


def _mask_from_offsets(text: TrainingText, conversation: Conversation, offsets: list[Span]) -> Mask:
    """The mask of the tokens with these character offsets; BadRow if an edge is inside a token."""
    mask = np.zeros(len(offsets), dtype=np.bool_)
    for span in text.targets:
        start, end = (_tokens_before(edge, offsets) for edge in span)
        if start is None or end is None:
            raise BadRow(
                "mask_not_exact",
                f"{conversation.source}: a token is half inside an assistant turn",
                "use a chat template with special tokens around the turns",
            )
        mask[start:end] = True
    return mask


def _tokens_before(position: int, offsets: list[Span]) -> int | None:
    """How many tokens end at or before a character; None if it is inside a token or a gap.

    Tokens that are bytes of one character have the same offsets, so all of them are on one side.
    """
    index = bisect_right(offsets, position, key=_end)
    end_before = offsets[index - 1][1] if index else 0
    start_after = offsets[index][0] if index < len(offsets) else end_before
    return index if end_before == start_after == position else None


def _end(span: Span) -> int:
    return span[1]


def _refuse_two_bos(conversation: Conversation, tokenizer: ChatTokenizer, ids: Ids) -> None:
    """Refuse a text that begins with two BOS tokens: this never happens at inference.

    It happens when the template writes one and the first message begins with another. `ids` has at
    least two tokens, because the first is never a target.
    """
    if ids[0] == ids[1] == tokenizer.bos_id:
        raise BadRow(
            "duplicate_bos",
            f"{conversation.source}: the text begins with two beginning-of-sequence tokens",
            "remove the one in the row's text",
        )
