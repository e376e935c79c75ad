"""The bundled sample: what it teaches, and the program that writes it.

`python -m tests.sample.generate` writes sftctl/data/sample/train.jsonl and validation.jsonl.
"""
