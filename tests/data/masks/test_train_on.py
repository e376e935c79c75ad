"""What is trained with each `train_on`, and which messages are only context."""

from typing import Any

import pytest

from sftctl.data.ledger import BadRow
from sftctl.data.masks.encode import tokenize
from sftctl.data.sample import SAMPLE_TOKENIZER
from tests.toys.data import CHATML, CountingTokenizer, load, read
from tests.toys.masks import (
    TURNS,
    conversation,
    trained,
    trained_runs,
)

FORGETFUL = CHATML.replace(
    "{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
)
THINKING = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "<think>one more</think>2"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "<think>two more</think>4"},
    {"role": "user", "content": "Thanks"},
]


def test_train_on_last_trains_only_the_last_turn(chatml: CountingTokenizer) -> None:
    assert trained(chatml, TURNS, "last") == ["🤖你好，世界👩‍👩‍👧<|im_end|>"]


def test_train_on_all_trains_all_but_the_first_token(chatml: CountingTokenizer) -> None:
    [example] = tokenize(conversation(TURNS[:2]), chatml, "all")
    assert not example.loss_mask[0]
    assert example.loss_mask[1:].all()
    assert example.num_target_tokens == example.num_tokens - 1


@pytest.mark.parametrize(
    ("untrained", "expected"),
    [
        (
            (1,),
            # the first token is not trained, nor is the user's message with its header
            [
                "system\nBe kind.<|im_end|>\n",
                "<|im_start|>assistant\nHello\n\n<|im_end|>\n<|im_start|>user\n你好🤖<|im_end|>\n"
                "<|im_start|>assistant\n🤖你好，世界👩‍👩‍👧<|im_end|>\n",
            ],
        ),
        (
            (0, 3),
            [
                "<|im_start|>user\nHi <think> <|im_end|>\n"
                "<|im_start|>assistant\nHello\n\n<|im_end|>\n",
                "<|im_start|>assistant\n🤖你好，世界👩‍👩‍👧<|im_end|>\n",
            ],
        ),
        (
            # an assistant message that is context is left out with its header
            (0, 1, 2, 3),
            [
                "<|im_start|>assistant\n🤖你好，世界👩‍👩‍👧<|im_end|>\n",
            ],
        ),
    ],
)
def test_train_on_all_leaves_out_every_context_message(
    chatml: CountingTokenizer, untrained: tuple[int, ...], expected: list[str]
) -> None:
    messages = [
        turn | {"train": False} if index in untrained else turn for index, turn in enumerate(TURNS)
    ]
    assert trained(chatml, messages, "all") == expected


def test_train_on_all_leaves_out_context_in_a_long_conversation(chatml: CountingTokenizer) -> None:
    messages = [{"role": "user", "content": f"{n}."} for n in range(20)]
    untrained = {1, 8, 17}
    marked = [m | {"train": n not in untrained} for n, m in enumerate(messages)]
    text = "".join(trained(chatml, marked, "all"))
    assert [n for n in range(20) if f"\n{n}.<" not in text] == sorted(untrained)


def test_train_on_all_of_a_completion_is_the_completion(chatml: CountingTokenizer) -> None:
    row = {"prompt": "What?", "completion": "That."}
    [example] = tokenize(read(row), chatml, "all")
    assert trained_runs(example, chatml) == ["<|im_start|>assistant\nThat.<|im_end|>\n"]


def test_messages_of_a_prompt_are_context(chatml: CountingTokenizer) -> None:
    row = {"prompt": TURNS[:4], "completion": TURNS[4:]}
    [example] = tokenize(read(row), chatml, "assistant")
    assert trained_runs(example, chatml) == ["🤖你好，世界👩‍👩‍👧<|im_end|>"]


def test_turns_marked_as_untrained_are_context(chatml: CountingTokenizer) -> None:
    marked = [*TURNS[:2], TURNS[2] | {"weight": 0}, TURNS[3], TURNS[4] | {"train": True}]
    assert trained(chatml, marked) == ["🤖你好，世界👩‍👩‍👧<|im_end|>"]
    with pytest.raises(BadRow, match="no assistant turn to train on"):
        trained(chatml, marked[:3])


def test_train_on_last_with_a_message_after_the_last_turn() -> None:
    tokenizer = load(SAMPLE_TOKENIZER, FORGETFUL)
    [example] = tokenize(conversation(THINKING), tokenizer, "last")
    assert trained_runs(example, tokenizer) == ["<think>two more</think>4<|im_end|>"]
    assert "Thanks" not in tokenizer.decode(example.input_ids)


def test_train_on_all_refuses_context_that_is_written_differently_later() -> None:
    tokenizer = load(SAMPLE_TOKENIZER, FORGETFUL)
    marked: list[dict[str, Any]] = [THINKING[0], THINKING[1] | {"train": False}, *THINKING[2:]]
    message = "message 2: the chat template writes this message differently when others follow it"
    with pytest.raises(BadRow, match=message) as caught:
        trained(tokenizer, marked, "all")
    assert caught.value.reason == "mask_not_exact"
    user_rewritten: list[dict[str, Any]] = [
        THINKING[0] | {"content": "a</think>b", "train": False},
        *THINKING[1:],
    ]
    with pytest.raises(BadRow, match="message 1: the chat template writes this message"):
        trained(tokenizer, user_rewritten, "all")


def test_train_on_all_refuses_context_after_text_that_only_ends_a_conversation() -> None:
    tokenizer = load(SAMPLE_TOKENIZER, CHATML + "{% if messages %}<|endoftext|>{% endif %}")
    assert len(trained(tokenizer, TURNS[1:3], "all")) == 1
    marked = [*TURNS[1:3], TURNS[3] | {"train": False}]
    with pytest.raises(BadRow, match="message 3: the chat template writes this message"):
        trained(tokenizer, marked, "all")
