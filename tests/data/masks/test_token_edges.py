"""Masks from the bytes of tokens equal the masks from pieces, or are left to them."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sftctl.data.masks.encode import _mask_from_pieces, encode_texts
from sftctl.data.masks.token_edges import encoded, mask_from_bytes
from sftctl.data.masks.turns import TrainingText
from sftctl.errors import EngineDiffers
from sftctl.model.tokenizer.encoders import Ids, Span
from sftctl.model.tokenizer.token_bytes import TokenBytes
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from tests.toys.data import CountingTokenizer, read, row
from tests.toys.tokenizers import words_tokenizer

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
    known = encoded(text, fast, None)
    mask = mask_from_bytes(known, spans, fast)
    pieces = _mask_from_pieces(TrainingText(text, spans, True), fast, known.ids)
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
    assert mask_from_bytes(encoded(text, fast, None), [span], fast) is None


def test_a_prompt_that_alone_becomes_other_tokens_proves_nothing(
    chatml: CountingTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = chatml.fast()
    text, spans = _turns("Yes.")
    fast.token_bytes = TokenBytes.of(fast.hf)  # which remembers nothing yet
    known, others = encoded(text, fast, None), fast.encode("assist ant")
    monkeypatch.setattr(fast, "encode", lambda text: others)
    assert mask_from_bytes(known, spans, fast) is None


def _toy(*, splits_words: bool) -> ChatTokenizer:
    """A tokenizer that takes a long word from its vocabulary, and merges nothing."""
    words = ["<|end|>", *pre_tokenizers.ByteLevel.alphabet(), "x" * 40, "ĊĊ"]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=splits_words)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>", "<|end|>!", AddedToken("<|r|>", rstrip=True)])
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    return ChatTokenizer(hf, "toy")


@pytest.mark.parametrize(
    ("prompt", "splits_words"),
    [("x" * 40, False), ("<|end|>" + "x" * 40, False), ("Answer:\n\n", True)],
)
def test_a_prompt_that_alone_becomes_one_long_token_is_encoded_alone(
    prompt: str, splits_words: bool
) -> None:
    tokenizer = _toy(splits_words=splits_words)
    text, span = f"{prompt}yes<|end|>", (len(prompt), len(prompt) + len("yes<|end|>"))
    known = encoded(text, tokenizer, None)
    assert known.ends is not None and len(prompt) in known.ends  # a token ends with the prompt
    assert mask_from_bytes(known, [span], tokenizer) is None
    [example] = encode_texts([TrainingText(text, [span], True)], read(row("?")), tokenizer)
    alone = tokenizer.encode(prompt)
    assert example.input_ids[: len(alone)].tolist() == alone.tolist()
    assert not np.array_equal(known.ids[: len(alone)], alone)
    assert tokenizer.decode(example.input_ids[example.loss_mask]) == "yes<|end|>"


def test_texts_that_begin_alike_are_encoded_once(
    chatml: CountingTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = chatml.fast()
    encode, num_encoded, known = fast.encode, list[int](), None
    texts = [_turns(*(f"naïve {n} 你好" for n in range(count)))[0] for count in range(30)]

    def counted(text: str) -> Ids:
        num_encoded.append(len(text))
        return encode(text)

    for text in texts:
        monkeypatch.setattr(fast, "encode", counted)
        known = encoded(text, fast, known)
        monkeypatch.undo()
        assert known.ids.tolist() == encode(text).tolist()
        assert known.ends is not None and known.ends[-1] == len(text.encode())
    assert sum(num_encoded) < 3 * len(texts[-1])


@pytest.mark.parametrize(
    ("before", "text"),
    [
        ("ab<|end|>", "ab<|end|>!"),  # the beginning of a longer token
        ("ab<|end|>cd<|end|>", "ab<|end|>cd<|end|>! e"),
        ("ab<|r|> c", "ab<|r|>  c"),  # a token that takes in what follows
        ("ab<|end|>" + "é" * 9, "ab<|end|>" + "é" * 8 + "e\u0301"),
        ("<|end|>" + "x" * 39, "<|end|>" + "x" * 40),
        ("", "ab"),
        ("ab", ""),
    ],
)
def test_a_shared_beginning_does_not_change_tokens(before: str, text: str) -> None:
    tokenizer = _toy(splits_words=True)
    known = encoded(text, tokenizer, encoded(before, tokenizer, None))
    assert known.ids.tolist() == tokenizer.encode(text).tolist()


def test_tokens_of_a_shared_beginning_are_compared_with_the_reference(
    chatml: CountingTokenizer,
) -> None:
    checked = chatml.fast().checked()
    text, _ = _turns("Yes.", "No.", "Yes.")
    before = encoded(text, checked, None)
    wrong = replace(before, ids=np.append(before.ids[:1], before.ids[:-1]))
    with pytest.raises(EngineDiffers, match="returns other token ids"):
        encoded(text + "More.", checked, wrong)


def test_tokens_that_are_not_the_text_have_no_ends(chatml: CountingTokenizer) -> None:
    table = TokenBytes.of(chatml.hf)
    assert table is not None
    for text in ("plain", "e\u0301"):
        ids, data = chatml.encode(text), text.encode()
        ends = table.ends(ids, data)
        assert ends is not None and ends[-1] == len(data)
        assert table.ends(ids, data + b"!") is None
        assert table.ends(ids[:0], data) is None


def test_a_text_that_a_normalizer_changes_has_no_ends(chatml: CountingTokenizer) -> None:
    backend = chatml.hf.backend_tokenizer
    before = backend.normalizer
    try:
        backend.normalizer = normalizers.NFC()
        table = TokenBytes.of(chatml.hf)
        assert table is not None
        for text, is_changed in (("e\u0301", True), ("é", False), ("e", False)):
            assert (table.ends(chatml.encode(text), text.encode()) is None) is is_changed
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


def test_a_space_put_before_a_text_or_a_token_found_as_a_word_has_no_bytes() -> None:
    tokenizer = _toy(splits_words=True)
    assert tokenizer.token_bytes is not None
    backend = tokenizer.hf.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert TokenBytes.of(tokenizer.hf) is None
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.hf.add_tokens([AddedToken("word", single_word=True)])
    assert TokenBytes.of(tokenizer.hf) is None


HEADERS = [
    *("<|assistant|>", "<|assistant|>\n", "<|h|>x<|h|>\n\n", "Answer:", "A: ", "model ", "don't"),
    *("say'", "x. 1", "é", "Hi 你好", "a.\u3000", "x\u0301", "a\u00a0\n \n", "it", "\n\n", ""),
]
ANSWERS = [
    *("", "yes", " yes", "\nyes", "\n\n yes", "  \n x", "'s", "s", "23", "\u0301a", "好。", "<b>"),
    *("\u00a0a", "\u3000", "ing", "'", "/c", "."),
]


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "gpt-4o", "deepseek-v3", "bloom"])
def test_masks_without_special_tokens_in_the_template_are_the_references(name: str) -> None:
    tokenizer = words_tokenizer(name)
    num_proved, before = 0, None
    for header, answer in product(HEADERS, ANSWERS):
        prompt = f"<|user|>\nDon't.  I say 12{header}"
        text, span = (
            f"{prompt}{answer}<|end|>",
            (len(prompt), len(prompt + answer) + len("<|end|>")),
        )
        before = encoded(text, tokenizer, before)
        reference = tokenizer.encode(text)
        assert before.ids.tolist() == reference.tolist()
        mask = mask_from_bytes(before, [span], tokenizer)
        examples = encode_texts([TrainingText(text, [span], True)], read(row("?")), tokenizer)
        if mask is not None:
            num_proved += 1
            assert [e.input_ids.tolist() for e in examples] == [reference.tolist()]
            assert [e.loss_mask.tolist() for e in examples] == [mask.tolist()]
        else:  # the answer does not follow the prompt's own tokens
            alone = tokenizer.encode(prompt)
            assert [e.input_ids[: len(alone)].tolist() for e in examples] == [alone.tolist()]
            assert alone.tolist() != reference[: len(alone)].tolist()
    assert num_proved > len(HEADERS) * len(ANSWERS) / 2


def test_only_the_end_of_a_long_prompt_is_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = words_tokenizer("gpt-2")
    prompt = "Say more. " * 50 + "assistant\n"
    known = encoded(f"{prompt}Yes<|end|>", tokenizer, None)
    num_encoded, encode = list[int](), tokenizer.encode
    tokenizer = tokenizer.by_reference("")  # a copy to patch

    def counted(text: str) -> Ids:
        num_encoded.append(len(text))
        return encode(text)

    monkeypatch.setattr(tokenizer, "encode", counted)
    span = len(prompt), len(known.text)
    assert mask_from_bytes(known, [span], tokenizer) is not None
    assert num_encoded == [1]
    table = tokenizer.token_bytes
    assert table is not None
    monkeypatch.setattr(table, "last_cut", lambda ids, end: 0)
    table.same_alone.clear()
    assert mask_from_bytes(known, [span], tokenizer) is not None
    assert num_encoded == [1, len(prompt)]
