"""Encode a text, and find where its targets begin and end from the bytes of its tokens.

This needs only one encoding of the text; the method with pieces needs two. The result is exact,
because of two facts about encoders. First, a text can be cut at certain places into stretches that
are encoded independently (`token_bytes`). Second, the joined bytes of the tokens are the text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from sftctl.data.example import Mask
from sftctl.errors import EngineDiffers
from sftctl.model.tokenizer.encoders import Ids, Span
from sftctl.model.tokenizer.token_bytes import TokenBytes
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

_HEADER = 16
"""Stretches of at most so many tokens are usually headers. Headers repeat, so results are cached.
"""

_MOST_HEADERS = 1000
"""Limit of the cache for headers."""


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A text and its tokens."""

    text: str
    ids: Ids
    data: bytes = b""  # the text in UTF-8
    ends: npt.NDArray[np.int32] | None = None  # the byte after each token; None: unknown


def encoded(text: str, tokenizer: ChatTokenizer, before: EncodedText | None) -> EncodedText:
    """Encode a text. Raises EngineDiffers if a check of the fast engine fails.

    The texts of a row often have a common start. The tokens of this start are copied from `before`,
    the previous text. They end at the last place where both texts can be cut.
    """
    table = tokenizer.token_bytes
    if table is None:
        return EncodedText(text, tokenizer.encode(text))
    data = text.encode(errors="surrogatepass")
    num_known = 0 if before is None else _num_known(before, data, table)
    if before is None or before.ends is None or num_known == 0:
        ids = tokenizer.encode(text)
        return EncodedText(text, ids, data, table.ends(ids, data))
    begin = int(before.ends[num_known - 1])
    rest = data[begin:].decode(errors="surrogatepass")
    after = tokenizer.encode(rest)
    ids = np.concatenate([before.ids[:num_known], after])
    if tokenizer.is_checked and not np.array_equal(ids, tokenizer.encode(text)):
        raise EngineDiffers(f"{tokenizer.engine} returns other token ids for {rest[:40]!r}")
    ends = table.ends(after, data[begin:])
    if ends is not None:
        ends = np.concatenate([before.ends[:num_known], ends + begin])
    return EncodedText(text, ids, data, ends)


def _num_known(before: EncodedText, data: bytes, table: TokenBytes) -> int:
    """The number of tokens of `before` that can be copied for a text with the bytes `data`."""
    if before.ends is None:
        return 0
    # An added token that begins before this place must end within the common start.
    place = _num_shared(before.data, data) - max(1, table.longest_added)
    return table.last_cut(before.ids, _tokens_to([place], before.ends)[0] + 1)


def _tokens_to(places: Sequence[int], ends: npt.NDArray[np.int32]) -> list[int]:
    """How many tokens end at or before each of these bytes."""
    found: list[int] = ends.searchsorted(np.array(places, ends.dtype), side="right").tolist()
    return found


def _num_shared(one: bytes, other: bytes) -> int:
    """The length in bytes of the common start of two texts."""
    size = min(len(one), len(other))
    differs = np.frombuffer(one, np.uint8, size) != np.frombuffer(other, np.uint8, size)
    first = int(differs.argmax()) if size else 0
    return first if size and differs[first] else size


def mask_from_bytes(
    encoded: EncodedText, targets: Sequence[Span], tokenizer: ChatTokenizer
) -> Mask | None:
    """The loss mask of a text. None if the bytes of the tokens don't prove that the mask is exact.

    Three conditions must hold for each target:
    - The target begins and ends between two tokens.
    - The target ends with a special token, or at the end of the text.
    - The prompt before the target has the same tokens if it is encoded alone, as at inference.
    """
    ids, ends = encoded.ids, encoded.ends
    if ends is None:
        return None
    edges = [*_in_bytes(encoded, chain.from_iterable(targets))]
    after = _tokens_to(edges, ends)
    if any(edge and ends[n - 1] != edge for edge, n in zip(edges, after, strict=True)):
        return None
    mask = np.zeros(len(ids), dtype=np.bool_)
    for first, end in zip(after[::2], after[1::2], strict=True):
        ends_apart = end == len(ids) or int(ids[end - 1]) in tokenizer.special_ids
        if not ends_apart or not _stays_alone(ids, first, tokenizer):
            return None
        mask[first:end] = True
    return mask


def _in_bytes(encoded: EncodedText, positions: Iterator[int]) -> Iterator[int]:
    """Convert positions in characters to positions in bytes of UTF-8. They must be ascending."""
    if len(encoded.data) == len(encoded.text):
        yield from positions
        return
    done = num_bytes = 0
    for position in positions:
        num_bytes += len(encoded.text[done:position].encode())
        done = position
        yield num_bytes


def _stays_alone(ids: Ids, first: int, tokenizer: ChatTokenizer) -> bool:
    """The same as `is_as_prompted`, but from the bytes of the tokens. Results are cached."""
    table = tokenizer.token_bytes
    assert table is not None
    stretch = ids[table.last_cut(ids, first) : first]
    key = stretch.tobytes() if len(stretch) <= _HEADER else None
    if key is not None and key in table.same_alone:
        return table.same_alone[key]
    text = table.joined(stretch.tolist()).decode(errors="replace")
    result = np.array_equal(tokenizer.encode(text), stretch)
    if key is not None:
        if len(table.same_alone) >= _MOST_HEADERS:
            table.same_alone.clear()
        table.same_alone[key] = result
    return result


def is_as_prompted(
    first: int, text: str, ids: Ids, offsets: Sequence[Span], tokenizer: ChatTokenizer
) -> bool:
    """Whether the tokens before token `first` stay the same if no text follows, as at inference.

    Text that follows can change only the stretch after the last special token before `first`. So
    this stretch is encoded alone and compared. All of it is encoded, because later text can change
    early tokens: with `ignore_merges` an encoder looks up long stretches in its vocabulary, and
    regular expressions that split words can look ahead. The special token is included, because some
    encoders treat the text after a special token differently.
    """
    special = tokenizer.special_ids
    start = next((i for i in range(first - 1, 0, -1) if int(ids[i]) in special), 0)
    begin, end = offsets[start][0] if start else 0, offsets[first - 1][1] if first else 0
    return np.array_equal(tokenizer.encode(text[begin:end]), ids[start:first])
