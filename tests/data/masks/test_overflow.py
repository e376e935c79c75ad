"""Rows longer than the maximum length are truncated, split or dropped, and lost tokens counted."""

import string
from collections.abc import Iterable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftctl.config.schema import Overflow, TrainOn
from sftctl.data.conversations.conversation import Conversation
from sftctl.data.conversations.message_list import Message
from sftctl.data.example import TokenizedExample
from sftctl.data.ledger import BadRow
from sftctl.data.masks.encode import tokenize
from sftctl.data.masks.overflow import ExampleMaker
from sftctl.data.masks.shortcut import Renderer
from sftctl.data.sample import SAMPLE_TOKENIZER
from tests.toys.data import CHATML, HERE, load

TOKENIZER = load(SAMPLE_TOKENIZER, CHATML)
SYSTEM = {"role": "system", "content": "Be kind."}


def maker(max_seq_len: int, overflow: Overflow, train_on: TrainOn = "assistant") -> ExampleMaker:
    return ExampleMaker(TOKENIZER, Renderer(TOKENIZER, train_on), max_seq_len, overflow)


def conversation(*messages: Message, untrained: Iterable[int] = ()) -> Conversation:
    return Conversation(messages, None, HERE, frozenset(untrained))


def exchanges(count: int, words: int = 3) -> Iterator[Message]:
    for number in range(count):
        yield {"role": "user", "content": f"Question {number}?"}
        yield {"role": "assistant", "content": f"answer {number} " + "word " * words}


def targets(examples: Sequence[TokenizedExample]) -> list[str]:
    """Every trained turn of the examples, as text, in order."""
    turns: list[str] = []
    for example in examples:
        text = TOKENIZER.decode(example.input_ids[example.loss_mask])
        turns += [turn for turn in text.split("<|im_end|>") if turn]
    return turns


def test_a_row_that_fits_is_kept_as_it_is() -> None:
    row = conversation(*exchanges(2))
    overflows: list[Overflow] = ["truncate", "split", "drop"]
    for overflow in overflows:
        [example], notes = maker(500, overflow).examples(row)
        [whole] = tokenize(row, TOKENIZER, "assistant")
        assert (example.input_ids.tolist(), notes) == (whole.input_ids.tolist(), [])


def document(text: str) -> Conversation:
    return Conversation(({"role": "assistant", "content": text},), None, HERE, shape="text")


def test_every_token_of_a_document_but_the_first_is_trained_and_one_ends_it() -> None:
    [example], notes = maker(500, "truncate").examples(document("The Elbe is a river."))
    assert TOKENIZER.decode(example.input_ids) == "The Elbe is a river." + TOKENIZER.text_end
    assert TOKENIZER.text_end in TOKENIZER.special_texts
    assert example.loss_mask.tolist() == [False, *[True] * (example.num_tokens - 1)]
    assert notes == []


@pytest.mark.parametrize("max_seq_len", [2, 3, 7, 50])
def test_split_trains_every_token_of_a_long_document_once(max_seq_len: int) -> None:
    row = document("word " * 60)
    [whole] = tokenize(row, TOKENIZER, "assistant")
    examples, [note] = maker(max_seq_len, "split").examples(row)
    assert max(example.num_tokens for example in examples) <= max_seq_len
    trained = [token for e in examples for token in e.input_ids[e.loss_mask].tolist()]
    assert trained == whole.input_ids[1:].tolist()
    assert all(example.loss_mask[1:].all() for example in examples)
    assert (note.reason, note.tokens_lost) == ("split", 0)


def test_a_long_document_is_truncated_or_dropped_like_a_conversation() -> None:
    row = document("word " * 60)
    [example], [note] = maker(10, "truncate").examples(row)
    assert (example.num_tokens, note.reason) == (10, "truncated")
    assert maker(10, "drop").examples(row)[0] == []


def lengths_of(row: Conversation, train_on: TrainOn = "assistant") -> list[int]:
    return [example.num_tokens for example in tokenize(row, TOKENIZER, train_on)]


@pytest.mark.parametrize("overflow", ["truncate", "split", "drop"])
def test_a_row_of_exactly_the_maximum_length_fits(overflow: Overflow) -> None:
    row = conversation(*exchanges(2))
    [num_tokens] = lengths_of(row)
    [example], notes = maker(num_tokens, overflow).examples(row)
    assert (example.num_tokens, notes) == (num_tokens, [])
    _, notes = maker(num_tokens - 1, overflow).examples(row)
    assert len(notes) == 1


def test_split_fills_parts_to_exactly_the_maximum_length() -> None:
    [two] = lengths_of(conversation(*exchanges(2)))
    examples, [note] = maker(two, "split").examples(conversation(*exchanges(4)))
    assert [example.num_tokens for example in examples] == [two, two]
    assert (note.reason, note.tokens_lost) == ("split", 0)


def test_split_never_cuts_between_two_messages_of_a_user() -> None:
    question = [{"role": "user", "content": "First?"}, {"role": "user", "content": "Second?"}]
    exchange = [*question, {"role": "assistant", "content": "answer " * 9}]
    examples, _ = maker(50, "split").examples(conversation(*exchange * 5))
    texts = [TOKENIZER.decode(example.input_ids) for example in examples]
    assert len(texts) > 2
    assert all(text.startswith("<|im_start|>user\nFirst?") for text in texts)


def test_split_repeats_the_system_prompt_and_loses_no_target() -> None:
    row = conversation(SYSTEM, *exchanges(7))
    examples, [note] = maker(70, "split").examples(row)
    assert len(examples) > 2
    assert max(example.num_tokens for example in examples) <= 70
    start = TOKENIZER.render([SYSTEM], None, False) + "<|im_start|>user\n"
    assert all(TOKENIZER.decode(e.input_ids).startswith(start) for e in examples)
    assert targets(examples) == targets(tokenize(row, TOKENIZER, "assistant"))
    assert (note.reason, note.tokens_lost) == ("split", 0)
    assert note.message == f"rows.jsonl:7: split into {len(examples)} examples"


def test_split_fills_an_example_with_as_many_exchanges_as_fit() -> None:
    row = conversation(*exchanges(6))
    examples, _ = maker(200, "split").examples(row)
    two_more = tokenize(conversation(*list(exchanges(6))[: 2 * 6]), TOKENIZER, "assistant")
    assert len(examples) == -(-two_more[0].num_tokens // 200)


def test_an_exchange_that_is_too_long_by_itself_is_truncated_and_noted() -> None:
    row = conversation(*exchanges(2), *exchanges(1, words=200), *exchanges(1))
    examples, [note] = maker(60, "split").examples(row)
    assert max(example.num_tokens for example in examples) == 60
    assert note.reason == "split"
    assert note.tokens_lost > 100
    assert note.message.endswith(f": {note.tokens_lost} tokens are lost")


def test_a_conversation_without_a_place_to_cut_is_truncated() -> None:
    row = conversation(*exchanges(1, words=200))
    [example], [note] = maker(60, "split").examples(row)
    assert (example.num_tokens, note.reason) == (60, "truncated")


def test_parts_without_a_target_are_left_out_by_split() -> None:
    row = conversation(*exchanges(6), untrained=range(8))
    examples, _ = maker(60, "split").examples(row)
    assert targets(examples) == targets(tokenize(row, TOKENIZER, "assistant"))


def test_split_with_last_trains_the_last_turn_alone() -> None:
    row = conversation(SYSTEM, *exchanges(6))
    examples, _ = maker(70, "split", "last").examples(row)
    assert targets(examples) == targets(tokenize(row, TOKENIZER, "last"))


def test_a_part_whose_target_is_cut_off_is_lost_completely() -> None:
    long = [{"role": "user", "content": "word " * 99}, {"role": "assistant", "content": "Yes"}]
    examples, [note] = maker(60, "split").examples(conversation(*exchanges(1), *long))
    assert targets(examples) == ["answer 0 word word word "]
    assert (note.reason, [note.tokens_lost]) == ("split", lengths_of(conversation(*long)))
    message = f"rows.jsonl:7: split into 1 example: {note.tokens_lost} tokens are lost"
    assert note.message == message
    row = conversation(*long, *long)
    examples, [note] = maker(60, "split").examples(row)
    assert (examples, note.reason, [note.tokens_lost]) == ([], "no_target", lengths_of(row))


FORGETFUL = CHATML.replace(
    "{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
)


def test_split_leaves_room_for_turns_that_are_longer_as_the_last_turn() -> None:
    """The text of the row fits, but not the text in which its thinking is not yet dropped."""
    tokenizer = load(SAMPLE_TOKENIZER, FORGETFUL)
    thinking = {"role": "assistant", "content": "<think>" + "word " * 30 + "</think>So."}
    found = [{"role": "tool", "content": "1"}, {"role": "assistant", "content": "It is so."}]
    row = conversation(*exchanges(1), {"role": "user", "content": "Why?"}, thinking, *found)
    [with_thinking, full] = [e.num_tokens for e in tokenize(row, tokenizer, "assistant")]
    assert full < with_thinking
    renderer = Renderer(tokenizer, "assistant")
    examples, [note] = ExampleMaker(tokenizer, renderer, with_thinking - 1, "split").examples(row)
    assert (note.reason, note.tokens_lost) == ("split", 0)
    assert [turn[:7] for turn in targets(examples)] == ["answer ", "<think>", "It is s"]


def test_a_row_is_refused_if_one_of_its_parts_is() -> None:
    template = (
        "{% if messages[0].content == 'No?' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    )
    tokenizer = load(SAMPLE_TOKENIZER, template)
    row = conversation(*exchanges(2), {"role": "user", "content": "No?"}, *list(exchanges(1))[1:])
    making = ExampleMaker(tokenizer, Renderer(tokenizer, "assistant"), 40, "split")
    with pytest.raises(BadRow, match="the chat template refuses the conversation: no"):
        making.examples(row)


def test_a_refused_row_has_lost_all_tokens_of_its_text() -> None:
    row = conversation({"role": "user", "content": "No answer"})
    with pytest.raises(BadRow) as caught:
        maker(60, "truncate").examples(row)
    text = "<|im_start|>user\nNo answer<|im_end|>\n"
    assert caught.value.tokens_lost == len(TOKENIZER.encode(text))


def test_drop_drops_only_the_examples_that_are_too_long() -> None:
    tokenizer = load(SAMPLE_TOKENIZER, FORGETFUL)
    thinking = {"role": "assistant", "content": "<think>word</think>So."}
    row = conversation({"role": "user", "content": "Why?"}, thinking, *exchanges(1))
    [one, two] = [e.num_tokens for e in tokenize(row, tokenizer, "assistant")]
    making = ExampleMaker(tokenizer, Renderer(tokenizer, "assistant"), one, "drop")
    [example], [note] = making.examples(row)
    assert (example.num_tokens, note.reason, note.tokens_lost) == (one, "truncated", two)


def test_drop_keeps_nothing_of_a_long_row() -> None:
    row = conversation(*exchanges(6))
    examples, [note] = maker(60, "drop").examples(row)
    [whole] = tokenize(row, TOKENIZER, "assistant")
    assert (examples, note.reason, note.tokens_lost) == ([], "too_long_dropped", whole.num_tokens)


def test_a_row_whose_first_answer_does_not_begin_within_the_maximum_has_no_target() -> None:
    row = conversation({"role": "user", "content": "word " * 100}, *list(exchanges(1))[1:])
    examples, [note] = maker(60, "truncate").examples(row)
    assert (examples, note.reason) == ([], "no_target")


roles = st.sampled_from(["user", "assistant", "assistant", "system"])
words = st.text(string.ascii_lowercase + " \n", min_size=1, max_size=40).filter(str.strip)
rows = st.lists(
    st.fixed_dictionaries({"role": roles, "content": words}), min_size=1, max_size=12
).filter(lambda turns: any(turn["role"] == "assistant" for turn in turns))


@settings(max_examples=80, deadline=None)
@given(turns=rows, max_seq_len=st.integers(80, 200))
def test_split_trains_every_target_once_whatever_the_conversation(
    turns: list[Message], max_seq_len: int
) -> None:
    row = conversation(*turns)
    whole = tokenize(row, TOKENIZER, "assistant")
    examples, notes = maker(max_seq_len, "split").examples(row)
    assert all(example.num_tokens <= max_seq_len for example in examples)
    if sum(note.tokens_lost for note in notes) == 0:
        assert targets(examples) == targets(whole)


@pytest.mark.parametrize("overflow", ["truncate", "drop"])
@settings(max_examples=40, deadline=None)
@given(turns=rows, max_seq_len=st.integers(20, 200))
def test_kept_and_lost_tokens_are_all_tokens(
    turns: list[Message], max_seq_len: int, overflow: Overflow
) -> None:
    row = conversation(*turns)
    whole = tokenize(row, TOKENIZER, "assistant")
    examples, notes = maker(max_seq_len, overflow).examples(row)
    kept = sum(example.num_tokens for example in examples)
    assert kept + sum(n.tokens_lost for n in notes) == sum(e.num_tokens for e in whole)


def test_split_with_all_leaves_out_a_system_prompt_that_is_context() -> None:
    row = conversation(SYSTEM, *exchanges(6), untrained=[0])
    examples, _ = maker(60, "split", "all").examples(row)
    assert len(examples) > 2
    for example in examples:
        assert "Be kind." in TOKENIZER.decode(example.input_ids)
        assert "Be kind." not in TOKENIZER.decode(example.input_ids[example.loss_mask])


def test_split_with_all_leaves_out_context_of_later_parts() -> None:
    row = conversation(*exchanges(6), untrained=(9, 10))
    examples, _ = maker(60, "split", "all").examples(row)
    trained = " ".join(TOKENIZER.decode(e.input_ids[e.loss_mask]) for e in examples)
    assert [f"answer {n}" in trained for n in range(6)] == [True] * 4 + [False, True]
    assert [f"Question {n}?" in trained for n in range(6)] == [True] * 5 + [False]
