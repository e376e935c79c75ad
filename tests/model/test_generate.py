"""generate: which tokens end an answer, and the pieces in which it is passed on."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.model.generate import batches_by_length, generate, generate_batch, stop_ids
from sftctl.model.sampling import Sampling
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer
from tests.toys.models import toy_base


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
    """The pieces of `generate` if the model answers with `text` and then the tokens `after`."""
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


_LEARNED_POSITIONS = {"gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}}


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gpt2"])
def test_answers_of_a_batch_are_those_of_each_prompt_alone(
    family: str, bundled: ChatTokenizer
) -> None:
    """In float32, greedy, with prompts of many lengths; some answers end before the others."""
    model = toy_base(family, vocab_size=2048, **_LEARNED_POSITIONS.get(family, {})).eval()
    model.generation_config.repetition_penalty = 1.3  # padding would be repeated too
    random = torch.Generator().manual_seed(0)
    lengths = [1, 2, 3, 5, 8, 13, 21, 40, 13, 2]
    prompts = [torch.randint(3, 2048, (n,), generator=random).tolist() for n in lengths]
    sampling = Sampling(max_new_tokens=12)
    free = [generate(model, bundled, prompt, sampling) for prompt in prompts]
    words = bundled.encode("".join(free)).tolist()
    model.generation_config.eos_token_id = sorted(set(words), key=words.count)[-12:]
    alone = [generate(model, bundled, prompt, sampling) for prompt in prompts]
    assert len(set(alone)) > 1 and alone != free
    assert generate_batch(model, bundled, prompts, sampling) == alone


def test_a_batch_is_cut_when_it_is_told_to_stop(bundled: ChatTokenizer) -> None:
    model, asked = toy_base(vocab_size=2048), list[int]()

    def is_told_at_the_third_call() -> bool:
        asked.append(1)
        return len(asked) > 2

    sampling = Sampling(max_new_tokens=50)
    answers = generate_batch(model, bundled, [[5, 6], [7]], sampling, is_told_at_the_third_call)
    whole = generate_batch(model, bundled, [[5, 6], [7]], sampling)
    assert len(answers) == 2 and answers != whole
    assert all(
        long.startswith(short.rstrip("\ufffd")) for short, long in zip(answers, whole, strict=True)
    )


def test_batches_are_sorted_by_length_and_hold_a_number_of_tokens() -> None:
    lengths = [9, 2, 30, 2, 3, 9]
    assert batches_by_length(lengths, 10, 40) == [[1, 3, 4], [0, 5], [2]]
    assert batches_by_length(lengths, 10, 40, may_pad=False) == [[1, 3], [4], [0, 5], [2]]
    assert batches_by_length(lengths, 10, 1) == [[1], [3], [4], [0], [5], [2]]
    assert batches_by_length([], 10, 40) == []
