"""The bytes of each token in a byte-level vocabulary, and the places where a text can be cut.

**A cut** is a place between two tokens. If the text after the cut changes, the tokens before it
stay the same. If the text before the cut changes, the tokens after it stay the same.

There is a cut before every special token. An encoder first searches the text for added tokens, and
then encodes the stretches between them independently.

There is also a cut between an ASCII letter and a *break*, if the tokenizer splits text into words
in a known way. (A break is ASCII white space or punctuation, but no apostrophe.) The proof:

1. It is enough to look at words, because the model turns each word into tokens by itself. The
   normalizer changes nothing: the bytes of the tokens are the text, and a part of a normalized text
   is normalized.
2. Let a be the letter, b the break and q the place between them. In `splits.CUT_AT_BREAKS`, no
   pattern matches a string in which b follows a. So no match crosses q. The last pattern matches
   every letter, so a is in a match, and this match ends at q. Therefore a word ends at q, in every
   text with a and b there.
3. A match that begins before q depends only on the text before q. The only look-around is the
   (?!\\S) after white space. It looks at one character. This character is never b, because a is not
   white space. No pattern looks back, so a match that begins at q or later depends only on the text
   from q on. If a pattern splits the pieces of another pattern, this holds for each of the two.
4. Added tokens are searched from left to right, the longest first. None of them crosses q, because
   q is between two tokens. So the added tokens before q do not depend on the text after q, and
   those after q do not depend on the text before q.
"""

import string
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from sftctl.jsonio import loads
from sftctl.model.tokenizer.encoders import Ids, special_ids
from sftctl.model.tokenizer.splits import is_cut_at_breaks

_FORMS = frozenset({"NFC", "NFD", "NFKC", "NFKD"})
"""Normalizers that do not change ASCII."""

_LETTERS = string.ascii_letters.encode()
_BREAKS = (string.punctuation.replace("'", "") + " \t\n\r\v\f").encode()

_LETTER, _BREAK, _SPECIAL = 1, 2, 4
"""Flags of a token: it ends with an ASCII letter, it begins with a break, it is special."""

_NEAR = 32
"""`last_cut` first looks at this number of tokens."""


class TokenBytes:
    """The bytes of each token in a byte-level vocabulary."""

    def __init__(self, by_id: list[bytes], longest_added: int, *, is_normalized: bool) -> None:
        self._by_id = by_id
        self.longest_added = longest_added
        """The length of the longest added token, in bytes."""
        self._lengths = np.array([len(token) for token in by_id], dtype=np.int32)
        self._is_normalized = is_normalized
        self._flags = np.zeros(len(by_id), dtype=np.uint8)
        self._known_flags = bytes(len(by_id))  # the same flags, faster to read one by one
        self.same_alone: dict[bytes, bool] = {}
        """A cache: whether the text of these tokens, encoded alone, gives these tokens again."""

    @classmethod
    def of(cls, hf: Any) -> "TokenBytes | None":
        """The table of a tokenizer. None if its vocabulary is not byte-level, or lacks a byte.

        Also None if the tokenizer puts a space before a text, or has an added token that is found
        only as a separate word. In both cases, a cut would change the tokens.
        """
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        backend, byte_of = hf.backend_tokenizer, {v: k for k, v in bytes_to_unicode().items()}
        normalizer = type(backend.normalizer).__name__
        vocabulary = hf.get_vocab()
        if type(backend.decoder).__name__ != "ByteLevel" or not byte_of.keys() <= vocabulary.keys():
            return None
        added = hf.added_tokens_decoder
        if normalizer not in {"NoneType", *_FORMS} or any(t.single_word for t in added.values()):
            return None
        by_id = [b""] * (max(vocabulary.values()) + 1)
        for token, index in vocabulary.items():
            by_id[index] = bytes(byte_of.get(letter, 0) for letter in token)
        for index, token in added.items():
            by_id[index] = token.content.encode()
        longest = max((len(by_id[index]) for index in added), default=0)
        table = cls(by_id, longest, is_normalized=normalizer in _FORMS)
        table._find_cuts(hf)
        alone = backend.encode("a", add_special_tokens=False).ids
        return table if table.joined(alone) == b"a" else None

    def _find_cuts(self, hf: Any) -> None:
        """Set the flags of each token. `cuts` needs them."""
        if is_cut_at_breaks(loads(hf.backend_tokenizer.to_str())):
            self._flags |= _flag(_LETTER, _LETTERS, (token[-1:] for token in self._by_id))
            self._flags |= _flag(_BREAK, _BREAKS, (token[:1] for token in self._by_id))
        self._flags[[index for index in special_ids(hf) if index < len(self._by_id)]] |= _SPECIAL
        self._known_flags = self._flags.tobytes()

    def last_cut(self, ids: Ids, end: int) -> int:
        """The last token before token `end` at whose start the text of `ids` can be cut.

        0, the beginning of the text, if there is none.
        """
        first, flags = max(0, end - _NEAR), self._known_flags
        near = ids[first:end].tolist()
        for place in range(len(near) - 1, 0, -1):
            flag = flags[near[place]]
            if flag & _SPECIAL or (flag & _BREAK and flags[near[place - 1]] & _LETTER):
                return first + place
        size = _NEAR
        while first:
            size *= 8
            first = max(0, end - size)
            found = self.cuts(ids[first:end])
            if len(found):
                return first + int(found[-1])
        return 0

    def cuts(self, ids: Ids) -> npt.NDArray[np.intp]:
        """The tokens at whose start the text can be cut, in order, without 0. `ids` is the complete
        text.
        """
        flags = self._flags.take(ids)
        after_letter = flags[:-1] * np.uint8(_BREAK // _LETTER)
        return np.flatnonzero(flags[1:] & (after_letter & _BREAK | _SPECIAL)) + 1

    def ends(self, ids: Ids, text: bytes) -> npt.NDArray[np.int32] | None:
        """The byte of the text at which each token ends. None if the tokens are not the text.

        Without a normalizer, it is enough to compare the number of bytes: an encoder can only drop
        bytes, or use a token in place of more bytes than it has. Both change the number.
        """
        ends = self._lengths.take(ids).cumsum(dtype=np.int32)
        num_bytes = int(ends[-1]) if len(ends) else 0
        if self._is_normalized and not text.isascii() and self.joined(ids.tolist()) != text:
            return None
        return ends if num_bytes == len(text) else None

    def joined(self, ids: Iterable[int]) -> bytes:
        """The bytes of all these tokens."""
        return b"".join(map(self._by_id.__getitem__, ids))


def _flag(flag: int, wanted: bytes, found: Iterable[bytes]) -> npt.NDArray[np.uint8]:
    """`flag` for each entry of `found` that is a byte of `wanted`; 0 for all other entries."""
    is_wanted = np.isin(np.frombuffer(b"".join(b or b"\0" for b in found), np.uint8), [*wanted])
    return is_wanted * np.uint8(flag)
