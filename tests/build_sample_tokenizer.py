"""Rebuild the tokenizer of the bundled sample: `python tests/build_sample_tokenizer.py`.

A byte-level BPE, trained on the texts of train.jsonl only. The same texts give the same files,
byte for byte.
"""

from collections.abc import Iterator
from pathlib import Path

import orjson
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SAMPLE_DIR = Path(__file__).parents[1] / "sftctl" / "data" / "sample"
SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
]  # ids 0, 1, 2: pad, start of a message, eos
CHATML = (
    r"{% for message in messages %}"
    r"{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    r"{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "clean_up_tokenization_spaces": False,
    "chat_template": CHATML,
}


def iter_texts(path: Path) -> Iterator[str]:
    """Yield the head and the content of every message, as the chat template shows them."""
    for line in path.read_bytes().splitlines():
        for message in orjson.loads(line)["messages"]:
            yield f"{message['role']}\n"
            yield message["content"]


def build_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """Train the BPE. All 256 bytes are in the vocabulary, so every text comes back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    options = {
        "special_tokens": SPECIAL_TOKENS,
        "initial_alphabet": byte_level.alphabet(),
        "show_progress": False,
    }
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2048, **options))
    return tokenizer


if __name__ == "__main__":
    directory = SAMPLE_DIR / "tokenizer"
    directory.mkdir(exist_ok=True)
    build_tokenizer(iter_texts(SAMPLE_DIR / "train.jsonl")).save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_bytes(
        orjson.dumps(CONFIG, option=orjson.OPT_INDENT_2) + b"\n"
    )
