"""Arguments and ids of calls reach the template in the form that it needs."""

from typing import Any

import pytest

from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow
from sftctl.data.masks.encode import tokenize
from sftctl.data.masks.server_form import as_servers_send
from sftctl.data.sample import SAMPLE_TOKENIZER
from tests.toys.data import CHATML, load
from tests.toys.masks import conversation

WRITES = "{{ m.content }}{% for c in m.tool_calls or [] %}<call>%s</call>{% endfor %}"


def written(how: str, arguments: Any) -> str:
    """The text of these arguments by a template that writes a call as `how`."""
    template = CHATML.replace("{{ m.content }}", WRITES.replace("%s", how))
    call = {"function": {"name": "f", "arguments": arguments}}
    row = conversation(
        [
            {"role": "user", "content": "Go"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
    )
    tokenizer = load(SAMPLE_TOKENIZER, template)
    [example] = tokenize(row, tokenizer, "assistant")
    text = tokenizer.decode(example.input_ids)
    return text[text.index("<call>") + 6 : text.index("</call>")]


QUOTED = {"q": 'L\'Île "x" <y>', "n": [1, True, None]}
TEXT = '{"q": "L\'Île \\"x\\" <y>", "n": [1, true, null]}'


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("{{ c.function.name }}{{ c.function.arguments | tojson }}", "f" + TEXT),
        ("{{ c.function | tojson }}", '{"name": "f", "arguments": ' + TEXT + "}"),
        ("{{ c.function.name + c.function.arguments }}", "f" + TEXT),  # DeepSeek V3, Functionary
        (
            "{{ c.function.name }}{{ c.function.arguments }}",
            "f" + TEXT,
        ),  # an object would be written as Python does
        ("{{ c.function.name }}{{ c.function.arguments | string }}", "f" + TEXT),
        ("{{ c.function.name }}{{ c.function.arguments | string | escape }}", None),
        (
            "{{ c.function.name }}"
            "{% for k, v in c.function.arguments | items %}<{{ k }}>{{ v }}{% endfor %}",
            'f<q>L\'Île "x" <y><n>[1, True, None]',
        ),
    ],
)
def test_arguments_are_an_object_where_the_template_writes_it_as_json_and_else_text(
    how: str, expected: str | None
) -> None:
    for arguments in (QUOTED, TEXT):
        if expected is not None:
            assert written(how, arguments) == expected


def test_arguments_without_keys_stay_an_object() -> None:
    items = "{% for k, v in c.function.arguments | items %}<{{ k }}>{{ v }}{% endfor %}"
    items = "{{ c.function.name }}" + items
    assert written(items, {}) == "f"
    assert written("{{ c.function.name }}{{ c.function.arguments | tojson }}", {}) == "f{}"


NINE = (
    "{% if m.tool_calls %}{% for c in m.tool_calls %}{% if not c.id or c.id | length != 9 %}"
    "{{ raise_exception('ids have nine letters') }}{% endif %}{{ c.function | tojson }} {{ c.id }};"
    "{% endfor %}{% elif m.role == 'tool' %}{% if not m.tool_call_id or m.tool_call_id | length "
    "!= 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}{{ m.content }} "
    "{{ m.tool_call_id }}{% else %}{{ m.content }}{% endif %}"
)


def ids_of(row: Conversation) -> list[str]:
    messages = as_servers_send(
        row, load(SAMPLE_TOKENIZER, CHATML.replace("{{ m.content }}", NINE))
    ).messages
    found = []
    for message in messages:
        found += [call["id"] for call in message.get("tool_calls", ())]
        found += [message["tool_call_id"]] if message["role"] == "tool" else []
    return found


def calling(
    *ids: str | None, results: tuple[str | None, ...], question: str = "Go"
) -> Conversation:
    calls: list[dict[str, Any]] = [
        {"function": {"name": "f", "arguments": {}}} | ({"id": id} if id else {}) for id in ids
    ]
    return conversation(
        [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "", "tool_calls": calls},
            *(
                {"role": "tool", "content": "1"} | ({"tool_call_id": id} if id else {})
                for id in results
            ),
            {"role": "assistant", "content": "Done"},
        ]
    )


def test_ids_that_a_template_needs_are_made_and_are_always_the_same() -> None:
    first, second, *results = ids_of(calling(None, None, results=(None, None)))
    assert [first, second] == results
    assert first != second
    assert all(len(made) == 9 and made.isalnum() for made in (first, second))
    assert ids_of(calling(None, None, results=(None, None)))[:2] == [first, second]
    assert ids_of(calling(None, results=(None,), question="Now"))[0] != first


def test_ids_that_fit_are_kept_and_others_are_replaced_in_calls_and_results() -> None:
    assert ids_of(calling("abc123def", results=("abc123def",))) == ["abc123def"] * 2
    one, two, *results = ids_of(calling("call_1", "call_2", results=("call_2", "call_1")))
    assert results == [two, one]
    assert {len(one), len(two)} == {9}


def test_a_template_that_needs_no_ids_gets_none() -> None:
    row = calling(None, results=(None,))
    template = CHATML.replace(
        "{{ m.content }}", "{{ m.content }}{{ (m.tool_calls or '') | tojson }}"
    )
    assert as_servers_send(row, load(SAMPLE_TOKENIZER, template)) == row


def test_a_template_that_refuses_every_form_refuses_the_row_with_its_first_reason() -> None:
    template = CHATML.replace(
        "{{ m.content }}",
        "{% if m.tool_calls %}{{ raise_exception('no calls') }}{% endif %}{{ m.content }}",
    )
    with pytest.raises(BadRow, match="no calls") as caught:
        tokenize(calling(None, results=(None,)), load(SAMPLE_TOKENIZER, template), "assistant")
    assert caught.value.reason == "template_refused"
