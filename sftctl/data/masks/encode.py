"""Encode texts to token ids, and turn their target characters into exact loss masks.

A fast engine returns ids without character offsets. Three methods find the target tokens:
1. The bytes of the tokens usually show where the targets are (`token_edges`).
2. The text is cut at the edges of the targets, and each piece is encoded. If the joined ids equal
   the ids of the complete text, the edges are exact.
3. The reference tokenizer returns character offsets.

If a token is partly in the prompt and partly in an answer, this answer gets a separate example.
There, prompt and answer are encoded separately, as in generation. A row whose mask can't be
determined exactly is refused. Masks are never guessed.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sftctl.config.schema import TrainOn
from sftctl.data.conversations.conversation import Conversation
from sftctl.data.example import Mask, TokenizedExample, Weights
from sftctl.data.ledger import BadRow
from sftctl.data.masks.server_form import as_servers_send
from sftctl.data.masks.token_edges import EncodedText, encoded, is_as_prompted, mask_from_bytes
from sftctl.data.masks.turns import TrainingText, training_texts
from sftctl.data.masks.weights import Weighted
from sftctl.errors import EngineDiffers
from sftctl.model.tokenizer.encoders import Ids, Span
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

MASK_RULES_VERSION = 8
"""Increase this number when a change of the code changes rendered texts, tokens or masks."""


def tokenize(
    conversation: Conversation, tokenizer: ChatTokenizer, train_on: TrainOn
) -> list[TokenizedExample]:
    """The examples of a conversation, at full length.

    Raises BadRow if there is nothing to train on, or if a mask can't be determined exactly.
    """
    conversation = as_servers_send(conversation, tokenizer)
    texts = training_texts(conversation, tokenizer, train_on)
    return encode_texts(texts, conversation, tokenizer)


def encode_texts(
    texts: list[TrainingText], conversation: Conversation, tokenizer: ChatTokenizer
) -> list[TokenizedExample]:
    """The examples of `texts`, the rendered texts of `conversation`. Raises BadRow as `tokenize`
    does."""
    examples, known = [], None
    for text in texts:
        known = encoded(text.text, tokenizer, known) if tokenizer.is_fast else None
        for ids, turns, weights in _encode(text, known, conversation, tokenizer):
            turns[:1] = False  # nothing comes before the first token, so nothing predicts it
            mask = turns if weights is None else turns & (weights > 0)
            if not mask.any():
                message = f"{conversation.source}: no token to train on"
                raise BadRow("no_target", message, "remove the row")
            _refuse_two_bos(conversation, tokenizer, ids)
            if weights is None:
                examples.append(TokenizedExample(ids, mask))
            else:
                is_plain = bool(np.all(weights[mask] == 1))
                kept = None if is_plain else weights * mask
                examples.append(TokenizedExample(ids, mask, kept, turns))
    return examples


_Encoded = tuple[Ids, Mask, Weights | None]
"""Token ids, the mask of trained turns, and the weights. No weights (None): all are 1."""


def _encode(
    text: TrainingText,
    known: EncodedText | None,
    conversation: Conversation,
    tokenizer: ChatTokenizer,
) -> Iterator[_Encoded]:
    """Yield the tokens and the mask of a text. Then yield each answer that needs its own example.

    `known` has the tokens of the fast engine; None: there is no fast engine.
    """
    if known is not None and not text.weights:
        mask = mask_from_bytes(known, text.targets, tokenizer)
        mask = _mask_from_pieces(text, tokenizer, known.ids) if mask is None else mask
        if mask is not None:
            yield known.ids, mask, None
            return
    reference, offsets = tokenizer.encode_with_offsets(text.text)
    if known is not None and not np.array_equal(known.ids, reference):
        raise EngineDiffers(f"{conversation.source}: {tokenizer.engine} returns other token ids")
    encoding = _Encoding(text.text, reference, offsets, tokenizer)
    places = [_place_after_prompt(span, text, encoding) for span in text.targets]
    exact = [place for place in places if place is not None]
    if len(exact) < len(places) and not text.may_be_apart:
        raise _half_inside(conversation)
    if exact or not places:
        mask = np.zeros(len(reference), dtype=np.bool_)
        for covered in exact:
            mask[covered] = True
        within = [s for s, place in zip(text.targets, places, strict=True) if place is not None]
        placed = [w for w in text.weights if _is_in(w.span, within)]
        yield reference, mask, _weights(placed, encoding, conversation)
    for span, place in zip(text.targets, places, strict=True):
        if place is None:
            yield _encode_apart(text, span, conversation, tokenizer)


def _encode_apart(
    text: TrainingText, span: Span, conversation: Conversation, tokenizer: ChatTokenizer
) -> _Encoded:
    """An example in which prompt and answer are encoded separately, as at inference."""
    start, end = span
    answer_text = text.text[start:end]
    prompt, answer = tokenizer.encode(text.text[:start]), tokenizer.encode(answer_text)
    ids = np.concatenate([prompt, answer])
    together = tokenizer.encode(text.text[:end])
    if tokenizer.decode(ids) != tokenizer.decode(
        together
    ):  # e.g. a tokenizer that adds a space before each part
        raise _half_inside(conversation)
    own = [
        Weighted((weighted.span[0] - start, weighted.span[1] - start), weighted.weight)
        for weighted in text.weights
        if _is_in(weighted.span, [span])
    ]
    weights: Weights | None = None
    if own:
        encoding = _Encoding(answer_text, *tokenizer.encode_with_offsets(answer_text), tokenizer)
        of_answer = _weights(own, encoding, conversation)
        ones = np.ones(len(prompt), dtype=np.float32)
        weights = None if of_answer is None else np.concatenate([ones, of_answer])
    return ids, np.repeat([False, True], [len(prompt), len(answer)]), weights


def _is_in(span: Span, spans: Sequence[Span]) -> bool:
    return any(start <= span[0] and span[1] <= end for start, end in spans)


def _place_after_prompt(span: Span, text: TrainingText, encoding: "_Encoding") -> slice | None:
    """The tokens of a target. None if an edge is inside a token. Also None if the prompt has other
    tokens when it is encoded without the target."""
    place = _place(span, *encoding)
    if place is None or not text.may_be_apart:
        return place
    return place if is_as_prompted(place.start, *encoding) else None


class _Encoding(NamedTuple):
    text: str
    ids: Ids
    offsets: list[Span]
    tokenizer: ChatTokenizer


def _weights(
    weighted: Sequence[Weighted], encoding: _Encoding, conversation: Conversation
) -> Weights | None:
    """The weight of each token. None: all weights are 1. Raises BadRow if a token is partly in one
    part and partly in another."""
    if not weighted:
        return None
    weights = np.ones(len(encoding.ids), dtype=np.float32)
    for span, weight in weighted:
        place = _place(span, *encoding)
        if place is None:
            raise BadRow(
                "mask_not_exact",
                f"{conversation.source}: a token is half inside a part that has another weight",
                "let each part begin at the start of a word, or use one weight for the message",
            )
        weights[place] = weight
    return weights


def _mask_from_pieces(text: TrainingText, tokenizer: ChatTokenizer, ids: Ids) -> Mask | None:
    """The mask of `ids`. None if the joined ids of the pieces differ from `ids`.

    All targets except the last must end with a special token; otherwise the result is None. Without
    the special token, the prompt of the next target could have other tokens when encoded alone.
    """
    position = 0
    pieces: list[Ids] = []
    for start, end in text.targets:
        pieces += [tokenizer.encode(text.text[position:start])]
        pieces += [tokenizer.encode(text.text[start:end])]
        position = end
    pieces.append(tokenizer.encode(text.text[position:]))
    if not np.array_equal(np.concatenate(pieces), ids):
        return None
    later = pieces[1:-2:2]  # all targets except the last
    if text.may_be_apart and any(int(p[-1]) not in tokenizer.special_ids for p in later if len(p)):
        return None
    is_target = [index % 2 == 1 for index in range(len(pieces))]
    return np.repeat(is_target, [len(piece) for piece in pieces])


def _place(
    span: Span, text: str, ids: Ids, offsets: list[Span], tokenizer: ChatTokenizer
) -> slice | None:
    """The tokens that cover a span exactly. None if an edge of the span is inside a token or a gap.

    Some special tokens include the white space after their text (`rstrip`). If a span ends with the
    text of such a token, the complete token belongs to the span.
    """
    start, end = (_tokens_before(edge, offsets) for edge in span)
    if end is None:
        last = bisect_right(offsets, span[1], key=_end)
        if last < len(ids) and int(ids[last]) in tokenizer.special_ids:
            first, after = offsets[last]
            if first < span[1] and text[span[1] : after].isspace():
                end = last + 1
    return None if start is None or end is None else slice(start, end)


def _half_inside(conversation: Conversation) -> BadRow:
    return BadRow(
        "mask_not_exact",
        f"{conversation.source}: a token is half inside an assistant turn",
        "use a chat template with special tokens around the turns",
    )


def _tokens_before(position: int, offsets: list[Span]) -> int | None:
    """The number of tokens before a character. None if the position is inside a token or a gap.

    Several tokens can be bytes of one character. They have equal offsets, so all are on one side.
    """
    index = bisect_right(offsets, position, key=_end)
    end_before = offsets[index - 1][1] if index else 0
    start_after = offsets[index][0] if index < len(offsets) else end_before
    return index if end_before == start_after == position else None


def _end(span: Span) -> int:
    return span[1]


def _refuse_two_bos(conversation: Conversation, tokenizer: ChatTokenizer, ids: Ids) -> None:
    """Raise BadRow if a text begins with two BOS tokens, which never happens at inference.

    The cause: the template writes a BOS token, and the first message begins with another. `ids` has
    at least two tokens, because the first token is never a target.
    """
    if ids[0] == ids[1] == tokenizer.bos_id:
        raise BadRow(
            "duplicate_bos",
            f"{conversation.source}: the text begins with two beginning-of-sequence tokens",
            "remove the token from the row's text",
        )
