"""A .gguf file as the source of weights: its kind, and the parts that transformers ignores."""
