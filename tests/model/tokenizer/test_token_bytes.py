"""A text is cut only where what is before and what is after become the same tokens as alone."""

import random
import string
from collections.abc import Iterator

import pytest
from tokenizers import Tokenizer

from sftctl.model.tokenizer.splits import CUT_AT_BREAKS
from tests.toys.tokenizers import words_tokenizer

PIECES = [
    *("a", "Zeit", "s", "ll", "re", "'", "'s", "'RE", "’s", "ſ", "é", "e\u0301", "İ", "ﬃ"),
    *(" ", "  ", "\n", "\n\n", "\r\n", "\t", "\x0b", "\x85", "\u00a0", "\u2028", "\u3000"),
    *("1", "23", "4567", "٣", "½", ".", "...", "/", "_", "|>", "<|", '"', "(", "-"),
    *("你好", "。", "ー", "한", "\u0301", "\u200d", "👩", "\x00", "\u212a"),
]
BREAKS = [*set(string.punctuation + string.whitespace) - {"'"}]


def texts(number: int) -> Iterator[str]:
    """Texts with a letter and a break between other pieces."""
    rng = random.Random(7)
    for _ in range(number):
        before, after = (rng.choices(PIECES, k=rng.randint(0, 5)) for _ in range(2))
        place = rng.choice(string.ascii_letters) + rng.choice(sorted(BREAKS))
        yield "".join([*before, place, *after])


def cuts_in(text: str) -> list[int]:
    letters = string.ascii_letters
    return [i for i in range(1, len(text)) if text[i - 1] in letters and text[i] in BREAKS]


def words(backend: Tokenizer, text: str) -> list[str]:
    assert backend.pre_tokenizer is not None
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(("name", "cuts"), [*((n, True) for n in CUT_AT_BREAKS), ("bloom", False)])
def test_words_on_both_sides_of_a_break_do_not_depend_on_each_other(name: str, cuts: bool) -> None:
    backend = words_tokenizer(name).hf.backend_tokenizer
    places = [(text, cut) for text in texts(400) for cut in cuts_in(text)]
    is_cut = all(
        words(backend, text[:cut]) + words(backend, text[cut:]) == words(backend, text)
        for text, cut in places
    )
    assert is_cut is cuts


@pytest.mark.parametrize("name", CUT_AT_BREAKS)
def test_a_text_is_cut_at_its_breaks_and_before_special_tokens(name: str) -> None:
    tokenizer = words_tokenizer(name)
    table = tokenizer.token_bytes
    assert table is not None
    for text in [*texts(100), "a<|end|>b.\n<|end|>", "<|end|><|end|>"]:
        ids, data = tokenizer.encode(text), text.encode()
        ends = table.ends(ids, data)
        assert ends is not None
        found = [int(ends[cut - 1]) for cut in table.cuts(ids)]
        specials = (i for i in range(1, len(text)) if text.startswith("<|end|>", i))
        places = {*specials, *cuts_in(text.replace("<|end|>", " " * len("<|end|>")))}
        assert found == sorted(len(text[:place].encode()) for place in places)
        for cut in found:
            before, after = data[:cut].decode(), data[cut:].decode()
            alone = [*tokenizer.encode(before), *tokenizer.encode(after)]
            assert alone == ids.tolist()


def test_splits_that_are_not_known_are_cut_only_before_special_tokens() -> None:
    for name in ("bloom", "falcon", "viking"):
        tokenizer = words_tokenizer(name)
        assert tokenizer.token_bytes is not None
        ids = tokenizer.encode("a b. c<|end|>d e")
        cuts = tokenizer.token_bytes.cuts(ids)
        assert ids[cuts].tolist() == [tokenizer.hf.eos_token_id]


def test_a_tokenizer_that_merges_at_random_is_cut_only_before_special_tokens() -> None:
    tokenizer = words_tokenizer("gpt-2", dropout=0.5)
    assert tokenizer.token_bytes is not None
    assert not tokenizer.token_bytes.cuts(tokenizer.encode("a b. c")).size


def test_the_last_cut_is_found_near_and_far() -> None:
    tokenizer = words_tokenizer("gpt-2")
    table = tokenizer.token_bytes
    assert table is not None
    for text in ("a b. c<|end|>d", "<|end|>" + "你" * 20, "a b" + "好" * 300, "你" * 300, ""):
        ids = tokenizer.encode(text)
        cuts = table.cuts(ids).tolist()
        for end in range(len(ids) + 1):
            assert table.last_cut(ids, end) == max((c for c in cuts if c < end), default=0)
