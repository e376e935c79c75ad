import re

import pytest

from sftctl.data.conversations.conversation import from_row
from sftctl.data.ledger import BadRow, SourceLine
from sftctl.data.masks.encode import tokenize
from sftctl.data.sample import SAMPLE_TOKENIZER, sample_files
from sftctl.errors import DataError
from tests.toys.data import CHATML, SHARED, conversations, load

HERE = SourceLine("rows.jsonl", 7)
HEADERLESS = (
    "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
SPACED = (
    "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
EMPTY_THINKING = "<think>\n\n</think>\n\n"
CALL = {"type": "function", "function": {"name": "search", "arguments": {"q": "crêpes"}}}

TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi <think> "},
    {"role": "assistant", "content": "Hello\n\n"},
    {"role": "user", "content": "你好🤖"},
    {"role": "assistant", "content": "🤖你好，世界👩‍👩‍👧"},
]
TOOL_TURNS = [
    {"role": "user", "content": "Find"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "[1]"},
    {"role": "tool", "content": "[2]"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "assistant", "content": "Found", "reasoning_content": "hm"},
]


def conversation(messages, **row):
    return from_row({"messages": messages} | row, "messages", HERE)


def trained(tokenizer, messages, train_on="assistant", **row):
    """The maximal runs of trained tokens, as text."""
    [example] = tokenize(conversation(messages, **row), tokenizer, train_on)
    runs, before = [], False
    for token, counts in zip(example.input_ids, example.loss_mask, strict=True):
        if counts and not before:
            runs.append([])
        if counts:
            runs[-1].append(token)
        before = counts
    return [tokenizer.decode(run) for run in runs]


def test_chatml_trains_content_and_end_of_turn_but_neither_header_nor_newline(chatml):
    assert trained(chatml, TURNS) == ["Hello\n\n<|im_end|>", "🤖你好，世界👩‍👩‍👧<|im_end|>"]


def test_the_thinking_block_that_minimind_inserts_belongs_to_the_turn(minimind):
    assert trained(minimind, TURNS) == [
        EMPTY_THINKING + "Hello\n\n<|im_end|>",
        EMPTY_THINKING + "🤖你好，世界👩‍👩‍👧<|im_end|>",
    ]


def test_tool_calls_are_trained_and_tool_results_are_not(minimind):
    call = '<tool_call>\n{"name": "search", "arguments": {"q": "crêpes"}}\n</tool_call><|im_end|>'
    assert trained(minimind, TOOL_TURNS, tools=[{"name": "search"}]) == [
        EMPTY_THINKING + call,
        EMPTY_THINKING + call,
        "<think>\nhm\n</think>\n\nFound<|im_end|>",
    ]


def test_words_of_a_user_that_look_like_an_opened_thinking_block_are_never_trained():
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    messages = [{"role": "user", "content": "Write\n<think>\n"}, TURNS[2]]
    assert trained(load(SAMPLE_TOKENIZER, template), messages) == ["Hello\n\n"]


def test_train_on_last_trains_the_last_turn_alone(chatml):
    assert trained(chatml, TURNS, "last") == ["🤖你好，世界👩‍👩‍👧<|im_end|>"]


def test_train_on_all_trains_all_but_the_first_token_which_nothing_predicts(chatml):
    [example] = tokenize(conversation(TURNS[:2]), chatml, "all")
    assert not example.loss_mask[0]
    assert example.loss_mask[1:].all()
    assert example.num_target_tokens == example.num_tokens - 1


@pytest.mark.parametrize(
    ("left_out", "words"),
    [((1,), "Hi <think> "), ((0, 3), "Be kind."), ((2,), "Hello"), ((0, 1, 2, 3), "你好🤖")],
)
def test_train_on_all_leaves_out_every_message_that_is_context(chatml, left_out, words):
    messages = [
        turn | {"train": False} if index in left_out else turn for index, turn in enumerate(TURNS)
    ]
    [example] = tokenize(conversation(messages), chatml, "all")
    said = chatml.decode(example.input_ids[example.loss_mask])
    assert words not in said
    for index, turn in enumerate(TURNS):
        if index not in left_out:
            assert turn["content"] in said


def test_of_a_completion_all_is_the_completion(chatml):
    row = {"prompt": "What?", "completion": "That."}
    [example] = tokenize(from_row(row, "auto", HERE), chatml, "all")
    said = chatml.decode(example.input_ids[example.loss_mask])
    assert "That." in said and "What?" not in said


def test_messages_before_first_trained_are_context(chatml):
    row = {"prompt": TURNS[:4], "completion": TURNS[4:]}
    [example] = tokenize(from_row(row, "auto", HERE), chatml, "assistant")
    text = chatml.decode(example.input_ids[example.loss_mask])
    assert text == "🤖你好，世界👩‍👩‍👧<|im_end|>"


def test_a_conversation_may_begin_with_the_assistant(chatml, minimind):
    turns = [TURNS[2], *TURNS[1:3]]
    assert trained(chatml, turns) == ["Hello\n\n<|im_end|>"] * 2
    assert trained(minimind, turns) == [EMPTY_THINKING + "Hello\n\n<|im_end|>"] * 2


def test_a_default_system_prompt_stands_before_a_first_assistant_turn():
    default = "<|im_start|>system\nDefault<|im_end|>\n"
    template = "{% if messages[0].role != 'system' %}" + default + "{% endif %}" + CHATML
    tokenizer = load(SAMPLE_TOKENIZER, template)
    assert trained(tokenizer, TURNS[2:3]) == ["Hello\n\n<|im_end|>"]


def test_thinking_opened_by_the_prompt_alone_is_no_part_of_a_turn_without_it():
    template = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    tokenizer = load(SAMPLE_TOKENIZER, template)
    assert trained(tokenizer, TURNS)[0] == "Hello\n\n<|im_end|>"
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


def test_a_turn_that_is_rewritten_later_is_trained_as_it_was_when_it_was_the_last():
    tokenizer = load(SAMPLE_TOKENIZER, FORGETFUL)
    for messages in (THINKING, THINKING[:4]):
        examples = tokenize(conversation(messages), tokenizer, "assistant")
        assert [tokenizer.decode(e.input_ids[e.loss_mask]) for e in examples] == [
            "<think>one more</think>2<|im_end|>",
            "<think>two more</think>4<|im_end|>",
        ]
        for example, num_messages in zip(examples, (2, 4), strict=True):
            assert tokenizer.decode(example.input_ids) == tokenizer.render(
                messages[:num_messages], None, False
            )
    assert "one more" not in tokenizer.decode(examples[1].input_ids)


def test_turns_that_stay_as_they_were_share_an_example_with_the_last():
    plain = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    examples = tokenize(
        conversation([*plain, *THINKING[:2], *plain]),
        load(SAMPLE_TOKENIZER, FORGETFUL),
        "assistant",
    )
    assert [e.num_tokens for e in examples] == sorted(e.num_tokens for e in examples)
    assert len(examples) == 2


def test_an_empty_answer_trains_the_end_of_turn(chatml):
    assert trained(chatml, [TURNS[1], {"role": "assistant", "content": ""}]) == ["<|im_end|>"]


def test_whitespace_after_a_turn_without_a_special_end_is_trained():
    template = (
        "{% for m in messages %}{{ m.role }}<|im_end|>{{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}assistant<|im_end|>{% endif %}"
    )
    tokenizer = load(SAMPLE_TOKENIZER, template)
    messages = [TURNS[0], {"role": "assistant", "content": "Yes"}]
    assert trained(tokenizer, messages) == ["Yes\n\n"]


def test_a_conversation_of_one_exchange_is_rendered_twice(chatml):
    before = chatml.num_renders
    tokenize(conversation(TURNS[3:]), chatml, "assistant")
    assert chatml.num_renders - before == 2


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        pytest.param(
            HEADERLESS,
            TURNS[1:3],
            "message 2: the chat template prompts for this turn with other text",
            id="header absent",
        ),
        pytest.param(
            HEADERLESS,
            TURNS[2:3],
            "message 1: can't tell where this first assistant turn begins",
            id="header of a first turn absent",
        ),
        pytest.param(
            SPACED,
            [TURNS[1], {"role": "assistant", "content": "the"}],
            "a token is half inside an assistant turn",
            id="space merges with the answer",
        ),
        pytest.param(
            "{% for m in messages %}{{ raise_exception('roles must alternate') }}{% endfor %}",
            TURNS,
            "the chat template refuses the conversation: roles must alternate",
            id="template refuses",
        ),
        pytest.param(None, TURNS[:2], "no assistant turn to train on", id="no assistant"),
        pytest.param(
            None,
            TOOL_TURNS,
            "message 2: the chat template does not render tool calls",
            id="tool calls dropped",
        ),
    ],
)
def test_what_cannot_be_masked_is_an_error_with_file_and_line(template, messages, message):
    tokenizer = load(SAMPLE_TOKENIZER, template or CHATML)
    with pytest.raises(DataError) as caught:
        tokenize(conversation(messages), tokenizer, "assistant")
    assert caught.value.message.startswith(f"rows.jsonl:7: {message}")


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        (SPACED, [TURNS[1], {"role": "assistant", "content": "the"}], "mask_not_exact"),
        (CHATML, TURNS[:2], "no_target"),
        (CHATML, TOOL_TURNS, "tools_not_rendered"),
        ("{{ raise_exception('no') }}", TURNS, "template_refused"),
    ],
)
def test_what_cannot_be_masked_has_a_reason(template, messages, reason):
    with pytest.raises(BadRow) as caught:
        tokenize(conversation(messages), load(SAMPLE_TOKENIZER, template), "assistant")
    assert caught.value.reason == reason


def test_turns_marked_as_untrained_are_context(chatml):
    marked = [*TURNS[:2], TURNS[2] | {"weight": 0}, TURNS[3], TURNS[4] | {"train": True}]
    assert trained(chatml, marked) == ["🤖你好，世界👩‍👩‍👧<|im_end|>"]
    with pytest.raises(BadRow, match="no assistant turn to train on"):
        trained(chatml, marked[:3])


def test_a_name_that_somebody_says_is_no_proof_that_tools_are_rendered(chatml, minimind):
    question = {"role": "user", "content": "Can you search?"}
    asked = [question, TOOL_TURNS[1] | {"content": "I search"}]
    with pytest.raises(BadRow, match="message 2: the chat template does not render tool calls"):
        trained(chatml, asked)
    plain = [question, {"role": "assistant", "content": "Yes"}]
    with pytest.raises(BadRow, match="the chat template does not render the tool 'search'"):
        trained(chatml, plain, tools=[{"name": "search"}])
    assert len(trained(minimind, plain, tools=[{"name": "search"}])) == 1
    assert len(trained(minimind, asked)) == 1


def test_dropped_tool_calls_are_an_error_when_everything_is_trained_too(chatml):
    with pytest.raises(DataError, match="message 2: the chat template does not render tool calls"):
        tokenize(conversation(TOOL_TURNS), chatml, "all")


def test_a_turn_that_is_rendered_as_nothing_has_no_token_to_train():
    template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match=r"rows\.jsonl:7: no token to train on"):
        tokenize(conversation(TURNS[1:3]), load(SAMPLE_TOKENIZER, template), "assistant")


def reference_mask(tokenizer, ids):
    """By the tokens alone: from behind an assistant header to the next end of turn."""
    header, end = (tokenizer.encode(t).tolist() for t in ("<|im_start|>assistant\n", "<|im_end|>"))
    ids, mask, inside = list(ids), [], False
    for position, token in enumerate(ids):
        inside = inside or ids[max(0, position - len(header)) : position] == header
        mask.append(inside)
        inside = inside and [token] != end
    return mask


def assert_masks_equal_the_reference(path, tokenizer, num_rows):
    rows = conversations(path)
    assert len(rows) == num_rows
    for row in rows:
        [example] = tokenize(row, tokenizer, "assistant")
        text = tokenizer.render(list(row.messages), row.tools, False)
        assert tokenizer.decode(example.input_ids) == text
        assert example.loss_mask.tolist() == reference_mask(tokenizer, example.input_ids)
        answers = re.findall(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", text, re.DOTALL)
        assert tokenizer.decode(example.input_ids[example.loss_mask]) == "".join(answers)
        assert len(answers) == sum(message["role"] == "assistant" for message in row.messages)


@pytest.mark.parametrize(
    ("name", "num_rows"),
    [
        ("alpaca_en_demo", 999),
        ("alpaca_zh_demo", 1000),
        ("fastchat_dummy_conversation", 500),
        ("glaive_toolcall_en_demo", 300),
    ],
)
def test_masks_equal_a_reference_on_every_row_of_the_real_files(minimind, name, num_rows):
    assert_masks_equal_the_reference(SHARED / f"{name}.json", minimind, num_rows)


@pytest.mark.parametrize("path", sample_files(), ids=lambda path: path.stem)
def test_masks_equal_a_reference_on_the_bundled_sample(chatml, path):
    assert_masks_equal_the_reference(path, chatml, len(path.read_text("utf-8").splitlines()))
