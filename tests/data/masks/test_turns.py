"""Which turns are trained, in which texts, and which characters belong to them."""

import re

import pytest

from sftctl.data.ledger import BadRow, Reason
from sftctl.data.masks.encode import tokenize
from sftctl.data.masks.turns import training_texts
from sftctl.data.sample import SAMPLE_TOKENIZER
from tests.toys.data import CHATML, CountingTokenizer, load
from tests.toys.masks import (
    EMPTY_THINKING,
    TOOL_TURNS,
    TURNS,
    Messages,
    conversation,
    trained,
    trained_runs,
)

HEADERLESS = (
    "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
NO_GENERATION_PROMPT = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"


def test_chatml_trains_content_and_end_of_turn_but_neither_header_nor_newline(
    chatml: CountingTokenizer,
) -> None:
    assert trained(chatml, TURNS) == ["Hello\n\n<|im_end|>", "🤖你好，世界👩‍👩‍👧<|im_end|>"]


def test_the_thinking_block_that_minimind_inserts_belongs_to_the_turn(
    minimind: CountingTokenizer,
) -> None:
    assert trained(minimind, TURNS) == [
        EMPTY_THINKING + "Hello\n\n<|im_end|>",
        EMPTY_THINKING + "🤖你好，世界👩‍👩‍👧<|im_end|>",
    ]


def test_user_text_that_looks_like_an_opened_thinking_block_is_never_trained() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    messages = [{"role": "user", "content": "Write\n<think>\n"}, TURNS[2]]
    assert trained(load(SAMPLE_TOKENIZER, template), messages) == ["Hello\n\n<|im_end|>"]


def test_a_conversation_may_begin_with_the_assistant(
    chatml: CountingTokenizer, minimind: CountingTokenizer
) -> None:
    turns = [TURNS[2], *TURNS[1:3]]
    assert trained(chatml, turns) == ["Hello\n\n<|im_end|>"] * 2
    assert trained(minimind, turns) == [EMPTY_THINKING + "Hello\n\n<|im_end|>"] * 2


def test_a_default_system_prompt_before_a_first_assistant_turn_is_not_trained() -> None:
    default = "<|im_start|>system\nDefault<|im_end|>\n"
    template = "{% if messages[0].role != 'system' %}" + default + "{% endif %}" + CHATML
    tokenizer = load(SAMPLE_TOKENIZER, template)
    assert trained(tokenizer, TURNS[2:3]) == ["Hello\n\n<|im_end|>"]


def test_text_that_depends_on_the_first_role_does_not_belong_to_any_header() -> None:
    template = "{% if messages[0].role == 'assistant' %}Dear you, {% endif %}" + CHATML
    with pytest.raises(BadRow, match="message 1: can't tell where this first assistant turn"):
        trained(load(SAMPLE_TOKENIZER, template), TURNS[2:3])


def test_a_template_without_generation_prompt_trains_contents_and_ends() -> None:
    tokenizer = load(SAMPLE_TOKENIZER, NO_GENERATION_PROMPT)
    assert trained(tokenizer, TURNS[1:4]) == ["Hello\n\n<|im_end|>"]


def test_thinking_that_only_the_prompt_opens_is_refused_in_a_turn_without_it() -> None:
    template = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    tokenizer = load(SAMPLE_TOKENIZER, template)
    message = (
        "message 3: the chat template's prompt opens a thinking block (<think>) that this turn"
    )
    with pytest.raises(BadRow, match=re.escape(message)) as caught:
        trained(tokenizer, TURNS)
    assert caught.value.reason == "mask_not_exact"
    thinking = [TURNS[1], {"role": "assistant", "content": "<think>\nhm\n</think>\nYes"}]
    assert trained(tokenizer, thinking) == ["<think>\nhm\n</think>\nYes<|im_end|>"]


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


def test_a_turn_that_is_written_differently_later_is_trained_as_the_last_turn() -> None:
    tokenizer = load(SAMPLE_TOKENIZER, FORGETFUL)
    for messages in (THINKING, THINKING[:4]):
        examples = tokenize(conversation(messages), tokenizer, "assistant")
        assert [trained_runs(example, tokenizer) for example in examples] == [
            ["<think>one more</think>2<|im_end|>"],
            ["<think>two more</think>4<|im_end|>"],
        ]
        for example, num_messages in zip(examples, (2, 4), strict=True):
            text = tokenizer.render(messages[:num_messages], None, False)
            assert tokenizer.decode(example.input_ids) == text
    assert "one more" not in tokenizer.decode(examples[1].input_ids)


def test_turns_that_are_not_written_differently_share_an_example() -> None:
    plain = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    tokenizer = load(SAMPLE_TOKENIZER, FORGETFUL)
    row = conversation([*plain, *THINKING[:2], *plain])
    examples = tokenize(row, tokenizer, "assistant")
    assert [trained_runs(example, tokenizer) for example in examples] == [
        ["<think>one more</think>2<|im_end|>"],
        ["Hello<|im_end|>", "Hello<|im_end|>"],
    ]


def test_an_empty_answer_trains_the_end_of_turn(chatml: CountingTokenizer) -> None:
    assert trained(chatml, [TURNS[1], {"role": "assistant", "content": ""}]) == ["<|im_end|>"]


def test_a_turn_without_an_end_token_is_ended_by_the_end_of_sequence() -> None:
    template = (
        "{% for m in messages %}{{ m.role }}<|im_end|>{{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}assistant<|im_end|>{% endif %}"
    )
    tokenizer = load(SAMPLE_TOKENIZER, template)
    messages = [TURNS[0], {"role": "assistant", "content": "Yes"}]
    assert trained(tokenizer, messages) == ["Yes\n\n<|im_end|>"]


def test_a_conversation_of_one_exchange_is_rendered_twice(chatml: CountingTokenizer) -> None:
    tokenize(conversation(TURNS[3:]), chatml, "assistant")  # once more for roles that are new
    before = chatml.num_renders
    tokenize(conversation(TURNS[3:]), chatml, "assistant")
    assert chatml.num_renders - before == 2


def test_every_turn_is_rendered_twice(chatml: CountingTokenizer) -> None:
    tokenize(conversation(TURNS[3:] * 4), chatml, "assistant")
    before = chatml.num_renders
    tokenize(conversation(TURNS[3:] * 4), chatml, "assistant")
    assert chatml.num_renders - before == 2 * 4


def test_texts_are_in_the_order_of_their_turns() -> None:
    texts = training_texts(conversation(THINKING), load(SAMPLE_TOKENIZER, FORGETFUL), "assistant")
    assert [len(text.text) for text in texts] == sorted(len(text.text) for text in texts)


@pytest.mark.parametrize(
    ("template", "messages", "reason", "message"),
    [
        pytest.param(
            HEADERLESS,
            TURNS[1:3],
            "mask_not_exact",
            "message 2: the chat template's prompt for this turn differs",
            id="header absent",
        ),
        pytest.param(
            HEADERLESS,
            TURNS[2:3],
            "mask_not_exact",
            "message 1: can't tell where this first assistant turn begins",
            id="header of a first turn absent",
        ),
        pytest.param(
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}A:{% endif %}",
            TURNS[2:3],
            "mask_not_exact",
            "message 1: can't tell where this first assistant turn begins",
            id="first turn rendered as nothing",
        ),
        pytest.param(
            "{% for m in messages %}{{ raise_exception('roles must alternate') }}{% endfor %}",
            TURNS,
            "template_refused",
            "the chat template refuses the conversation: roles must alternate",
            id="template refuses",
        ),
        pytest.param(
            CHATML, TURNS[:2], "no_target", "no assistant turn to train on", id="no assistant"
        ),
        pytest.param(
            CHATML,
            TOOL_TURNS,
            "tools_not_rendered",
            "message 2: the chat template does not render tool calls",
            id="tool calls dropped",
        ),
    ],
)
def test_a_turn_that_cannot_be_located_is_an_error_with_file_and_line(
    template: str, messages: Messages, reason: Reason, message: str
) -> None:
    with pytest.raises(BadRow) as caught:
        tokenize(conversation(messages), load(SAMPLE_TOKENIZER, template), "assistant")
    assert caught.value.message.startswith(f"rows.jsonl:7: {message}")
    assert caught.value.reason == reason
