"""The reference encoder, a fast one, and the proof that the fast one is equal on probes."""

from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from sftctl.errors import EngineDiffers

Ids = npt.NDArray[np.int32]  # (T,)
Span = tuple[int, int]  # start and end, in characters

_PROBES = (
    "",
    " ",
    "\n",
    "  \n\n\t \r\n x  ",
    "Hello, world! It's 12345678 o'clock; don't I'LL 'S",
    "\x00\x13\x7f a\x00\x01",
    "naïve ﬁ e\u0301 İstanbul \u200d\u200b\ufeff\u00a0\u3000",
    "你好，世界。こんにちは 안녕 العربية हिन्दी ไทย",
    "👩‍👩‍👧🇩🇪 \U0010ffff\ue000",
    '{"name": "f", "arguments": {"q": [1.5e-3, null]}}\n```py\n\tdef f(x): return x ** 2\n```',
    "a" * 500 + " " * 70 + "ab " * 100,
)


class Reference:
    """Hugging Face tokenizers. Every other encoder must return the same ids."""

    is_fast = False

    def __init__(self, hf: Any) -> None:
        self._backend = hf.backend_tokenizer
        self.name = f"tokenizers {version('tokenizers')}"

    def encode(self, text: str) -> Ids:
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(self, text: str) -> tuple[Ids, list[Span]]:
        """Token ids, and the characters that each token covers; no token is added."""
        # One text at a time: encoding a batch starts threads, which do not survive a fork.
        encoding = self._backend.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.int32), encoding.offsets


class Splintr:
    """splintr-rs: returns ids but no offsets, and is dozens of times faster."""

    is_fast = True

    def __init__(self, hf: Any) -> None:
        import splintr

        self.name = f"splintr-rs {version('splintr-rs')}"
        self._hf = hf
        self._core = splintr.from_json_bytes(hf.backend_tokenizer.to_str().encode())

    def __reduce__(self) -> tuple[type["Splintr"], tuple[Any]]:
        """Another process makes its own: the engine itself can't be pickled."""
        return Splintr, (self._hf,)

    def encode(self, text: str) -> Ids:
        try:
            return np.frombuffer(self._core.encode_flat(text), dtype=np.int32)
        except UnicodeError:  # no engine can encode half a character
            raise
        except ValueError as problem:
            raise EngineDiffers(f"{self.name} can't encode {text[:40]!r}: {problem}") from problem


class Checked:
    """A fast engine, with every result compared with the reference's."""

    is_fast = True

    def __init__(self, fast: Splintr, reference: Reference) -> None:
        self.name = fast.name
        self._fast = fast
        self._reference = reference

    def encode(self, text: str) -> Ids:
        """The ids that both return; EngineDiffers if they are not equal."""
        ids = self._fast.encode(text)
        if not np.array_equal(ids, self._reference.encode(text)):
            raise EngineDiffers(f"{self.name} returns other token ids for {text[:40]!r}")
        return ids


Encoder = Reference | Splintr | Checked


def fast_engine(hf: Any) -> Splintr:
    """The fast engine; EngineDiffers if it does not equal the reference on all probe strings."""
    try:
        fast = Splintr(hf)
    except (ValueError, OSError) as problem:
        raise EngineDiffers(f"splintr-rs can't load this tokenizer: {problem}") from problem
    checked = Checked(fast, Reference(hf))
    for probe in _probes(hf):
        checked.encode(probe)
    return fast


def _probes(hf: Any) -> Iterator[str]:
    """Difficult strings, and every added token, alone and between words and spaces."""
    yield from _PROBES
    for token in hf.added_tokens_decoder.values():
        yield f"{token.content}a {token.content} \n{token.content}{token.content}"


def special_ids(hf: Any) -> frozenset[int]:
    """Ids of special tokens, also of added ones that are marked so and not named in the
    configuration."""
    added = hf.added_tokens_decoder
    marked = frozenset(index for index, token in added.items() if token.special)
    return frozenset(hf.all_special_ids) | marked


_FORMS = frozenset({"NFC", "NFD", "NFKC", "NFKD"})
"""Normalizers that leave ASCII alone."""


class TokenBytes:
    """The bytes that each token of a byte-level vocabulary stands for."""

    def __init__(self, by_id: list[bytes], longest_added: int, *, is_normalized: bool) -> None:
        self._by_id = by_id
        self.longest_added = longest_added
        """Bytes of the longest added token."""
        self._lengths = np.array([len(token) for token in by_id], dtype=np.int32)
        self._is_normalized = is_normalized
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
        alone = backend.encode("a", add_special_tokens=False).ids
        return table if table.joined(alone) == b"a" else None

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
