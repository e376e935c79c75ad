"""A tokenizer encodes each text completely, and as its files say; else one line says why not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.errors import ConfigError
from sftctl.model.source import on_stderr
from sftctl.model.tokenizer.template_errors import TemplateFailed
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer

TEXT = (
    "<|im_start|>user\nHello, this is one text of more than sixteen tokens 1234567890<|im_end|>\n"
)
Change = Callable[[dict[str, Any], dict[str, Any]], None]


def changed(tmp_path: Path, change: Change) -> Path:
    """A copy of the sample's tokenizer. `change` gets tokenizer.json and tokenizer_config.json."""
    folder = Path(shutil.copytree(SAMPLE_TOKENIZER, tmp_path / "tokenizer"))
    files = [folder / "tokenizer.json", folder / "tokenizer_config.json"]
    values = [json.loads(file.read_text()) for file in files]
    change(*values)
    for file, value in zip(files, values, strict=True):
        file.write_text(json.dumps(value))
    on_stderr.cache_clear()
    return folder


def _truncated(side: str) -> Change:
    limit = {"direction": side, "max_length": 16, "strategy": "LongestFirst", "stride": 0}
    return lambda tokenizer, config: tokenizer.update(truncation=limit)


def _padded(size: object) -> Change:
    filling = {"direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}
    padding = filling | {"strategy": size, "pad_to_multiple_of": None}
    return lambda tokenizer, config: tokenizer.update(padding=padding)


def _with_dropout(chance: float) -> Change:
    return lambda tokenizer, config: tokenizer["model"].update(dropout=chance)


def _both(first: Change, second: Change) -> Change:
    def change(tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
        first(tokenizer, config)
        second(tokenizer, config)

    return change


CUTS = "cuts each text to 16 tokens (truncation in tokenizer.json): not used here, max_seq_len"
RANDOM = "merges at random (dropout 0.5 in tokenizer.json): not used here"
SWITCHED_OFF = {
    "cut on the right": (_truncated("Right"), CUTS),
    "cut on the left": (_truncated("Left"), CUTS),
    "padded to a size": (_padded({"Fixed": 64}), None),
    "padded in a batch": (_padded("BatchLongest"), None),
    "cut and padded": (_both(_truncated("Left"), _padded({"Fixed": 16})), CUTS),
    "merged at random": (_with_dropout(0.5), RANDOM),
    "never merged": (_with_dropout(1.0), "merges at random (dropout 1 in"),
    "cut and merged at random": (_both(_truncated("Left"), _with_dropout(0.5)), RANDOM),
}


@pytest.mark.parametrize("kind", SWITCHED_OFF)
def test_a_text_has_all_its_tokens_and_always_the_same(
    bundled: ChatTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    change, line = SWITCHED_OFF[kind]
    found = load_tokenizer(str(changed(tmp_path, change)))
    expected = bundled.encode(TEXT).tolist()
    assert found.encode(TEXT).tolist() == expected
    assert found.fast().checked().encode(TEXT).tolist() == expected
    assert found.content_hash == bundled.content_hash
    warned = capsys.readouterr().err
    assert warned == "" if line is None else f"{found.name}: {line}" in warned
    found.save(tmp_path / "saved")  # as a run and a store write it
    assert load_tokenizer(str(tmp_path / "saved")).encode(TEXT).tolist() == expected
    assert capsys.readouterr().err == ""


def _class(name: str) -> Change:
    return lambda tokenizer, config: config.update(tokenizer_class=name)


OTHER_MODELS = {
    "BertTokenizer": "loads a WordPiece tokenizer (BertTokenizer), but tokenizer.json has a BPE",
    "T5Tokenizer": "T5Tokenizer (tokenizer_class in tokenizer_config.json) can't load",
    "DistilBertTokenizer": "loads a WordPiece tokenizer",
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_a_class_that_makes_another_tokenizer_of_the_file_is_refused(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(str(changed(tmp_path, _class(name))))
    assert OTHER_MODELS[name] in caught.value.message
    hint = caught.value.hint or ""
    assert 'set tokenizer_class in tokenizer_config.json to "PreTrainedTokenizerFast"' in hint


def _without_unknown(tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    words = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "known": 3}
    tokenizer["model"] = {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}


def test_a_word_that_no_token_stands_for_is_a_fault_of_its_row(tmp_path: Path) -> None:
    found = load_tokenizer(str(changed(tmp_path, _without_unknown))).with_engine("auto")
    assert found.encode("known").tolist() == [3]
    for encode in (found.encode, found.encode_with_offsets):
        with pytest.raises(TemplateFailed, match="the tokenizer can't encode the text: WordLevel"):
            encode("unknown")


def _special(**tokens: str) -> Change:
    return lambda tokenizer, config: config.update(tokens)


def _listed(tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    config |= {"pad_token": "[PAD]"}
    config["added_tokens_decoder"] = {"2048": {"content": "[PAD]", "special": True}}


UNKNOWN = {
    "an end": (_special(eos_token="<nope>"), "eos_token <nope> is not in tokenizer.json: it gets"),
    "a beginning": (_special(bos_token="<s>"), "bos_token <s> is not in tokenizer.json"),
    "other letters": (
        _special(pad_token="<｜pad｜>"),
        "pad_token <｜pad｜> is not in tokenizer.json",
    ),
    "listed in the settings": (_listed, None),
    "in the vocabulary": (_special(eos_token="a"), None),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_special_token_that_no_file_has_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    change, line = UNKNOWN[kind]
    load_tokenizer(str(changed(tmp_path, change)))
    warned = capsys.readouterr().err
    assert warned == "" if line is None else line in warned


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "tekken.json"])
def test_a_vocabulary_of_another_library_says_how_to_convert_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\n\x0bnot a model" if name != "tekken.json" else b"{}")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(str(tmp_path))
    spiece = "has no token for any text, because LlamaTokenizer (tokenizer_class in"
    line = spiece if name == "spiece.model" else f"{name} without tokenizer.json can't be loaded: "
    assert line in caught.value.message
    assert "AutoTokenizer.from_pretrained(…).save_pretrained(DIR)" in (caught.value.hint or "")
