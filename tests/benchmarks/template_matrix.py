"""Cross chat templates with conversations: what is kept, and whether its masks are right.

`python -m tests.benchmarks.template_matrix FOLDER` reads every .jinja file of a folder. The bundled
tokenizer gets the special tokens that a template writes. A kept turn is right if it ends with a
special token, and if the tokens before it are the prompt that the template itself renders. If the
prompt ends with a thinking block, the block may be missing, because some turns repeat it. If this
block is closed, the turn must not begin with its closing tag.
"""

import argparse
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken
from transformers import AutoTokenizer

from sftctl.data.conversations.conversation import Conversation, from_row
from sftctl.data.example import TokenizedExample
from sftctl.data.ledger import BadRow, SourceLine
from sftctl.data.masks.encode import tokenize
from sftctl.data.masks.server_form import as_servers_send
from sftctl.data.masks.thinking import opened_block
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.model.tokenizer.tokenizer import ChatTokenizer
from tests.toys.masks.conversations import CONVERSATIONS

_SPECIAL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|\[/?[A-Z_]{3,20}\]|</?s>|<(?:start|end)_of_turn>"
    r"|<\|turn>|<turn\|>|<\|channel>|<channel\|>|\[gMASK\]|<sop>|<seed:[a-z]+>|<SPECIAL_\d+>"
)
_ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<|return|>", "<|end|>", "<end_of_turn>", "<turn|>", "</s>"),
    *("<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>", "<|assistant_end|>", "<|endoftext|>"),
)


def tokenizer_of(file: Path) -> ChatTokenizer:
    """The bundled tokenizer with the special tokens of a template."""
    template = file.read_text(encoding="utf-8")
    hf = AutoTokenizer.from_pretrained(SAMPLE_TOKENIZER)
    end = next((end for end in _ENDS if end in template), "</s>")
    hf.add_special_tokens({"eos_token": end, "bos_token": "<s>"})
    texts = sorted({*_SPECIAL.findall(template), "</s>"})
    hf.add_tokens([AddedToken(text, special=True, normalized=False) for text in texts])
    hf.chat_template = template
    return ChatTokenizer(hf, file.name)


def outcome(row: dict[str, Any], tokenizer: ChatTokenizer) -> str:
    """`kept`, `wrong`, or the reason why the row is dropped."""
    conversation = from_row(row, "auto", SourceLine("matrix", 1))
    try:
        examples = tokenize(conversation, tokenizer, "assistant")
    except BadRow as problem:
        return problem.reason
    sent = as_servers_send(conversation, tokenizer)
    trained = [pair for example in examples for pair in _trained(example, tokenizer)]
    prompts = [_prompt(sent, turn, tokenizer) for turn in sent.target_turns]
    is_right = all(_is_right(before, run, prompts, tokenizer) for before, run in trained)
    return "kept" if is_right else "wrong"


def _trained(example: TokenizedExample, tokenizer: ChatTokenizer) -> list[tuple[list[int], str]]:
    """(the tokens before it, its text) of every run of trained tokens."""
    edges = [0, *(np.flatnonzero(np.diff(example.loss_mask)) + 1).tolist(), example.num_tokens]
    return [
        (example.input_ids[:start].tolist(), tokenizer.decode(example.input_ids[start:end]))
        for start, end in pairwise(edges)
        if example.loss_mask[start]
    ]


def _prompt(row: Conversation, turn: int, tokenizer: ChatTokenizer) -> str:
    """The prompt for a turn as the template renders it; empty if it renders none."""
    try:
        return tokenizer.render(list(row.messages[:turn]), row.tools, True) if turn else ""
    except Exception:  # a template can raise anything
        return ""


def _is_right(before: list[int], run: str, prompts: list[str], tokenizer: ChatTokenizer) -> bool:
    if not run.endswith(tokenizer.special_texts):
        return False
    for prompt in prompts:
        block = opened_block(prompt)
        without = prompt.removesuffix(block.text) if block else prompt
        if block and not block.is_open and run.lstrip().startswith(block.closer):
            return False  # the prompt has closed the block already
        if not prompt or any(before == tokenizer.encode(p).tolist() for p in {prompt, without}):
            return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of .jinja files")
    files = sorted(parser.parse_args().folder.glob("*.jinja"))
    tokenizers = [tokenizer_of(file) for file in files]
    counts = Counter(
        outcome(row, tokenizer) for tokenizer in tokenizers for row in CONVERSATIONS.values()
    )
    print(f"{len(files)} templates, {len(CONVERSATIONS)} conversations")
    for name, count in counts.most_common():
        print(f"{count:6,} {name}")


if __name__ == "__main__":
    main()
