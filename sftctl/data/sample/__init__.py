"""Paths of the bundled sample."""

from pathlib import Path

_SAMPLE = Path(__file__).parent

SAMPLE_TOKENIZER = _SAMPLE / "tokenizer"


def sample_files() -> tuple[Path, Path]:
    """The bundled conversations: the training file and the validation file."""
    return _SAMPLE / "train.jsonl", _SAMPLE / "validation.jsonl"
