"""Target characters become exactly the tokens that they cover, or the row is refused."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sftctl.data.ledger import BadRow, Reason
from sftctl.data.masks.encode import encode_texts, tokenize
from sftctl.data.masks.turns import TrainingText, training_texts
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.errors import EngineDiffers
from sftctl.model.tokenizer.encoders import Ids
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from tests.toys.data import CHATML, SHARED, CountingTokenizer, conversations, load
from tests.toys.first_sample import TRAIN, VALIDATION
from tests.toys.masks import TURNS, Messages, conversation, trained, trained_runs

SPACED = (
    "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
ANY = conversation(TURNS)


def mask_of(text: str, *targets: tuple[int, int], tokenizer: ChatTokenizer) -> list[bool]:
    [example] = encode_texts([TrainingText(text, list(targets))], ANY, tokenizer)
    mask: list[bool] = example.loss_mask.tolist()
    return mask


@pytest.mark.parametrize("is_fast", [False, True])
def test_edges_between_tokens_are_exact(chatml: CountingTokenizer, is_fast: bool) -> None:
    tokenizer = chatml.fast() if is_fast else chatml
    text = "<|im_start|>a<|im_end|>"
    ends = np.cumsum([len("<|im_start|>"), 1, len("<|im_end|>")]).tolist()
    assert len(tokenizer.encode(text)) == 3
    for targets, mask in (
        ([(ends[0], ends[1])], [False, True, False]),
        ([(ends[0], ends[2])], [False, True, True]),
        ([(ends[0], ends[1]), (ends[1], ends[2])], [False, True, True]),
        ([(0, ends[1])], [False, True, False]),  # nothing predicts the first token
    ):
        assert mask_of(text, *targets, tokenizer=tokenizer) == mask


@pytest.mark.parametrize("is_fast", [False, True])
@pytest.mark.parametrize("span", [(12, 13), (13, 14), (11, 14), (12, 15)])
def test_an_edge_inside_a_token_is_refused(
    chatml: CountingTokenizer, is_fast: bool, span: tuple[int, int]
) -> None:
    tokenizer = chatml.fast() if is_fast else chatml
    text = "<|im_start|>he<|im_end|>"
    assert len(tokenizer.encode(text)) == 3
    with pytest.raises(BadRow, match="rows.jsonl:7: a token is half inside an assistant") as caught:
        mask_of(text, span, tokenizer=tokenizer)
    assert caught.value.reason == "mask_not_exact"


def test_pieces_with_as_many_tokens_but_other_ids_do_not_decide(chatml: CountingTokenizer) -> None:
    """The text is t + he, and the pieces are th + e: the edge is inside a token of the text."""
    fast = chatml.fast()
    assert len(fast.encode("the")) == len(fast.encode("th")) + len(fast.encode("e")) == 2
    with pytest.raises(BadRow, match="a token is half inside"):
        mask_of("the", (2, 3), tokenizer=fast)


def test_an_edge_in_white_space_that_no_token_covers_is_refused() -> None:
    words = models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a")
    backend = Tokenizer(words)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=CHATML)
    tokenizer = CountingTokenizer(hf, "words")
    assert tokenizer.encode_with_offsets("a b c")[1] == [(0, 1), (2, 3), (4, 5)]
    for span in ((0, 1), (0, 3), (2, 5), (3, 5), (4, 5)):  # each has an edge next to a space
        with pytest.raises(BadRow, match="a token is half inside"):
            mask_of("a b c", span, tokenizer=tokenizer)
    assert mask_of("a b c", (0, 5), tokenizer=tokenizer) == [False, True, True]


def test_all_tokens_of_one_character_are_on_one_side(chatml: CountingTokenizer) -> None:
    text = "a\U0001f9ffb"
    num_tokens = len(chatml.encode(text))
    assert num_tokens > 3  # the middle character is several tokens
    expected = [False, *[True] * (num_tokens - 2), False]
    for tokenizer in (chatml, chatml.fast()):
        assert mask_of(text, (1, 2), tokenizer=tokenizer) == expected


class OtherIds(CountingTokenizer):
    """A fast engine whose ids differ from the reference's."""

    is_fast = True
    engine = "other 1.0"

    def encode(self, text: str) -> Ids:
        return super().encode(text)[::-1]


def test_a_fast_engine_that_returns_other_ids_is_not_trusted(chatml: CountingTokenizer) -> None:
    tokenizer = OtherIds(chatml.hf, "other")
    with pytest.raises(EngineDiffers, match="rows.jsonl:7: other 1.0 returns other token ids"):
        mask_of("Hello there", (1, 5), tokenizer=tokenizer)


def test_a_text_that_begins_with_two_bos_tokens_is_refused() -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    hf = load(SAMPLE_TOKENIZER, template).hf
    hf.bos_token = "<|im_start|>"
    tokenizer = CountingTokenizer(hf, "with a BOS token")
    answer = {"role": "assistant", "content": "Hello"}
    assert trained(tokenizer, [{"role": "user", "content": "Hi"}, answer]) == ["Hello<|im_end|>"]
    within = {"role": "user", "content": "Hi <|im_start|><|im_start|>"}
    assert trained(tokenizer, [within, answer]) == ["Hello<|im_end|>"]
    with pytest.raises(BadRow) as caught:
        trained(tokenizer, [{"role": "user", "content": "<|im_start|>Hi"}, answer])
    assert caught.value.reason == "duplicate_bos"
    assert caught.value.message == (
        "rows.jsonl:7: the text begins with two beginning-of-sequence tokens"
    )


def test_equal_first_tokens_are_fine_without_a_bos_token(chatml: CountingTokenizer) -> None:
    assert mask_of("<|im_end|><|im_end|>a", (20, 21), tokenizer=chatml) == [False, False, True]


@pytest.mark.parametrize(
    ("template", "messages", "reason", "message"),
    [
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            TURNS[1:3],
            "message_not_rendered",
            "message 2: the chat template leaves out its content",
        ),
    ],
    ids=["turn rendered as nothing"],
)
def test_a_row_without_an_exact_mask_is_refused(
    template: str, messages: Messages, reason: Reason, message: str
) -> None:
    with pytest.raises(BadRow) as caught:
        tokenize(conversation(messages), load(SAMPLE_TOKENIZER, template), "assistant")
    assert caught.value.message == f"rows.jsonl:7: {message}"
    assert caught.value.reason == reason


@pytest.mark.parametrize("is_fast", [False, True])
def test_an_answer_without_a_token_edge_is_encoded_apart_from_its_prompt(
    chatml: CountingTokenizer, is_fast: bool
) -> None:
    reference = load(SAMPLE_TOKENIZER, SPACED)
    tokenizer = reference.fast() if is_fast else reference
    turns = [TURNS[1], {"role": "assistant", "content": "the"}] * 2
    texts = training_texts(conversation(turns), tokenizer, "assistant")
    examples = encode_texts(texts, conversation(turns), tokenizer)
    prompt = "user Hi <think> assistant "
    for example, before in zip(examples, (prompt, f"{prompt}the{prompt}"), strict=True):
        inference = tokenizer.encode(before).tolist()
        assert example.input_ids[: len(inference)].tolist() == inference
        assert example.loss_mask.tolist()[: len(inference)] == [False] * len(inference)
        assert trained_runs(example, tokenizer) == ["the<|im_end|>"]


def test_only_the_answers_without_a_token_edge_get_their_own_examples() -> None:
    tokenizer = load(SAMPLE_TOKENIZER, SPACED.replace("{% endfor %}", "<|im_end|>{% endfor %}"))
    answers = [
        {"role": "assistant", "content": text}
        for text in ("<|im_start|>yes", "the", "<|im_end|>no")
    ]
    turns = [turn for answer in answers for turn in (TURNS[1], answer)]
    examples = tokenize(conversation(turns), tokenizer, "assistant")
    assert [trained_runs(example, tokenizer) for example in examples] == [
        ["<|im_start|>yes<|im_end|>", "<|im_end|>no<|im_end|>"],
        ["the<|im_end|>"],
    ]


def test_an_end_token_that_takes_in_the_new_line_after_it_is_trained() -> None:
    """Phi-3.5's <|end|> is of this kind."""
    hf = load(SAMPLE_TOKENIZER, CHATML.replace("<|im_end|>", "<|end|>")).hf
    hf.add_tokens([AddedToken("<|end|>", special=True, normalized=False, rstrip=True)])
    tokenizer = CountingTokenizer(hf, "takes in white space")
    turns = [*TURNS[1:3], *TURNS[1:3]]
    assert trained(tokenizer, turns) == ["Hello\n\n<|end|>"] * 2


def test_a_tokenizer_that_puts_a_space_before_each_text_has_no_answers_apart() -> None:
    backend = Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1, "a": 2, "▁ab": 3}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template)
    tokenizer = CountingTokenizer(hf, "metaspace")
    with pytest.raises(BadRow, match="a token is half inside"):
        trained(
            tokenizer, [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"))]
        )


def mask_from_tokens(tokenizer: CountingTokenizer, ids: Sequence[int]) -> list[bool]:
    """From the tokens only: after an assistant header, up to and including the end of turn."""
    header, end = (tokenizer.encode(t).tolist() for t in ("<|im_start|>assistant\n", "<|im_end|>"))
    mask, is_inside = [], False
    for position, token in enumerate(ids):
        is_inside = is_inside or ids[max(0, position - len(header)) : position] == header
        mask.append(is_inside)
        is_inside = is_inside and [token] != end
    return mask


def assert_masks_follow_the_tokens(path: Path, tokenizer: CountingTokenizer, num_rows: int) -> None:
    rows = conversations(path)
    assert len(rows) == num_rows
    for row in rows:
        [example] = tokenize(row, tokenizer, "assistant")
        text = tokenizer.render(list(row.messages), row.tools, False)
        assert tokenizer.decode(example.input_ids) == text
        assert example.loss_mask.tolist() == mask_from_tokens(tokenizer, example.input_ids.tolist())
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
def test_masks_of_every_row_of_real_files_follow_the_tokens(
    minimind: CountingTokenizer, name: str, num_rows: int
) -> None:
    assert_masks_follow_the_tokens(SHARED / f"{name}.json", minimind, num_rows)


@pytest.mark.parametrize("path", [TRAIN, VALIDATION], ids=lambda path: path.stem)
def test_masks_of_many_conversations_follow_the_tokens(
    chatml: CountingTokenizer, path: Path
) -> None:
    assert_masks_follow_the_tokens(path, chatml, len(path.read_text("utf-8").splitlines()))
