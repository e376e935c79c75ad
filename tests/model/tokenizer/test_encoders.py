"""The fast engine is used only if it proves equal to the reference."""

import numpy as np
import pytest
import splintr

from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.errors import EngineDiffers
from sftctl.model.tokenizer.encoders import Checked, Reference, Splintr, fast_engine
from sftctl.model.tokenizer.template_errors import TemplateFailed
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer


class OffByOne:
    """An engine that is wrong for texts with a z."""

    name = "off by one 1.0"
    is_fast = True

    def __init__(self, fast: Splintr) -> None:
        self._fast = fast

    def encode(self, text: str) -> np.ndarray:
        return self._fast.encode(text) + ("z" in text)


def test_the_fast_engine_gives_the_ids_of_the_reference(bundled: ChatTokenizer) -> None:
    fast = bundled.fast()
    assert (fast.is_fast, fast.engine.split()[0]) == (True, "splintr-rs")
    assert (bundled.is_fast, bundled.engine.split()[0]) == (False, "tokenizers")
    for text in ("Hello<|im_end|>\n", "你好🤖 \t\n z", ""):
        assert fast.encode(text).tolist() == bundled.encode(text).tolist()
        assert fast.encode(text).dtype == np.int32


def test_offsets_come_from_the_reference(bundled: ChatTokenizer) -> None:
    assert bundled.fast().encode_with_offsets("Hi")[1] == bundled.encode_with_offsets("Hi")[1]


def test_a_checked_engine_names_the_text_on_which_it_differs(bundled: ChatTokenizer) -> None:
    wrong = OffByOne(Splintr(bundled.hf))
    checked = Checked(wrong, Reference(bundled.hf))  # type: ignore[arg-type]
    assert checked.encode("a").tolist() == bundled.encode("a").tolist()
    with pytest.raises(EngineDiffers, match=r"off by one 1\.0 returns other token ids for 'a z'"):
        checked.encode("a z")


def test_probes_find_an_engine_that_is_not_equal(
    bundled: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = splintr.from_json_bytes(bundled.hf.backend_tokenizer.to_str().encode())

    class NoDigits:
        def encode_flat(self, text: str) -> bytes:
            return real.encode_flat(text.replace("8", "9"))

    monkeypatch.setattr("splintr.from_json_bytes", lambda data: NoDigits())
    with pytest.raises(EngineDiffers, match=r"splintr-rs .* returns other token ids for .Hello"):
        fast_engine(bundled.hf)


def test_a_tokenizer_that_the_engine_can_not_load_is_an_error() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    hf = PreTrainedTokenizerFast(tokenizer_object=words)
    with pytest.raises(EngineDiffers, match="splintr-rs can't load this tokenizer: "):
        fast_engine(hf)
    tokenizer = ChatTokenizer(hf, "words")
    assert not tokenizer.with_engine("auto").is_fast
    assert "can't load this tokenizer" in tokenizer.with_engine("auto").engine_reason


def test_the_engine_is_chosen_by_name(bundled: ChatTokenizer) -> None:
    assert bundled.with_engine("auto").is_fast
    chosen = bundled.fast().with_engine("hf")
    assert (chosen.is_fast, chosen.engine_reason) == (False, "requested with --engine hf")


def test_half_a_character_is_refused_by_every_engine(bundled: ChatTokenizer) -> None:
    """No engine can encode it, so it is not a difference between them."""
    for tokenizer in (bundled, bundled.fast(), bundled.fast().checked()):
        with pytest.raises(TemplateFailed, match="U\\+D800, which is half of a character"):
            tokenizer.encode("\ud800")
    with pytest.raises(TemplateFailed):
        bundled.encode_with_offsets("a\udfff")


def test_the_reason_for_an_engine_is_kept_by_its_copies(bundled: ChatTokenizer) -> None:
    assert bundled.fast().engine_reason == "proved equal to the reference on probes"
    assert bundled.fast().checked().engine_reason == bundled.fast().engine_reason
    back = bundled.fast().by_reference("it differs")
    assert (back.is_fast, back.engine_reason) == (False, "it differs")
    assert bundled.checked() is bundled


def test_a_special_token_in_a_text_is_that_token_for_both() -> None:
    tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER))
    text = "a<|im_end|>b<|im_start|><|im_start|>"
    assert tokenizer.fast().checked().encode(text).tolist() == tokenizer.encode(text).tolist()
