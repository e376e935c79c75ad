"""generate: which tokens end an answer, and the pieces in which it is passed on."""

from types import SimpleNamespace
from typing import Any, cast

import torch

from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.model.generate import generate, stop_ids
from sftctl.model.sampling import Sampling
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer


class Scripted:
    """A model that answers with given tokens, through transformers' streamer interface."""

    device = torch.device("cpu")
    generation_config = SimpleNamespace(eos_token_id=[7, 8])

    def __init__(self, answer: list[int]) -> None:
        self.answer = answer

    def generate(self, input_ids: torch.Tensor, streamer: Any, **_: object) -> None:
        streamer.put(input_ids)
        for token in self.answer:
            streamer.put(torch.tensor([token]))
        streamer.end()


def pieces_of(text: str, tokenizer: ChatTokenizer, after: list[int]) -> list[str]:
    """What `generate` passes on if the model answers with `text` and the tokens `after` it."""
    pieces: list[str] = []
    model: Any = Scripted([*tokenizer.encode(text).tolist(), *after])
    answer = generate(model, tokenizer, [1, 2, 3], Sampling(), pieces.append)
    assert answer == "".join(pieces)
    return pieces


def test_a_character_of_several_tokens_is_passed_on_complete(bundled: ChatTokenizer) -> None:
    pieces = pieces_of("🙂 ok", bundled, [])
    assert len(bundled.encode("🙂")) > 1
    assert pieces[0] == "🙂"
    assert "".join(pieces) == "🙂 ok"


def test_blanks_around_an_answer_and_its_end_are_dropped(bundled: ChatTokenizer) -> None:
    end = int(bundled.hf.eos_token_id)
    assert "".join(pieces_of("  one  two \n", bundled, [end])) == "one  two"


def test_special_tokens_in_an_answer_are_not_text() -> None:
    tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER))
    words, model = tokenizer.encode(" words").tolist(), Scripted([])
    special = min(tokenizer.special_ids - {*stop_ids(cast(Any, model), tokenizer)})
    model.answer = [special, *words, special, *words]
    assert generate(cast(Any, model), tokenizer, [1, 2, 3], Sampling()) == "words words"


def test_an_answer_ends_at_the_tokens_of_tokenizer_model_and_template() -> None:
    tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER))
    end_of_turn = int(tokenizer.hf.eos_token_id)
    other = min(tokenizer.special_ids - {end_of_turn})
    tokenizer.hf.eos_token = tokenizer.hf.convert_ids_to_tokens(other)
    model: Any = Scripted([])
    assert stop_ids(model, tokenizer) == sorted({end_of_turn, other, 7, 8})


def test_a_template_without_an_end_of_turn_adds_no_stop_token() -> None:
    tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER))
    tokenizer.hf.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    model: Any = Scripted([])
    assert stop_ids(model, tokenizer) == sorted({int(tokenizer.hf.eos_token_id), 7, 8})


def test_an_answer_ends_at_the_next_roles_token_if_the_template_has_no_other_end() -> None:
    """GLM 4.5 has no end-of-turn token: it stops at <|user|> or <|observation|>."""
    tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER))
    user, tool = "<|im_start|>", "<|endoftext|>"
    tokenizer.hf.chat_template = (
        "{% for m in messages %}{{ '" + tool + "' if m.role == 'tool' else '" + user + "' }}"
        "{{ m.content }}\n{% endfor %}"
    )
    model: Any = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
    wanted = {tokenizer.hf.convert_tokens_to_ids(text) for text in (user, tool)}
    found = set(stop_ids(model, ChatTokenizer(tokenizer.hf, "glm")))
    assert found == wanted | {tokenizer.hf.eos_token_id}
