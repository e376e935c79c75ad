"""Rebuild the tokenizer of the bundled sample: `python tests/build_sample_tokenizer.py`.

A byte-level BPE, trained on the texts of train.jsonl only. The same texts give the same files, byte for byte.
"""

from collections.abc import Iterator
from pathlib import Path

import orjson
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SAMPLE_DIR = Path(__file__).parents[1] / "sftctl" / "data" / "sample"
VOCAB_SIZE = 2048
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2: pad, start of a message, eos
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def iter_texts(path: Path) -> Iterator[str]:
    """Yield the header and the content of every message, as the chat template will show them."""
    for line in path.read_bytes().splitlines():
        for message in orjson.loads(line)["messages"]:
            yield f"{message['role']}\n"
            yield message["content"]


def build_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Train the BPE. All 256 bytes are in the vocabulary, so every text comes back unchanged."""
    bpe = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
        ),
    )
    pad, _, eos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=pad, eos_token=eos, chat_template=CHATML, clean_up_tokenization_spaces=False
    )


if __name__ == "__main__":
    build_tokenizer(iter_texts(SAMPLE_DIR / "train.jsonl")).save_pretrained(SAMPLE_DIR / "tokenizer")
