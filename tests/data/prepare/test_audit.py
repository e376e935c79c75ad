"""The mask audit finds what is wrong with examples, from their arrays alone."""

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sftctl.config.schema import TrainOn
from sftctl.data.example import ExampleArrays, TokenizedExample
from sftctl.data.manifest import Audit
from sftctl.data.masks.encode import tokenize
from sftctl.data.prepare.audit import RowRemarks, audit, unknown_token
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from tests.toys.data import CHATML, load, read

TOKENIZER = load(SAMPLE_TOKENIZER, CHATML)
START, END, TEXT = 1, 2, 300
Row = tuple[list[int], str]  # ids, and the mask as a string of . and x


def examples(*rows: Row) -> ExampleArrays:
    return ExampleArrays.pack(
        [
            TokenizedExample(np.array(ids, dtype=np.int32), np.array([c == "x" for c in mask]))
            for ids, mask in rows
        ]
    )


def audited(*rows: Row, max_seq_len: int = 64, train_on: TrainOn = "assistant") -> Audit:
    return audit(examples(*rows), TOKENIZER, max_seq_len, train_on)


GOOD = ([START, TEXT, TEXT, END, TEXT, TEXT, END], "..xx.xx")


def test_turns_with_their_ends_pass() -> None:
    found = audited(GOOD, GOOD)
    assert found.passed
    assert (found.num_examples, found.turns, found.turns_cut) == (2, 4, 0)
    assert found.problems() == []


def test_turns_of_neighbouring_examples_are_counted_apart() -> None:
    assert audited(([TEXT, END], ".x"), ([END, TEXT, END], "x.x")).turns == 3


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (([START, TEXT, END], "..."), "1 example has no target token"),
        (([START, TEXT, TEXT, END], "..x."), "1 trained turn ends without an end-of-turn token"),
        (([START, TEXT, TEXT], "..x"), "1 trained turn ends without an end-of-turn token"),
        (([0, 0, TEXT, END], "...x"), "1 example begins with two beginning-of-sequence tokens"),
    ],
)
def test_each_problem_fails_the_audit(
    row: Row, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TOKENIZER, "bos_id", 0)
    found = audited(GOOD, row)
    assert not found.passed
    assert found.problems()[0].startswith(problem)


def test_a_turn_that_the_maximum_length_cuts_passes() -> None:
    found = audited(([START, TEXT, TEXT], "..x"), max_seq_len=3)
    assert found.passed
    assert found.turns_cut == 1


def test_with_train_on_all_no_turn_needs_an_end() -> None:
    assert audited(([START, TEXT, END, TEXT], ".xxx"), train_on="all").passed


def test_audits_add_up_and_one_failure_fails_all() -> None:
    good, bad = audited(GOOD), audited(([START, TEXT], ".."))
    assert (good + good).num_examples == 2
    assert (good + good).passed
    assert not (good + bad).passed
    assert Audit() + good == good
    assert audited() == Audit()


WORDS = ["[UNK]", "Hi", "Yes", "##s", ".", "[", "]", "UNK", "<|im_end|>", "a"]


def chat_of(model: Any, unknown: str) -> ChatTokenizer:
    """A tokenizer of these words, whose template writes the contents and an end token."""
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    hf = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=unknown, eos_token="<|im_end|>"
    )
    hf.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    return ChatTokenizer(hf, "toy")


@pytest.mark.parametrize(
    ("question", "answer", "count"),
    [
        *(("Hi", "Yes.", 0), ("Hi", "Yes ß", 1), ("ß", "Yes", 0), ("Hi", "[UNK]", 0)),
        *(("[UNK]", "Yes ß ß", 1), ("Hi", "[UNK] ß", 1)),
    ],
)
def test_trained_unknown_tokens_are_counted(question: str, answer: str, count: int) -> None:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    pieces = [(word, -float(number)) for word, number in vocabulary.items()]
    for tokenizer in (
        chat_of(models.WordPiece(vocabulary, unk_token="[UNK]"), "[UNK]"),
        chat_of(models.Unigram(pieces, 0, byte_fallback=False), "[UNK]"),
    ):
        remarks = RowRemarks("assistant", unknown_token(tokenizer))
        row = read({"prompt": question, "completion": answer})
        remarks.add(row, tokenize(row, tokenizer, "assistant"))
        assert remarks.audit().rows_with_unknown_token == count


def test_a_vocabulary_of_bytes_has_no_unknown_token() -> None:
    tokenizer = load(SAMPLE_TOKENIZER, CHATML)
    assert unknown_token(tokenizer) is None
    tokenizer.hf.unk_token = "<|endoftext|>"  # as in GPT-2 and SmolLM2
    assert tokenizer.hf.unk_token_id is not None
    assert unknown_token(tokenizer) is None
