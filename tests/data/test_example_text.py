"""Stored examples are shown as text, with trained text apart from the rest."""

from pathlib import Path

from sftctl.config.schema import DataConfig
from sftctl.data.example_text import shown_examples
from sftctl.data.prepare.prepare import prepare_store
from sftctl.data.store import TokenStore
from sftctl.model.tokenizer.tokenizer import ChatTokenizer


def test_examples_are_shown_as_trained_and_other_text_with_special_tokens(
    tmp_path: Path, chatml: ChatTokenizer
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "Hi", "output": "Hello"}\n' * 3)
    prepare_store([rows], tmp_path / "s", chatml, DataConfig())
    shown = shown_examples(TokenStore.open(tmp_path / "s"), 2)
    assert (
        shown
        == [
            [
                ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False),
                ("Hello<|im_end|>", True),
                ("\n", False),
            ]
        ]
        * 2
    )
