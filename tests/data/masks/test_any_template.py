"""For any contents and any template every assistant turn is trained once, and nothing else."""

import re
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from sftctl.data.conversations.conversation import Conversation
from sftctl.data.masks.encode import encode_texts
from sftctl.data.masks.shortcut import Renderer
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from tests.toys.data import CHATML, HERE

ANSWER = "{% if m.role == 'assistant' %}"
TEMPLATES = {
    "chatml": CHATML,
    "system by default": "{% if messages[0].role != 'system' %}<|im_start|>system\nnop<|im_end|>\n"
    "{% endif %}" + CHATML,
    "trimmed": CHATML.replace("m.content", "m.content | trim"),
    "old answers shortened": CHATML.replace(
        "{{ m.content }}",
        ANSWER + "{{ m.content if loop.last else m.content.split('b')[-1] }}{% else %}"
        "{{ m.content }}{% endif %}",
    ),
    "thinking before the last": CHATML.replace(
        "{{ m.content }}",
        ANSWER + "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{% endif %}{{ m.content }}",
    ),
    "text after the last": CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}",
}
REWRITING = ("old answers shortened", "thinking before the last")


@cache
def tokenizer(name: str) -> ChatTokenizer:
    hf = AutoTokenizer.from_pretrained(SAMPLE_TOKENIZER)
    hf.chat_template = TEMPLATES[name]
    return ChatTokenizer(hf, name)


def content(letters: str) -> st.SearchStrategy[str]:
    """Texts that end with a letter; those of assistants and of others share no letter."""
    return st.text(letters + " \n你🤖é", max_size=10).map(lambda text: text + letters[0])


TURN = st.one_of(
    content("abcdefg").map(lambda text: {"role": "assistant", "content": text}),
    content("opqrst").map(lambda text: {"role": "user", "content": text}),
    content("opqrst").map(lambda text: {"role": "system", "content": text}),
)
TURNS = st.lists(TURN, min_size=1, max_size=6).filter(
    lambda turns: any(turn["role"] == "assistant" for turn in turns)
)


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=30, deadline=None)
@given(turns=TURNS)
def test_the_assistants_turns_are_trained_once_and_nothing_else(
    name: str, engine: str, turns: list[dict[str, str]]
) -> None:
    roles = [turn["role"] for turn in turns]
    twice = any(pair == ("assistant", "assistant") for pair in pairwise(roles))
    # Such rows are refused: the text before a turn is unclear, or not what inference sees.
    assume(not (name in REWRITING and twice))
    assume(not (name == "text after the last" and roles[0] == "assistant"))
    reference = tokenizer(name)
    chosen = reference.fast() if engine == "fast" else reference
    row = Conversation(tuple(turns), None, HERE)
    examples = encode_texts(Renderer(chosen, "assistant").training_texts(row), row, chosen)
    prefixes = [reference.render(turns[: n + 1]) for n in range(len(turns))]
    trained = ""
    for example in examples:
        text = reference.decode(example.input_ids, skip_special_tokens=False)
        assert text in prefixes  # decode(tokens) is what the template makes
        assert example.input_ids.tolist() == reference.encode(text).tolist()
        trained += reference.decode(example.input_ids[example.loss_mask], False)
    ends = re.sub("<think>\n\n</think>\n\n|\n?<.endoftext.>", "", trained).split("<|im_end|>")
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    if name == "trimmed":
        answers = [answer.strip() for answer in answers]
    assert sorted(ends) == sorted([*answers, ""])
