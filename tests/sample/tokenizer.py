"""Write the bundled tokenizer: `python -m tests.sample.tokenizer`.

A byte-level BPE, trained on the texts of the first sample only, which was the bundled one up to
version 0.2. So runs of those versions go on. The same texts give the same files, byte for byte.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sftctl.data.sample import SAMPLE_TOKENIZER
from tests.toys.first_sample import TRAIN

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
]  # ids 0, 1, 2: pad, start of a message, eos
TOOLS = (  # the first message is a system message with the system's own text, if there is one
    r"{% if tools %}{{ '<|im_start|>system\n' }}"
    r"{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n' }}{% endif %}"
    r"{{ 'tools: ' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
)
CALLS = (
    r"{% if message['tool_calls'] %}{% for call in message['tool_calls'] %}"
    r"{{ '<tool_call>' + call['function']['name'] + ' ' }}"
    r"{{ (call['function']['arguments'] | tojson) + '</tool_call>' }}{% endfor %}{% endif %}"
)
CHATML = (
    TOOLS + r"{% for message in messages %}"
    r"{% if not (tools and loop.first and message['role'] == 'system') %}"
    r"{{ '<|im_start|>' + message['role'] + '\n' }}"
    r"{% if message['content'] %}{{ message['content'] }}{% endif %}"
    + CALLS
    + r"{{ '<|im_end|>\n' }}{% endif %}"
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
    options: dict[str, Any] = {
        "special_tokens": SPECIAL_TOKENS,
        "initial_alphabet": byte_level.alphabet(),
        "show_progress": False,
    }
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2048, **options))
    return tokenizer


def main(folder: Path) -> None:
    build_tokenizer(iter_texts(TRAIN)).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_bytes(
        orjson.dumps(CONFIG, option=orjson.OPT_INDENT_2) + b"\n"
    )


if __name__ == "__main__":
    main(SAMPLE_TOKENIZER)
