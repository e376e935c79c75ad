"""Where the bundled sample lies."""

from pathlib import Path

_SAMPLE = Path(__file__).parent

SAMPLE_TOKENIZER = _SAMPLE / "tokenizer"


def sample_files() -> tuple[Path, Path]:
    """The bundled conversations: to train on, and to validate with."""
    return _SAMPLE / "train.jsonl", _SAMPLE / "validation.jsonl"
