"""Prompts that differ from the history, and tokens that end a turn, for many kinds of templates."""

from typing import Any

import pytest

from sftctl.data.ledger import BadRow
from sftctl.data.masks.encode import tokenize
from sftctl.data.masks.turns import training_texts
from sftctl.data.sample import SAMPLE_TOKENIZER
from tests.toys.data import CHATML, load
from tests.toys.masks import TOOL_TURNS, TURNS, conversation, trained, trained_runs
from tests.toys.masks.templates import QWEN_3

QUESTION = {"role": "user", "content": "1+1?"}
OPENS = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
CUTS = OPENS.replace(
    "{{ m.content }}",
    "{{ m.content.split('</think>')[-1] | trim if m.role == 'assistant' else m.content }}",
)
END = "<|im_end|>"
HEADER = "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"


def texts_of(template: str, *answers: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The text before the first target, and the targets, of every example of 1+1? and answers."""
    tokenizer = load(SAMPLE_TOKENIZER, template)
    turns = [t for answer in answers for t in (QUESTION, {"role": "assistant"} | answer)]
    found = training_texts(conversation(turns), tokenizer, "assistant")
    return [
        (text.text[: text.targets[0][0]], [text.text[a:b] for a, b in text.targets])
        for text in found
    ]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"content": "<think>\nTwo.\n</think>\n\n2"}, "Two.\n</think>\n\n2<|im_end|>"),
        ({"content": "<think>Two.</think>2"}, "Two.</think>2<|im_end|>"),
        ({"content": "Two.\n</think>\n\n2"}, "Two.\n</think>\n\n2<|im_end|>"),
        ({"content": "2", "reasoning_content": "Two."}, "Two.\n</think>\n\n2<|im_end|>"),
        ({"content": "<think>\n2\n</think>\n\n2"}, "2\n</think>\n\n2<|im_end|>"),
        ({"content": "<think>\n\n</think>\n\n2"}, "\n</think>\n\n2<|im_end|>"),
        ({"content": "\n</think>\n\n2"}, "</think>\n\n2<|im_end|>"),
    ],
)
def test_a_prompt_that_opens_thinking_is_followed_by_the_rows_own_reasoning(
    answer: dict[str, Any], expected: str
) -> None:
    """DeepSeek-R1's template cuts the thought out; the model has to write it."""
    assert texts_of(CUTS, answer) == [(HEADER + "<think>\n", [expected])]


@pytest.mark.parametrize("content", ["Two.\n</think>\n\n2", "</think>\n\n2"])
def test_a_content_without_the_opening_tag_that_the_prompt_has(content: str) -> None:
    """DeepSeek's own form of an output: the opening tag is a part of the prompt."""
    assert texts_of(OPENS, {"content": content}) == [(HEADER + "<think>\n", [content + END])]


def test_each_thought_after_an_opened_block_is_an_example() -> None:
    first, last = ({"content": f"<think>\n{t}\n</think>\n\n2"} for t in ("One.", "Two."))
    prompts, targets = zip(*texts_of(CUTS, first, last), strict=True)
    assert targets == (["One.\n</think>\n\n2<|im_end|>"], ["Two.\n</think>\n\n2<|im_end|>"])
    assert prompts[1] == f"{HEADER}2<|im_end|>\n{HEADER}<think>\n"


def test_a_block_that_the_turn_spells_with_other_white_space_stays_in_the_prompt() -> None:
    found = texts_of(OPENS, {"content": "<think>Two.</think>2"})
    assert found == [(HEADER + "<think>\n", ["Two.</think>2<|im_end|>"])]


def test_an_empty_block_that_only_the_prompt_has_stays_in_the_prompt() -> None:
    """Gemma 4's empty thought channel."""
    channel = "<|channel>thought\n<channel|>"
    template = CHATML.replace("assistant\n{% endif", f"assistant\n{channel}{{% endif")
    foreign = "<think>Two.</think>2"  # of another template
    assert texts_of(template, {"content": foreign})[0][1] == [foreign + END]
    assert texts_of(template, {"content": "2"}, {"content": "3"}) == [
        (HEADER + channel, ["2<|im_end|>"]),
        (f"{HEADER}2<|im_end|>\n{HEADER}{channel}", ["3<|im_end|>"]),
    ]


CLOSES = CHATML.replace(
    "assistant\n{% endif",
    "assistant\n<think>\n{{ '\n</think>\n\n' if not open_thinking }}{% endif",
).replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' and '</think>' not in m.content %}"
    "<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}",
)


@pytest.mark.parametrize(
    "answer",
    [
        {"content": "2", "reasoning_content": "Two."},
        {"content": "<think>\nTwo.\n</think>\n\n2"},
        {"content": "Two.\n</think>\n\n2"},
        {"content": "<think>\nTwo. Cut o"},
    ],
)
def test_reasoning_after_a_prompt_that_closes_its_block_is_refused(answer: dict[str, Any]) -> None:
    """MiniMind's prompts close an empty block, so a model never gets to write a thought."""
    assert texts_of(CLOSES, {"content": "2"}) == [(HEADER, ["<think>\n\n</think>\n\n2<|im_end|>"])]
    with pytest.raises(BadRow, match="closes an empty thinking block, and this turn") as caught:
        texts_of(CLOSES, answer)
    assert caught.value.reason == "mask_not_exact"
    advice = "remove the row" if "Cut" in answer["content"] else "open_thinking=true"
    assert advice in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("opens", "own"),
    [
        ("", "<think>\n\n</think>\n\n"),
        ("<think>\n", "<think>\n\n</think>\n\n"),
    ],
)
@pytest.mark.parametrize(
    "content", ["Two.\n</think>\n\n2", "<think>\nTwo.\n</think>\n\n2", "<think>\nTwo. Cut o"]
)
def test_reasoning_after_a_block_of_the_template_is_refused(
    opens: str, own: str, content: str
) -> None:
    """A template may write a block before a content whose block it does not recognize."""
    template = CHATML.replace("assistant\n{% endif", f"assistant\n{opens}{{% endif").replace(
        "{{ m.content }}", f"{{{{ {own!r} if m.role == 'assistant' }}}}{{{{ m.content }}}}"
    )
    with pytest.raises(BadRow, match="has a thinking block that the row does not have") as caught:
        texts_of(template, {"content": content})
    advice = "remove the row" if "Cut" in content else "move the reasoning to reasoning_content"
    assert advice in (caught.value.hint or "")


def test_a_tag_that_the_template_writes_before_each_content() -> None:
    """Nemotron Nano 2: right for a content without the opening tag, and else the tag is twice."""
    opening = "{{ '<think>\n' if m.role == 'assistant' }}{{ m.content }}"
    template = OPENS.replace("{{ m.content }}", opening)
    half = "Two.\n</think>\n\n2"
    assert texts_of(template, {"content": half}) == [(HEADER, ["<think>\n" + half + END])]
    with pytest.raises(BadRow, match="has a thinking block that the row does not have"):
        texts_of(template, {"content": "<think>\n" + half})


@pytest.mark.parametrize(
    ("content", "is_kept"),
    [
        ("Write </think> and then the answer.", False),
        ("It ends with </think>.", False),
        ("Two.</think>4</think>", False),
        ("Two.\n</think>\n\n4", True),
        ("<think>\nTwo.\n</think>\n\n4", True),
        ("\n</think>\n\n4", True),
        ("Write [/THINK] and then the answer.", True),
    ],
)
def test_a_closing_tag_alone_is_text_unless_the_template_writes_it_as_it_is(
    content: str, is_kept: bool
) -> None:
    """Qwen 3's prompt opens no block, and its template takes the text before the tag as a thought.

    ChatML writes every content as it is.
    """
    assert texts_of(CHATML, {"content": content}) == [(HEADER, [content + END])]
    if is_kept:
        [(_, [text])] = texts_of(QWEN_3, {"content": content})
        assert content.strip() in text
    else:
        with pytest.raises(BadRow, match="has no opening tag|leaves out a part") as caught:
            texts_of(QWEN_3, {"content": content})
        assert caught.value.reason in ("mask_not_exact", "message_not_rendered")
        row = conversation([QUESTION, {"role": "assistant", "content": content}])
        with pytest.raises(BadRow):
            tokenize(row, load(SAMPLE_TOKENIZER, QWEN_3), "all")


@pytest.mark.parametrize(
    ("prompted", "written", "trained_text"),
    [
        ("<think></think>", "<think>\n\n</think>\n\n", "\n\n2<|im_end|>"),
        ("<think>\n\n</think>\n\n", "<think></think>\n\n", "2<|im_end|>"),
        ("<think>\n\n</think>\n\n", "<think></think>", None),
        ("<think></think>", "</think>", "2<|im_end|>"),  # DeepSeek V3.2
        ("<think></think>", "</think><think></think>", None),
    ],
)
def test_an_empty_block_with_other_white_space_than_the_prompts(
    prompted: str, written: str, trained_text: str | None
) -> None:
    template = CHATML.replace("assistant\n{% endif", f"assistant\n{prompted}{{% endif").replace(
        "{{ m.content }}", f"{{{{ {written!r} if m.role == 'assistant' }}}}{{{{ m.content }}}}"
    )
    if trained_text is None:
        with pytest.raises(BadRow, match="has another block or other white space after the block"):
            texts_of(template, {"content": "2"})
    else:
        assert texts_of(template, {"content": "2"}) == [(HEADER + prompted, [trained_text])]


LAST_HAS_SYSTEM = (
    "{% set s = messages[0].content %}{% for m in messages[1:] %}{% if m.role == 'user' %}[INST]"
    "{% if loop.last %}{{ s }}\n\n{% endif %}{{ m.content }}[/INST]{% else %}{{ m.content }}"
    "<|im_end|>{% endif %}{% endfor %}"
)


def test_a_system_prompt_that_moves_to_the_last_question_is_in_every_example() -> None:
    """Mistral Nemo's template."""
    tokenizer = load(SAMPLE_TOKENIZER, LAST_HAS_SYSTEM)
    row = conversation([TURNS[0], QUESTION, TURNS[2], QUESTION, TURNS[4]])
    texts = training_texts(row, tokenizer, "assistant")
    assert [(t.text[: t.targets[0][0]], len(t.targets)) for t in texts] == [
        ("[INST]Be kind.\n\n1+1?[/INST]", 1),
        ("[INST]1+1?[/INST]Hello\n\n<|im_end|>[INST]Be kind.\n\n1+1?[/INST]", 1),
    ]


def test_an_earlier_thought_stays_in_the_prompt_where_only_the_prompt_has_it() -> None:
    """gpt-oss drops the reasoning of a tool call once the final answer follows."""
    template = CHATML.replace(
        "{{ m.content }}",
        "{% if m.reasoning_content and (messages[-1].role == 'tool' or messages[-1].tool_calls) %}"
        "<analysis>{{ m.reasoning_content }}{% endif %}{{ m.content }}{{ m.tool_calls | tojson if "
        "m.tool_calls else '' }}",
    )
    tokenizer = load(SAMPLE_TOKENIZER, template)
    calling = TOOL_TURNS[1] | {"reasoning_content": "search first"}
    row = conversation(
        [TOOL_TURNS[0], calling, TOOL_TURNS[2], TOOL_TURNS[5] | {"reasoning_content": ""}]
    )
    [text] = training_texts(row, tokenizer, "assistant")
    first, last = (text.text[start:end] for start, end in text.targets)
    assert first.startswith("<analysis>search first[{")
    assert last == "Found<|im_end|>"


STOPPED_BY_NEXT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_turn_without_an_end_token_takes_the_next_roles_token() -> None:
    """GLM 4.5 stops at <|user|> or <|observation|>."""
    tokenizer = load(SAMPLE_TOKENIZER, STOPPED_BY_NEXT)
    assert trained(tokenizer, TURNS) == ["Hello\n\n<|im_start|>", "🤖你好，世界👩‍👩‍👧<|im_start|>"]
    assert trained(tokenizer, TURNS[:4]) == ["Hello\n\n<|im_start|>"]
    assert trained(tokenizer, TURNS[:3], "all")[0].endswith("Hello\n\n<|im_start|>")


def test_an_end_of_sequence_that_no_history_has_is_in_an_example_of_each_turn() -> None:
    tokenizer = load(SAMPLE_TOKENIZER, STOPPED_BY_NEXT.replace("<|im_start|>", "### "))
    examples = tokenize(conversation(TURNS), tokenizer, "assistant")
    assert [trained_runs(example, tokenizer) for example in examples] == [
        ["Hello\n\n<|im_end|>"],
        ["🤖你好，世界👩‍👩‍👧<|im_end|>"],
    ]


@pytest.mark.parametrize(
    "after",
    [
        "{% if not add_generation_prompt %}<|endoftext|>{% endif %}",  # Phi 3
        "{% if messages[-1].role == 'assistant' %}<|im_start|>assistant\n{% endif %}",  # Command A
    ],
)
def test_text_that_only_ends_a_conversation_is_not_trained(after: str) -> None:
    tokenizer = load(SAMPLE_TOKENIZER, CHATML + after)
    assert trained(tokenizer, TURNS) == ["Hello\n\n<|im_end|>", "🤖你好，世界👩‍👩‍👧<|im_end|>"]
    assert trained(tokenizer, TURNS[2:3]) == ["Hello\n\n<|im_end|>"]


CHANNELS = CHATML.replace(
    "{{ m.content }}<|im_end|>",
    "{% if m.role == 'assistant' %}final<|im_start|>{% endif %}{{ m.content }}"
    "{{ '<|endoftext|>' if loop.last and m.role == 'assistant' else '<|im_end|>' }}",
)


@pytest.mark.parametrize("answer", ["", " ", "\n", "final", "im_end", "endoftext", "Hi"])
@pytest.mark.parametrize(
    ("template", "header", "end"),
    [
        (CHANNELS, "final<|im_start|>", "<|endoftext|>"),  # gpt-oss
        (CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}", "", "<|im_end|>"),
    ],
)
def test_the_end_is_found_also_if_the_answer_is_empty_or_a_part_of_the_header_or_the_end(
    template: str, header: str, end: str, answer: str
) -> None:
    row = [TURNS[1], {"role": "assistant", "content": answer}]
    assert trained(load(SAMPLE_TOKENIZER, template), row) == [header + answer + end]


@pytest.mark.parametrize("template", ["{{ '' }}", "{% macro m() %}{% endmacro %}"])
def test_a_template_that_writes_nothing_leaves_out_the_messages(template: str) -> None:
    with pytest.raises(BadRow, match="leaves out its content") as caught:
        trained(load(SAMPLE_TOKENIZER, template), TURNS[1:3])
    assert caught.value.reason == "message_not_rendered"


def test_an_end_token_that_is_written_twice_is_trained_once() -> None:
    tokenizer = load(SAMPLE_TOKENIZER, CHATML.replace("<|im_end|>", "<|im_end|>\n<|im_end|>"))
    assert trained(tokenizer, TURNS)[0] == "Hello\n\n<|im_end|>"


def test_a_turn_with_an_end_token_before_its_content_is_refused() -> None:
    """DeepSeek-R1's template writes calls, the end of sequence, and then the text beside them."""
    template = CHATML.replace(
        "{{ m.content }}",
        "{% for c in m.tool_calls %}{{ c.function.name }}<|im_end|>{% endfor %}{{ m.content }}",
    )
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    beside = {"role": "assistant", "content": "Wait.", "tool_calls": [call]}
    with pytest.raises(BadRow, match="message 2: the chat template writes <.im_end.> before the"):
        trained(load(SAMPLE_TOKENIZER, template), [TURNS[1], beside])


def test_a_call_at_the_end_stops_where_a_tools_result_follows_it() -> None:
    """A template may write another end after the last call, and refuse a question after a call."""
    template = CHATML.replace(
        "{{ m.content }}<|im_end|>",
        "{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}<|endoftext|>"
        "{% if loop.last %}<|im_end|>{% elif messages[loop.index].role == 'user' %}"
        "{{ raise_exception('no result') }}{% endif %}{% else %}<|im_end|>{% endif %}",
    )
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    tokenizer = load(SAMPLE_TOKENIZER, template)
    assert trained(tokenizer, [TURNS[1], calling]) == ["f<|endoftext|>"]


HERMES = CHATML.replace(
    "{{ m.content }}<|im_end|>\n",
    "{{ m.content }}{% if m.role == 'tool' and not loop.last %}\n{% endif %}<|im_end|>"
    "{% if m.role != 'tool' %}\n{% endif %}",
)
APERTUS = (
    "{% for m in messages %}{% if m.role == 'tool' %}[{{ m.content }}]{% else %}"
    "{% if m.role == 'user' %}<|im_start|>user\n{% elif messages[loop.index0 - 1].role == 'user' %}"
    "<|im_start|>assistant\n{% endif %}{{ m.content }}{% if m.role == 'user' or loop.last %}"
    "<|im_end|>{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "after"),
    [(HERMES, "tool\n1<|im_end|><|im_start|>assistant\n"), (APERTUS, "[1]<|im_start|>assistant\n")],
)
def test_an_answer_after_a_tool_result_comes_after_the_prompt(template: str, after: str) -> None:
    turns = [*TURNS[1:3], {"role": "tool", "content": "1"}, TURNS[4]]
    texts = training_texts(conversation(turns), load(SAMPLE_TOKENIZER, template), "assistant")
    start, end = texts[-1].targets[-1]
    assert texts[-1].text[:start].endswith(after)
    assert texts[-1].text[start:end] == TURNS[4]["content"] + "<|im_end|>"
