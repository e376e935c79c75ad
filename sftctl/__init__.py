"""sftctl fine-tunes causal language models on conversations."""

__version__ = "0.2.0"
