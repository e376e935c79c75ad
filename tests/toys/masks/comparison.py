"""Compare the texts, token ids and masks of the product with those of an independent reference."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Encoding

from sftctl.data.conversations.conversation import Conversation
from sftctl.data.example import TokenizedExample
from sftctl.data.ledger import BadRow
from sftctl.data.masks.encode import encode_texts
from sftctl.data.masks.shortcut import Renderer
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer
from tests.toys.masks.reference import RENDERS, Expected, Refused, expected_mask, expected_texts
from tests.toys.masks.templates import FAMILIES, Family


class Comparison:
    """The product's examples, made with a fast engine and the shortcut, against the reference's."""

    def __init__(self, folder: Path, name: str) -> None:
        """`name` is the tokenizer whose own template is used, or a family to imitate."""
        tokenizer = load_tokenizer(str(folder))
        if name in FAMILIES:
            tokenizer = in_family(tokenizer, FAMILIES[name])
        self.tokenizer = tokenizer.fast()
        self.hf = tokenizer.hf
        self._renderer = Renderer(self.tokenizer, "assistant")
        self._render = RENDERS[name]

    def examples(self, row: Conversation) -> list[TokenizedExample]:
        return encode_texts(self._renderer.training_texts(row), row, self.tokenizer)

    def assert_equal(self, row: Conversation) -> bool:
        """False if both refuse the row. Raises AssertionError where they differ."""
        try:
            texts = expected_texts(list(row.messages), row.tools, self._render)
            expected = [example for text in texts for example in self._as_at_inference(text)]
            if not texts:
                raise Refused("no assistant turn")
        except Refused:
            with pytest.raises(BadRow):
                self.examples(row)
            return False
        examples = self.examples(row)
        assert len(examples) == len(expected), row.source
        for example, (ids, mask) in zip(examples, expected, strict=True):
            # Ids, not decoded text: SmolLM2's vocabulary has no token for some control characters,
            # so three rows of ShareGPT lose them.
            assert example.input_ids.tolist() == ids
            np.testing.assert_array_equal(example.loss_mask, mask, err_msg=str(row.source))
        return True

    def _as_at_inference(self, text: Expected) -> Iterator[tuple[list[int], list[bool]]]:
        """Ids and masks. A turn is in an example of its own if the prompt before it, encoded alone,
        becomes other tokens: then prompt and turn are encoded apart."""
        whole = self.hf.backend_tokenizer.encode(text.text, add_special_tokens=False)
        prompts = {span: self._ids(text.text[: span[0]]) for span in text.spans}
        exact = [span for span in text.spans if _begin(whole, span) == prompts[span]]
        if exact or not text.spans:
            yield whole.ids, expected_mask(Expected(text.text, exact), whole.offsets)
        for start, end in text.spans:
            if (start, end) not in exact:
                prompt, turn = prompts[start, end], self._ids(text.text[start:end])
                yield prompt + turn, [False] * len(prompt) + [True] * len(turn)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.hf.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _begin(encoding: Encoding, span: tuple[int, int]) -> list[int]:
    """The tokens that begin before a span."""
    ids: list[int] = encoding.ids
    return ids[: sum(start < span[0] for start, _ in encoding.offsets)]


def in_family(tokenizer: ChatTokenizer, family: Family) -> ChatTokenizer:
    """A tokenizer with the special tokens and the template of a family."""
    hf = tokenizer.hf
    begins = {"bos_token": family.bos} if family.bos else {}
    hf.add_special_tokens(begins | {"eos_token": family.special[-1]})
    hf.add_tokens([AddedToken(token, special=True, normalized=False) for token in family.special])
    hf.chat_template = family.template
    return ChatTokenizer(hf, tokenizer.name)
