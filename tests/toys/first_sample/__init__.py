"""The bundled sample of the versions up to 0.2: many short, varied conversations."""

from pathlib import Path

TRAIN = Path(__file__).parent / "train.jsonl"
VALIDATION = Path(__file__).parent / "validation.jsonl"
