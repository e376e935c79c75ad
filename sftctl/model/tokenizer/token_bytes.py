"""The bytes that the tokens of a byte-level vocabulary stand for, and where a text can be cut.

**A cut.** A text may be cut before a token if the tokens before that place and those after it stay
the same when the other part changes. This holds before a special token, because encoders search a
text for added tokens first and encode the stretches between them independently. It also holds
between an ASCII letter and a *break* (ASCII white space or punctuation, but no apostrophe), if the
tokenizer splits text into words in a known way. The proof:

1. Only words matter. The model turns each word into tokens by itself. The normalizer changes
   nothing: the bytes of the tokens are the text, and a part of a normalized text is normalized.
2. Let a be the letter, b the break and q the place between them. No alternative of the patterns in
   `splits.CUT_AT_BREAKS` matches a string in which b follows a. So no match crosses q. The last
   pattern matches every letter, so a is in a match, and this match ends at q. q is an edge between
   words in every text with a and b there.
3. A match that begins before q depends only on the text before q. Its only look-around is the
   (?!\\S) after white space. It looks at one character, which is never b, because a is not white
   space. No pattern looks back, so a match that begins at q or later depends only on the text from
   q on. Where one pattern cuts the pieces that another has made, this holds for each in turn.
4. Added tokens are searched from the left, the longest first. None of them crosses q, because q is
   an edge between tokens. So the search finds the same ones before q without what follows, and the
   same ones after q without what comes before.
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
"""Normalizers that leave ASCII alone."""

_LETTERS = string.ascii_letters.encode()
_BREAKS = (string.punctuation.replace("'", "") + " \t\n\r\v\f").encode()

_LETTER, _BREAK, _SPECIAL = 1, 2, 4
"""Flags of a token: it ends with a letter, it begins with a break, it is special."""

_NEAR = 32
"""Tokens among which a cut is searched first."""


class TokenBytes:
    """The bytes that each token of a byte-level vocabulary stands for."""

    def __init__(self, by_id: list[bytes], longest_added: int, *, is_normalized: bool) -> None:
        self._by_id = by_id
        self.longest_added = longest_added
        """Bytes of the longest added token."""
        self._lengths = np.array([len(token) for token in by_id], dtype=np.int64)
        self._is_normalized = is_normalized
        self._flags = np.zeros(len(by_id), dtype=np.uint8)
        self.same_alone: dict[tuple[int, ...], bool] = {}
        """Known answers: whether the text of these tokens, encoded alone, becomes these tokens."""

    @classmethod
    def of(cls, hf: Any) -> "TokenBytes | None":
        """None if the vocabulary is of another kind, or lacks a byte.

        Also None if a space is put before a text, or if an added token is found only as a word of
        its own: then a text is not always cut there.
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
        """Know the tokens at which a text can be cut."""
        if is_cut_at_breaks(loads(hf.backend_tokenizer.to_str())):
            self._flags |= _flag(_LETTER, _LETTERS, (token[-1:] for token in self._by_id))
            self._flags |= _flag(_BREAK, _BREAKS, (token[:1] for token in self._by_id))
        self._flags[[index for index in special_ids(hf) if index < len(self._by_id)]] |= _SPECIAL

    def last_cut(self, ids: Ids, end: int) -> int:
        """The last token before token `end` where the text of `ids` can be cut: before that token.

        0, the beginning of the text, if there is none.
        """
        size = _NEAR
        while True:
            first = max(0, end - size)
            found = self.cuts(ids[first:end])
            if len(found):
                return first + int(found[-1])
            if first == 0:
                return 0
            size *= 8

    def cuts(self, ids: Ids) -> npt.NDArray[np.intp]:
        """The tokens before which the text of `ids`, all of it, can be cut, in order. Never 0."""
        flags = self._flags.take(ids)
        after_letter = flags[:-1] * np.uint8(_BREAK // _LETTER)
        return np.flatnonzero(flags[1:] & (after_letter & _BREAK | _SPECIAL)) + 1

    def ends(self, ids: Ids, text: bytes) -> npt.NDArray[np.int64] | None:
        """The byte of the text at which each token ends; None if the tokens are not the text.

        Without a normalizer, an encoder can only drop bytes, or use more bytes than a token stands
        for. In both cases the number of bytes differs.
        """
        ends = self._lengths.take(ids).cumsum()
        num_bytes = int(ends[-1]) if len(ends) else 0
        if self._is_normalized and not text.isascii() and self.joined(ids.tolist()) != text:
            return None
        return ends if num_bytes == len(text) else None

    def joined(self, ids: Iterable[int]) -> bytes:
        """The bytes of these tokens together."""
        return b"".join(map(self._by_id.__getitem__, ids))


def _flag(flag: int, wanted: bytes, found: Iterable[bytes]) -> npt.NDArray[np.uint8]:
    """`flag` for each entry of `found` that is a byte in `wanted`, 0 for all other entries."""
    is_wanted = np.isin(np.frombuffer(b"".join(b or b"\0" for b in found), np.uint8), [*wanted])
    return is_wanted * np.uint8(flag)
