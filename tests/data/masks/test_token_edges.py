"""Masks from the bytes of tokens equal the masks from pieces, or are left to them."""

import pytest
from tokenizers import normalizers

from sftctl.data.masks.encode import _mask_from_pieces
from sftctl.data.masks.token_edges import mask_from_bytes
from sftctl.data.masks.turns import TrainingText
from sftctl.model.tokenizer.encoders import Span, TokenBytes
from tests.toys.data import CountingTokenizer

_HEADER, _END = "<|im_start|>assistant\n", "<|im_end|>"


def _turns(*answers: str) -> tuple[str, list[Span]]:
    """A text of several answers, and where they are with their end tokens."""
    text, spans = "<|im_start|>user\nWas, où?<|im_end|>\n", list[Span]()
    for answer in answers:
        text += _HEADER
        spans.append((len(text), len(text) + len(answer + _END)))
        text += answer + _END + "\n"
    return text, spans


@pytest.mark.parametrize(
    "answers",
    [["Yes."], ["a b", "c  d\n\n"], ["naïve 你好 👩‍👩‍👧", " 42"], ["{\n\t1}", "", "x" * 300]],
)
def test_masks_are_those_of_pieces(chatml: CountingTokenizer, answers: list[str]) -> None:
    fast = chatml.fast()
    text, spans = _turns(*answers)
    ids = fast.encode(text)
    mask = mask_from_bytes(text, spans, fast, ids)
    pieces = _mask_from_pieces(TrainingText(text, spans), fast, ids)
    assert mask is not None and pieces is not None and mask.any()
    assert mask.tolist() == pieces.tolist()


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("<|im_start|>he<|im_end|>", (13, 24)),  # begins inside a token
        ("<|im_start|>he<|im_end|>", (12, 13)),  # ends inside a token
        ("<|im_start|>a b<|im_end|>", (12, 13)),  # no special token at its end
    ],
)
def test_an_edge_that_is_not_proved_has_no_mask(
    chatml: CountingTokenizer, text: str, span: Span
) -> None:
    fast = chatml.fast()
    assert mask_from_bytes(text, [span], fast, fast.encode(text)) is None


def test_a_prompt_that_alone_becomes_other_tokens_proves_nothing(
    chatml: CountingTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = chatml.fast()
    text, spans = _turns("Yes.")
    ids, others = fast.encode(text), fast.encode("assist ant")
    fast.token_bytes = TokenBytes.of(fast.hf)  # which remembers nothing yet
    monkeypatch.setattr(fast, "encode", lambda text: others)
    assert mask_from_bytes(text, spans, fast, ids) is None


def test_tokens_that_are_not_the_text_have_no_ends(chatml: CountingTokenizer) -> None:
    table = TokenBytes.of(chatml.hf)
    assert table is not None
    for text in ("plain", "e\u0301"):
        ids = chatml.encode(text)
        ends = table.ends(ids, text)
        assert ends is not None and ends[-1] == len(text.encode())
        assert table.ends(ids, text + "!") is None
        assert table.ends(ids[:0], text) is None


def test_a_text_that_a_normalizer_changes_has_no_ends(chatml: CountingTokenizer) -> None:
    backend = chatml.hf.backend_tokenizer
    before = backend.normalizer
    try:
        backend.normalizer = normalizers.NFC()
        table = TokenBytes.of(chatml.hf)
        assert table is not None
        for text, is_changed in (("e\u0301", True), ("é", False), ("e", False)):
            assert (table.ends(chatml.encode(text), text) is None) is is_changed
        backend.normalizer = normalizers.Lowercase()
        assert TokenBytes.of(chatml.hf) is None
    finally:
        backend.normalizer = before


def test_a_vocabulary_of_words_has_no_bytes(chatml: CountingTokenizer) -> None:
    backend = chatml.hf.backend_tokenizer
    before = backend.decoder
    try:
        backend.decoder = None
        assert TokenBytes.of(chatml.hf) is None
    finally:
        backend.decoder = before
