"""A .gguf file as the source of weights: which kind it is, and what transformers leaves out."""
