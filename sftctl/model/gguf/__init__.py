"""Read weights from .gguf files: which files are refused, and what transformers does not read."""
