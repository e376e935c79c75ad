"""Assistant turns before the first user's are kept, or left out where that is asked for."""

from dataclasses import replace

import pytest

from sftctl.data.ledger import BadRow
from sftctl.data.masks.overflow import ExampleMaker
from sftctl.data.masks.shortcut import Renderer
from sftctl.data.sample import SAMPLE_TOKENIZER
from tests.toys.data import CHATML, CountingTokenizer, load
from tests.toys.masks import TURNS, conversation, trained_runs

ALTERNATES = (
    "{% for m in messages %}{% if m.role == 'assistant' and loop.first %}"
    "{{ raise_exception('begin with a user') }}{% endif %}{% endfor %}" + CHATML
)
ROW = conversation([TURNS[2], *TURNS[1:3]])


def maker(tokenizer: CountingTokenizer, drops_leading: bool = False) -> ExampleMaker:
    renderer = Renderer(tokenizer, "assistant")
    return ExampleMaker(tokenizer, renderer, 99, "truncate", drops_leading)


def test_a_refused_row_names_the_option() -> None:
    with pytest.raises(BadRow) as caught:
        maker(load(SAMPLE_TOKENIZER, ALTERNATES)).examples(ROW)
    assert caught.value.reason == "template_refused"
    assert "begin with a user" in caught.value.message
    assert caught.value.message.endswith("try --leading-assistant drop)")


def test_another_refused_row_does_not_name_it() -> None:
    template = CHATML.replace("{% for", "{{ raise_exception('no') }}{% for", 1)
    with pytest.raises(BadRow) as caught:
        maker(load(SAMPLE_TOKENIZER, template)).examples(conversation(TURNS))
    assert "--leading-assistant" not in caught.value.message


@pytest.mark.parametrize("template", [ALTERNATES, CHATML])
def test_leading_answers_are_left_out_where_the_setting_says_so(template: str) -> None:
    tokenizer = load(SAMPLE_TOKENIZER, template)
    for first in ([], TURNS[:1]):
        row = conversation([*first, TURNS[2], TURNS[2], *TURNS[1:3]])
        [[example], notes] = maker(tokenizer, drops_leading=True).examples(row)
        assert trained_runs(example, tokenizer) == ["Hello\n\n<|im_end|>"]
        assert tokenizer.decode(example.input_ids) == tokenizer.render([*first, *TURNS[1:3]])
        assert notes == []


def test_marks_of_context_stay_with_their_messages(chatml: CountingTokenizer) -> None:
    row = replace(conversation([TURNS[2], *TURNS[1:5]]), untrained=frozenset({2}))
    [[example], _] = maker(chatml, drops_leading=True).examples(row)
    assert trained_runs(example, chatml) == ["🤖你好，世界👩‍👩‍👧<|im_end|>"]


def test_a_row_of_the_assistant_alone_keeps_its_turns(chatml: CountingTokenizer) -> None:
    [[example], _] = maker(chatml, drops_leading=True).examples(conversation(TURNS[2:3]))
    assert trained_runs(example, chatml) == ["Hello\n\n<|im_end|>"]
