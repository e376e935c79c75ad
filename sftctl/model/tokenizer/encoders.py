"""The reference encoder, a fast encoder, and a check that both return the same ids.

Also a hash of everything that decides token ids.
"""

import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from sftctl.errors import EngineDiffers
from sftctl.jsonio import dump_canonical, loads
from sftctl.model.tokenizer.template_errors import TemplateFailed

Ids = npt.NDArray[np.int32]  # (T,)
Span = tuple[int, int]  # start and end, in characters

_WORDS = "use a tokenizer that has a token for unknown words, or one for each byte"
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
    """The encoder of Hugging Face tokenizers. Every other encoder must return the same ids."""

    is_fast = False

    def __init__(self, hf: Any) -> None:
        self._backend = hf.backend_tokenizer
        self.name = f"tokenizers {version('tokenizers')}"

    def encode(self, text: str) -> Ids:
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(self, text: str) -> tuple[Ids, list[Span]]:
        """Token ids, and the (start, end) of each token in characters. No token is added.

        TemplateFailed if the vocabulary has neither a word nor a token for unknown words.
        """
        # One text at a time: a batch would start threads, and threads do not survive a fork.
        try:
            encoding = self._backend.encode(text, add_special_tokens=False)
        except Exception as problem:
            if type(problem) is not Exception:  # tokenizers raises this type for a missing token
                raise
            raise TemplateFailed(
                f"the tokenizer can't encode the text: {problem}", _WORDS
            ) from None
        return np.array(encoding.ids, dtype=np.int32), encoding.offsets


class Splintr:
    """The encoder of splintr-rs. It is dozens of times faster, but returns no offsets."""

    is_fast = True

    def __init__(self, hf: Any) -> None:
        import splintr

        self.name = f"splintr-rs {version('splintr-rs')}"
        self._hf = hf
        self._core = splintr.from_json_bytes(hf.backend_tokenizer.to_str().encode())

    def __reduce__(self) -> tuple[type["Splintr"], tuple[Any]]:
        """Pickle the tokenizer in place of the engine, which can't be pickled. The copy builds a
        new engine.
        """
        return Splintr, (self._hf,)

    def encode(self, text: str) -> Ids:
        try:
            return np.frombuffer(self._core.encode_flat(text), dtype=np.int32)
        except UnicodeError:  # half of a surrogate pair, which no engine can encode
            raise
        except ValueError as problem:
            raise EngineDiffers(f"{self.name} can't encode {text[:40]!r}: {problem}") from problem


class Checked:
    """A fast engine whose every result is compared with the reference's."""

    is_fast = True

    def __init__(self, fast: Splintr, reference: Reference) -> None:
        self.name = fast.name
        self._fast = fast
        self._reference = reference

    def encode(self, text: str) -> Ids:
        """The ids of the fast engine; EngineDiffers if the reference's ids are different."""
        ids = self._fast.encode(text)
        if not np.array_equal(ids, self._reference.encode(text)):
            raise EngineDiffers(f"{self.name} returns other token ids for {text[:40]!r}")
        return ids


Encoder = Reference | Splintr | Checked


def fast_engine(hf: Any) -> Splintr:
    """The fast engine; EngineDiffers if it gives other ids than the reference for a probe."""
    try:
        fast = Splintr(hf)
    except (ValueError, OSError) as problem:
        raise EngineDiffers(f"splintr-rs can't load this tokenizer: {problem}") from problem
    checked = Checked(fast, Reference(hf))
    try:
        for probe in _probes(hf):
            checked.encode(probe)
    except TemplateFailed as problem:
        raise EngineDiffers(problem.message) from problem
    return fast


def _probes(hf: Any) -> Iterator[str]:
    """Difficult texts, and every added token before and after letters, spaces and itself."""
    yield from _PROBES
    for token in hf.added_tokens_decoder.values():
        yield f"{token.content}a {token.content} \n{token.content}{token.content}"


def special_ids(hf: Any) -> frozenset[int]:
    """The ids of all special tokens. Added tokens that are marked as special belong to them."""
    added = hf.added_tokens_decoder
    marked = frozenset(index for index, token in added.items() if token.special)
    return frozenset(hf.all_special_ids) | marked


def content_hash(hf: Any) -> str:
    """A hash of everything that decides ids: vocabulary, merges, normalizer, special tokens."""
    content = loads(hf.backend_tokenizer.to_str())
    for call_setting in ("truncation", "padding"):
        content.pop(call_setting, None)
    special = [str(hf.bos_token), str(hf.eos_token), str(hf.pad_token)]
    return hashlib.sha256(dump_canonical([content, special])).hexdigest()
