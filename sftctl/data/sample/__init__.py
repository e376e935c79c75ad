"""Paths of the sample: conversations and a tokenizer that are installed with sftctl."""

from pathlib import Path

_SAMPLE = Path(__file__).parent

SAMPLE_TOKENIZER = _SAMPLE / "tokenizer"


def sample_files() -> tuple[Path, Path]:
    """The files of the sample: the training file and the validation file."""
    return _SAMPLE / "train.jsonl", _SAMPLE / "validation.jsonl"
