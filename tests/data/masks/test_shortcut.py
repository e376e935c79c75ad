"""The short way to the texts to train on returns what the long way returns, or is not taken."""

import string
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftctl.config.schema import TrainOn
from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow
from sftctl.data.masks.shortcut import Renderer
from sftctl.data.masks.turns import TrainingText, training_texts
from sftctl.data.sample import SAMPLE_TOKENIZER
from tests.toys.data import CHATML, HERE, CountingTokenizer, load
from tests.toys.masks import conversation

DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind<|im_end|>\n{% endif %}"
)
TRIMMED = CHATML.replace("m.content", "m.content | trim")
TEMPLATES = {"chatml": CHATML, "default system": DEFAULT_SYSTEM + CHATML, "trimmed": TRIMMED}
TOKENIZERS = {name: load(SAMPLE_TOKENIZER, template) for name, template in TEMPLATES.items()}

texts = st.text(string.ascii_letters + " \n<>|/_imstarendthk\ue000\ue0010", max_size=12)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": texts}
    ),
    min_size=1,
    max_size=6,
)


def outcome(function: Callable[[Conversation], list[TrainingText]], row: Conversation) -> Any:
    """The texts and targets, or the message of the refusal."""
    try:
        return [(text.text, text.targets) for text in function(row)]
    except BadRow as problem:
        return problem.message


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(messages, st.frozensets(st.integers(0, 5))), max_size=4))
def test_the_texts_are_the_same_with_a_layout(
    name: str, train_on: TrainOn, rows: list[tuple[list[dict[str, str]], frozenset[int]]]
) -> None:
    tokenizer = TOKENIZERS[name]
    assert tokenizer.is_content_blind
    renderer = Renderer(tokenizer, train_on)
    for turns, untrained in rows:
        row = Conversation(tuple(turns), None, HERE, untrained & frozenset(range(len(turns))))
        expected = outcome(lambda row: training_texts(row, tokenizer, train_on), row)
        assert outcome(renderer.training_texts, row) == expected
        assert outcome(renderer.training_texts, row) == expected  # the layout is known now


def renders_for(renderer: Renderer, *contents: str) -> int:
    """How often a user's question and an answer, with these contents, are rendered."""
    assert isinstance(renderer.tokenizer, CountingTokenizer)
    before = renderer.tokenizer.num_renders
    roles = ("user", "assistant") * (len(contents) // 2)
    turns = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
    renderer.training_texts(conversation(turns))
    return renderer.tokenizer.num_renders - before


@pytest.mark.parametrize("template", [CHATML, TRIMMED])
def test_a_conversation_with_a_known_layout_is_rendered_once(template: str) -> None:
    renderer = Renderer(load(SAMPLE_TOKENIZER, template), "assistant")
    assert renders_for(renderer, "Hi", "Hello", "What?", " That.\n") > 1
    assert renders_for(renderer, "Hi?", "Hello?", " Who?\n", "You.") == 1
    assert renders_for(renderer, "Hi?", "Hello?") > 1  # another layout
    assert renders_for(renderer, "Hi?", "") > 1  # and another
    assert renders_for(renderer, "Hi", "") == 1


def test_contents_of_white_space_only_have_no_layout() -> None:
    renderer = Renderer(load(SAMPLE_TOKENIZER, CHATML), "assistant")
    renders_for(renderer, "Hi", "Hello")
    assert renders_for(renderer, "Hi", " \n") > 1


def test_only_so_many_layouts_are_remembered() -> None:
    renderer = Renderer(load(SAMPLE_TOKENIZER, CHATML), "assistant", max_layouts=2)
    one, two, three = ("a", "b"), ("a", "b", "c", "d"), ("a", "b", "c", "d", "e", "f")
    for contents in (one, two):
        assert renders_for(renderer, *contents) > 1
    for contents in (one, two):
        assert renders_for(renderer, *contents) == 1
    assert renders_for(renderer, *three) > 1  # this forgets the others
    assert renders_for(renderer, *three) == 1
    assert renders_for(renderer, *one) > 1


def test_a_template_that_looks_at_contents_has_no_layout() -> None:
    template = CHATML.replace("m.content", "m.content | upper")
    renderer = Renderer(load(SAMPLE_TOKENIZER, template), "assistant")
    assert not renderer.tokenizer.is_content_blind
    assert renders_for(renderer, "Hi", "Hello") == renders_for(renderer, "Hi", "Hello") == 3


@pytest.mark.parametrize("has_tools", [True, False])
def test_a_row_with_tools_or_more_than_contents_has_no_layout(has_tools: bool) -> None:
    template = "{{ tools | tojson if tools else '' }}" + CHATML.replace(
        "{{ m.content }}", "{{ m.name }}{{ m.content }}"
    )
    tokenizer = load(SAMPLE_TOKENIZER, template)
    tokenizer.is_content_blind = True
    renderer = Renderer(tokenizer, "assistant")
    more = {} if has_tools else {"name": "Ann"}
    turns = [{"role": "user", "content": "Hi"} | more, {"role": "assistant", "content": "Yes"}]
    row = conversation(turns, tools=[{"name": "search"}] if has_tools else None)
    for _ in range(2):
        before = tokenizer.num_renders
        renderer.training_texts(row)
        assert tokenizer.num_renders - before > 1


def test_a_layout_that_makes_another_text_than_the_template_is_not_used() -> None:
    template = CHATML.replace("m.content", "m.content | replace('sly', 'shy')")
    tokenizer = load(SAMPLE_TOKENIZER, template)
    tokenizer.is_content_blind = True  # wrongly
    renderer = Renderer(tokenizer, "assistant")
    for word in ("plain", "sly"):
        turns = ({"role": "user", "content": word}, {"role": "assistant", "content": word})
        [text] = renderer.training_texts(Conversation(turns, None, HERE))
        assert "sly" not in text.text
