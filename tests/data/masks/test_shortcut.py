"""The short way to renderings gives what the long way gives, or is not taken."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftctl.data.conversations.conversation import Conversation
from sftctl.data.ledger import BadRow, SourceLine
from sftctl.data.masks.shortcut import Renderer
from sftctl.data.masks.turns import training_texts
from sftctl.data.sample import SAMPLE_TOKENIZER
from tests.toys.data import CHATML, load

DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind<|im_end|>\n{% endif %}"
)
TRIMMED = CHATML.replace("m.content", "m.content | trim")
TEMPLATES = {"chatml": CHATML, "default system": DEFAULT_SYSTEM + CHATML, "trimmed": TRIMMED}
TOKENIZERS = {name: load(SAMPLE_TOKENIZER, template) for name, template in TEMPLATES.items()}
HERE = SourceLine("rows.jsonl", 7)

texts = st.text(string.ascii_letters + " \n<>|/_imstarendthk\ue000\ue0010", max_size=12)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": texts}
    ),
    min_size=1,
    max_size=6,
)


def by(function, row):
    try:
        return [(r.text, r.targets) for r in function(row)]
    except BadRow as problem:
        return problem.message


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(messages, st.frozensets(st.integers(0, 5))), max_size=4))
def test_renderings_are_the_same_by_the_skeleton(name, train_on, rows):
    tokenizer = TOKENIZERS[name]
    tokenizer.is_content_blind = True
    renderer = Renderer(tokenizer, train_on)
    for turns, untrained in rows:
        row = Conversation(tuple(turns), None, HERE, untrained & frozenset(range(len(turns))))
        expected = by(lambda row: training_texts(row, tokenizer, train_on), row)
        assert by(renderer.training_texts, row) == expected
        assert by(renderer.training_texts, row) == expected  # the second time it is known


def test_a_known_conversation_is_rendered_once():
    tokenizer = load(SAMPLE_TOKENIZER, CHATML)
    tokenizer.is_content_blind = True
    renderer = Renderer(tokenizer, "assistant")
    turns = [{"role": role, "content": role} for role in ("user", "assistant") * 3]
    renderer.training_texts(Conversation(tuple(turns), None, HERE))
    before = tokenizer.num_renders
    others = [turn | {"content": f"{turn['content']}?"} for turn in turns]
    renderer.training_texts(Conversation(tuple(others), None, HERE))
    assert tokenizer.num_renders - before == 1


def test_a_text_that_is_not_what_the_template_makes_is_not_used():
    template = CHATML.replace("m.content", "m.content | replace('sly', 'shy')")
    tokenizer = load(SAMPLE_TOKENIZER, template)
    tokenizer.is_content_blind = True  # it is not
    renderer = Renderer(tokenizer, "assistant")
    for word in ("plain", "sly"):
        turns = ({"role": "user", "content": word}, {"role": "assistant", "content": word})
        [rendering] = renderer.training_texts(Conversation(turns, None, HERE))
        assert "sly" not in rendering.text
