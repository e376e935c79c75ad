"""The short way to the texts to train on returns what the long way returns, or is not taken."""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftctl.config.load import load_config
from sftctl.config.schema import TrainOn
from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow
from sftctl.data.masks import shortcut
from sftctl.data.masks.content_shape import ContentShapes
from sftctl.data.masks.encode import encode_texts
from sftctl.data.masks.shortcut import Renderer
from sftctl.data.masks.turns import TrainingText, training_texts
from sftctl.data.prepare.notes import store_notes
from sftctl.data.prepare.prepare import prepare_store
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.errors import LayoutDiffers
from sftctl.model.tokenizer.content_use import ContentUse
from tests.toys.data import CHATML, HERE, CountingTokenizer, load, written
from tests.toys.masks import conversation

DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind<|im_end|>\n{% endif %}"
)
TRIMMED = CHATML.replace("m.content", "m.content | trim")


def answers(text: str) -> str:
    """A template that writes `text` for an answer."""
    other = "{% if m.role == 'assistant' %}" + text + "{% else %}{{ m.content }}{% endif %}"
    return CHATML.replace("{{ m.content }}", other)


KEPT = "{{ m.content.split('</think>')[-1].lstrip('\n') }}"
TEMPLATES = {
    "chatml": CHATML,
    "default system": DEFAULT_SYSTEM + CHATML,
    "trimmed": TRIMMED,
    "in": answers("{{ '[t]' if '</think>' in m.content else '[]' }}{{ m.content }}"),
    "startswith": answers("{% if not m.content.startswith('<t>') %}<t>{% endif %}{{ m.content }}"),
    "endswith": answers("{{ m.content }}{% if m.content.endswith('ab') %}!{% endif %}"),
    "split": answers("{{ m.content.split('ab')[0] }}|{{ m.content.split('ab')[-1] }}"),
    "stripped": answers("<think>{{ m.content.strip('\n') }}</think>{{ m.content.rstrip() }}"),
    "truth": answers("{% if m.content %}[{{ m.content }}]{% else %}nothing{% endif %}"),
    "equal": answers("{{ 'is a' if m.content == 'a' else m.content }}"),
    "replaced": answers("{{ m.content.replace('ab', 'ba') }}"),
    "macro": "{% macro f(x) %}{{ x.lstrip() }}{% endmacro %}" + answers("{{ f(m.content) }}"),
    "thinking of old turns dropped": "{% set ns = namespace(last=0) %}{% for m in messages %}"
    "{% if m.role == 'user' and not m.content.startswith('<t>') %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
    + answers(
        "{% if loop.index0 > ns.last %}<think>\n{{ m.content.split('</think>')[0].strip('\n') }}\n"
        f"</think>\n\n{KEPT}{{% else %}}{KEPT}{{% endif %}}"
    ),
    "another end of the last turn": answers("{{ m.content }}{{ '<|endoftext|>' if loop.last }}"),
}
TOKENIZERS = {name: load(SAMPLE_TOKENIZER, template) for name, template in TEMPLATES.items()}

parts = st.sampled_from(
    ["a", "ab", "b", "<t>", "<think>", "</think>", "<|im_end|>", "end", "\n", " ", "\ue000", "0"]
) | st.text(string.ascii_letters + " \n<>|/_\ue000\ue0010", max_size=6)
texts = st.lists(parts, max_size=5).map("".join)
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
        return function(row)
    except BadRow as problem:
        return problem.message


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.tuples(messages, st.frozensets(st.integers(0, 5))), max_size=4))
def test_the_texts_are_the_same_with_a_layout(
    name: str, train_on: TrainOn, rows: list[tuple[list[dict[str, str]], frozenset[int]]]
) -> None:
    tokenizer = TOKENIZERS[name]
    assert tokenizer.content_use is not None
    renderer = Renderer(tokenizer, train_on)
    for turns, untrained in rows:
        row = Conversation(tuple(turns), None, HERE, untrained & frozenset(range(len(turns))))
        expected = outcome(lambda row: training_texts(row, tokenizer, train_on), row)
        assert outcome(renderer.training_texts, row) == expected
        assert outcome(renderer.training_texts, row) == expected  # the layout is known now


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_and_masks_are_the_same_with_a_layout(name: str) -> None:
    """One rendering is enough for other contents for which the template's tests give equal
    results."""
    tokenizer = load(SAMPLE_TOKENIZER, TEMPLATES[name])
    renderer = Renderer(tokenizer, "assistant")
    for word in ("one", "two"):
        roles = ("user", "assistant") * 2
        contents = ("Why " + word, f"{word} ab {word}", "<t> " + word, f"{word}</think>\n\n{word}.")
        turns = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        row = conversation(turns)
        before = tokenizer.num_renders
        short = outcome(renderer.training_texts, row)
        num_renders = tokenizer.num_renders - before
        long = outcome(lambda row: training_texts(row, tokenizer, "assistant"), row)
        if isinstance(short, str):
            assert short == long
            continue
        assert num_renders == 1 or word == "one"
        pairs = zip(*(encode_texts(way, row, tokenizer) for way in (short, long)), strict=True)
        for one, other in pairs:
            assert one.input_ids.tolist() == other.input_ids.tolist()
            assert one.loss_mask.tolist() == other.loss_mask.tolist()


@pytest.mark.parametrize(
    "use",
    [
        "{{ m.content | length }}",
        "{{ m.content[0] }}",
        "{% for letter in m.content %}{{ letter }}{% endfor %}",
        "{{ m.content | capitalize }}",
    ],
)
def test_a_template_that_uses_contents_in_an_unknown_way_has_no_layout(use: str) -> None:
    renderer = Renderer(load(SAMPLE_TOKENIZER, answers(use + "{{ m.content }}")), "assistant")
    assert renderer.tokenizer.content_use is None
    assert renders_for(renderer, "Hi", "Hello") == renders_for(renderer, "Hi", "Hello") > 1


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
    assert renders_for(renderer, "Hi", "Hello", "What?", "That.") > 1
    assert renders_for(renderer, "Hi?", "Hello?", "Who?", "You.") == 1
    assert renders_for(renderer, "Hi?", "Hello?") > 1  # another layout
    assert renders_for(renderer, "Hi?", "") > 1  # and another
    assert renders_for(renderer, "Hi", "") == 1


def test_contents_of_white_space_only_have_their_own_layout() -> None:
    renderer = Renderer(load(SAMPLE_TOKENIZER, CHATML), "assistant")
    renders_for(renderer, "Hi", "Hello")
    assert renders_for(renderer, "Hi", " \n") > 1
    assert renders_for(renderer, "Ho", " \n") == 1


def test_layouts_that_take_too_much_memory_are_forgotten() -> None:
    renderer = Renderer(load(SAMPLE_TOKENIZER, CHATML), "assistant", max_fixed_texts=12)
    for contents in (("a", "b"), ("a", "b", "c", "d"), ("a", "b")):
        assert renders_for(renderer, *contents) > 1


def test_a_long_conversation_is_rendered_once() -> None:
    """Its cost does not grow with the square of its turns, once its layout is known."""
    for template in ("split", "thinking of old turns dropped"):
        renderer = Renderer(load(SAMPLE_TOKENIZER, TEMPLATES[template]), "assistant")
        renders_for(renderer, *["Hi"] * 40)
        assert renders_for(renderer, *["Ho"] * 40) == 1


def test_what_decides_the_shape_of_a_content() -> None:
    use = ContentUse(frozenset({"<a>", "a>b", "xx"}), strips=True)
    shapes = ContentShapes.of(use, TOKENIZERS["chatml"])
    assert shapes.split("") == (("",), [])
    assert shapes.split(" \n") == ((" \n",), [])
    assert shapes.split("so") == (("", ""), ["so"])
    assert shapes.split("\nso it\n ") == (("\n", "\n "), ["so it"])
    assert shapes.split("so<a> <a>is it ") == (("", "<a> <a>", " "), ["so", "is it"])
    assert shapes.split("<|im_end|>") == (("<|im_end|>",), [])
    assert shapes.split("</think>") == (("</think>",), [])
    assert shapes.split("<a>b") is None  # `a>b` is also in it, where `<a>` was cut off
    assert shapes.split("xxx!") == (("xx", ""), ["x!"]) or shapes.split("xxx!") is None
    assert shapes.split("a \ue002") is None
    assert shapes.split("xx." * 40) is None
    plain = ContentShapes.of(ContentUse(), TOKENIZERS["chatml"])
    assert plain.split("\nso \n") == (("", ""), ["\nso \n"])


def test_an_answer_that_is_part_of_what_follows_it_is_made_the_long_way() -> None:
    renderer = Renderer(
        load(SAMPLE_TOKENIZER, TEMPLATES["another end of the last turn"]), "assistant"
    )
    renders_for(renderer, "Hi", "Hello")
    assert renders_for(renderer, "Hi", "you") == 1
    assert renders_for(renderer, "Hi", "end") > 1


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


@pytest.mark.parametrize("has_tools", [True, False])
def test_a_row_with_tools_or_more_than_contents_has_no_layout(has_tools: bool) -> None:
    template = "{{ tools | tojson if tools else '' }}" + CHATML.replace(
        "{{ m.content }}", "{{ m.name }}{{ m.content }}"
    )
    tokenizer = load(SAMPLE_TOKENIZER, template)
    tokenizer.content_use = ContentUse()
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
    tokenizer.content_use = ContentUse()  # wrongly
    renderer = Renderer(tokenizer, "assistant")
    for word in ("plain", "sly"):
        turns = ({"role": "user", "content": word}, {"role": "assistant", "content": word})
        [text] = renderer.training_texts(Conversation(turns, None, HERE))
        assert "sly" not in text.text


WRONG = answers("{{ '[x]' if loop.last and 'x' in m.content else '' }}{{ m.content }}")
"""With `content_use` wrongly known: the full text does not show it if the `x` is in an old turn."""


ROLES = ("user", "assistant", "user", "assistant", "user")


def wrong_tokenizer() -> CountingTokenizer:
    tokenizer = load(SAMPLE_TOKENIZER, WRONG)
    tokenizer.content_use = ContentUse()
    return tokenizer


def test_a_row_that_is_made_both_ways_shows_a_wrong_layout() -> None:
    renderer = Renderer(wrong_tokenizer(), "assistant")
    for content, digest in (("o", 999), ("x", 998)):
        turns = [
            {"role": r, "content": content} for r in ("user", "assistant", "user", "assistant")
        ]
        row = Conversation((*turns, {"role": "user", "content": "o"}), None, HERE, digest=digest)
        renderer.training_texts(row)
    with pytest.raises(LayoutDiffers, match="rows.jsonl:7: the texts differ"):
        renderer.training_texts(Conversation(row.messages, None, HERE, digest=1999))


def test_all_rows_are_made_the_long_way_if_one_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortcut, "_COMPARED", 1)  # all are made both ways
    rows = [{"messages": [{"role": r, "content": c} for r in ROLES]} for c in ("o", "x")]
    file = written(tmp_path / "rows.jsonl", rows)
    data = load_config().data
    stores = [
        prepare_store([file], tmp_path / name, tokenizer, data)
        for name, tokenizer in (("a", wrong_tokenizer()), ("b", load(SAMPLE_TOKENIZER, WRONG)))
    ]
    wrong, right = (store.manifest for store in stores)
    said = f"{file}:2: the texts differ when every prefix is rendered"
    assert (wrong.layout_differs, right.layout_differs) == (said, "")
    assert ("masks", f"all rows were made the long way ({said})") in list(store_notes(wrong))
    assert {**wrong.files, "ledger.jsonl": None} == {**right.files, "ledger.jsonl": None}
